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
from elite112m.evaluation.suite import exam, first_contact


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


def cli(*args):
    return here("elite112m", *args).returncode


def test_sampled_answers_are_clustered_by_exercise(model, tmp_path):
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
    assert len(rows) == 212 and [r["reply"] for r in rows[:106]] != [r["reply"] for r in rows[106:]]
    results = json.loads((tmp_path / "a/results.json").read_text())
    assert results["categories"]["Geography"]["total"] == 3, "two answers to one question counted as two questions"


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

    name, adapters, adapter = "talker", {}, ""

    def __init__(self, items):
        self.items, self.calls, self.talks = {i.prompt: i for i in items}, [], []

    def replies(self, talks, max_new_tokens, batch_size, what, calculator=False, **how):
        self.calls.append((len(talks), calculator, how))
        self.talks += talks
        return [Reply(self.said(self.items[talk[-1]["content"]], calculator), (), True) for talk in talks]

    def said(self, item, calculator):
        if item.category == "First contact":
            return item.reply
        if "<<" not in item.reply or item.category == "Math: Multiplication" or item.wording == "casual":
            return "I do not know."
        if calculator:
            return item.reply
        return re.sub(r"#### .*", "#### 1", re.sub(r"=[0-9]+>>[0-9]+", "=1>>1", item.reply))


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    "A talker that was asked three exercises a category, its results and where they are."
    folder, talker = tmp_path_factory.mktemp("told"), Talker(exam(3))
    results = results_of(talker, folder, ["suite"], Options(items=3, temperature=1.0, seed=4))
    (folder / "results.json").write_text(json.dumps(results))
    return talker, results, folder


def test_form_truth_accuracy_and_the_calculator_are_judged_apart(told):
    "In four of five categories the form is right and nothing else; with the calculator all of these are right."
    talker, results, _ = told
    found = {name: (r["correct"], r["total"]) for name, r in (results["rows"] | results["lines"]).items()}
    assert found["Math format"] == found["Math accuracy with the calculator"] == (24, 45), found
    assert found["Math accuracy"][0] <= 2 and found["Annotations true"][0] <= 2, "unless something is 1"
    (asked, off, how), (again, on, seeded) = talker.calls
    assert (asked, off, again, on) == (315 + 3, False, 24, True), "what opened no annotation is not asked again"
    annotated = lambda i: i.category.startswith("Math:") and "<<" in talker.said(i, False)
    mathematical = [k for k, i in enumerate(exam(3)) if annotated(i)]
    assert seeded["seed"] == [row_seeds(how["seed"], 318)[k] for k in mathematical], "each with the seed it had"
    shown = [line.split("  ")[0] for line in evaluation_summary(results).splitlines()]
    assert shown[-3:] == ["Annotations true", "Math accuracy with the calculator", "First contact"]


def test_wordings_are_shown_apart_and_counted_as_one_exercise(told):
    _, results, _ = told
    by_wording = results["rows_by_wording"]["Math format"]
    assert {w: (r["correct"], r["total"]) for w, r in by_wording.items()} == {
        "taught": (12, 15),
        "other": (12, 15),
        "casual": (0, 15),
    }
    assert sum(r["correct"] for r in results["wordings"].values()) == results["all"]["correct"]
    assert [r["total"] for r in results["wordings"].values()] == [105] * 3 and results["all"]["total"] == 315
    whole, third = results["categories"]["Math: Multiplication"], by_wording["casual"]
    assert whole["total"] == 9 and whole["hi"] > 0.5, "nine wordings of three exercises counted as nine exercises"
    assert third["hi"] < whole["hi"]
    *_, line = (x for x in evaluation_summary(results).splitlines() if x.startswith("Math format"))
    assert re.split(r"  +", line)[1:] == ["53% (24/45), 39%-67%", "80%", "80%", "0%", "90%"]
    assert all(len(x) <= 100 for x in evaluation_summary(results).splitlines())


def test_first_contact_is_a_line_of_its_own(told):
    talker, results, folder = told
    n = len(first_contact(3))
    assert (results["lines"]["First contact"]["correct"], results["items"]) == (n, 315)
    rows = [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]
    assert [r["category"] for r in rows[315:]] == ["First contact"] * n and len(rows) == 315 + n
    assert "First contact" not in results["categories"]
    item = next(i for i in first_contact(3) if i.history)
    assert [m["content"] for m in talker.talks[315 + first_contact(3).index(item)]] == [*item.history[0], item.prompt]
    assert rows[315 + first_contact(3).index(item)]["history"] == [list(turn) for turn in item.history]
    assert compared(folder, folder)["lines"]["First contact"]["a"]["total"] == n


def older(results, folder, out):
    "Results and answers as versions wrote them that asked each exercise in one wording."
    rows = [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]
    new = {"key", "wording", "correct_with_calculator", "reply_with_calculator"}
    kept = [r for r in rows if r["wording"] == "taught" and r["category"] != "First contact"]
    out.mkdir()
    lines = [json.dumps({k: v for k, v in r.items() if k not in new}) for r in kept]
    (out / "generations.jsonl").write_text("\n".join(lines))
    found = {k: v for k, v in results.items() if k not in ("lines", "lines_by_wording", "all", "wordings")}
    del found["rows_by_wording"]
    (out / "results.json").write_text(json.dumps(found))
    return found


def test_results_from_before_the_lines_and_wordings_are_still_compared_and_shown(told, tmp_path):
    _, results, folder = told
    both = compared(folder, folder)
    assert both["lines"]["Math accuracy with the calculator"]["a"]["correct"] == 24
    assert "Math accuracy with the calculator  53% (24/45)" in compare_text(both)
    assert (both["items"], both["exercises"]) == (315 + 3, 105 + 3)

    old = older(results, folder, tmp_path / "old")
    with pytest.raises(InputError, match="--shared"):
        compared(tmp_path / "old", folder)
    mixed = compared(tmp_path / "old", folder, shared=True)
    assert mixed["items"] == mixed["exercises"] == mixed["all"]["a"]["total"] == 105
    assert mixed["lines"]["Annotations true"]["a"]["total"] == 15 and "calculator" not in compare_text(mixed)
    assert mixed["wordings"]["taught"]["a"]["total"] == 105 and "casual" not in compare_text(mixed)
    assert compared(tmp_path / "old", tmp_path / "old")["all"]["p"] == 1
    assert "Math accuracy" in evaluation_summary(old) and "casual" not in evaluation_summary(old)


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
