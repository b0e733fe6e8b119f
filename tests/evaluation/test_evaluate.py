"Evaluations of a small model: sampled, interrupted, refused; the command line within this process."

import json

import pytest
from conftest import here
from replies import make_models


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


def cli(*args):
    return here("elite112m", *args).returncode


def test_sampled_answers_are_clustered_by_item(model, tmp_path):
    assert (
        cli(
            "evaluate",
            "--model",
            model / "model",
            "--out",
            tmp_path / "a",
            "--items",
            "1",
            "--max-new-tokens",
            "3",
            "--temperature",
            "1",
            "--samples",
            "2",
            "--seed",
            "1",
        )
        == 0
    )
    rows = [json.loads(line) for line in (tmp_path / "a/generations.jsonl").read_text().splitlines()]
    assert len(rows) == 70 and [r["reply"] for r in rows[:35]] != [r["reply"] for r in rows[35:]]
    results = json.loads((tmp_path / "a/results.json").read_text())
    assert results["categories"]["Geography"]["total"] == 1, "two answers to one question counted as two questions"


def test_unfinished_training_is_judged_by_its_newest_checkpoint(model, tmp_path):
    for k, path in enumerate((model / "run", model / "run/pretrain", model / "model")):
        assert (
            cli("evaluate", "--model", path, "--out", tmp_path / str(k), "--tasks", "base", "--max-new-tokens", "4")
            == 0
        )
    found = [json.loads((tmp_path / str(k) / "results.json").read_text())["tasks"]["base"] for k in range(3)]
    assert [f["mrr"] for f in found] == [found[2]["mrr"]] * 3 and "step-00000005" in json.loads(
        (tmp_path / "0/results.json").read_text()
    )["model"]


def test_interrupted_evaluation_leaves_nothing(model, tmp_path, monkeypatch):
    from elite112m.evaluation import evaluate

    def stopped(*a):
        raise KeyboardInterrupt

    monkeypatch.setitem(evaluate.TASKS, "base", stopped)
    assert (
        cli(
            "evaluate",
            "--model",
            model / "model",
            "--out",
            tmp_path / "a",
            "--tasks",
            "suite,base",
            "--items",
            "1",
            "--max-new-tokens",
            "2",
        )
        == 130
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args, says",
    [
        (["evaluate"], "say what to evaluate"),
        (["evaluate", "--model", "x"], "--out"),
        (["evaluate", "--model", "nowhere", "--out", "o"], "no model at nowhere"),
        (["evaluate", "--model", "x", "--out", "o", "--tasks", "siute"], "did you mean 'suite'"),
        (["evaluate", "--model", "x", "--run", "y", "--out", "o"], "--run cannot be given"),
        (["evaluate", "--run", "x", "--items", "3"], "--items cannot be given"),
        (["evaluate", "--model", "x", "--out", "o", "--samples", "3"], "--temperature"),
        (["compare", "nowhere", "nowhere"], "no results of the suite"),
        (["contamination", "nowhere"], "no prepared data"),
    ],
)
def test_bad_input_is_one_line(args, says, tmp_path):
    said = here("elite112m", *args, cwd=tmp_path)
    assert said.returncode == 2 and said.stdout == "" and said.stderr.count("\n") == 1 and says in said.stderr
    assert list(tmp_path.iterdir()) == []


def test_results_are_not_replaced_unasked(model, tmp_path):
    args = ["evaluate", "--model", model / "model", "--out", tmp_path / "a", "--items", "1", "--max-new-tokens", "2"]
    assert (
        cli(*args) == 0
        and "--force" in (said := here("elite112m", *args)).stderr
        and said.returncode == 2
        and cli(*args, "--force") == 0
    )
    (tmp_path / "a/results.json").unlink()
    assert cli(*args, "--force") == 2 and (tmp_path / "a/generations.jsonl").exists(), (
        "a folder of other things was emptied"
    )
