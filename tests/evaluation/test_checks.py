"The checks of all items, but for those that run code, against right, wrong, empty and rambling replies."

from itertools import islice

import pytest
from replies import CODE_KINDS, ITEMS, TEXT, dressed, failing, listed, passing, stranger

from elite112m.curriculum import lessons as curriculum
from elite112m.curriculum.lessons import CATEGORIES, WORDINGS
from elite112m.evaluation.suite import FORM_ONLY, exam, first_contact


def test_every_category_has_exercises_in_three_wordings():
    "Thirty each, where there are so many: sixteen things are explained in a science."
    taught = [sum(i.category == c and i.wording == "taught" for i in ITEMS) for c in CATEGORIES]
    assert sum(n == 30 for n in taught) >= 31 and min(taught) >= 16 and 3 * sum(taught) == len(ITEMS)
    assert len({i.prompt for i in ITEMS}) == len(ITEMS)
    exercises = {}
    for i in ITEMS:
        exercises.setdefault((i.category, i.key, i.reply), []).append(i.wording)
    assert set(map(tuple, exercises.values())) == {WORDINGS}


def test_first_contact_answers_pass_and_empty_talk_fails():
    items = first_contact(30)
    assert items and len({(i.prompt, i.history) for i in items}) == len(items)
    assert failing((i, i.reply) for i in items) == []
    assert passing((i, reply) for i in items for reply in ("", "?", "lorem ipsum dolor sit amet " * 12)) == []


def test_right_answers_pass():
    assert failing((i, i.reply) for i in TEXT) == []


def test_right_answers_pass_in_other_forms():
    assert failing((i, dressed(i)) for i in TEXT) == []


def test_wrong_answers_fail():
    assert passing((i, stranger(i)) for i in TEXT) == []


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
    "Of code items too: none of these is Python, so no process is started."
    assert passing((i, reply) for i in ITEMS) == []


def test_the_question_said_again_fails():
    assert passing((i, i.prompt) for i in ITEMS) == []


def test_endless_repetition_fails():
    assert passing((i, f"{i.reply}\n" * 10) for i in TEXT) == []


def test_all_options_listed_fail():
    assert passing((i, listed(i)) for i in TEXT) == []


def test_nonsense_around_a_wrong_answer_does_not_help():
    "What stands around an answer is not judged if it claims nothing, so this may pass around a right answer only."
    noise = "blue trees seldom argue with yesterday's umbrella"
    assert passing((i, f"{noise}. {stranger(i)} {noise}.") for i in TEXT) == []


def test_forms_alone_are_labelled():
    kinds = {c: {i.check["kind"] for i in ITEMS if i.category == c} for c in CATEGORIES}
    assert {c for c, k in kinds.items() if k & {"keywords", "lines", "haiku", "name"}} == set(FORM_ONLY)
    assert len(TEXT) < len(ITEMS) and not {i.check["kind"] for i in TEXT} & set(CODE_KINDS)


def test_no_prompt_is_asked_in_training_in_other_spelling():
    "Nor in the lessons: what differs in capitals, commas and spaces only counts as the same."
    from elite112m.curriculum.wordings import reduced

    asked = {reduced(i.prompt) for i in islice(curriculum.lesson_examples("train", 0), 40_000)}
    assert [i.prompt for i in exam(30) if reduced(i.prompt) in asked] == []
    seen = next(curriculum.lesson_examples("train", 0)).prompt
    assert reduced(f"  {seen.upper()}!!") in asked, "the comparison finds nothing"


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
