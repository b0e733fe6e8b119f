"Benchmarks end with everything they started, whatever ends them; and say all they measured."

import json
import signal
import subprocess
import time

import psutil
import pytest
from conftest import BIN, ENV, sh

SHAPE = ("--set", "model.n_layers=1", "--set", "model.vocab_size=320", "--batch", "1x16")
TRAIN = ("bench", "train", "--preset", "nano", *SHAPE, "--precision", "fp32", "--no-compile", "--beside", "2")


def is_busy(process):
    "Whether a process is one of those that keep a core busy."
    try:
        return any("getppid" in part for part in process.cmdline())
    except psutil.Error:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_benchmark_that_is_stopped(tmp_path, number):
    "Stopped by a signal to the command alone, while it measures beside busy processes."
    args = [BIN / "elite112m", *TRAIN, "--steps", "600"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    hear = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # pytest may run in the background
    bench = subprocess.Popen([*map(str, args)], env=ENV | {"TMPDIR": str(tmp_path)}, preexec_fn=hear, **quiet)
    end, found = time.time() + 120, []
    while sum(map(is_busy, found)) < 2:
        assert bench.poll() is None and time.time() < end, "nothing was measured beside busy processes"
        time.sleep(0.1)
        found = psutil.Process(bench.pid).children(recursive=True)
    bench.send_signal(number)
    code = bench.wait(60)
    _, alive = psutil.wait_procs(found, timeout=20)
    assert not alive, [p.cmdline() for p in alive]
    if number != signal.SIGKILL:  # then nothing can be tidied up
        ours = [p for p in tmp_path.iterdir() if not p.name.startswith("torchinductor_")]  # torch's own cache stays
        assert code == 128 + number and ours == []


def test_several_presets_in_one_flat_result(tmp_path):
    "Idle and beside busy processes, each preset's figures under its own name, and no process left."
    before = {p.pid for p in psutil.process_iter() if is_busy(p)}
    more = ("--preset", "micro", "--steps", "2", "--rounds", "1", "--threads", "1", "--json", tmp_path / "found.json")
    done = sh("elite112m", *TRAIN, *more)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["presets"] == ["nano", "micro"]
    for preset in ("nano", "micro"):
        for who in ("ours_eager", "transformers_eager"):
            figures = [found[f"{preset}.{who}_{key}"] for key in ("tok_s", "beside_tok_s", "kept", "peak_gb")]
            assert all(f > 0 for f in figures), (preset, who, figures)
        assert found[f"{preset}.ratio"] > 0 and (found[f"{preset}.threads"], found[f"{preset}.beside"]) == (1, 2)
    assert not {p.pid for p in psutil.process_iter() if is_busy(p)} - before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_stage_outlives_a_profiled_run_that_is_stopped(tmp_path, tiny, number):
    "Stopped by a signal to the command alone, while a stage is at work in its own process."
    long = ["--set", "pretrain.steps=100000", "--set", "pretrain.max_epochs=0"]
    args = [BIN / "elite112m", "bench", "run", *tiny, *long]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    bench = subprocess.Popen([*map(str, args)], env=ENV | {"TMPDIR": str(tmp_path)}, **quiet)
    end = time.time() + 120
    while not list(tmp_path.glob("elite112m-bench-*/run/pretrain/metrics.jsonl")):
        assert bench.poll() is None and time.time() < end, "pretraining has not begun"
        time.sleep(0.1)
    found = psutil.Process(bench.pid).children(recursive=True)
    bench.send_signal(number)
    code = bench.wait(60)
    _, alive = psutil.wait_procs(found, timeout=20)
    assert found and not alive, [p.cmdline() for p in alive]
    if number != signal.SIGKILL:  # then nothing can be tidied up
        assert code == 128 + number and not list(tmp_path.glob("elite112m-bench-*"))


def test_a_profiled_run_has_all_its_seconds_and_stays_where_it_was_asked_to(tmp_path, tiny):
    "Each stage in a process of its own, with its imports; table, JSON, picture and the run."
    files = ["--json", tmp_path / "run.json", "--picture", tmp_path / "run.png", "--out", tmp_path / "kept"]
    done = sh("elite112m", "bench", "run", *tiny, *files)
    assert done.returncode == 0 and "wall time" in done.stdout, done.stderr
    found = json.loads((tmp_path / "run.json").read_text())
    assert [*found["stages"]] == ["prepare", "pretrain", "sft", "evaluate", "export", "report"]
    for about in found["stages"].values():
        assert abs(sum(about["parts"].values()) - about["wall_s"]) < 1e-3 and about["parts"]["start, imports, end"] > 0
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "kept/report.html").is_file() and (tmp_path / "kept/export/hf/config.json").is_file()
