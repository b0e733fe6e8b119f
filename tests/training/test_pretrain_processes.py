"Pretraining that is killed, starved, damaged, shared out, extended and timed, as processes of their own."

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time

import pytest
from conftest import BIN, ENV, KILLS, here, kill_often, stage_process, steps_of

# ELITE112M_KILLS=20 ELITE112M_KILL_PRESET=nano: the whole nano, twenty times killed (about ten minutes)
NANO = os.environ.get("ELITE112M_KILL_PRESET") == "nano"
STAGE = """import sys
from elite112m.core.runs import run_stage
from elite112m.training.pretrain import pretrain
run_stage(pretrain, sys.argv[1])"""
LONG = {"pretrain.steps": 90, "pretrain.checkpoint_every": 4, "pretrain.log_every": 3, "pretrain.eval_every": 7}


def prepared_run(folder, tiny, settings):
    sets = [a for k, v in settings.items() for a in ("--set", f"{k}={v}")]
    done = here("elite112m", "prepare", "--run", folder, "--preset", "nano", *tiny, *sets)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny):
    return prepared_run(tmp_path_factory.mktemp("engine") / "run", tiny, LONG)


def stage(run, **kw):
    return stage_process(STAGE, run, **kw)


def finish(run, **kw):
    p = stage(run, **kw)
    out = p.communicate(timeout=900)[0]
    return p.returncode, out


def rows(run):
    return steps_of(run, "pretrain")


def weights(run):
    return (run / "pretrain/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(prepared, tmp_path_factory):
    "The run that nothing happens to."
    run = shutil.copytree(prepared, tmp_path_factory.mktemp("whole") / "run")
    code, out = finish(run)
    assert code == 0, out
    return run


@pytest.mark.parametrize("precision", ["fp32", "fp8"])
def test_killed_anywhere_ends_the_same(prepared, whole, tmp_path, tiny, precision):
    if NANO:
        nano = {"pretrain.precision": precision, "pretrain.checkpoint_every": 10}
        base = prepared_run(tmp_path / "nano", [], nano)
    elif precision == "fp8":
        base = prepared_run(tmp_path / "fp8", tiny, LONG | {"pretrain.precision": "fp8"})
    else:
        base = prepared
    run = shutil.copytree(base, tmp_path / "run")
    if base is not prepared:
        whole = base
        assert finish(whole)[0] == 0
    times, steps = KILLS if precision == "fp32" else max(KILLS // 3, 1), 80 if NANO else LONG["pretrain.steps"]
    assert kill_often(STAGE, run, "pretrain", steps, times, precision)
    code, out = finish(run)
    assert code == 0, out
    assert weights(run) == weights(whole)
    assert rows(run) == rows(whole)
    assert not [f for f in run.rglob("*") if ".tmp" in f.name]


def test_extension_killed_at_its_start_goes_on(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    longer = STAGE.replace("sys.argv[1])", "sys.argv[1], settings={'pretrain.steps': 110}, extend=True)")
    once = shutil.copytree(run, tmp_path / "once")
    assert subprocess.run([sys.executable, "-c", longer, str(once)], env=ENV, capture_output=True).returncode == 0
    p = subprocess.Popen(
        [sys.executable, "-c", longer, str(run)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENV
    )
    for line in p.stdout:
        if "trains on" in line:
            break
    time.sleep(random.Random(1).uniform(0.1, 1))
    p.kill()
    p.communicate()
    code, out = finish(run)
    assert code == 0 and weights(run) == weights(once) != weights(whole), out
    assert rows(run) == rows(once) and rows(run)[-1]["step"] == 110


def test_full_disk_costs_the_save_only(prepared, whole, tmp_path):
    run = shutil.copytree(prepared, tmp_path / "run")
    largest = max(f.stat().st_size for f in (whole / "pretrain/checkpoints").rglob("*"))
    limit = (largest - 1000, resource.RLIM_INFINITY)
    code, out = finish(run, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert code != 0 and "could not save at step" in out and "training goes on" in out, out[-2000:]
    assert "cannot save the end" in out and "make room" in out
    assert [r["step"] for r in rows(run)][-1] == LONG["pretrain.steps"]  # it trained to its end
    code, out = finish(run)  # with room again
    assert code == 0 and weights(run) == weights(whole), out[-2000:]


def test_unwritable_run_folder(prepared, tmp_path):
    run = tmp_path / "file"
    run.write_text("not a folder")
    done = here("elite112m", "pretrain", "--run", run)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr


@pytest.fixture
def stopped(prepared, tmp_path):
    "A run that was stopped on the way, by SIGTERM."
    run = shutil.copytree(prepared, tmp_path / "run")
    p = stage(run)
    for line in p.stdout:
        if "plan:" in line:
            break
    while not (run / "pretrain/checkpoints/step-00000012").exists():
        time.sleep(0.01)
    p.terminate()
    out = p.communicate(timeout=60)[0]
    assert "checkpoint saved" in out, out
    return run


@pytest.mark.parametrize(
    "change",
    [lambda data: data[:-100], lambda data: data[:-9] + bytes([data[-9] ^ 4]) + data[-8:]],
    ids=["cut", "flipped"],
)
def test_damaged_checkpoint_is_named_and_passed_over(stopped, whole, change):
    newest = sorted((stopped / "pretrain/checkpoints").glob("step-*"))[-1] / "optimizer.safetensors"
    newest.write_bytes(change(newest.read_bytes()))
    code, out = finish(stopped)
    assert code == 0 and f"{newest} is damaged" in out and "using the checkpoint before it" in out, out
    assert weights(stopped) == weights(whole) and rows(stopped) == rows(whole)


def test_checkpoint_of_another_preset_is_refused(stopped, tmp_path, tiny):
    other = prepared_run(tmp_path / "other", tiny, LONG | {"model.d_ff": 96})
    assert finish(other)[0] == 0
    shutil.rmtree(stopped / "pretrain/checkpoints")
    shutil.copytree(other / "pretrain/checkpoints", stopped / "pretrain/checkpoints")
    code, out = finish(stopped)
    assert code != 0 and "another preset" in out, out
    done = here("elite112m", "pretrain", "--run", stopped, "--set", "pretrain.lr=1e-3")
    assert done.returncode == 2 and "pretrain.lr=0.028, not 0.001" in done.stderr and done.stderr.count("\n") == 1, (
        done.stderr
    )


# ---- ranks ---------------------------------------------------------------------------------------


def two_ranks_for_a_while(run, *options):
    "Goes on with two ranks, and is stopped some steps later."
    command = [
        BIN / "torchrun",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0",
        "--no-python",
        "--",
        BIN / "elite112m",
        "pretrain",
        "--run",
        run,
        *options,
    ]
    begun = max(int(c.name[5:]) for c in (run / "pretrain/checkpoints").glob("step-*"))
    p, lines = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENV), []
    for line in p.stdout:
        lines.append(line)
        if "plan:" in line:
            break
    while p.poll() is None and max(int(c.name[5:]) for c in (run / "pretrain/checkpoints").glob("step-*")) < begun + 6:
        time.sleep(0.01)
    p.terminate()
    out = "".join(lines) + p.communicate(timeout=120)[0]
    assert "checkpoint saved" in out and f"continues at step {begun}" in out, out


def test_one_rank_two_ranks_one_rank(stopped, whole):
    "Two ranks that copy the model, then two that split it, then one: the curve of one rank, but for the last digits."
    two_ranks_for_a_while(stopped)
    two_ranks_for_a_while(stopped, "--set", "pretrain.shard=true")
    code, out = finish(stopped)
    assert code == 0 and "continues at step" in out, out
    mine, theirs = rows(stopped), rows(whole)
    assert [r["step"] for r in mine] == [r["step"] for r in theirs]
    for a, b in zip(mine, theirs):
        for k in ("loss", "val_loss"):
            if k in b:
                assert abs(a[k] - b[k]) < 2e-3 * b[k], (a, b)


# ---- length --------------------------------------------------------------------------------------


def test_tokens_hours_and_extension_through_the_command_line(prepared, tmp_path):
    run = shutil.copytree(prepared, tmp_path / "run")
    done = here("elite112m", "pretrain", "--run", run, "--tokens", "5e3")  # 512 tokens a step
    assert done.returncode == 0 and "plan: 10 steps of 512 tokens" in done.stderr, done.stderr
    done = here("elite112m", "pretrain", "--run", run, "--steps", "14")
    assert done.returncode == 2 and "--extend" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    done = here("elite112m", "pretrain", "--run", run, "--steps", "14", "--extend")
    assert done.returncode == 0 and "plan: 4 steps" in done.stderr, done.stderr
    assert rows(run)[-1]["step"] == 14
    done = here("elite112m", "pretrain", "--run", run, "--steps", "9", "--extend")
    assert done.returncode == 2 and "14 steps already" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    reached = 14
    for _ in range(2):  # an hour more, and another
        done = here("elite112m", "pretrain", "--run", run, "--hours", "0.0005", "--extend")
        assert done.returncode == 0 and rows(run)[-1]["step"] > reached, done.stderr
        reached = rows(run)[-1]["step"]
    done = here("elite112m", "pretrain", "--run", run, "--hours", "1", "--steps", "5")
    assert done.returncode == 2 and "give one of them" in done.stderr
    assert json.loads((run / "pretrain/stage.json").read_text())["status"] == "done"


def test_the_first_signal_only_sets_the_flag():
    code = """import os, signal
from elite112m.training.pretrain import stop_flag
with stop_flag() as flag:
    os.kill(os.getpid(), signal.SIGINT)
print("asked to stop:", flag.is_set())"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert done.stdout == "asked to stop: True\n", done.stderr
