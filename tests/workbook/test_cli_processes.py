"A whole run through the command line, by papermill, in a temporary folder; and what happens when it is disturbed."

import json
import shutil
import signal
import subprocess
import time

import psutil
import pytest
from conftest import BIN, ENV, here, sh


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    "A finished tiny run and what the command printed."
    out = tmp_path_factory.mktemp("runs") / "smoke"
    done = sh("elite112m", "run", "nano", "--out", out, *tiny, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done


def test_run_makes_everything(finished):
    out, done = finished
    for name in (
        "data/train.bin",
        "data/tokenizer.json",
        "pretrain/model.safetensors",
        "sft/model.safetensors",
        "eval/results.json",
        "eval/generations.jsonl",
        "eval/suite.png",
        "export/hf/config.json",
        "report.html",
        "run.json",
    ):
        assert (out / name).exists(), name
    assert len(list((out / "notebooks").glob("[0-9]*.ipynb"))) == 5
    assert not list(out.rglob("*.tmp")) and not list((out / "notebooks").glob(".*"))
    assert "pretrain: validation loss" in done.stderr and "tok/s" in done.stderr and done.stdout == ""


def test_results_have_the_agreed_form(finished):
    from elite112m.curriculum.lessons import CATEGORIES

    results = json.loads((finished[0] / "eval/results.json").read_text())
    assert list(results["categories"]) == list(CATEGORIES)
    assert list(results["rows"]) == [
        "Factual Q&A",
        "Math format",
        "Math accuracy",
        "Code structure",
        "Instructions",
        "Pattern recognition",
    ]
    assert list(results["lines"]) == ["Annotations true", "Math accuracy with the calculator", "First contact"]
    assert list(results["wordings"]) == ["taught", "other", "casual"]
    assert list(results["rows_by_wording"]) == list(results["rows"])
    for r in [r for kind in ("rows", "categories", "lines", "wordings") for r in results[kind].values()]:
        assert set(r) == {"correct", "total", "rate", "lo", "hi"} and 0 <= r["lo"] <= r["rate"] <= r["hi"] <= 1
    assert results["contamination"]["whole"] == [] and results["contamination"]["tokens"]["conversations"] > 0


def test_rerun_skips_and_says_so(finished, tiny):
    done = here("elite112m", "run", "nano", "--out", finished[0], *tiny)
    assert done.returncode == 0 and done.stderr.count("skipped") == 5


def test_other_settings_are_refused_by_name(finished):
    done = here("elite112m", "sft", "--run", finished[0], "--set", "pretrain.steps=13")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "pretrain.steps=12, not 13" in done.stderr and "--force" in done.stderr


def test_moved_run_redone_stage_and_stale_ones(finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "moved")
    done = here("elite112m", "sft", "--run", out, "--force")
    assert done.returncode == 0, done.stderr
    status = here("elite112m", "status", "--run", out).stdout
    assert status.count("stale") == 2, status  # evaluate and export
    done = here("elite112m", "evaluate", "--run", out)
    assert done.returncode == 0 and "evaluate: done" in done.stderr, done.stderr
    assert str(finished[0]) not in (out / "run.json").read_text()


def test_chat_answers_on_stdout_only(finished):
    done = sh(
        "elite112m",
        "chat",
        "--model",
        finished[0],
        "--input",
        "What is the capital of France?",
        "--max-new-tokens",
        "5",
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    again = here(
        "elite112m",
        "chat",
        "--model",
        finished[0] / "export/hf",
        "--input",
        "What is the capital of France?",
        "--max-new-tokens",
        "5",
    )
    assert again.stdout == done.stdout


def test_conversation_in_the_terminal(finished):
    done = subprocess.run(
        [BIN / "elite112m", "chat", "--model", finished[0], "--max-new-tokens", "4"],
        input="Hello\nAnd?\n\n",
        capture_output=True,
        text=True,
        env=ENV,
    )
    assert done.returncode == 0 and done.stdout.count("Assistant:") == 2


def test_report_shows_the_run(finished):
    page = (finished[0] / "report.html").read_text()
    assert (
        "Factual Q&amp;A" in page
        and "No question was found whole" in page
        and page.count("<svg") == 2
        and "<script" not in page
        and 'src="http' not in page
    )


def test_damaged_data_are_bad_input(finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "broken")
    (out / "data/train.bin").write_bytes(b"\0" * 99)
    done = sh("elite112m", "pretrain", "--run", out, "--force")
    assert done.returncode == 2 and "train.bin" in done.stderr.splitlines()[-1], done.stderr


def test_same_seed_same_loss(finished, tmp_path, tiny):
    done = here("elite112m", "run", "nano", "--out", tmp_path / "twin", "--stages", "prepare,pretrain", *tiny)
    assert done.returncode == 0, done.stderr

    def loss(out):
        return [json.loads(line).get("val_loss") for line in open(out / "pretrain/metrics.jsonl")]

    assert loss(finished[0]) == loss(tmp_path / "twin")


# ---- disturbances --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny):
    "A run prepared for a long pretraining."
    out = tmp_path_factory.mktemp("runs") / "long"
    done = here("elite112m", "prepare", "--run", out, "--preset", "nano", *tiny, "--set", "pretrain.steps=4000")
    assert done.returncode == 0, done.stderr
    return out


def test_failed_stage_is_one_line_and_its_notebook(prepared, tmp_path):
    out = shutil.copytree(prepared, tmp_path / "run")
    done = sh("elite112m", "pretrain", "--run", out, "--set", "pretrain.lr=1e30", "--set", "pretrain.muon_lr=1e30")
    error, path = done.stderr.strip().splitlines()[-2:]
    assert (
        done.returncode == 1
        and error.startswith("elite112m: pretrain failed: Diverged: ")
        and "lower pretrain.lr" in error
    )
    assert (
        path == f"executed notebook: {out / 'notebooks/2_pretrain.ipynb'}"
        and (out / "notebooks/2_pretrain.ipynb").exists()
    )


def start(out):
    "Begin its pretraining and wait for the first checkpoint."
    p = subprocess.Popen([BIN / "elite112m", "pretrain", "--run", out], stderr=subprocess.PIPE, text=True, env=ENV)
    until = time.time() + 90
    while not list(out.glob("pretrain/checkpoints/step-*/state.json")) and time.time() < until:
        time.sleep(0.1)
    return p, psutil.Process(p.pid).children(recursive=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_rerun_continues(prepared, tmp_path, number):
    out = shutil.copytree(prepared, tmp_path / "run")
    p, kernels = start(out)
    p.send_signal(number)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 128 + number and "checkpoint saved" in err, err
    assert not any(k.is_running() for k in kernels)
    step = max(int(c.name[5:]) for c in out.glob("pretrain/checkpoints/step-*"))
    p, _ = start(out)
    said = []
    for line in p.stderr:
        said.append(line)
        if f"continues at step {step}\n" in line:
            break
    p.send_signal(signal.SIGINT)
    p.communicate(timeout=60)
    assert f"continues at step {step}" in said[-1], said


def test_sigkill_leaves_no_process_and_no_lock(prepared, tmp_path):
    out = shutil.copytree(prepared, tmp_path / "run")
    p, kernels = start(out)
    assert kernels
    p.kill()
    p.wait()
    gone, alive = psutil.wait_procs(kernels, timeout=5)
    assert not alive
    p, _ = start(out)
    assert any("continues at step" in line for line in p.stderr)
    p.send_signal(signal.SIGINT)
    p.communicate(timeout=60)


def test_second_command_waits_then_gives_up(prepared, tmp_path):
    out = shutil.copytree(prepared, tmp_path / "run")
    p, _ = start(out)
    before = time.time()
    done = sh("elite112m", "pretrain", "--run", out)
    assert done.returncode == 2 and "in use by another command" in done.stderr and done.stderr.count("\n") == 1
    assert time.time() - before >= 10
    p.send_signal(signal.SIGINT)
    p.communicate(timeout=60)


# ---- closed streams ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command, code, line",
    [
        ("presets >&-", 0, ""),
        ("--version >&-", 0, ""),
        ("presets >/dev/full", 2, "elite112m: No space left on device"),
        ("presets 2>&-", 0, ""),
        ("nothing 2>&-", 2, ""),
        ("status --run . <&- >&-", 2, "elite112m: . is not a run folder"),
    ],
)
def test_closed_and_full_streams_are_one_line(tmp_path, command, code, line):
    done = subprocess.run(
        f"{BIN / 'elite112m'} {command}", shell=True, capture_output=True, text=True, env=ENV, cwd=tmp_path
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == bool(line) and done.stderr.startswith(line), done.stderr


def test_conversation_without_input(finished):
    chat = f"{BIN / 'elite112m'} chat --model {finished[0]} --max-new-tokens 2"
    done = subprocess.run(f"{chat} <&-", shell=True, capture_output=True, text=True, env=ENV)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("elite112m: standard input is closed")
    done = subprocess.run(f"{chat} --input Hello <&-", shell=True, capture_output=True, text=True, env=ENV)
    assert done.returncode == 0 and done.stderr == "", done.stderr


# ---- a folder that is replaced -------------------------------------------------------------------


def test_force_replaces_results_that_are_ours(finished, tmp_path):
    out = tmp_path / "results"
    evaluate = ("elite112m", "evaluate", "--model", finished[0], "--out", out, "--items", "1", "--max-new-tokens", "1")
    assert here(*evaluate).returncode == 0
    assert "--force" in here(*evaluate).stderr
    done = here(*evaluate, "--force")
    assert done.returncode == 0, done.stderr
    (out / "generations.jsonl").write_text("mine")
    done = here(*evaluate, "--force")
    assert done.returncode == 2 and "generations.jsonl" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert (out / "generations.jsonl").read_text() == "mine"
