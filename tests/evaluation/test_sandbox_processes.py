"""Attempts to escape from the sandbox, on real servers, secrets and processes.

Each runs twice: as generated code would, and again without the audit hook, as if code had found a way around it;
then only the kernel protects.
"""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
from conftest import ENV, ROOT

from elite112m.core.config import InputError
from elite112m.evaluation import sandbox
from elite112m.evaluation.sandbox import locks, run_python

HELP = """
import ctypes, os, signal, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def tried(f, *args):
    try: print("reached", f(*args), flush=True)
    except BaseException as e: print(type(e).__name__, flush=True)
"""


@pytest.fixture(scope="module", params=["as it is", "kernel alone"])
def run(request):
    "A function that runs a program; ctypes is at hand where only the kernel guards."
    if request.param == "as it is":
        yield lambda code, **kw: run_python(code.replace("#only-kernel ", "pass #"), **kw)
        return
    if len(locks()) < 2:
        pytest.skip(f"this kernel has {locks()}")
    whole, marker = sandbox._SOURCE, "_watch(os.getcwd(), readable)"
    assert whole.count(f"    {marker}") == 1
    sandbox._stop_servers()
    sandbox._SOURCE = whole.replace(f"    {marker}", "    pass")
    yield lambda code, **kw: run_python(HELP + code.replace("#only-kernel ", ""), **kw)
    sandbox._stop_servers()
    sandbox._SOURCE = whole


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    "Where the sandbox makes its folders, for this test alone; nothing may be left in it."
    folder = tmp_path / "folders"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


def left_behind(folders, mark="no such mark"):
    "Processes in one of these folders, or with a mark in their command line, whoever their parent is now."
    return [
        p for p in psutil.process_iter() if mark in " ".join(_quiet(p.cmdline)) or str(folders) in str(_quiet(p.cwd))
    ]


def _quiet(f):
    try:
        return f()
    except (psutil.Error, OSError):
        return ""


def test_network(run):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        r = run(f"""
import socket
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    try: s = socket.socket(socket.AF_INET, kind); s.connect(("127.0.0.1", {port})); print("reached")
    except OSError as e: print(e.errno)
try: socket.socket(socket.AF_UNIX); print("reached")
except OSError as e: print(e.errno)
#only-kernel fd = libc.syscall(41, 2, 1, 0); print("reached" if fd >= 0 else "no socket")
#only-kernel print("reached" if libc.syscall(425, 4, ctypes.create_string_buffer(120)) >= 0 else "no io_uring")
""")
        assert "reached" not in r.stdout
        with pytest.raises(TimeoutError):
            server.accept()


def test_secrets_in_the_environment(run, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "hunter2-in-the-environment")
    r = run(f"""
import os
print(dict(os.environ), os.getenv("WANDB_API_KEY"))
for pid in ("self", os.getppid(), {os.getpid()}, 1):
    for what in ("environ", "mem", "cmdline", "maps"):
        try: print(open(f"/proc/{{pid}}/{{what}}", "rb").read(100000))
        except OSError: pass
""")
    assert "hunter2" not in r.stdout and "environ" not in r.stdout


def test_memory_of_others(run):
    r = run(f"""
#only-kernel for pid in (os.getppid(), {os.getpid()}): tried(lambda: print("ptrace", libc.ptrace(16, pid, 0, 0)))
#only-kernel for pid in (os.getppid(), {os.getpid()}): print("read", libc.process_vm_readv(pid, 0, 0, 0, 0, 0))
""")
    assert "ptrace 0" not in r.stdout and "read 0" not in r.stdout
    assert not any(p.status() == psutil.STATUS_TRACING_STOP for p in [psutil.Process(), *psutil.Process().children()])


def test_keys_in_the_home_folder(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/id_ed25519").write_text("hunter2-the-key")
    r = run(f"""
import io, os
for where in ({str(tmp_path)!r}, os.path.expanduser("~"), "/root", "/home"):
    try: print(os.listdir(where))
    except OSError: print("closed")
try: os.symlink({str(tmp_path / ".ssh/id_ed25519")!r}, "key")
except OSError: pass
for key in ({str(tmp_path / ".ssh/id_ed25519")!r}, "key"):
    try: print(open(key).read())
    except OSError: print("closed")
""")
    assert (
        "hunter2" not in r.stdout
        and "id_" not in r.stdout
        and (r.stdout.count("closed") >= 6 or "refused" in r.error or "refused" in r.stdout)
    )


def test_writing_elsewhere(run, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("whole")
    victim.chmod(0o600)
    before = victim.stat()
    for attempt in (
        "open(v, 'w').write('gone')",
        "os.remove(v)",
        "os.rename(v, 'mine')",
        "os.link(v, 'mine')",
        "os.chmod(v, 0o777)",
        "os.truncate(v, 0)",
        "os.utime(v, (0, 0))",
        "open(v + '2', 'w')",
        "os.mkdir(v + '2')",
        "os.symlink(v, v + '2')",
        "os.mkfifo(v + '2')",
        "open('../main.py', 'a')",
        "os.rmdir(os.path.dirname(v))",
        "os.setxattr(v, 'user.a', b'b')",
        "os.chown(v, 12345, 12345)",
    ):
        r = run(f"import os\nv = {str(victim)!r}\ntry: {attempt}; print('reached')\nexcept OSError as e: print(e)")
        assert "reached" not in r.stdout, attempt
    after = victim.stat()
    assert victim.read_text() == "whole" and sorted(f.name for f in tmp_path.iterdir()) == ["folders", "victim"]
    assert (after.st_mode, after.st_mtime, after.st_uid, after.st_nlink) == (
        before.st_mode,
        before.st_mtime,
        before.st_uid,
        before.st_nlink,
    )


def test_processes_and_daemons(run, folders, tmp_path):
    flag, nap = tmp_path / "alive", f"97.{os.getpid()}"
    for attempt in (
        "while True: os.fork()",
        f"""
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(1); open({str(flag)!r}, 'w')""",
        f"os.execv('/bin/sh', ['sh', '-c', 'sleep {nap} &'])",
        f"assert os.system('sleep {nap} &') == 0",
        f"os.posix_spawn('/bin/sleep', ['sleep', '{nap}'], {{}})",
        f"import subprocess; subprocess.Popen(['sleep', '{nap}'])",
        "import threading; [threading.Thread(target=time.sleep, args=(97,)).start() for _ in range(9)]",
    ):
        r = run(f"import os, time\n{attempt}\nprint('reached')")
        assert not r.ok and "reached" not in r.stdout, attempt
    assert not left_behind(folders, f"sleep {nap}") and not flag.exists()


def test_killing_others(run):
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        for attempt in (
            "os.kill(os.getppid(), 9)",
            f"os.kill({os.getpid()}, 9)",
            f"os.kill({bystander.pid}, 9)",
            "os.killpg(0, 9)",
            "os.kill(-1, 9)",
            "signal.pidfd_send_signal(0, 9)",
        ):
            assert (
                "reached"
                not in run(f"import os, signal\ntry: {attempt}; print('reached')\nexcept OSError: pass").stdout
            )
        assert bystander.poll() is None and run_python("print('still here')").ok
    finally:
        bystander.kill(), bystander.wait()


@pytest.mark.parametrize(
    "code,why",
    [
        ("while True: pass", "stopped after"),
        (
            "import signal, time\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n"
            "    except (OSError, ValueError): pass\ntime.sleep(60)",
            "",
        ),
        ("x = []\nwhile True: x.append(bytearray(1 << 27))", "MemoryError"),
        ("x = 'a' * (1 << 40)", "MemoryError"),
        ("f = open('huge', 'wb')\nwhile True: f.write(b'x' * 65536)", "File too large"),
        ("for i in range(10**6): open(str(i), 'w').write('x' * 60000)", "too many files"),
        ("import os\nwhile True: os.mkdir('a'); os.chdir('a')", ""),
        ("while True: print('x' * 10000)", "too much output"),
        ("fs = [open('f', 'w') for _ in range(10**4)]", "Too many open files"),
        ("import sys\nsys.setrecursionlimit(10**9)\nf = lambda x: [f(x)]\nf(1)", ""),
        ("x = 9**9**9", ""),
        ("import sys, os\nsys.stdout.close()\nos.close(1)\nos.close(2)\nraise SystemExit(3)", "exit status 3"),
    ],
    ids=[
        "loop",
        "deaf",
        "memory",
        "one string",
        "huge file",
        "many files",
        "deep folders",
        "output",
        "descriptors",
        "recursion",
        "arithmetic",
        "closing",
    ],
)
def test_greed(run, code, why):
    started = time.monotonic()
    r = run(code, timeout=0.4 if why in ("", "stopped after") else 8)
    assert not r.ok and why in r.error and len(r.stdout) <= 1 << 16
    assert time.monotonic() - started < 30 and run_python("print('next')").stdout == "next\n"


def test_nothing_is_inherited_and_nothing_stays(run, folders, tmp_path):
    with open(tmp_path / "open", "w+") as f:
        os.set_inheritable(f.fileno(), True)
        r = run(
            "import os\nfound = []\nfor k in range(3, 64):\n    try: os.fstat(k); found.append(k)\n"
            "    except OSError: pass\nprint(found, os.getcwd())"
        )
        found, _, place = r.stdout.strip().rpartition(" ")
        assert found == "[]" and not Path(place).exists() and not Path(place).parent.exists()
    assert not left_behind(folders)


def test_what_outlives_a_process_is_refused(run):
    assert (
        "reached"
        not in run("""
#only-kernel if libc.shmget(0, 4096, 0o1600) >= 0: print("reached")
#only-kernel if libc.msgget(0, 0o1600) >= 0: print("reached")
#only-kernel if libc.prctl(22, 0, 0, 0, 0) == 0: print("reached")
#only-kernel if libc.setrlimit(1, ctypes.create_string_buffer(16)) == 0: print("reached")
#only-kernel if libc.unshare(0x10000000) == 0: print("reached")
""").stdout
    )


def test_honest_programs_from_many_threads():
    results = [None] * 12

    def work(i):
        results[i] = run_python(f"import json, re, dataclasses\nprint(json.dumps([{i}]))").stdout

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == [f"[{i}]\n" for i in range(12)]


def test_fork_servers_end_with_us(tmp_path):
    "Even when we are killed, with a program on its way."
    code = (
        "from elite112m.evaluation import sandbox\nprint('ready', flush=True)\n"
        "sandbox.run_python('while True: pass', '', 2.5)"
    )
    us = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=ENV | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    )
    assert us.stdout.readline() == "ready\n"
    family = []
    while len(family) < 2 and us.poll() is None:
        family = psutil.Process(us.pid).children(recursive=True)  # a fork server and its program
    assert len(family) == 2
    us.kill(), us.wait(), us.stdout.close()
    assert not psutil.wait_procs(family, timeout=20)[1]


NO_SECCOMP = """
import ctypes, struct
from elite112m.evaluation import sandbox
step = lambda code, yes, no, k: struct.pack("=HBBI", code, yes, no, k)
program = step(32, 0, 0, 0) + step(21, 0, 3, {prctl}) + step(32, 0, 0, 16) + step(21, 0, 1, 22)
program += step(6, 0, 0, 0x50016) + step(6, 0, 0, 0x7FFF0000)
buffer = ctypes.create_string_buffer(program)
libc = ctypes.CDLL(None)
header = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, header, 0, 0) == 0
print(sandbox.locks())
sandbox.need_isolation(unsafe=True)
sandbox.need_isolation()
"""


def test_a_system_without_seccomp_is_refused():
    "A kernel that refuses to install filters, which we make with a last filter."
    if "seccomp" not in locks():
        pytest.skip("there is none here")
    prctl = {"x86_64": 157, "aarch64": 167}[os.uname().machine]
    done = subprocess.run(
        [sys.executable, "-c", NO_SECCOMP.format(prctl=prctl)],
        capture_output=True,
        text=True,
        env=ENV | {"PYTHONPATH": str(ROOT)},
    )
    assert "seccomp" not in done.stdout and done.returncode == 1
    assert InputError.__name__ in done.stderr and "--unsafe-no-network-isolation" in done.stderr
