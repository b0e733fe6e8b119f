"The exported page in a browser, and transformers.js in Node.js; skipped, and said so, where these are missing."

import asyncio
import json
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import BIN, ENV, here, sh

HERE = Path(__file__).parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not shutil.which("npm"), reason="Node.js is not installed: the page is not tested"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A small run, trained until it has a few habits."
    folder = tmp_path_factory.mktemp("run") / "small"
    from elite112m.core.presets import TINY

    # wide enough for the quantised formats
    sizes = {"model.d_model": 64, "model.n_heads": 2, "model.n_kv_heads": 1, "model.d_ff": 128, "model.context": 128}
    settings = [f"--set={k}={v}" for k, v in (TINY | sizes | {"sft.examples": 400}).items()]
    done = here("elite112m", "run", "nano", "--out", folder, "--stages", "prepare,pretrain,sft", *settings)
    assert done.returncode == 0, done.stderr
    return folder


def skip_without_network(said):
    "Skip where npm's registry cannot be reached."
    if re.search("ENOTFOUND|ECONNREFUSED|ETIMEDOUT|EAI_AGAIN|ENETUNREACH|network", said):
        pytest.skip("npm's registry cannot be reached: the page is not tested")


@pytest.fixture(scope="module")
def page(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("web") / "page"
    done = here("elite112m", "export", "--model", model, "--to", "web", "--format", "fp32", "--out", folder)
    skip_without_network(done.stderr if done.returncode else "")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory):
    "What the lock file says, with what only tests need."
    from elite112m.sharing.web import web_asset

    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json"):
        (folder / name).write_text(web_asset(name))
    command = [shutil.which("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    skip_without_network(done.stderr if done.returncode else "")
    assert done.returncode == 0, done.stderr
    return folder / "node_modules"


def test_transformers_js_says_what_we_say(model, node_modules, tmp_path):
    out = tmp_path / "model"
    done = here("elite112m", "export", "--model", model, "--to", "onnx", "--format", "fp32", "--out", out)
    assert done.returncode == 0, done.stderr
    script = node_modules.parent / "node_replies.mjs"
    shutil.copy(HERE / "node_replies.mjs", script)
    done = subprocess.run(["node", script, out, "fp32"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"] == found["of"] >= 15


@pytest.fixture
def served(page):
    "The address of the page, served by the command."
    server = subprocess.Popen(
        [BIN / "elite112m", "web", str(page), "--port", "0"], stdout=subprocess.PIPE, text=True, env=ENV
    )
    line = server.stdout.readline()
    yield line.split()[0]
    server.terminate()
    assert server.wait(20) == 0


def test_served_with_the_headers_that_threads_need(served, page, tmp_path):
    assert served.startswith("http://127.0.0.1:")
    for name in ("", "vendor/transformers.min.js", "model/onnx/model.onnx"):
        with urllib.request.urlopen(f"{served}/{name}") as answer:
            assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{served}/../../etc/passwd")
    done = sh("elite112m", "web", tmp_path)
    assert done.returncode == 2 and "is no exported page" in done.stderr and done.stderr.count("\n") == 1


class Browser:
    "Chromium without a window, asked through its debugging port."

    def __init__(self, folder, url):
        flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-quic --disable-background-networking"
        flags += " --disable-component-update --disable-sync --remote-debugging-port=0"
        command = [CHROMIUM, *flags.split(), f"--user-data-dir={folder}", url]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        port = Path(folder, "DevToolsActivePort")
        self.wait(lambda: port.exists() and port.read_text().strip())
        self.port, self.loop = port.read_text().splitlines()[0], asyncio.new_event_loop()
        tabs = self.wait(self._tabs)
        self.socket = self.loop.run_until_complete(self._connect(tabs[0]["webSocketDebuggerUrl"]))
        self.n = 0

    def _tabs(self):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/json/list") as answer:
            return [tab for tab in json.load(answer) if tab["type"] == "page"]

    async def _connect(self, url):
        from tornado.websocket import websocket_connect

        return await websocket_connect(url, max_message_size=1 << 26)

    @staticmethod
    def wait(ready, seconds=90):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := ready():
                return found
            time.sleep(0.1)
        raise TimeoutError(f"nothing within {seconds} s")

    def send(self, method, **params):
        async def ask():
            self.n += 1
            await self.socket.write_message(json.dumps({"id": self.n, "method": method, "params": params}))
            while True:
                answer = json.loads(await self.socket.read_message())
                if answer.get("id") == self.n:
                    return answer.get("result", {})  # none while the page is being loaded

        return self.loop.run_until_complete(asyncio.wait_for(ask(), 90))

    def run(self, script):
        "The value of an expression in the page; promises are waited for."
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found.get("result", {}).get("value")

    def close(self):
        async def end():  # within the loop: outside there may be none, if another test has taken it away
            self.socket.close()

        self.loop.run_until_complete(end())
        self.process.terminate()
        self.process.wait(20)
        self.loop.close()


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed: the page is not tested in a browser")
def test_the_page_in_a_browser(served, page, node_modules, tmp_path):
    "It says what our engine says, fits on a phone, works without a network, and axe finds nothing serious."
    browser = Browser(tmp_path / "profile", served)
    browser.send("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    state = lambda: browser.run("document.getElementById('state')?.textContent ?? ''")
    opened = lambda: "parameters" in (now := state() or "") or ("cannot" in now and pytest.fail(now))
    send = """(() => { const box = document.getElementById("text"); box.value = %s;
      document.getElementById("form").requestSubmit(); })()"""
    last = "[...document.querySelectorAll('article:not(.user) div')].at(-1)?.textContent"

    def ask(text):
        browser.run(send % json.dumps(text))
        browser.wait(lambda: not browser.run("document.getElementById('send').disabled"))
        return browser.run(last)

    try:
        browser.wait(opened)
        assert browser.run("crossOriginIsolated")
        manifest = json.loads((page / "manifest.json").read_text())
        from elite112m.data.tokenizer import load_tokenizer
        from elite112m.sharing.proof import PROOF_PROMPTS

        tok = load_tokenizer(page / "model")
        for question, ids, reply in list(
            zip(PROOF_PROMPTS, manifest["proof"]["prompts"], manifest["proof"]["replies"])
        )[:5]:
            browser.run("document.getElementById('clear').click()")
            browser.run("document.getElementById('s-max_new_tokens').value = 48")
            assert ask(question) == tok.decode(reply).strip(), question
        browser.run((node_modules / "axe-core/axe.min.js").read_text())
        found = browser.run("axe.run().then(r => r.violations.map(v => [v.id, v.impact]))")
        assert not [v for v in found if v[1] in ("serious", "critical")], found
        assert browser.run("document.documentElement.scrollWidth") <= 390  # nothing sticks out of a phone's screen
        browser.send("Network.enable")
        browser.send(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
        browser.send("Page.reload")
        time.sleep(1)
        browser.wait(opened)
        assert ask("hi") is not None
    finally:
        browser.close()
