"The chat in a real terminal (a pty) and through a pipe."

import json
import random
import stat
import subprocess
import sys

import pexpect
import pytest
from conftest import BIN, ENV


def test_terminal_stops_a_reply_and_not_the_program(toy, tmp_path):
    evil = tmp_path / "evil.json"
    evil.write_text(
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "\x1b]0;owned\x07 \x9b31m"},
                ]
            }
        )
    )
    child = pexpect.spawn(
        str(BIN / "elite112m"),
        ["chat", "--model", str(toy(8192)), "--max-new-tokens", "8000", "--no-stop-repetition"],  # so that it goes on
        timeout=60,
        encoding="utf-8",
        env=ENV | {"XDG_STATE_HOME": str(tmp_path), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
        cwd=tmp_path,
        dimensions=(40, 200),
    )
    child.expect("User:")
    child.send("a b\r")
    child.expect("Assistant: ")
    child.sendintr()
    child.expect(r"\[\d+ tokens.*, stopped\]")
    child.send("/temperature 9\r")
    child.expect("temperature is a number from 0 to 2, not '9'")
    child.send("/stats\r")
    child.expect(r"answers\s+tokens")
    child.expect(r"\s1\s+\d+")  # the stopped answer is part of the conversation
    child.send(f"/load {evil}\r")
    child.expect("Assistant: (.*)\r\n")
    assert child.match[1].startswith("␛]0;owned␇ <U+009B>31m"), child.match[1]
    child.send("abc")
    child.sendintr()  # clears the line
    child.send("\x1b[200~/system one\nand two\x1b[201~\r")  # a pasted text of two lines is one message
    child.expect("system message: one\r\nand two")
    child.expect("User:")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0, child.status
    kept = tmp_path / "elite112m/chat_history"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600 and "+a b" in kept.read_text()


def odd_lines(n, seed=0):
    "Lines that nobody types."
    rng = random.Random(seed)
    names = [
        b"/set",
        b"/temperature",
        b"/top_k",
        b"/seed",
        b"/system",
        b"/load",
        b"/save",
        b"/undo",
        b"/retry",
        b"/reset",
        b"/help",
        b"/settings",
        b"/",
        b"//",
        b"/\xff",
        b"/quit\0",
    ]
    values = [
        b"",
        b" ",
        b"nan",
        b"-1",
        b"1e999",
        b"9" * 400,
        b"none",
        b"top_p .5",
        b"/etc/passwd",
        b"/nowhere/x",
        b".",
        b"\0",
        "\u202e🙂".encode(),
        b"~nobody/x",
    ]
    kinds = [
        lambda: rng.choice(names) + b" " + rng.choice(values),
        lambda: rng.randbytes(rng.randint(0, 60)).replace(b"\n", b""),
        lambda: b"a " * rng.randint(0, 300),
        lambda: bytes(rng.choices(range(32), k=20)).replace(b"\n", b""),
        lambda: b"x" * rng.choice([1, 1000, 100_000]),
        lambda: b"\xed\xa0\xbd" * 3,
        lambda: b"\x1b[2J\x1b]52;c;eA==\x07",
    ]
    return [rng.choice(kinds)() for _ in range(n)]


def test_a_thousand_odd_lines(toy, tmp_path):
    lines = odd_lines(1000) + [b"/reset", b"a b", b"/stats"]
    done = subprocess.run(
        [BIN / "elite112m", "chat", "--model", toy(256), "--max-new-tokens", "2"],
        input=b"\n".join(lines),
        capture_output=True,
        env=ENV,
        cwd=tmp_path,
        timeout=300,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 0 and "Traceback" not in err, err[-2000:]
    assert out.count("Assistant: ") > 300 and err.splitlines()[-1].split()[:2] == ["1", "2"], err[-300:]
    assert not set(out + err) & {chr(c) for c in range(32) if c not in (9, 10)}


def test_settings_do_not_import_torch():
    "The command line makes options of the settings, and its help is to come at once."
    code = "import sys, elite112m.workbook.cli, elite112m.chat.conversation; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV, timeout=60)
    assert done.stdout.strip() == "False", done.stdout + done.stderr


@pytest.mark.parametrize(
    "streams, code, words",
    [("0>made", 2, "standard input cannot be read"), ("<lines >/dev/full", 2, "No space left on device")],
)
def test_useless_streams(toy, tmp_path, streams, code, words):
    (tmp_path / "lines").write_text("a\nb\n")
    model = tmp_path.parent / "closed"
    if not model.exists():
        model.symlink_to(toy(64))
    shell = f"{BIN / 'elite112m'} chat --model {model} --max-new-tokens 2 {streams}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, env=ENV, cwd=tmp_path, timeout=60)
    err = done.stderr.decode()
    assert done.returncode == code and words in err and err.count("\n") == bool(words), err
