"No question of an examination is worded as a lesson, and what is asked survives the wording."

import random
import re
from itertools import islice

import pytest

from elite112m.core.files import read_asset
from elite112m.curriculum import everyday, lessons, wordings
from elite112m.curriculum.everyday import FIRST_CONTACT, conversation_examples, everyday_items
from elite112m.curriculum.lessons import CATEGORIES, WORDINGS, worded
from elite112m.curriculum.wordings import FRAMES, STYLES, core_of, cores_of, prompt_of, reduced
from elite112m.evaluation.casual import casual_items, typed_items
from elite112m.evaluation.checks import check
from elite112m.evaluation.suite import exam

CASUAL = read_asset("casual")


@pytest.fixture(scope="module")
def taught():
    "What users ask in 60,000 conversations for training and validation, with seeds that no run uses."
    splits = (("train", 101), ("train", 102), ("val", 103))
    return [i for s, seed in splits for i in islice(conversation_examples(s, seed, "nano"), 20_000)]


def test_no_lesson_asks_what_an_examination_asks(taught):
    asked = {reduced(i.prompt) for i in taught} | {reduced(said) for i in taught for said, _ in i.history}
    assert len(asked) > 30_000
    assert [i.prompt for i in exam(30) + casual_items() + typed_items() if reduced(i.prompt) in asked] == []


def test_casual_prompts_are_composed_of_parts_that_no_lesson_has():
    "Its openings, endings and ways of asking are no frame and no core of the lessons."
    parts = {reduced(p) for p in CASUAL["openings"] + CASUAL["endings"]} - {""}
    frames = {reduced(f.replace("{c}", "").replace("{bare}", "")) for k in FRAMES.values() for f in k["train"]}
    fillers = {reduced(f) for place in wordings._FILLERS.values() for f in place}
    assert len(parts) > 10 and not parts & (frames | fillers)
    tables = [rel for facts in lessons._FACTS.values() for rel, *_ in facts]
    tables = {rel["id"]: cores_of(rel, rel["ask"]["train"] + rel["ask"]["test"]) for rel in tables}
    for relation, (_, cores) in CASUAL["facts"].items():
        ours = {reduced(core).removeprefix("the ") for _, core in tables[relation]}
        assert not {reduced(core) for core in cores} & ours, relation


def every(sentence):
    "All sentences that `(Hi|Hello)( there|)` stands for."
    m = re.search(r"\(([^()]*)\)", sentence)
    return [s for part in m[1].split("|") for s in every(sentence.replace(m[0], part, 1))] if m else [sentence]


def test_nothing_that_everyday_talk_is_built_from_gives_a_sentence_of_the_test():
    "Of a table's thousands of sentences, whatever chance draws."
    for name, table in (everyday._SKILLS | everyday._TALKS).items():
        ours = {reduced(s) for ask in table["ask"] for s in every(ask)}
        assert ours and not ours & {reduced(s) for s in table["other"]}, name
        assert not ours & {reduced(i.prompt) for i in casual_items()}, name


def test_each_exercise_is_asked_in_three_wordings_with_one_answer():
    for c in CATEGORIES:
        for asked in worded(c, "test", 5):
            assert tuple(i.wording for i in asked) == WORDINGS and len({i.prompt for i in asked}) == 3
            assert len({(i.key, i.reply, repr(i.check)) for i in asked}) == 1
            casual = asked[2].prompt
            assert casual[0] == casual[0].lower() and casual[-1] not in "?!", casual


def test_references_pass_their_checks_in_every_wording(taught):
    first = everyday_items("test", 200)
    assert {i.category for i in first} == {FIRST_CONTACT}
    wrong = [i for i in first + taught[:3_000] if not check(i.reply, i.check, i.prompt)]
    assert wrong == [], wrong[:3]


def test_what_is_told_decides_whether_it_is_known(taught):
    "My name is known after it was told, and unknown otherwise: the same question has both answers."
    ways = ("what is my name", "whats my name", "do you know my name", "tell me my name", "my name")
    asked = [i for i in taught if reduced(i.prompt) in ways]
    known = [i for i in asked if "know" not in i.reply]
    unknown = [i for i in asked if "don't know" in i.reply]
    assert len(known) > 3 and len(unknown) > 3 and len(known) + len(unknown) == len(asked)
    assert all(re.search(r"is (\w+)\.", i.reply)[1].lower() in str(i.history).lower() for i in known)


def test_nothing_that_has_to_be_copied_is_changed():
    "Slips, fillers and small letters touch the words around it."
    r = random.Random(0)
    core = core_of("Write in uppercase: {w}.")
    assert core == ("request", "write in uppercase: {w}")
    for style in [*STYLES] * 200:
        assert prompt_of(core, {"w": "Red moOn"}, r, styles=(style,)).rstrip(".?").endswith(": Red moOn")


def test_made_up_words_are_no_words_of_the_lessons():
    made = {everyday.nonsense(random.Random(k)) for k in range(3_000)}
    words = {w.lower() for t in lessons._FACTS.values() for _, slots, _ in t for w in slots["s"].split()}
    assert len(made) > 2_000 and not made & words, made & words
