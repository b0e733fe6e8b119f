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
        "POST", url + "/v1/chat/completions", json=ASK | {"max_tokens": 8000, "stream": True}, timeout=60
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
    with pytest.raises(openai.BadRequestError, match="n: "):
        c.chat.completions.create(**ask, n=2)
    with pytest.raises(openai.NotFoundError, match="no model"):
        c.chat.completions.create(**ask | {"model": "gpt"})
    with pytest.raises(openai.BadRequestError) as e:
        c.chat.completions.create(model=name, messages=[{"role": "user", "content": "a " * 9000}])
    assert e.value.code == "context_length_exceeded"


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
        ask = json.dumps(ASK | {"max_tokens": 8000, "stream": stream}).encode()
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
        -1,
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
