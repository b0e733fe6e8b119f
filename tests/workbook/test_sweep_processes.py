"A sweep through the command line: a table and a page, whatever happens on the way."

import csv
import signal
import subprocess
import time

import psutil
import pytest
from conftest import BIN, ENV, here, sh

GRID = ("--grid", "pretrain.lr=3e-3,1e30", "--grid", "pretrain.recipe=ours,original", "--seeds", "2", "--jobs", "2")


def rows_of(out):
    with open(out / "sweep.csv") as f:
        return {r["point"]: r for r in csv.DictReader(f)}


def wait_for(process, what, seconds=300):
    end = time.time() + seconds
    while not what():
        assert process.poll() is None and time.time() < end, "nothing happened"
        time.sleep(0.1)


def below(pid):
    return psutil.Process(pid).children(recursive=True)


@pytest.fixture(scope="module")
def swept(tmp_path_factory, tiny):
    "A sweep of eight points, half of which must diverge, killed when the first was finished, and continued."
    out = tmp_path_factory.mktemp("sweeps") / "lr"
    args = ["elite112m", "sweep", "nano", *tiny, *GRID, "--out", out]
    first = subprocess.Popen([str(BIN / args[0]), *map(str, args[1:])], env=ENV, stderr=subprocess.DEVNULL)
    wait_for(first, lambda: list(out.glob("points/*/pretrain/model.safetensors")) and below(first.pid))
    left = below(first.pid)
    first.kill()
    first.wait()
    _, alive = psutil.wait_procs(left, timeout=60)
    assert not alive, "points outlived their sweep"
    before = {p: p.stat().st_mtime_ns for p in out.glob("points/*/pretrain/model.safetensors")}
    return out, before, sh(*args)


def test_killed_sweep_ends_with_the_whole_table(swept):
    out, before, done = swept
    assert done.returncode == 0, done.stderr[-2000:]
    rows = rows_of(out)
    assert len(rows) == 8 and before
    for p, written in before.items():
        assert p.stat().st_mtime_ns == written, "a finished point was trained again"
    for name, r in rows.items():
        assert r["status"] == ("diverged" if "lr=1e30" in name else "done"), r
        assert (r["lr"], r["recipe"], r["seed"]) == tuple(part.split("=")[1] for part in name.split(","))
        if r["status"] == "done":
            assert r["tokens"] == "6144" and 4 < float(r["best_val_loss"]) <= float(r["final_val_loss"]) < 6.5
        else:
            assert "loss" in r["error"] and not r["final_val_loss"]
    finals = [r["final_val_loss"] for r in rows.values() if r["status"] == "done"]
    assert len(set(finals)) == 4, "settings or seeds made no difference"
    lines = done.stdout.splitlines()
    assert len(lines) == 5 and "+-" in lines[1] and "lr=3e-3" in lines[1] and "2 diverged" in lines[4]


def test_points_share_the_data_and_are_runs(swept):
    out = swept[0]
    assert len(list(out.glob("prepared/*/data/train.bin"))) == 1
    point = out / "points/lr=3e-3,recipe=ours,seed=1"
    status = here("elite112m", "status", "--run", point)
    assert status.returncode == 0 and status.stdout.count("done") == 2, status.stderr
    assert not list(out.rglob("*.tmp"))


def test_page_stands_alone(swept):
    page = (swept[0] / "sweep.html").read_text()
    assert (
        page.count("<svg") == 1
        and "recipe=original" in page
        and "2 diverged" in page
        and "<script" not in page
        and 'src="' not in page
    )


def test_other_settings_do_not_mix(swept, tiny):
    done = here("elite112m", "sweep", "nano", *tiny, "--set", "pretrain.clip=2", *GRID, "--out", swept[0])
    assert done.returncode == 2 and "pretrain.clip" in done.stderr and "--out" in done.stderr


def test_interrupted_sweep_leaves_no_process(tmp_path, tiny):
    args = [
        *tiny,
        "--set",
        "pretrain.steps=100000",
        "--grid",
        "pretrain.lr=1e-3,2e-3",
        "--jobs",
        "2",
        "--out",
        str(tmp_path / "s"),
    ]
    run = subprocess.Popen([BIN / "elite112m", "sweep", "nano", *args], env=ENV, stderr=subprocess.PIPE, text=True)

    def begun():
        return {f.parents[2] for f in tmp_path.glob("s/points/*/pretrain/checkpoints/step-*")}

    wait_for(run, lambda: len(begun()) == 2)  # both points: one may be quicker than the other
    left = below(run.pid)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=120)
    assert (
        run.returncode == 130 and said.splitlines()[-1] == "elite112m: stopped; the same command goes on from here"
    ), said[-500:]
    assert not psutil.wait_procs(left, timeout=60)[1]
    assert {r["status"] for r in rows_of(tmp_path / "s").values()} == {"unfinished"}
