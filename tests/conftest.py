"Shared by the checks: how commands are run, and the last line that continuous integration reads."

import io
import os
import pkgutil
import random
import shutil
import subprocess
import sys
import time
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

# Two checks run at a time on two cores; the hub is never asked.
for name in ("IN_TEST", "ELITE112M_COMMAND"):
    os.environ.pop(name, None)
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ENV = dict(os.environ)


def sh(*args, timeout=300, **kw):
    "Run a command of this environment to its end, output captured as text."
    return subprocess.run(
        [str(BIN / args[0]), *map(str, args[1:])], capture_output=True, text=True, timeout=timeout, env=ENV, **kw
    )


def bare(run, stage, preset, overrides, force=False, device="auto", extend=False):
    "What the notebook of a stage does, without the notebook and its kernel."
    from elite112m.core.config import InputError
    from elite112m.core.runs import run_stage
    from elite112m.core.stages import STAGES
    from elite112m.workbook.workbook import StageFailed

    do = pkgutil.resolve_name(STAGES[stage].function)
    on = {} if stage in ("prepare", "export") else {"device": device}
    try:
        run_stage(do, run.path, preset, overrides, force, extend, **on)
    except (InputError, KeyboardInterrupt):
        raise
    except Exception as e:
        raise StageFailed(f"{stage} failed: {type(e).__name__}: {e}", run.path) from e


def here(*args, cwd="."):
    """The same as `sh` within this process, stages without their notebooks.

    It takes seconds less, and serves whatever is not about processes or notebooks."""
    from elite112m.workbook import cli, workbook

    assert args[0] == "elite112m"
    out, err, ended = io.StringIO(), io.StringIO(), None
    with pytest.MonkeyPatch.context() as patch, chdir(cwd), redirect_stdout(out), redirect_stderr(err):
        patch.setattr(workbook, "run_notebook", bare)
        patch.setenv("ELITE112M_COMMAND", "1")
        try:
            cli.main([str(a) for a in args[1:]])
        except SystemExit as e:
            ended = e.code
    return subprocess.CompletedProcess(args, ended, out.getvalue(), err.getvalue())


KILLS = int(os.environ.get("ELITE112M_KILLS", 3))  # how often the stages are killed


def stage_process(code, run, **kw):
    "Python that runs a stage of the run, without a notebook around it."
    out = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen([sys.executable, "-c", code, str(run)], **out, env=ENV, **kw)


def steps_of(run, stage):
    "What the metrics of a stage say but for the times; nothing before the first."
    from elite112m.training.metrics import read_metrics, timeless

    path = run / stage / "metrics.jsonl"
    return timeless(read_metrics(path)) if path.exists() else []


def kill_often(code, run, stage, steps, times=KILLS, seed=0):
    "SIGKILL a stage at random moments, spread over its steps; returns the steps it had reached."
    rng, reached = random.Random(seed), []
    so_far = lambda: max((r["step"] for r in steps_of(run, stage)), default=0)
    for goal in sorted(rng.sample(range(steps * 9 // 10), times)):
        p = stage_process(code, run)
        for line in p.stdout:
            if "plan:" in line:
                break  # from here on it trains
        while p.poll() is None and so_far() < goal:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        if p.poll() is not None:
            break  # it was done first
        p.kill()
        p.communicate()
        reached.append(so_far())
    print(len(reached), "times killed, at", reached)
    return reached


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "The checks of a file stay on one worker, so that what they share is made once; notebooks share nothing."
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return nodeid if "test_notebooks" in nodeid else nodeid.split("::")[0]

    return ByFile(config, log)


@pytest.fixture(scope="session")
def tiny():
    "Options that shrink the nano preset to seconds."
    from elite112m.core.presets import TINY

    return [a for k, v in TINY.items() for a in ("--set", f"{k}={v}")]


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    "A function of a context length: the folder of an untrained model so small that it answers at once."
    import torch

    from elite112m.core.config import ModelConfig
    from elite112m.data.tokenizer import train_tokenizer
    from elite112m.model.pretrained import save_model
    from elite112m.model.transformer import CausalLM

    def made(context):
        folder = tmp_path_factory.mktemp("toys") / f"toy{context}"
        folder.mkdir()
        torch.manual_seed(0)
        save_model(CausalLM(ModelConfig(300, 2, 64, 4, 2, 96, context)).eval(), folder)
        train_tokenizer(["a b c d e"] * 4, 300).save(folder)
        return folder

    return made


def pytest_configure(config):
    config.addinivalue_line("markers", "processes: starts processes (a file named test_*_processes.py)")
    config.addinivalue_line("markers", "notebooks: runs a whole notebook")


def pytest_collection_modifyitems(items):
    "What takes long is marked by the name of its file, so that `make check` can leave it out."
    for item in items:
        if item.path.stem.endswith("_processes"):
            item.add_marker("processes")
        if item.path.stem == "test_notebooks":
            item.add_marker("notebooks")


_counts = {"passed": 0, "failed": 0}


def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed:
        _counts["passed"] += 1
    if report.failed:
        _counts["failed"] += 1


def pytest_collectreport(report):
    if report.failed:
        _counts["failed"] += 1


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        print(f"{_counts['passed']} passed, {_counts['failed']} failed")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    "A pretrained run of the smallest size, to begin with; nothing writes into it."
    from elite112m.core.presets import TINY
    from elite112m.core.runs import run_stage
    from elite112m.data.prepare import prepare
    from elite112m.training.pretrain import pretrain

    run = tmp_path_factory.mktemp("tiny") / "run"
    for do in (prepare, pretrain):
        run_stage(do, run, "nano", TINY)
    return run


@pytest.fixture(scope="session")
def tiny_sft_run(tiny_run, tmp_path_factory):
    "The same, fine-tuned too; nothing writes into it either."
    from elite112m.core.runs import run_stage
    from elite112m.training.sft import sft

    run = tmp_path_factory.mktemp("tiny_sft") / "run"
    shutil.copytree(tiny_run, run)
    run_stage(sft, run)
    return run
