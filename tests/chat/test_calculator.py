"The calculator: expressions against Python's own grammar, and computed digits in every way of generating."

import ast
import io
import operator
import random
import re
import time
from contextlib import redirect_stdout
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from test_third_party_chat import byte_level, sentencepiece

from elite112m.chat.calculator import Calculator, compute, sum_value
from elite112m.chat.chat_model import ChatModel
from elite112m.chat.conversation import Chat
from elite112m.chat.generate import generate
from elite112m.core.config import ModelConfig
from elite112m.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from elite112m.model.quantised import as_format
from elite112m.model.transformer import CausalLM

# Expressions

OPS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def oracle(text):
    "The value by Python's own parser, of the nodes that an expression may have; None for anything else."

    def value(node):
        match node:
            case ast.Constant():
                return Fraction(ast.get_source_segment(code, node))
            case ast.UnaryOp(ast.USub(), of):
                return -value(of)
            case ast.UnaryOp(ast.UAdd(), of):
                return value(of)
            case ast.BinOp(left, op, right) if type(op) in OPS:
                return OPS[type(op)](value(left), value(right))
        raise ValueError(node)

    code = re.sub(r"(?<![\d.])0+(?=\d)", "", text.strip())  # Python knows no 007
    try:
        return value(ast.parse(code, mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def expression(r, depth=0):
    "A random expression that is well formed."
    kind = r.random()
    if kind < 0.4 or depth > 3:
        return r.choice(["0", "7", "12", "305", "2.5", ".5", "40.", "0.125", "1000000", "007"])
    if kind < 0.5:
        return r.choice("+-") + expression(r, depth + 1)
    if kind < 0.65:
        return f"({expression(r, depth + 1)})"
    space = r.choice(["", " "])
    return space.join([expression(r, depth + 1), r.choice(["+", "-", "*", "/", "//"]), expression(r, depth + 1)])


def test_well_formed_expressions_have_the_value_that_python_gives():
    r = random.Random(1)
    texts = [t for t in (expression(r) for _ in range(5_000)) if len(t) <= 100]
    values = {t: oracle(t) for t in texts}
    assert len(texts) > 4_500 and sum(v is None for v in values.values()) < 1_000, "most divide by no zero"
    assert {t: (v, sum_value(t)) for t, v in values.items() if v != sum_value(t)} == {}


def test_any_text_is_an_expression_or_not_as_python_says():
    "Symbols in any order; powers and comments are Python's, not ours, so their symbols are not drawn side by side."
    r = random.Random(2)
    symbols = ["1", "20", ".5", "3.", "+", "-", "*", "/", "//", "(", ")", " "]
    for _ in range(20_000):
        text = "".join(r.choice(symbols) for _ in range(r.randint(1, 9)))
        if "**" not in text and "///" not in text:
            assert sum_value(text) == oracle(text), text


def test_no_text_raises_or_takes_long():
    r, begin = random.Random(3), time.monotonic()
    odd = "0123456789+-*/().,^%$=<>xe_ \n\0é²٣🙂lambda:__import__('os')"
    hostile = [
        "9**9**9",
        "(" * 5_000,
        "-" * 5_000 + "1",
        "1+" * 5_000 + "1",
        "9" * 5_000,
        "1e999999999",
        "0x10",
        "1_000",
    ]
    hostile += ["٣+٤", "2^3", "1 000", "1,0000", "1..2", "()", "nan", "inf", "True", "1if 1else 2", "10" * 49 + "*9"]
    for text in hostile + ["".join(r.choice(odd) for _ in range(r.randint(0, 60))) for _ in range(20_000)]:
        written = compute(text)
        assert written is None or re.fullmatch(r"-?(0|[1-9]\d{0,17})(\.\d{0,5}[1-9])?", written), (text, written)
    assert [compute(t) for t in hostile] == [None] * len(hostile)
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize(
    "text, written",
    [
        ("7+8", "15"),
        ("8/4", "2"),
        ("1,200 * 3", "3600"),
        ("10/4", "2.5"),
        ("100*0.075", "7.5"),
        ("2/3", "0.6667"),
        ("200/3", "66.67"),
        ("3-5", "-2"),
        ("5-5", "0"),
        ("12÷4×2", "6"),
        ("-(2+3)", "-5"),
    ],
)
def test_values_are_written_as_in_the_data(text, written):
    assert compute(text) == written


# Tokens


def written(tok, begun):
    "What the calculator adds to a text that a model has written so far."
    calculator, ids = Calculator(tok), tok.encode(begun)
    n = len(ids)
    while (i := calculator.next_id(ids)) is not None and len(ids) < n + 50:
        ids.append(i)
    return tok.decode(ids)[len(begun) :]


@pytest.fixture(scope="module")
def smol():
    return load_tokenizer("smollm2")


VOCABULARIES = {
    "SmolLM2": lambda: load_tokenizer("smollm2"),
    "own": lambda: train_tokenizer(["User: 3+4? Assistant: <<13+24=37>>37, <<5-9=-4>>"] * 4, 320),
    "GPT-2, digits merged": lambda: Tokenizer(byte_level(["<|endoftext|>"])),
    "SentencePiece": lambda: Tokenizer(sentencepiece(["<|endoftext|>"])),
    "SentencePiece, normalised": lambda: Tokenizer(sentencepiece(["<|endoftext|>"], normalized=True)),
}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_vocabulary_gets_the_value_whole(name):
    tok = VOCABULARIES[name]()
    for text in ("347+58", "3-5", "10/4", "12 + 34", "99*99", "(1+2)*(3+4)/7"):
        value = compute(text)
        assert written(tok, f"It is <<{text}=") == f"{value}>>", text
        assert written(tok, f"It is <<{text}={value[0]}") == f"{value[1:]}>>"
        for alone in (f"It is {text}=", f"<<{text}", f"<<{text}={value}>>", f"<<{text}=x", f"<<x{text}="):
            assert written(tok, alone) == "", alone


def test_tokens_are_those_of_training(smol):
    "Also where a vocabulary has `=-` as one token, whichever way the model has begun."
    for text in ("<<347+58=405>>405", "<<10/4=2.5>>2.5"):
        ids = smol.encode(text)
        begin, end = ids.index(smol.encode("=")[0]) + 1, ids.index(smol.encode(">>")[0]) + 1
        assert [Calculator(smol).next_id(ids[:k]) for k in range(begin, end)] == ids[begin:end]
    (joined,) = smol.encode("=-")
    assert written(smol, "<<3-5=") == "-2>>" and smol.encode("<<3-5=-")[-1] == joined
    assert written(smol, "<<3-5=-") == "2>>" and written(smol, "<<3+5=-") == ""


# Generation


class Scripted:
    "A model that gives each row the tokens of its script, one after the other."

    def __init__(self, tok, scripts):
        self.scripts = [tok.encode(s) + [tok.eot] for s in scripts]
        self.config, self.device = SimpleNamespace(context=512, vocab_size=tok.vocab_size), torch.device("cpu")

    def begin(self, prompts, length):
        self.at, self.rows = -1, list(range(len(prompts)))
        return self.step(None, None), SimpleNamespace(keep=self.keep)

    def keep(self, rows):
        self.rows = [self.rows[k] for k in rows]

    def step(self, ids, cache):
        self.at += 1
        wanted = [self.scripts[row][min(self.at, len(self.scripts[row]) - 1)] for row in self.rows]
        return torch.nn.functional.one_hot(torch.tensor(wanted), self.config.vocab_size).float()


SCRIPTS = [
    "347 + 58 = <<347+58=406>>406\n#### 406",
    "7.",
    "9 * 8 = <<9*8=71>>72, 72 - 2 = <<72-2=71>>70",
    "It is <<unknown=5>>5 and <<1/0=3>>3.",
]
RIGHT = [
    "347 + 58 = <<347+58=405>>406\n#### 406",
    "7.",
    "9 * 8 = <<9*8=72>>72, 72 - 2 = <<72-2=70>>70",
    "It is <<unknown=5>>5 and <<1/0=3>>3.",
]


def chat_model(smol, *scripts):
    return ChatModel(Scripted(smol, scripts), smol, "scripted")


HOW = {"greedy": {}, "drawn": {"temperature": 1.0, "top_k": 1, "seed": 1}, "penalised": {"repetition_penalty": 1.5}}


@pytest.mark.parametrize("how", HOW)
def test_rows_of_a_batch_are_corrected_each_for_itself(smol, how):
    "Rows end at different times and are dropped; the text is the script's but for the computed digits."
    common = {"stop": {smol.eot}, "max_new_tokens": 60, **HOW[how]}
    alone = generate(Scripted(smol, SCRIPTS), [[1]] * 4, **common)
    together = generate(Scripted(smol, SCRIPTS), [[1]] * 4, calculator=Calculator(smol), **common)
    assert [smol.decode(a) for a in alone] == SCRIPTS
    assert [smol.decode(a) for a in together] == RIGHT


def test_a_computed_digit_comes_even_if_it_is_forbidden(smol):
    seven, script = smol.encode("7"), "3 + 4 = <<3+4=8>>8"

    def never_seven(logits, answered):
        return logits.index_fill(1, torch.tensor(seven), -torch.inf)

    how = {"stop": {smol.eot}, "adjust": never_seven, "calculator": Calculator(smol)}
    (answer,) = generate(Scripted(smol, [script]), [[1]], **how)
    assert smol.decode(answer) == "3 + 4 = <<3+4=7>>8"


def test_limits_and_stop_strings_hold_inside_a_value(smol):
    model, n = chat_model(smol, SCRIPTS[0]), len(smol.encode("347 + 58 = <<347+58=40"))
    cut = Chat(model, max_new_tokens=n).say("?")
    assert (cut.text[-3:], cut.finish, [cut.text[slice(*s)] for s in cut.computed]) == ("=40", "length", ["40"])
    seen = []
    stopped = Chat(model).say("?", on_part=lambda text, token: seen.append(text), stop_strings=["5>>4"])
    assert stopped.text == "".join(seen) == "347 + 58 = <<347+58=40" and stopped.finish == "stop"


def test_an_answer_knows_what_was_computed_and_may_do_without(smol):
    chat = Chat(chat_model(smol, SCRIPTS[2]))
    on = chat.say("?")
    assert (on.text, [on.text[slice(*s)] for s in on.computed]) == (RIGHT[2], ["72", "70"])
    chat.set(calculator="off")
    off = chat.retry()
    assert (off.text, off.computed) == (SCRIPTS[2], ())
    likely = chat_model(smol, SCRIPTS[0])
    tokens = [t for _, t in Chat(likely).say("?", top=2).parts if t]
    forced = next(t for k, t in enumerate(tokens) if t.text == "5" and tokens[k + 1].text == ">>")
    assert forced.logprob < forced.top[0][1], "the probability is the model's, which preferred 6"


def test_replies_in_batches(smol):
    model, talks = chat_model(smol, *SCRIPTS[:3]), [[{"role": "user", "content": "?"}]] * 3
    assert [r.text for r in model.replies(talks)] == SCRIPTS[:3]
    assert [r.text for r in model.replies(talks, calculator=True)] == RIGHT[:3]


@pytest.mark.parametrize("format", ["fp32", "int8"])
def test_the_model_goes_on_from_the_computed_value(smol, format):
    "What follows is what the engine continues when the same text is its prompt: the cache holds the computed digits."
    torch.manual_seed(0)
    model = as_format(CausalLM(ModelConfig(smol.vocab_size, 2, 64, 2, 2, 96, 128)).eval(), format)
    prompt, begun, value = smol.encode("User: 3 + 4?"), smol.encode("3 + 4 = <<3+4="), smol.encode("7>>")

    def begin_with(logits, answered):
        if (n := answered.shape[1]) < len(begun):
            logits = logits.index_fill(1, torch.tensor([begun[n]]), 1e9)
        return logits

    how = {"stop": (), "tok": smol}
    calculated = generate(model, [prompt], 24, adjust=begin_with, calculator=Calculator(smol), **how)[0]
    n = len(begun) + len(value)
    assert calculated[:n] == begun + value
    assert calculated[n:] == generate(model, [prompt + begun + value], 24 - n, **how)[0]


# What is shown


def test_marks_in_terminal_and_panel(smol):
    from elite112m.chat.terminal import Terminal
    from elite112m.chat.widgets import Panel

    chat, out = Chat(chat_model(smol, "<b> " + SCRIPTS[0])), io.StringIO()
    with redirect_stdout(out):
        Terminal(chat).line("?")
    assert out.getvalue() == f"Assistant: <b> {RIGHT[0]}\n", "a pipe gets plain text"
    for probabilities in (False, True):
        chat.reset()
        panel = Panel(chat)
        panel.probabilities = probabilities
        panel.ask("?")
        marked = re.findall(r'<span title="computed[^>]*>([^<]*)</span>', panel.view.value)
        assert "".join(marked) == "405" and "<b> " not in panel.view.value


class TTY(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_underlines(smol):
    from elite112m.chat.terminal import Terminal

    chat, out = Chat(chat_model(smol, SCRIPTS[0])), TTY()
    with redirect_stdout(out):
        Terminal(chat).line("?")
    assert re.sub(r"\x1b\[4m(.)\x1b\[0m", r"_\1", out.getvalue()) == f"Assistant: {RIGHT[0]}\n".replace(
        "=405", "=_4_0_5"
    )


def served(smol, path="/v1/chat/completions", defaults=None, **fields):
    "The answer of a real server in this process to one request, streamed answers as their events."
    import asyncio
    import json

    from tornado import httpclient, netutil

    from elite112m.chat.server import make_server

    async def ask():
        server = make_server(chat_model(smol, SCRIPTS[0], SCRIPTS[0]), defaults)
        sockets = netutil.bind_sockets(0, "127.0.0.1")
        server.add_sockets(sockets)
        ask = {"messages": [{"role": "user", "content": "?"}]} if "chat" in path else {"prompt": "?"}
        url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}{path}"
        body = json.dumps(ask | fields)
        found = await httpclient.AsyncHTTPClient().fetch(url, method="POST", body=body, raise_error=False)
        server.stop()
        return found.body.decode()

    text = asyncio.run(ask())
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return events or json.loads(text)


def marked(choices, text_of):
    return "".join(text_of(c)[a:b] for c in choices for a, b in c.get("computed", ()))


def test_served_text_is_plain_and_what_was_computed_stands_beside_it(smol):
    whole = served(smol)["choices"][0]
    assert whole["message"]["content"] == RIGHT[0]
    assert marked([whole], lambda c: c["message"]["content"]) == "405"
    choices = [e["choices"][0] for e in served(smol, stream=True)]
    assert "".join(c["delta"].get("content", "") for c in choices).strip() == RIGHT[0]
    assert marked(choices, lambda c: c["delta"].get("content", "")) == "405"
    older = served(smol, "/v1/completions", echo=True)["choices"][0]
    assert older["text"] == "?" + RIGHT[0] and marked([older], lambda c: c["text"]) == "405"


def test_the_calculator_is_turned_off_by_a_request_or_by_the_server(smol):
    for defaults, fields, text in (
        ({}, {"calculator": False}, SCRIPTS[0]),
        ({"calculator": False}, {}, SCRIPTS[0]),
        ({"calculator": False}, {"calculator": True}, RIGHT[0]),
    ):
        choice = served(smol, defaults=defaults, **fields)["choices"][0]
        assert choice["message"]["content"] == text and ("computed" in choice) == (text == RIGHT[0])
        streamed = served(smol, defaults=defaults, stream=True, **fields)
        assert any("computed" in e["choices"][0] for e in streamed) == (text == RIGHT[0])
    assert "calculator" in served(smol, calculator="perhaps")["error"]["message"]


@pytest.mark.parametrize("name", ["gpt-4o-mini", "text-davinci-003", "meta-llama/Llama-3-8B", "../x", "", " ", None])
def test_any_name_of_a_model_is_served_by_the_one_there_is(smol, name):
    "Clients send their defaults; the answer says which model it was."
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert served(smol, path, model=name)["model"] == "scripted"
        events = served(smol, path, model=name, stream=True, stream_options={"include_usage": True})
        assert {e["model"] for e in events} == {"scripted"} and len(events) > 10
