"The exercises for training contain nothing of the exam, and their calculations are right."

import hashlib
import json
import re
from itertools import islice

import pyarrow.parquet as pq
import pytest

from elite112m.chat.calculator import compute
from elite112m.curriculum import arithmetic, instructions, lessons
from elite112m.curriculum.everyday import FIRST_CONTACT
from elite112m.curriculum.lessons import CATEGORIES, SPLITS, _step_key, split_of
from elite112m.curriculum.mixture import mixture, write_alpaca, write_gsm8k
from elite112m.evaluation.checks import annotations_true, check, well_formed_math
from elite112m.evaluation.suite import suite

ROWS = 60_000


def normal(text):
    return re.sub(r"\s+", " ", text.casefold()).strip()


def contaminated(items, texts):
    "The prompts of `items` that occur, whatever their case and white space, inside one of `texts`; 5 is not in 15."
    hay = "\n".join(map(normal, texts))
    whole = lambda p: re.search(rf"(?<!\w){re.escape(p)}(?!\w)", hay)
    return [i.prompt for i in items if normal(i.prompt) in hay and whole(normal(i.prompt))]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    "The rows of a full export, and GSM8K's form of a smaller one, all as (prompt, reply)."
    folder = tmp_path_factory.mktemp("export")
    rows = json.loads(write_alpaca(folder / "alpaca.json", ROWS).read_text(encoding="utf-8"))
    sums = pq.read_table(write_gsm8k(folder / "gsm8k.parquet", 5_000)).to_pylist()
    alpaca = [(" ".join(filter(None, (r["instruction"], r["input"]))), r["output"]) for r in rows]
    return alpaca, [(r["question"], r["answer"]) for r in sums]


@pytest.fixture(scope="module")
def exam():
    return suite(25)


def test_no_exam_prompt_in_the_export(exported, exam):
    alpaca, sums = exported
    assert len(alpaca) == ROWS and len(exam) > 3 * 16 * len(CATEGORIES)
    texts = [part for row in alpaca + sums for part in row]
    assert contaminated(exam, texts) == []
    assert contaminated(exam, [*texts, f"Hello. {exam[7].prompt.upper()}  And?"]) == [exam[7].prompt], (
        "the search finds nothing"
    )


def test_no_row_twice(exported):
    for rows in exported:
        assert len({normal(q) for q, _ in rows}) == len(rows)


STEP = re.compile(r"<<(\d+)([-+*/])(\d+)=")


def test_no_step_of_the_test_in_the_export(exported):
    texts = [a for rows in exported for _, a in rows]
    keys = {_step_key(int(a), op, int(b)) for t in texts for a, op, b in STEP.findall(t)}
    assert len(keys) > 10_000 and {split_of(k) for k in keys} == {"train"}
    assert sum(len(STEP.findall(t)) for t in texts) == sum(t.count("<<") for t in texts), (
        "a step with other than two operands"
    )


def test_every_step_is_true(exported):
    worked = [a for rows in exported for _, a in rows if "<<" in a and "#### " in a]
    assert len(worked) > 20_000
    assert [a for a in worked if not (well_formed_math(a) and annotations_true(a))] == []
    assert not well_formed_math(worked[0].replace("#### ", "#### 1"))


def test_the_calculator_writes_what_the_lessons_teach(exported):
    "Each value in an annotation, digit for digit: what a model learns is what it is given when it generates."
    notes = {n for rows in exported for _, a in rows for n in re.findall(r"<<([^<>=]+)=([^<>]+)>>", a)}
    assert len(notes) > 10_000 and {n for n in notes if compute(n[0]) != n[1]} == set()


def test_every_reply_passes_its_check():
    "Those of arithmetic and instructions; the replies of the lessons are tested with the suite."
    for examples in (arithmetic.arithmetic_examples, instructions.instruction_examples):
        for split in SPLITS:
            wrong = [i for i in islice(examples(split, 5), 1_500) if not check(i.reply, i.check, i.prompt)]
            assert wrong == [], wrong[:3]


def test_splits_are_disjoint():
    found = {s: list(islice(mixture(s, 9), 3_000)) for s in SPLITS}
    for s, items in found.items():
        assert {split_of(i.key) for i in items} == {s}
    prompts = {s: {(normal(i.prompt), i.history) for i in items} for s, items in found.items()}
    assert not prompts["test"] & (prompts["train"] | prompts["val"])
    both = prompts["train"] & prompts["val"]  # "hello" is learnt and watched
    everyday = {(normal(i.prompt), i.history) for i in found["train"] if i.category == FIRST_CONTACT}
    assert both <= everyday


def test_plurals_of_the_exam_are_not_given_away():
    "The lessons mention some plurals in other exercises; arithmetic and instructions add none to them."
    held = {many for one, many in lessons._WORDS["nouns"] if split_of(f"plural:{one}") == "test"}

    def shown(texts):
        return held & set(re.findall(r"[a-z]+", " ".join(texts).casefold()))

    before = shown(f"{i.prompt} {i.reply}" for i in islice(lessons.lesson_examples(), 40_000))
    after = shown(
        f"{i.prompt} {i.reply}" for i in islice(mixture(weights={"arithmetic": 1, "instructions": 1}), 20_000)
    )
    assert before and not after - before, after - before


def test_the_35_categories_are_what_they_were():
    "Measured results depend on them: whoever changes them on purpose changes this digest and measures again."
    digest = hashlib.sha256()

    def feed(i):
        digest.update(repr((i.category, i.key, i.prompt, i.reply, i.check)).encode())

    for seed in (0, 1):
        for s in SPLITS:
            for i in islice(lessons.lesson_examples(s, seed), 2_000):
                feed(i)
        for s in SPLITS[:2]:
            for text in islice(lessons.lesson_documents(s, seed), 300):
                digest.update(text.encode())
    for c in CATEGORIES:
        for s in SPLITS:
            for i in lessons.items(c, s, 30):
                feed(i)
    assert digest.hexdigest() == "cbc3bce70bd42aa5bb66adaab3434c081033208e36cbd120244e881b306c1c73"
