"The large tables of facts: right by their own checks, drawn in their share, never asked as an examination asks."

import re
from itertools import islice

import pytest

from elite112m.core.config import InputError
from elite112m.core.files import read_asset
from elite112m.core.presets import TINY, preset
from elite112m.core.runs import run_stage
from elite112m.curriculum import lessons
from elite112m.curriculum.lessons import CATEGORIES, KNOWLEDGE, lesson_weights
from elite112m.curriculum.wordings import FRAMES, reduced
from elite112m.data.conversations import chosen
from elite112m.data.prepare import prepare
from elite112m.data.shards import Split
from elite112m.data.tokenizer import load_tokenizer
from elite112m.evaluation.casual import casual_items, knowledge_items
from elite112m.evaluation.checks import check
from elite112m.evaluation.suite import exam

FACTS = lessons._knowledge()


def test_a_good_reply_is_judged_right_and_another_facts_reply_wrong():
    wrong = []
    for rel, slots, how in FACTS:
        reply, prompt = rel["reply"].format(**slots), rel["ask"]["test"][0].format(**slots)
        if not check(reply, how, prompt) or check("", how, prompt) or check("I don't know that.", how, prompt):
            wrong.append((prompt, reply))
    assert not wrong
    capitals = [f for f in FACTS if f[0]["id"] == "capital" and f[1]["s"].split()[-1] not in f[1]["a"]]
    assert len(capitals) > 100
    for (rel, slots, how), (_, other, _) in zip(capitals, capitals[1:]):
        assert not check(f"The capital of {slots['s']} is {other['a']}.", how, rel["ask"]["test"][0].format(**slots))


def test_every_template_is_a_sentence():
    for rel, slots, _ in FACTS:
        texts = [rel["reply"], *rel["ask"]["train"], *rel["ask"]["test"], *rel["say"]["train"], *rel["say"]["val"]]
        assert not [t for t in texts if "  " in t.format(**slots) or "{" in t.format(**slots)]
        assert all(t.format(**slots)[-1] in ".?!" for t in rel["say"]["train"]), rel["id"]


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_share_of_knowledge(share):
    drawn = [i.category for i in islice(lessons.lesson_examples("train", 1, lesson_weights(share)), 4_000)]
    assert abs(drawn.count(KNOWLEDGE) / len(drawn) - share) < 0.03
    assert set(drawn) - {KNOWLEDGE} <= set(CATEGORIES)


def test_no_sentence_is_a_noun_in_a_frame():
    "A sentence may be held out for the test, so no noun phrase of its relation may lead to it in training."
    for rel in lessons._RELATIONS + [t for t in read_asset("knowledge") if "ask" in t]:
        named = [(kind, core) for kind in ("noun", "person", "topic") for core in rel.get(kind, ())]
        framed = [(f, core) for kind, core in named for frames in FRAMES[kind].values() for f in frames]
        made = {reduced(f.replace("{c}", core).replace("{bare}", re.sub("^the ", "", core))) for f, core in framed}
        assert not made & {reduced(s) for split in rel["ask"].values() for s in split}, rel["id"]


def test_no_fact_is_asked_as_an_examination_asks():
    asked = {reduced(i.prompt) for i in (*exam(30), *casual_items(), *knowledge_items())}
    drawn = islice(lessons.lesson_examples("train", 3, lesson_weights(0.9)), 40_000)
    assert not [i.prompt for i in drawn if reduced(i.prompt) in asked]


def test_a_preset_prepares_and_tunes_with_the_facts(tmp_path):
    settings = TINY | {"data.knowledge": 0.9, "data.curriculum": 0.6, "data.tokens": 100_000}
    run_stage(prepare, tmp_path, settings=settings)
    tok = load_tokenizer(tmp_path / "data")
    text = tok.decode([int(t) for shard in Split(tmp_path / "data", "train").shards for t in shard])
    statements = [t.format(**slots) for rel, slots, _ in FACTS for t in rel["say"]["train"]]
    assert sum(s in text for s in statements) > 150
    talks = [m for talk in chosen(["curriculum"], "train", 600, 1, knowledge=0.9) for m in talk]
    replies = {rel["reply"].format(**slots) for rel, slots, _ in FACTS}
    assert sum(m["content"] in replies for m in talks) > 300


def test_a_share_that_leaves_nothing_else_is_refused():
    with pytest.raises(InputError, match="data.knowledge"):
        preset("nano", {"data.knowledge": 1.0})
