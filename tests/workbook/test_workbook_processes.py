"Notebooks in real kernels: signals, profiles of users, odd names of run folders."

import json
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from conftest import ENV

# A stage whose notebook is the cells in cells.json, run as `elite112m` runs it.
COMMAND = """
import json, sys
from pathlib import Path
import nbformat
from elite112m.core.runs import Run
from elite112m.workbook import workbook

place, run = map(Path, sys.argv[1:])
cells = [nbformat.v4.new_code_cell(code) for code in json.loads((place / "cells.json").read_text())]
cells[0].metadata["tags"] = ["parameters"]
nb = nbformat.v4.new_notebook(cells=cells)
nb.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
nbformat.write(nb, place / "stage.ipynb")
workbook.notebook = lambda stage: place / "stage.ipynb"
run.mkdir(exist_ok=True)
try:
    workbook.run_notebook(Run(run), "prepare")
except workbook.Stopped as e:
    sys.exit(128 + e.number)
"""


def start(place, cells, run=None, env=ENV):
    "The process of a command whose stage consists of `cells`; `ready` and `out` in the cells are files in `place`."
    names = f"from pathlib import Path\nready, out = Path({str(place / 'ready')!r}), Path({str(place / 'out')!r})"
    (place / "cells.json").write_text(json.dumps([names, *cells]))
    script = [sys.executable, "-c", COMMAND, str(place), str(run or place / "run")]
    return subprocess.Popen(script, env=env, stderr=subprocess.PIPE, text=True)


def wait_for(process, path):
    "Wait until `path` exists, while the process lives; returns the processes below it."
    until = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.05)
    return psutil.Process(process.pid).children(recursive=True)


def finish(process, kernels=()):
    _, said = process.communicate(timeout=60)
    assert not psutil.wait_procs(kernels, timeout=30)[1], "a kernel outlived its command"
    return process.returncode, said


def test_first_ctrl_c_lets_the_stage_save(tmp_path):
    cell = (
        "import time\nready.touch()\ntry:\n    while True:\n        time.sleep(.05)\n"
        "except KeyboardInterrupt:\n    out.write_text('saved')\n    raise"
    )
    process = start(tmp_path, [cell, "out.write_text('went on')"])
    kernels = wait_for(process, tmp_path / "ready")
    process.send_signal(signal.SIGINT)
    code, said = finish(process, kernels)
    assert (code, (tmp_path / "out").read_text()) == (130, "saved")
    assert "waiting for the stage to save" in said and "ERROR" not in said and "Traceback" not in said, said
    nb = nbformat.read(tmp_path / "run/notebooks/1_prepare.ipynb", as_version=4)
    assert any(o.get("ename") == "KeyboardInterrupt" for c in nb.cells if c.cell_type == "code" for o in c.outputs)


def test_second_signal_kills(tmp_path):
    cell = (
        "import time\nready.touch()\nwhile True:\n    try:\n        while True:\n            time.sleep(.05)\n"
        "    except KeyboardInterrupt:\n        out.touch()"
    )
    process = start(tmp_path, [cell])
    kernels = wait_for(process, tmp_path / "ready")
    process.send_signal(signal.SIGINT)
    wait_for(process, tmp_path / "out")
    process.send_signal(signal.SIGINT)
    assert finish(process, kernels)[0] == 130


def test_busy_kernel_ends_on_sigterm(tmp_path):
    "Inside a native call that holds the interpreter: no Python code runs in the kernel any more, no thread either."
    process = start(tmp_path, ["ready.touch()\nsum(range(10**15))"])
    kernels = wait_for(process, tmp_path / "ready")
    process.send_signal(signal.SIGTERM)
    assert finish(process, kernels)[0] == 143


def test_stage_that_saves_is_not_killed(tmp_path):
    "Work after SIGTERM that lasts longer than the time for kernels which do not notice it."
    cell = (
        "import time\nfrom elite112m.training.pretrain import stop_flag\nwith stop_flag() as stop:\n"
        "    ready.touch()\n    stop.wait()\n    until = time.monotonic() + 7\n"
        "    while time.monotonic() < until:\n        pass\n    out.write_text('saved')\nraise KeyboardInterrupt"
    )
    process = start(tmp_path, [cell])
    kernels = wait_for(process, tmp_path / "ready")
    process.send_signal(signal.SIGTERM)
    assert finish(process, kernels)[0] == 143
    assert (tmp_path / "out").read_text() == "saved"


def test_interrupts_while_the_stage_ends_are_silent(tmp_path):
    "Many of them: an ordinary kernel prints an error for some, or never answers again."
    sender = (
        "import os, signal, sys, time\npid = os.getppid()\nfor _ in range(3000):\n"
        "    if os.getppid() == pid:\n        os.kill(pid, signal.SIGINT)\n    time.sleep(.0005)"
    )
    cell = f"import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', {sender!r}])\ntime.sleep(60)"
    process = start(tmp_path, [cell])
    code, said = finish(process)
    assert code == 1 and "prepare failed: KeyboardInterrupt" in said and "caught in kernel" not in said, said


def hostile_home(folder):
    "The environment of a user with a profile, start-up files and a kernel of their own, all of which break things."
    profile = folder / "ipython/profile_default"
    (profile / "startup").mkdir(parents=True)
    (profile / "startup/00.py").write_text("import builtins\nbuiltins.sum = None\nleft = 'by a start-up file'")
    lines = (
        "c = get_config()",
        "c.InteractiveShellApp.pylab = 'inline'",
        "c.InteractiveShellApp.exec_lines = ['left = 1', 'import builtins', 'builtins.max = None']",
        "c.InlineBackend.figure_formats = {'svg'}",
        "c.InteractiveShell.ast_node_interactivity = 'all'",
    )
    for name in ("ipython_config.py", "ipython_kernel_config.py"):
        (profile / name).write_text("\n".join(lines))
    (folder / "startup.py").write_text("left = 'by PYTHONSTARTUP'")
    (folder / "data/kernels/python3").mkdir(parents=True)
    spec = {"argv": ["false"], "display_name": "mine", "language": "python"}
    (folder / "data/kernels/python3/kernel.json").write_text(json.dumps(spec))
    return ENV | {
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONSTARTUP": str(folder / "startup.py"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_PATH": str(folder / "data"),
        "MPLBACKEND": "a backend that does not exist",
    }


def test_no_profile_of_a_user_reaches_the_kernel(tmp_path):
    env = hostile_home(tmp_path)
    before = sorted(f.name for f in tmp_path.rglob("*"))
    cell = (
        "import json\nimport matplotlib.pyplot\n"
        "out.write_text(json.dumps(['left' in globals(), 'np' in globals(), sum([1, 2]), max(1, 2)]))\n1\n2"
    )
    process = start(tmp_path, [cell], env=env)
    assert finish(process)[0] == 0
    assert json.loads((tmp_path / "out").read_text()) == [False, False, 3, 2]
    nb = nbformat.read(tmp_path / "run/notebooks/1_prepare.ipynb", as_version=4)
    assert [o.data["text/plain"] for o in nb.cells[-1].outputs if "data" in o] == ["2"]
    assert set(before) <= {f.name for f in tmp_path.rglob("*")} and not list(tmp_path.rglob("history.sqlite"))


@pytest.mark.parametrize("name", ["{x} {} {0} %s %(a)s", "-x 'q' \"d\" $HOME ünï ✓ `a` \\n #"])
def test_odd_names_of_run_folders(tmp_path, name):
    "papermill takes braces for places where parameters go."
    process = start(tmp_path, ["", "out.write_text(run)"], run=tmp_path / name)
    code, said = finish(process)
    assert code == 0, said
    assert (tmp_path / "out").read_text() == str(tmp_path / name)
    assert [f.name for f in (tmp_path / name / "notebooks").iterdir()] == ["1_prepare.ipynb"]
