"The local server as a process: the real OpenAI client, a thousand malformed requests, clients that hang up."

import json
import random
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import psutil
import pytest
from conftest import BIN, ENV

ASK = {"messages": [{"role": "user", "content": "a b"}], "max_tokens": 3}
LONG = {"stop_repetition": False}  # the untrained model goes round in circles


@pytest.fixture(scope="module")
def server(toy, tmp_path_factory):
    log = open(tmp_path_factory.mktemp("log") / "log", "w+")
    process = subprocess.Popen(
        [BIN / "elite112m", "serve", "--model", toy(8192), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=ENV,
    )
    url = process.stdout.readline().split()[0]
    yield url, process
    with httpx.stream(
        "POST", url + "/v1/chat/completions", json=ASK | {"max_tokens": 8000, "stream": True} | LONG, timeout=60
    ) as r:
        next(r.iter_lines())
        process.terminate()  # in the middle of an answer
        assert process.wait(60) == 0
    log.seek(0)
    text = log.read()
    assert "Traceback" not in text, text[-3000:]


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server[0], timeout=60) as c:
        yield c


def test_the_openai_client(server):
    c = openai.OpenAI(base_url=server[0] + "/v1", api_key="none", max_retries=0)
    name = c.models.list().data[0].id
    ask = {
        "model": name,
        "messages": [
            {"role": "system", "content": "c"},
            {"role": "user", "content": [{"type": "text", "text": "a b"}]},
        ],
        "max_completion_tokens": 8,
    }
    whole = c.chat.completions.create(**ask)
    assert (whole.usage.completion_tokens, whole.choices[0].finish_reason) == (8, "length")
    events = list(c.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(e.choices[0].delta.content or "" for e in events if e.choices)
    assert (
        text.strip() == whole.choices[0].message.content
        and events[-1].usage == whole.usage
        and events[-2].choices[0].finish_reason == "length"
    )

    ask["messages"] += [whole.choices[0].message.model_dump(), {"role": "user", "content": "d"}]  # as clients go on
    drawn = {c.chat.completions.create(**ask, temperature=1.5, seed=s).choices[0].message.content for s in (1, 1, 2, 3)}
    assert 2 <= len(drawn) <= 3
    likely = c.chat.completions.create(**ask, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(likely) == 8 and all(t.logprob == t.top_logprobs[0].logprob and len(t.top_logprobs) == 3 for t in likely)

    bare = c.completions.create(model=name, prompt="a b", max_tokens=60, temperature=1, seed=5)
    stop = next(x for x in bare.choices[0].text[3:] if "!" <= x <= "~")
    cut = c.completions.create(model=name, prompt="a b", max_tokens=60, temperature=1, seed=5, stop=[stop])
    assert cut.choices[0].text == bare.choices[0].text.split(stop)[0] and cut.choices[0].finish_reason == "stop"
    two = c.chat.completions.create(**ask, n=2, temperature=1.5, seed=1)
    assert [x.index for x in two.choices] == [0, 1] and two.usage.completion_tokens == 16
    events = [e.choices[0] for e in c.chat.completions.create(**ask, n=2, temperature=1.5, seed=1, stream=True)]
    for whole in two.choices:
        text = "".join(e.delta.content or "" for e in events if e.index == whole.index)
        assert text.strip() == whole.message.content
    with pytest.raises(openai.BadRequestError, match="n: "):
        c.chat.completions.create(**ask, n=0)
    assert c.chat.completions.create(**ask | {"model": "gpt"}).model == name
    with pytest.raises(openai.BadRequestError) as e:
        c.chat.completions.create(model=name, messages=[{"role": "user", "content": "a " * 9000}])
    assert e.value.code == "context_length_exceeded"


USER, ASSISTANT = {"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"}
SYSTEM = {"role": "system", "content": "d"}
SERVED = {
    "null content": {"messages": [USER, ASSISTANT | {"content": None, "tool_calls": None}, USER]},
    "null content of a user": {"messages": [{"role": "user", "content": None}]},
    "parts": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    },
    "no parts": {"messages": [{"role": "user", "content": []}]},
    "empty text": {"messages": [{"role": "user", "content": ""}]},
    "two users": {"messages": [USER, USER]},
    "two assistants": {"messages": [USER, ASSISTANT, ASSISTANT, USER]},
    "assistant first": {"messages": [ASSISTANT, USER]},
    "assistant last": {"messages": [USER, ASSISTANT]},
    "only system": {"messages": [SYSTEM]},
    "only developer": {"messages": [SYSTEM | {"role": "developer"}]},
    "two systems": {"messages": [SYSTEM, SYSTEM, USER]},
    "system later": {"messages": [USER, ASSISTANT, SYSTEM, USER]},
    "many messages": {"messages": [USER, ASSISTANT] * 400 + [USER]},
    "fields of other servers in messages": {"messages": [USER | {"name": "x", "reasoning_content": "y", "id": 5}]},
    "top_p 0": {"temperature": 1, "top_p": 0},
    "small top_p": {"temperature": 1, "top_p": 0.001},
    "top_p above 1": {"temperature": 1, "top_p": 1.5},
    "hot": {"temperature": 9.5},
    "whole numbers as fractions": {"max_tokens": 3.0, "temperature": 1, "seed": 3.0},
    "numbers as text": {"max_tokens": "3"},
    "top_k -1": {"top_k": -1},
    "large top_k": {"temperature": 1, "top_k": 10**9},
    "negative seed": {"temperature": 1, "seed": -1},
    "weak penalty": {"repetition_penalty": 0.1},
    "llama.cpp's names": {
        "n_predict": 3,
        "repeat_penalty": 1.1,
        "cache_prompt": True,
        "mirostat": 0,
        "samplers": ["top_k"],
    },
    "seven stops": {"stop": [*"1234567", "", "1"]},
    "null stop": {"stop": None},
    "empty stop": {"stop": ""},
    "n 1": {"n": 1},
    "penalties": {"presence_penalty": 0.5, "frequency_penalty": -0.5},
    "logit_bias": {"logit_bias": {"65": 5, "66": -100}},
    "harmless": {
        "user": "u" * 2000,
        "metadata": {"a": "b"},
        "store": True,
        "seed": None,
        "logit_bias": {},
        "tools": [],
    },
    "harmless, too": {
        "service_tier": "auto",
        "parallel_tool_calls": True,
        "stream_options": None,
        "reasoning_effort": "low",
    },
    "harmless of vLLM": {
        "ignore_eos": False,
        "skip_special_tokens": True,
        "add_generation_prompt": True,
        "min_tokens": 0,
    },
    "tools not to be called": {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
    "another model": {"model": "gpt-4o"},
    "no model": {"model": None},
}


@pytest.mark.parametrize("stream", [False, True])
def test_what_other_servers_serve_is_served(client, stream):
    for what, fields in SERVED.items():
        body = {
            k: v
            for k, v in (ASK | fields | {"stream": stream}).items()
            if k != "max_tokens" or "n_predict" not in fields
        }
        r = client.post("/v1/chat/completions", json=body)
        assert r.status_code == 200, (what, r.text)
        if stream:
            events = [json.loads(e[6:]) for e in r.text.split("\n\n") if e.startswith("data: {")]
            assert events[0]["choices"][0]["delta"]["role"] == "assistant" and "[DONE]" in r.text, what
            assert events[-1]["choices"][0]["finish_reason"] in ("stop", "length"), what
        else:
            assert r.json()["usage"]["completion_tokens"] <= 3 and r.json()["model"] == "toy8192", (what, r.text)


def test_limits_are_clipped_to_the_context(client):
    long = [{"role": "user", "content": "x" * 8150}]
    for name in ("max_tokens", "max_completion_tokens"):
        for most in (10**9, -1)[: 1 + (name == "max_tokens")]:
            found = client.post("/v1/chat/completions", json={"messages": long, name: most}).json()
            assert found["choices"][0]["finish_reason"] == "length", found
            assert found["usage"]["total_tokens"] == 8192
    nothing = client.post("/v1/chat/completions", json=ASK | {"max_tokens": 0, "stream": True}).text
    assert '"role": "assistant"' in nothing and '"length"' in nothing


def test_what_cannot_be_served_is_refused_by_its_true_reason(client):
    image = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]
    for fields, param, words in (
        ({"messages": [{"role": "user", "content": image}]}, "messages.0.content.1.type", "'text'"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "not 5"),
        ({"messages": [USER | {"role": "tool"}]}, "messages.0.role", "'system'"),
        ({"messages": [USER, ASSISTANT | {"tool_calls": [{}]}, USER]}, "messages.1.tool_calls", "no tools"),
        ({"messages": ["hello"]}, "messages.0", "a message is"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"stop": [5]}, "stop.0", "string"),
        ({"stop": 5}, "stop", "a text or a list of texts, not 5"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temprature": 1}, "temprature", "did you mean 'temperature'?"),
        ({"max_token": 1}, "max_token", "did you mean 'max_tokens'?"),
        ({"tools": [{}]}, "tools", "send tool_choice 'none'"),
        ({"response_format": {"type": "json_object"}}, "response_format.type", "'text'"),
        ({"guided_json": {"type": "object"}}, "guided_json", "cannot force"),
        ({"logit_bias": {"300": 1}}, "logit_bias", "no token 300"),
    ):
        r = client.post("/v1/chat/completions", json=ASK | fields)
        e = r.json()["error"]
        assert r.status_code == 400 and e["param"] == param and words in e["message"], (fields, e)


def test_the_older_interface(server, client):
    c = openai.OpenAI(base_url=server[0] + "/v1", api_key="none", max_retries=0)
    ask = {"model": "any", "max_tokens": 6, "temperature": 1, "seed": 4, "logprobs": 3}
    found = c.completions.create(prompt="a b", **ask).choices[0]
    tokens, offsets = found.logprobs.tokens, found.logprobs.text_offset
    assert len(offsets) == 6 and offsets[0] == 0 and offsets == sorted(offsets)
    whole = [(t, at) for t, at in zip(tokens, offsets) if t and "\ufffd" not in t and not t.startswith("<|")]
    assert whole and all(found.text.startswith(t, at) for t, at in whole), (found.text, whole)
    events = [e.choices[0].logprobs for e in c.completions.create(prompt="a b", **ask, stream=True)]
    assert [at for e in events if e for at in e.text_offset] == offsets

    echoed = c.completions.create(prompt="a b", **ask, echo=True).choices[0]
    assert echoed.text == "a b" + found.text and echoed.logprobs.token_logprobs[0] is None
    assert echoed.logprobs.text_offset[-6:] == [3 + at for at in offsets]
    many = c.completions.create(prompt=["a b", "c"], n=2, **ask)
    assert [x.index for x in many.choices] == [0, 1, 2, 3] and many.choices[0].text == found.text
    assert c.completions.create(prompt=[[65, 66], [67]], **ask).choices[1].text
    for prompt in ("", [1], ["a"]):
        assert client.post("/completions", json={"prompt": prompt, "max_tokens": 1}).status_code == 200
    for fields, words in (
        ({"prompt": []}, "prompt: "),
        ({"prompt": [300]}, "no token 300"),
        ({"best_of": 2}, "best_of: "),
    ):
        r = client.post("/v1/completions", json={"prompt": "a"} | fields)
        assert r.status_code == 400 and words in r.json()["error"]["message"], r.text


def idle(client):
    "The health report once no request is being answered."
    for _ in range(600):
        if not (h := client.get("/health").json())["busy"]:
            return h
        time.sleep(0.05)
    raise AssertionError("still busy")


def test_an_answer_ends_when_its_client_hangs_up(client):
    before = idle(client)
    for stream in (True, False):
        ask = json.dumps(ASK | {"max_tokens": 8000, "stream": stream} | LONG).encode()
        with socket.create_connection((client.base_url.host, client.base_url.port)) as s:
            s.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"
                % (len(ask), ask)
            )
            if stream:
                assert b"200 OK" in s.recv(1000)
            else:
                while not client.get("/health").json()["busy"]:
                    pass
    after = idle(client)
    assert 1 <= after["tokens"] - before["tokens"] < 8000, (before, after)
    assert client.post("/v1/chat/completions", json=ASK).json()["usage"]["completion_tokens"] == 3


def malformed(rng):
    "Path and body of a request that is wrong somewhere."
    odd = [
        None,
        True,
        -2,  # -1 asks for an answer as long as the context
        0,
        1e308,
        10**400,
        "",
        "x" * 5000,
        "\x00\x1b[2J",
        "\ud800",
        [],
        [[]],
        {},
        {"a": {}},
        [None],
        float("nan"),
        float("inf"),
        "🙂‮",
        ["a"] * 400,
    ]
    fields = [
        "model",
        "messages",
        "stream",
        "stop",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "seed",
        "n",
        "logprobs",
        "top_logprobs",
        "tools",
        "logit_bias",
        "response_format",
        "stream_options",
        "user",
        "prompt",
        "nonsense",
        "repetition_penalty",
    ]
    path = rng.choice(
        ["/v1/chat/completions"] * 20
        + ["/v1/completions"] * 9
        + ["/v1/models/x%00", "/" + "a" * 3000, "//", "/v1/../health", "/%ff"]
    )
    ask = dict(ASK if "chat" in path else {"prompt": "a", "max_tokens": 2})
    kind = rng.randrange(8)
    if kind < 4:
        for _ in range(rng.randint(1, 2)):
            ask[rng.choice(fields)] = rng.choice(odd)
    elif kind == 4:
        ask["messages"] = [
            {rng.choice(["role", "content", "name"]): rng.choice(odd + ["user", "assistant"]) for _ in range(3)}
            for _ in range(rng.randint(0, 4))
        ]
    elif kind == 5:
        return path, rng.choice([b"[", b"{"]) * rng.choice([1, 200, 100_000])
    elif kind == 6:
        return path, rng.randbytes(rng.randint(0, 300))
    elif rng.random() < 0.3:
        return path, b'{"messages": "' + b"a" * rng.choice([2_000_000, 100_000, 10_000_000]) + b'"}'
    body = json.dumps(ask).encode()
    return path, body[: rng.randint(0, len(body))] if kind == 7 else body


def torn(url, rng):
    "Bytes that are no request, or only the beginning of one; whatever comes back, the connection ends."
    with socket.create_connection((url.host, url.port), timeout=60) as s:
        s.sendall(
            rng.choice(
                [
                    rng.randbytes(100),
                    b"GET / HTTP/9\r\n\r\n",
                    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{",
                    b"GET /health HTTP/1.1\r\n\r\n",
                    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
                    b"GET / HTTP/1.1\r\nA: " + b"b" * 70_000,
                    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                ]
            )
        )


def test_a_thousand_malformed_requests(client, server):
    def fuzz(seed):
        rng, codes = random.Random(seed), []
        with httpx.Client(base_url=server[0], timeout=60) as c:
            for _ in range(125):
                path, body = malformed(rng)
                r = c.request(rng.choice(["POST"] * 40 + ["GET", "PUT", "DELETE", "OPTIONS"]), path, content=body)
                is_json = "event-stream" not in r.headers["content-type"] and path not in ("//", "/")
                reply = r.json() if is_json else {"error": {"message": "of another form"}}
                refused = 400 <= r.status_code < 500
                explained = r.status_code == 200 or (refused and reply["error"]["message"])
                assert explained, (path, body[:200], r.status_code, r.text[:300])
                codes.append(r.status_code)
                if rng.random() < 0.2:
                    torn(client.base_url, rng)
        return codes

    def memory():
        return psutil.Process(server[1].pid).memory_info().rss / 2**20

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fuzz, range(100, 102)))  # what is allocated once is allocated
        before = memory()
        codes = [c for found in pool.map(fuzz, range(8)) for c in found]
    assert len(codes) == 1000 and codes.count(400) > 500, {c: codes.count(c) for c in set(codes)}
    idle(client)
    assert client.post("/v1/chat/completions", json=ASK).json()["usage"]["completion_tokens"] == 3
    assert memory() < before + 40, (before, memory())


def test_too_many_at_once_are_asked_to_come_again(server):
    def ask(_):
        return httpx.post(server[0] + "/v1/chat/completions", json=ASK | {"max_tokens": 100}, timeout=60)

    with ThreadPoolExecutor(40) as pool:
        got = list(pool.map(ask, range(40)))
    assert {r.status_code for r in got} == {200, 429}
    assert all(r.headers["Retry-After"] and r.json()["error"]["code"] == "busy" for r in got if r.status_code == 429)
    assert all(r.json()["usage"]["completion_tokens"] == 100 for r in got if r.status_code == 200)
