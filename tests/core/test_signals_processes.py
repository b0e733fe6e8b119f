"Signals that a process was started to ignore stay ignored, as under nohup."

import signal
import subprocess
import sys

import pytest
from conftest import ENV

BLOCKS = {
    "workbook": "from elite112m.workbook.workbook import caught_signals; block = caught_signals()",
    "kernels": "from pathlib import Path; from elite112m.workbook.workbook import signals_to_kernels; "
    "block = signals_to_kernels(Path('none'))",
    "training": "from elite112m.training.pretrain import stop_flag; block = stop_flag()",
    "terminal": "from elite112m.chat.terminal import ctrl_c_stops; block = ctrl_c_stops(None)",
}
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SCRIPT = """
import os, signal
{block}
numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
with block:
    print([signal.getsignal(number) is signal.SIG_IGN for number in numbers])
    for number in numbers:
        os.kill(os.getpid(), number)
print([signal.getsignal(number) is signal.SIG_IGN for number in numbers])
"""


def ignore_all():
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)


@pytest.mark.parametrize("block", BLOCKS)
def test_ignored_signals_stay_ignored(block):
    script = SCRIPT.format(block=BLOCKS[block])
    done = subprocess.run(
        [sys.executable, "-c", script], preexec_fn=ignore_all, capture_output=True, text=True, env=ENV, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout == "[True, True, True]\n" * 2
