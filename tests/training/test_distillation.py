"Distillation: the command at both levels, another vocabulary, a killed run."

import pytest
from conftest import here, kill_often, stage_process, steps_of

from elite112m.core.presets import TINY

STAGE = """import sys
from elite112m.core.runs import run_stage
from elite112m.training.distillation import distill
run_stage(distill, sys.argv[1])"""
FEW = [f"--set={k}={v}" for k, v in TINY.items()]


@pytest.fixture(scope="module")
def teacher(tiny_run):
    return tiny_run


def test_the_command_prepares_and_distills(teacher, tmp_path):
    "In a new folder, from the same vocabulary: token level; the student opens."
    from elite112m.core.runs import Run

    out = tmp_path / "pupil"
    words = ["elite112m", "distill", "--run", out, "--preset", "nano", "--teacher", teacher, *FEW, "--device", "cpu"]
    ended = here(*words)
    assert ended.returncode == 0 and "at the token level" in ended.stderr and "MB for" in ended.stderr, ended.stderr
    assert [Run(out).status(s) for s in ("prepare", "distill")] == ["done", "done"]
    assert here("elite112m", "chat", "--model", out, "--input", "hi", "--device", "cpu").returncode == 0


def test_without_weight_no_teacher_is_opened(tmp_path):
    "A teacher that could not be opened does not disturb; the report shows the one curve there is."
    from elite112m.core.runs import Run
    from elite112m.training.metrics import read_metrics

    teacher, out = tmp_path / "teacher", tmp_path / "alone"
    teacher.mkdir()
    (teacher / "model.safetensors").write_text("no weights")
    words = ["elite112m", "distill", "--run", out, "--preset", "nano", "--teacher", teacher, *FEW, "--device", "cpu"]
    ended = here(*words, "--set", "distill.weight=0", "--steps", "3")
    assert ended.returncode == 0 and "the text alone, no teacher" in ended.stderr, ended.stderr
    rows = read_metrics(out / "distill/metrics.jsonl")
    assert not any("teacher_kl" in r for r in rows) and "val_bits_per_byte" in rows[-1]
    assert not (out / "distill/teacher.safetensors").exists()
    assert "divergence from the teacher" not in (out / "report.html").read_text()
    (teacher / "model.safetensors").unlink()
    assert (
        Run(out).status("distill") == "done" and "finished before" in here("elite112m", "distill", "--run", out).stderr
    )
    refused = here("elite112m", "distill", "--run", out, "--set", "distill.weight=0.5")
    assert refused.returncode == 2 and "distill.weight=0" in refused.stderr, refused.stderr


def test_another_vocabulary(teacher, tmp_path):
    "The token level refuses it in one line."
    words = ["elite112m", "distill", "--run", tmp_path / "out", "--preset", "nano", "--teacher", teacher, *FEW]
    ended = here(*words, "--set", "model.vocab_size=400", "--set", "distill.level=token", "--device", "cpu")
    assert ended.returncode == 2 and "needs the teacher's vocabulary" in ended.stderr.splitlines()[-1], ended.stderr


def test_sequence_level_learns_what_the_teacher_said(teacher, tmp_path, monkeypatch):
    "Replies that are right are kept once and learnt; a teacher that is never right is named."
    import json

    from elite112m.core.config import InputError
    from elite112m.core.runs import run_stage
    from elite112m.data.prepare import prepare
    from elite112m.training import distillation
    from elite112m.training.distillation import distill
    from elite112m.training.metrics import read_metrics

    run, settings = tmp_path / "pupil", TINY | {"distill.teacher": str(teacher), "distill.level": "sequence"}
    run_stage(prepare, run, "nano", settings)
    with pytest.raises(InputError, match="the teacher gave 0 right replies"):
        run_stage(distill, run)
    talk = lambda n: [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": str(n)}]
    monkeypatch.setattr(
        distillation, "resolve_name", lambda _: lambda *a: ([{"messages": talk(n)} for n in range(40)], 50)
    )
    job = run_stage(distill, run, settings={"distill.steps": 40, "distill.lr": 0.02})
    kept = (job.folder / "answers.jsonl").read_text().splitlines()
    assert json.loads(kept[3])["messages"] == talk(3) and len(kept) == 40
    losses = [r["loss"] for r in read_metrics(job.folder / "metrics.jsonl") if "loss" in r]
    assert losses[-1] < losses[0] / 2


def test_killed_and_resumed_ends_the_same(teacher, tmp_path):
    "To the bit, with the same metrics, also when killed while the teacher is asked."
    from elite112m.core.presets import preset
    from elite112m.core.runs import Run, run_stage, save_preset
    from elite112m.data.prepare import prepare
    from elite112m.training.distillation import distill

    settings = TINY | {"distill.teacher": str(teacher), "distill.steps": 60, "distill.lr": 0.01}
    settings |= {"distill.checkpoint_every": 4, "distill.eval_every": 5, "distill.log_every": 3}
    whole, run = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, run):
        folder.mkdir()
        save_preset(Run(folder), preset("nano", settings))
        run_stage(prepare, folder)
    run_stage(distill, whole)
    rows = lambda r: steps_of(r, "distill")
    p = stage_process(STAGE, run)
    for line in p.stdout:
        if "reads the text once" in line:
            break
    p.kill()
    p.communicate()
    assert kill_often(STAGE, run, "distill", 60, seed=3)
    run_stage(distill, run)
    assert (run / "distill/model.safetensors").read_bytes() == (whole / "distill/model.safetensors").read_bytes()
    assert rows(run) == rows(whole) and any("teacher_kl" in r for r in rows(run))
