"Run folders: records that earlier versions wrote, the words for a stage's state, and damaged files."

import json

import pytest
from conftest import here

from elite112m.core.config import InputError
from elite112m.core.files import read_json, write_json
from elite112m.core.presets import preset, to_dict
from elite112m.core.runs import Run, job, plan_stages
from elite112m.core.stages import MAIN_STAGES, inputs_of, settings_of

SETTINGS = {"data.sources": "curriculum", "sft.sources": "curriculum"}


def do(run, stage, **kw):
    "Do a stage that writes one file; returns what the plan said."
    with job(stage, run.path, None if run.info else "nano", None if run.info else SETTINGS, **kw) as this:
        if this.todo:
            file = this.folder / this.stage.files[0]
            file.parent.mkdir(exist_ok=True)
            write_json(file, stage)
        return this.action


@pytest.fixture
def run(tmp_path):
    "A run whose stages are done."
    made = Run(tmp_path / "run")
    for stage in MAIN_STAGES:
        do(made, stage)
    return made


def change(path, **fields):
    "Set fields of a JSON file; those that are None are left out."
    new = read_json(path) | fields
    write_json(path, {k: v for k, v in new.items() if v is not None})


def test_an_old_record_opens(run):
    "A stage.json that lacks the fields of later versions is a finished stage, and is extended and redone as such."
    for stage in MAIN_STAGES:
        record = run.record(stage)
        few = ("stage", "status", "build", "read_build", "settings")
        write_json(run.folder(stage) / "stage.json", {k: record[k] for k in few})
    change(run.path / "run.json", versions=None, machine=None)
    assert [do(run, s) for s in MAIN_STAGES] == ["skip"] * 5
    assert do(run, "pretrain", force=True) == "redo"
    assert run.record("pretrain")["legs"] == 1


def test_a_setting_added_later_is_no_difference(run):
    "A record without a setting that exists now is not made again."
    settings = run.record("prepare")["settings"]
    del settings["data.seed"]
    change(run.folder("prepare") / "stage.json", settings=settings)
    data = to_dict(run.preset)
    del data["data"]["seed"]
    change(run.path / "run.json", preset=data)
    assert run.preset.data.seed == preset("nano").data.seed
    assert plan_stages(run, run.preset, list(MAIN_STAGES)) == dict.fromkeys(MAIN_STAGES, "skip")


def test_an_old_record_is_extended(run):
    "An extension of a training whose record counts no segments is the second."
    change(run.folder("pretrain") / "stage.json", legs=None, seconds=None, starts=None)
    with job("pretrain", run.path, None, {"pretrain.steps": 10_000}, extend=True) as this:
        assert (this.action, this.segment) == ("extend", 2)
    assert run.record("pretrain")["starts"] == 1


def test_status_words(run):
    "absent, unfinished, done, stale: and what is stale makes what follows stale."
    assert {run.status(s) for s in MAIN_STAGES} == {"done"}
    change(run.folder("pretrain") / "stage.json", status="running")
    assert [run.status(s) for s in MAIN_STAGES] == ["done", "unfinished", "stale", "stale", "stale"]
    assert do(run, "pretrain") == "continue"
    assert [run.status(s) for s in MAIN_STAGES] == ["done", "done", "stale", "stale", "stale"]
    assert [do(run, s) for s in ("sft", "evaluate")] == ["redo", "redo"]
    assert [run.status(s) for s in MAIN_STAGES] == ["done", "done", "done", "done", "stale"]
    assert Run(run.path / "other").status("prepare") == "absent"


@pytest.mark.parametrize("text", ["", '{"preset": ', "[1]", '{"name": "my project"}', '"text"', '{"preset": 3}'])
def test_a_damaged_run_json_is_one_line(run, text):
    "Every command that opens the run says in one line which file is damaged, and changes nothing."
    (run.path / "run.json").write_text(text)
    before = {f: f.read_bytes() for f in run.path.rglob("*") if f.is_file()}
    for command in (["status"], ["prepare"], ["pretrain", "--force"], ["run", "nano", "--out"]):
        ended = here("elite112m", *command, *([] if command[0] == "run" else ["--run"]), run.path)
        assert ended.returncode == 2, (command, ended.stderr)
        assert "run.json" in ended.stderr and len(ended.stderr.strip().splitlines()) == 1, ended.stderr
        assert "Traceback" not in ended.stderr
    after = {f: f.read_bytes() for f in run.path.rglob("*") if f.is_file()}
    assert {f: b for f, b in after.items() if f in before} == before


def test_settings_and_inputs_are_recorded(run):
    "The record says what a stage was made with."
    p = run.preset
    assert run.record("prepare")["settings"] == json.loads(json.dumps(settings_of(p, "prepare")))
    assert run.record("sft")["inputs"] == inputs_of(p, "sft") is not None
    with pytest.raises(InputError, match=r"sft.lr=.* not 1.0; --force redoes it, --out starts another run"):
        with job("sft", run.path, None, {"sft.lr": 1.0}):
            pass
    with pytest.raises(InputError, match="--extend trains on, --force redoes it"):
        with job("sft", run.path, None, {"sft.epochs": 9}):
            pass
