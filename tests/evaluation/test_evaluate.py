"Evaluations of a small model: sampled, interrupted, refused; the command line within this process."

import json
import re

import pytest
from conftest import here
from replies import make_models

from elite112m.chat.chat_model import Reply
from elite112m.chat.generate import row_seeds
from elite112m.core.config import InputError
from elite112m.evaluation.compare import compare_text, compared
from elite112m.evaluation.evaluate import Options, evaluation_summary, results_of
from elite112m.evaluation.suite import suite


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


class Talker:
    "Stands for a `ChatModel` that sets every problem up rightly and then says that everything is 1."

    name = "talker"

    def __init__(self, items):
        self.items, self.calls = {i.prompt: i for i in items}, []

    def replies(self, talks, max_new_tokens, batch_size, what, calculator=False, **how):
        self.calls.append((len(talks), calculator, how))
        return [Reply(self.said(self.items[talk[0]["content"]], calculator), (), True) for talk in talks]

    def said(self, item, calculator):
        if "<<" not in item.reply or item.category == "Math: Multiplication":
            return "I do not know."
        if calculator:
            return item.reply
        return re.sub(r"#### .*", "#### 1", re.sub(r"=[0-9]+>>[0-9]+", "=1>>1", item.reply))


def test_form_truth_accuracy_and_the_calculator_are_judged_apart(tmp_path):
    "In four of five categories the form is right and nothing else; with the calculator all of these are right."
    talker = Talker(suite(3))
    results = results_of(talker, tmp_path, ["suite"], Options(items=3, temperature=1.0, seed=4))
    found = {name: (r["correct"], r["total"]) for name, r in (results["rows"] | results["lines"]).items()}
    assert found["Math format"] == found["Math accuracy with the calculator"] == (12, 15), found
    assert found["Math accuracy"][0] <= 1 and found["Annotations true"][0] <= 1, "unless something is 1"
    (asked, off, how), (again, on, seeded) = talker.calls
    assert (asked, off, again, on) == (105, False, 12, True), "what opened no annotation is not asked again"
    mathematical = [k for k, i in enumerate(suite(3)) if "<<" in talker.said(i, False)]
    assert seeded["seed"] == [row_seeds(how["seed"], 105)[k] for k in mathematical], "each with the seed it had"
    shown = [line.split("  ")[0] for line in evaluation_summary(results).splitlines()]
    assert shown[-2:] == ["Annotations true", "Math accuracy with the calculator"]


def test_results_from_before_the_lines_are_still_compared_and_shown(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        talker = Talker(suite(1))
        results = results_of(talker, tmp_path / name, ["suite"], Options(items=1))
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    both = compared(tmp_path / "new", tmp_path / "new")
    assert both["lines"]["Math accuracy with the calculator"]["a"]["correct"] == 4
    assert "Math accuracy with the calculator  80% (4/5)" in compare_text(both)

    rows = [json.loads(line) for line in (tmp_path / "old/generations.jsonl").read_text().splitlines()]
    old = [json.dumps({k: v for k, v in r.items() if "calculator" not in k}) for r in rows]
    (tmp_path / "old/generations.jsonl").write_text("\n".join(old))
    results.pop("lines")
    (tmp_path / "old/results.json").write_text(json.dumps(results))
    mixed = compared(tmp_path / "old", tmp_path / "new")
    assert set(mixed["lines"]) == {"Annotations true"} and "calculator" not in compare_text(mixed)
    assert "Math accuracy" in evaluation_summary(results)


def unforeseen(model, folder, options):
    (folder / "half.jsonl").write_text("{")
    raise TypeError("forward() got an unexpected\nkeyword argument")


def refused(model, folder, options):
    raise InputError("no such data")


def stopped(model, folder, options):
    (folder / "half.jsonl").write_text("{")
    raise KeyboardInterrupt


FAILURES = [
    (unforeseen, 2, "base failed: TypeError: forward() got an unexpected keyword argument"),
    (refused, 2, "base failed: no such data"),
    (stopped, 130, "stopped"),
]


@pytest.mark.parametrize("fails, code, says", FAILURES)
def test_a_task_that_fails_costs_no_other_task_anything(model, tmp_path, monkeypatch, fails, code, says):
    from elite112m.evaluation import evaluate

    monkeypatch.setitem(evaluate.TASKS, "base", fails)
    args = ["evaluate", "--model", model / "model", "--items", "1", "--max-new-tokens", "2", "--device", "cpu"]
    done = here("elite112m", *args, "--out", tmp_path / "a", "--tasks", "suite,base")
    *_, said = done.stderr.splitlines()
    assert done.returncode == code and says in said and done.stderr.count("elite112m: ") == 1, done.stderr
    assert code == 130 or f"{tmp_path / 'a'} keeps what is finished: suite" in said
    assert sorted(f.name for f in (tmp_path / "a").iterdir()) == ["generations.jsonl", "results.json", "suite.png"]
    results = json.loads((tmp_path / "a/results.json").read_text())
    assert list(results["tasks"]) == ["suite"] and len(results["rows"]) == 6
    assert len(list(tmp_path.iterdir())) == 1

    before = {f: f.read_bytes() for f in (tmp_path / "a").iterdir()}  # the first task fails: all is as it was
    for force in ([], ["--force"]):
        done = here("elite112m", *args, "--out", tmp_path / "a", "--tasks", "base", *force)
        assert done.returncode == (code if force else 2) and done.stderr.strip().count("\n") == 0
        assert {f: f.read_bytes() for f in (tmp_path / "a").iterdir()} == before
    done = here("elite112m", *args, "--out", tmp_path / "b", "--tasks", "base,suite")
    assert done.returncode == code and [f.name for f in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "tasks, more, says",
    [
        ("suite,bits", [], "bits: say of what"),
        ("suite,bits", ["bits.byte=3"], "did you mean 'bytes'"),
        ("suite,gsm8k", ["gsm8k.form=talk"], "neither chat nor base"),
        ("suite,humaneval", ["humaneval.samples=3"], "temperature above 0"),
    ],
)
def test_options_of_all_tasks_are_checked_before_the_first(model, tmp_path, tasks, more, says):
    sets = [a for m in more for a in ("--task-set", m)]
    args = ["evaluate", "--model", model / "model", "--out", tmp_path / "a", "--tasks", tasks, "--items", "1"]
    done = here("elite112m", *args, *sets)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr
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
