"The judge judged: every item's checker against right, wrong, empty and rambling answers; and evaluations of a small model, compared, searched for, interrupted."

import json
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from zlib import crc32

import pytest
from conftest import here, sh

from elite112m.curriculum import lessons as curriculum
from elite112m.curriculum.lessons import CATEGORIES
from elite112m.evaluation.checks import check
from elite112m.evaluation.suite import FORM_ONLY, suite

ITEMS = suite(30)
RUN = ("stdout", "function")  # kinds that start a process, about a tenth of a second each


def verdicts(pairs):
    "Of many (item, reply) pairs, which pass."
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda p: check(p[1], p[0].check, p[0].prompt), pairs))


def passing(pairs):
    pairs = list(pairs)
    assert pairs
    return [(i.category, i.prompt, reply[:200]) for (i, reply), ok in zip(pairs, verdicts(pairs)) if ok]


def test_every_category_has_thirty_items():
    assert [sum(i.category == c for i in ITEMS) for c in CATEGORIES] == [30] * 35
    assert len({i.prompt for i in ITEMS}) == len({i.key for i in ITEMS}) == 1050


def test_right_answers_pass():
    pairs = [(i, i.reply) for i in ITEMS]
    assert [p for p, ok in zip(pairs, verdicts(pairs)) if not ok] == []


def test_right_answers_pass_in_other_clothes():
    "Stars, a blank line, an explanation behind; what another model may do that never saw our format."

    def dressed(i):
        if i.check["kind"] in RUN:
            return f"Sure! Here is the code:\n\n```python\n{i.reply}\n```\n\nIt does what you asked for."
        if i.check["kind"] in ("lines", "haiku"):
            return f"Here is a poem:\n\n{i.reply}"
        if i.check["kind"] in ("list", "sequence"):
            return "Here you are:\n\n" + "\n".join(f"{n}. **{x}**" for n, x in enumerate(i.reply.split(", "), 1))
        if i.check["kind"] in ("exact", "name"):
            return f"The answer is: **{i.reply}**"
        return f"  {i.reply.partition('####')[0].strip()}\n"

    pairs = [(i, dressed(i)) for i in ITEMS if i.check["kind"] not in RUN or crc32(i.key.encode()) % 3 == 0]
    assert [p for p, ok in zip(pairs, verdicts(pairs)) if not ok] == []


def stranger(i):
    "The reference of an item with another answer: of the same category where that is wrong for this one, or else of another."
    answers = lambda j: {
        str(a).casefold()
        for a in (j.check["answer"] if isinstance(j.check.get("answer"), list) else [j.check.get("answer", j.reply)])
    }
    same = [j for j in ITEMS if j.category == i.category and j.check != i.check and not answers(i) & answers(j)]
    if i.check["kind"] == "name" or not same:
        same = [j for j in ITEMS if j.category == "Geography"]
    if i.check["kind"] == "keywords":
        same = [j for j in same if j.key.partition("#")[0] != i.key.partition("#")[0]]
    if i.check["kind"] == "list":
        same = [j for j in same if j.key.split(":")[2] != i.key.split(":")[2]]
    return random.Random(i.key).choice(same).reply


def test_wrong_answers_fail():
    assert passing((i, stranger(i)) for i in ITEMS) == []


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "   \n",
        "?",
        "I don't know.",
        "As an assistant I am happy to help you with anything you need.",
        "lorem ipsum dolor sit amet " * 12,
    ],
)
def test_empty_and_empty_talk_fail(reply):
    assert passing((i, reply) for i in ITEMS) == []


def test_the_question_said_again_fails():
    assert passing((i, i.prompt) for i in ITEMS) == []


def test_endless_repetition_fails():
    "Code that does the same over and over is judged by what it does: a function may be defined ten times."
    assert (
        passing(
            (i, f"{i.reply}\n" * 10)
            for i in ITEMS
            if i.check["kind"] != "function" and (i.check["kind"] != "stdout" or crc32(i.key.encode()) % 3 == 0)
        )
        == []
    )


def listed(i):
    "Every option there is, the right one among them."
    k = i.check
    match k["kind"]:
        case "text":
            options = [*k["others"][:30], *k["answer"]]
        case "number":
            options = [str(k["answer"] + d) for d in range(-3, 4)]
        case "sequence":
            return ", ".join([*k["items"], *reversed(k["items"])])
        case "list":
            options = k["members"] if len(k["members"]) > k["n"] else [*k["members"], "stone"]
        case "keywords":
            options = [w for g in k["groups"] for w in g]
        case "name":
            options = ["Milo", "Luna", "Bella", "Rocky"]
        case "lines" | "haiku":
            return "\n".join(j.reply for j in ITEMS if j.category == i.category)
        case _:
            options = [i.reply, *[j.reply for j in ITEMS if j.category == i.category and j.reply != i.reply][:20]]
    return ", ".join(options)


def test_all_options_listed_fail():
    assert passing((i, listed(i)) for i in ITEMS) == []


def test_nonsense_around_a_wrong_answer_does_not_help():
    "What stands around an answer is not judged if it claims nothing, so this may pass around a right one; never around a wrong one."
    noise = "blue trees seldom argue with yesterday's umbrella"
    assert passing((i, f"{noise}. {stranger(i)} {noise}.") for i in ITEMS if i.check["kind"] not in RUN) == []


def test_forms_alone_are_labelled():
    kinds = {c: {i.check["kind"] for i in ITEMS if i.category == c} for c in CATEGORIES}
    assert {c for c, k in kinds.items() if k & {"keywords", "lines", "haiku", "name"}} == set(FORM_ONLY)


def test_cloze_items_are_not_in_the_curriculum():
    import numpy as np

    from elite112m.data.tokenizer import train_tokenizer
    from elite112m.evaluation.base_model import cloze_items
    from elite112m.evaluation.contamination import Search

    texts = [
        *islice(curriculum.lesson_documents("train", 0), 5_000),
        *(t for i in islice(curriculum.lesson_examples("train", 0), 15_000) for t in (i.prompt, i.reply)),
    ]
    tok = train_tokenizer(texts[:800], 1000)
    clozes = cloze_items()
    assert len(clozes) >= 60 and len({c.category for c in clozes}) >= 6
    search = Search(
        [[tok.encode(c.prompt + c.candidates()[0]), tok.encode(" " + c.prompt + c.candidates()[0])] for c in clozes]
    )
    search.read(np.array([i for ids in tok.encode_batch(texts) for i in [*ids, 0]]))
    assert [clozes[q].prompt for q in search.whole] == []
    search.read(np.array(tok.encode(f"He said: {clozes[3].prompt}{clozes[3].candidates()[0]}")))
    assert search.whole == {3}, "the search finds nothing"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A small random model as a folder, and beside it as a training that was stopped."
    from elite112m.core.config import ModelConfig
    from elite112m.data.tokenizer import train_tokenizer
    from elite112m.model.pretrained import save_model
    from elite112m.model.transformer import CausalLM
    from elite112m.training.checkpoint import write_checkpoint

    room = tmp_path_factory.mktemp("models")
    tok, net = (
        train_tokenizer(list(islice(curriculum.lesson_documents(), 200)), 400),
        CausalLM(ModelConfig(400, 1, 32, 2, 1, 48, 256)).eval(),
    )
    save_model(net, room / "model")
    tok.save(room / "model")
    write_checkpoint(
        room / "run/pretrain/checkpoints/step-00000005", {"model": net.state_dict()}, net.config, {"step": 5}
    )
    (room / "run/data").mkdir()
    tok.save(room / "run/data")
    return room


def cli(*args):
    return here("elite112m", *args).returncode


def test_two_evaluations_and_what_changed(model, tmp_path):
    done = sh(
        "elite112m",
        "evaluate",
        "--model",
        model / "model",
        "--out",
        tmp_path / "a",
        "--items",
        "2",
        "--max-new-tokens",
        "4",
        "--tasks",
        "suite,base",
    )
    assert done.returncode == 0, done.stderr
    assert "Factual Q&A" in done.stdout and "70 items" in done.stdout and "first token's MRR" in done.stdout
    results = json.loads((tmp_path / "a/results.json").read_text())
    assert (
        results["items"] == 70
        and list(results["categories"]) == CATEGORIES
        and results["options"]["max_new_tokens"] == 4
    )
    assert 0 < results["tasks"]["base"]["mrr"] <= 1 and len(results["tasks"]["base"]["continuations"]) == 10
    assert sorted(f.name for f in (tmp_path / "a").iterdir()) == [
        "base.jsonl",
        "generations.jsonl",
        "results.json",
        "suite.png",
    ]
    assert (tmp_path / "a/suite.png").read_bytes()[:4] == b"\x89PNG"

    rows = [json.loads(line) for line in (tmp_path / "a/generations.jsonl").read_text().splitlines()]
    (tmp_path / "b").mkdir()
    (tmp_path / "b/results.json").write_text(json.dumps(results))
    (tmp_path / "b/generations.jsonl").write_text(
        "".join(
            json.dumps(r | {"reply": r["reference"], "correct": True} if k < 6 else r) + "\n"
            for k, r in enumerate(rows)
        )
    )
    done = here("elite112m", "compare", tmp_path / "a", tmp_path / "b", "--json", tmp_path / "c.json")
    found = json.loads((tmp_path / "c.json").read_text())
    assert done.returncode == 0 and "wrong in A, right in B: 6" in done.stdout, done.stderr
    assert (
        len(found["fixed"]) == 6 and found["broken"] == [] and found["all"]["p"] == 2 / 2**6 and found["all"]["lo"] > 0
    )


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
