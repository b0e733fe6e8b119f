"Input files that several checks of this folder use, good and bad."

import gzip
import hashlib
import json
import os


def hashes(folder):
    return {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir()) if f.name != "stage.json"
    }


def write_rows(path, r):
    "Documents of numbers with a short and an empty one, and 60 bytes that SmolLM2's vocabulary lacks."
    with open(path, "w") as f:
        f.write('{"text": "short"}\n{"text": null}\n')
        for i in range(6000):
            numbers = " ".join(str(r.randrange(10**6)) for _ in range(r.randint(1, 60)))
            f.write(json.dumps({"text": f"Row {i}: {numbers}" + "\x04" * (i % 100 == 0)}) + "\n")


def bad_source(kind, d):
    "A source that cannot be used, and the other arguments it takes."
    import pyarrow as pa
    import pyarrow.parquet as pq

    good = "A line of text that is long enough to be a document. "
    rows = [{"text": good + str(i)} for i in range(3000)]

    def file(name, data=b""):
        (d / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return d / name

    def parquet(name, **columns):
        pq.write_table(pa.table(columns), d / name)
        return d / name

    lines = lambda rows: "".join(json.dumps(r) + "\n" for r in rows)
    match kind:
        case "missing":
            return d / "gone.txt"
        case "empty":
            return file("empty.txt")
        case "blank":
            return file("blank.txt", " \n" * 100)
        case "binary":
            return file("noise.bin", bytes(range(256)) * 40)
        case "not UTF-8":
            return file("latin.txt", "café".encode("latin-1") * 500)
        case "nothing readable":
            (d / "folder").mkdir()
            (d / "folder/x.png").write_bytes(b"\x89PNG")
            return d / "folder"
        case "no text column":
            return parquet("q.parquet", question=["why?"])
        case "no such column":
            return f"{parquet('q.parquet', text=['why?'])}:column=body"
        case "numbers":
            return parquet("n.parquet", text=[1, 2])
        case "lists":
            return parquet("l.parquet", text=[["a"], ["b"]])
        case "only nulls":
            return parquet("null.parquet", text=pa.array([None] * 9, pa.string()))
        case "truncated parquet":
            path = parquet("t.parquet", text=[good] * 999)
            path.write_bytes(path.read_bytes()[:200])
            return path
        case "damaged parquet":
            path = parquet("t.parquet", text=[os.urandom(60).hex() for _ in range(9000)])
            data = bytearray(path.read_bytes())
            data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
            path.write_bytes(data)
            return path
        case "broken JSON":
            return file("b.jsonl", '{"text": "fine"}\n{"text": \n')
        case "broken JSON far down":
            return file("b.jsonl", lines(rows) + '{"text": ')
        case "numbers in JSON":
            return file("n.jsonl", lines(rows + [{"text": 5}]))
        case "lists in JSON":
            return file("l.jsonl", "[1, 2]\n")
        case "only invalid UTF-8":
            return file("u.jsonl", b'{"text": "\xff\xfe"}\n' * 9)
        case "truncated gzip":
            return file("t.jsonl.gz", gzip.compress(lines(rows).encode())[:-2000])
        case "truncated zstd":
            return file("t.jsonl.zst", pa.compress(lines(rows).encode(), "zstd", asbytes=True)[:-20])
        case "no gzip at all":
            return file("t.jsonl.gz", lines(rows))
        case "too short":
            return file("s.jsonl", lines([{"text": "hm"}] * 99))
        case "too little":
            return file("s.jsonl", lines(rows[:2]))
        case "unknown option":
            return f"{file('a.jsonl', lines(rows))}:wieght=2"
        case "weight":
            return f"{file('a.jsonl', lines(rows))}:weight=-1"
        case "budget":
            return f"{file('a.jsonl', lines(rows))}:tokens=1e12"
        case "no hub":
            return "hf:somebody/nothing"
        case "too deep":
            return file("d.jsonl", "[" * 100_000 + "\n" + '{"text": ' + "[" * 100_000 + "\n")
        case "two columns of one name":
            pq.write_table(
                pa.Table.from_arrays(
                    [pa.array(["a long enough text"]), pa.array(["and another text"])], names=["text", "text"]
                ),
                d / "two.parquet",
            )
            return d / "two.parquet"
        case "name that is not UTF-8":
            path = os.fsencode(d) + b"/caf\xe9.txt"
            open(path, "w").write(good * 99)
            return os.fsdecode(path)
        case "damaged local hub data":
            (d / "hub").mkdir()
            path = parquet("hub/t.parquet", text=[os.urandom(60).hex() for _ in range(9000)])
            data = bytearray(path.read_bytes())
            data[len(data) // 2 : len(data) // 2 + 4000] = bytes(4000)
            path.write_bytes(data)
            return f"hf:{d}/hub"


KINDS = [
    "missing",
    "empty",
    "blank",
    "binary",
    "not UTF-8",
    "nothing readable",
    "no text column",
    "no such column",
    "numbers",
    "lists",
    "only nulls",
    "truncated parquet",
    "damaged parquet",
    "broken JSON",
    "broken JSON far down",
    "numbers in JSON",
    "lists in JSON",
    "only invalid UTF-8",
    "truncated gzip",
    "truncated zstd",
    "no gzip at all",
    "too short",
    "too little",
    "unknown option",
    "weight",
    "budget",
    "no hub",
    "too deep",
    "two columns of one name",
    "name that is not UTF-8",
    "damaged local hub data",
]
AS_PROCESS = ("missing", "damaged parquet", "name that is not UTF-8")


def check_refused(ask, d, kind, tiny):
    "A run with an unusable source, started by `ask`, ends with one line that names it, and leaves nothing."
    source = bad_source(kind, d)
    done = ask("elite112m", "run", "nano", "--out", d / "run", "--data", source, *tiny)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("elite112m: ") and "Traceback" not in done.stderr, done.stderr
    named = (
        str(source).partition(":column")[0].partition(":tokens")[0].encode("utf-8", "replace").decode().replace("?", "")
    )
    assert named[: len(str(d)) + 4] in last or kind == "budget", last
    assert not (d / "run").exists()
