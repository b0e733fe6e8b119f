"A reply that goes round in circles is cut, in every way of generating; one that ends by itself is left as it is."

import random

import pytest
from test_calculator import Scripted, chat_model

from elite112m.chat.chat_model import ChatModel
from elite112m.chat.conversation import Chat, respond
from elite112m.chat.generate import generate
from elite112m.chat.openai_api import ChatRequest, CompletionRequest, ResponseBuilder, prepare_chat, prepare_completion
from elite112m.core.locate import find_model
from elite112m.model.third_party import open_tokenizer

# What nano (seed 1, greedy) said until its length limit, and what should be left of it.
ENDLESS = {
    "The moon of moon of moon of moon" + " moon" * 140: "The moon of moon of moon of moon",
    "A song about the" + " song about the" * 27 + " song" * 60: "A song about the",
    "A song about the songs was" + " song about the" * 25 + " song" * 60: "A song about the songs was song about the",
    "a" * 600: "aaaa",  # one token
    # the circle begins with the first full stop, so it ends before the second
    "No." + " I do not know what I do not know." * 15: "No. I do not know what I do not know",
    "😀" * 60: "😀",
}
FINE = [
    "1, 1, 1, 1",
    "hello" + " hello" * 150,
    "I will not talk in class.\n" * 15,
    "\n".join(f"{n} * 1 = {n}" for n in range(1, 25)),
    "x = [\n" + "    [0, 0, 0, 0, 0, 0, 0, 0],\n" * 8 + "]",
    "| a | b |\n" + "| --- | --- |\n" + "| 1 | 1 |\n" * 12,
    "ha" * 40,
]


@pytest.fixture(scope="module")
def smol():
    return open_tokenizer(find_model("smollm2-135m-instruct"))


@pytest.mark.parametrize("text", ENDLESS, ids=ENDLESS.values())
def test_an_endless_reply_is_cut_in_the_conversation_and_not_shown_in_full(smol, text):
    shown = []
    chat = Chat(chat_model(smol, text), max_new_tokens=len(smol.encode(text)) - 2)
    answer = chat.say("?", lambda piece, token: shown.append(piece))
    assert (answer.text, answer.finish) == (ENDLESS[text], "repetition")
    assert "".join(shown).startswith(answer.text) and len("".join(shown)) <= 2 * len(answer.text)
    assert "ended where it repeated itself" in str(answer) and chat.messages[-1]["content"] == answer.text
    chat.set(stop_repetition="off")
    whole = chat.retry()
    assert text.startswith(whole.text.rstrip("\ufffd")) and len(whole.text) > 4 * len(answer.text)
    assert whole.finish == "length"


@pytest.mark.parametrize("text", FINE, ids=lambda text: text[:20])
def test_a_reply_that_ends_by_itself_is_left_as_it_is(smol, text):
    shown = []
    answer = Chat(chat_model(smol, text), max_new_tokens=400).say("?", lambda piece, token: shown.append(piece))
    assert (answer.text, "".join(shown).strip(), answer.finish) == (text.strip(), text.strip(), "stop")


def test_a_batch_is_cut_row_by_row_and_only_if_asked(smol):
    texts = [*FINE, *ENDLESS]
    model = ChatModel(Scripted(smol, texts), smol, "scripted")
    ask, how = [[{"role": "user", "content": "?"}]] * len(texts), {"max_new_tokens": 120}
    limit = lambda text: smol.decode(smol.encode(text)[:120]).strip()
    plain = model.replies(ask, **how)
    assert [r.text for r in plain] == [limit(t) for t in texts]
    assert [r.repeats for r in plain[len(FINE) :]] == [True] * len(ENDLESS)
    model = ChatModel(Scripted(smol, texts), smol, "scripted")
    cut = model.replies(ask, **how, stop_repetition=True)
    assert [r.text.rstrip("\ufffd") for r in cut[len(FINE) :]] == list(ENDLESS.values())
    for text, reply in zip(FINE, cut):
        assert reply.text == limit(text) or not reply.ended


def test_random_circles(smol):
    "Whatever the circle, wherever the limit: the beginning and the circle, once."
    r, words = random.Random(1), [" " + w for w in "moon sea cat sun tree sky bird red old big far low".split()]
    for _ in range(40):
        beginning = "".join(r.sample(words[:6], r.randint(0, 5)))
        circle = "".join(r.sample(words[6:], r.randint(1, 6)))
        n = len(smol.encode(beginning)) + max(32, 4 * len(smol.encode(circle))) + r.randint(1, 40)
        answer = Chat(chat_model(smol, beginning + circle * 200), max_new_tokens=n).say("?")
        assert answer.text == (beginning + circle).strip(), (beginning, circle, n)


def test_a_long_limit_is_not_waited_for(smol):
    (ids,) = generate(Scripted(smol, [" moon" * 480]), [[1]], 500, stop=(), stop_repetition=True)
    answer = Chat(chat_model(smol, " moon" * 480), max_new_tokens=500).say("?")
    assert smol.decode(ids) == " moon" and answer.text == "moon" and 256 <= answer.tokens < 260


def test_tokens_and_their_probabilities_are_those_of_the_text(smol):
    text = "The moon of" + " moon" * 140
    answer = respond(chat_model(smol, text), [1], {smol.eot}, {"max_new_tokens": 100}, top=1)
    assert "".join(t.text for _, t in answer.parts) == "".join(part for part, _ in answer.parts) == answer.text
    assert answer.text == "The moon of moon" and answer.tokens == 100


def test_what_the_user_stops_is_cut_as_well(smol):
    n = []
    chat = Chat(chat_model(smol, "The" + " moon" * 140))
    answer = chat.say("?", lambda piece, token: n.append(piece) or len(n) == 60)
    assert (answer.text, answer.finish) == ("The moon", "stopped")


def test_the_server_says_why_and_continues_plain_text_as_it_is(smol):
    text = "The" + " moon" * 140
    ask = ChatRequest(messages=[{"role": "user", "content": "?"}])
    (answer,) = prepare_chat(ask, chat_model(smol, text), {})(None)
    said = ResponseBuilder(ask, "m").whole([answer])
    assert (said["choices"][0]["message"]["content"], said["stopped"]) == ("The moon", "repetition")
    assert said["choices"][0]["finish_reason"] == "length" and said["usage"]["completion_tokens"] == 128
    for fields, kept in (({}, text), ({"stop_repetition": True}, "The moon")):
        ask = CompletionRequest(prompt="?", max_tokens=60, **fields)
        (answer,) = prepare_completion(ask, chat_model(smol, text), {})(None)
        assert answer.text == smol.decode(smol.encode(kept)[:60])
