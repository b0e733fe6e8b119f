"Everyday tasks have right answers, and what the lessons hold out stays held out."

import re
from collections import Counter
from itertools import islice

import pytest

from elite112m.curriculum.lessons import CATEGORIES, split_of, worded
from elite112m.curriculum.tasks import EVERYDAY_TASKS, task_examples
from elite112m.curriculum.wordings import reduced
from elite112m.evaluation.checks import check


@pytest.fixture(scope="module")
def tasks():
    return list(islice(task_examples("train", 301), 20_000))


def numbers(text):
    return [int(n) for n in re.findall(r"\d+", text)]


def test_answers_follow_from_the_question(tasks):
    "Worked out again from the words of the prompt, without the makers' keys and slots."
    seen = Counter()
    for i in tasks:
        prompt, reply = reduced(i.prompt), i.reply
        kind = i.key.split(":")[0]
        match kind:
            case "sort":
                assert numbers(reply) in (sorted(numbers(i.prompt)), sorted(numbers(i.prompt))[::-1]), i
            case "extreme":
                words = {"big|larg|max|high": max, "small|min|low": min}
                meant = {f for pattern, f in words.items() if re.search(pattern, prompt)}  # none after some slips
                assert int(reply) in {f(numbers(i.prompt)) for f in meant or words.values()}, i
            case "compare":
                assert int(reply) == max(numbers(i.prompt)), i
            case "number" | "falling":
                *_, a, b = run = numbers(i.prompt)
                assert len({y - x for x, y in zip(run, run[1:])}) == 1, i
                assert int(reply.rpartition("#### ")[2]) == 2 * b - a, i
            case "letters":
                word, n = re.fullmatch(r"The word (\w+) has (\d+) letters\.", reply).groups()
                assert len(word) == int(n) and word in i.prompt.lower(), i
            case "backwards":
                assert reply[::-1] in i.prompt.lower(), i
            case "spell":
                assert reply.replace("-", "") in i.prompt.lower(), i
            case "upper":
                assert reply.isupper() and reply.lower() in i.prompt.lower(), i
            case _:
                continue
        seen[kind] += 1
    assert len(seen) == 9 and min(seen.values()) > 20, seen


def test_every_reply_passes_its_check_and_another_does_not(tasks):
    assert {i.category for i in tasks} == {EVERYDAY_TASKS}
    for i in tasks[:5_000]:
        assert check(i.reply, i.check, i.prompt) and not check("I would rather not say.", i.check, i.prompt), i


def test_no_task_asks_what_the_examination_asks(tasks):
    "Neither its prompts nor, for facts both know, its words."
    asked = {reduced(i.prompt) for i in tasks}
    exam = [i for c in CATEGORIES for three in worded(c, "test", 60) for i in three]
    assert len(exam) > 4_000 and [i.prompt for i in exam if reduced(i.prompt) in asked] == []


def test_sums_of_the_test_stay_there(tasks):
    "In replies and in the turns before."
    texts = [t for i in tasks for t in (i.reply, *(reply for _, reply in i.history))]
    steps = {m for t in texts for m in re.findall(r"<<(\d+)([-+*/])(\d+)=", t)}
    key = lambda a, op, b: f"{min(int(a), int(b))}{op}{max(int(a), int(b))}" if op in "+*" else f"{a}{op}{b}"
    assert len(steps) > 500 and [s for s in steps if split_of(key(*s)) == "test"] == []
