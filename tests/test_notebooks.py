"Every notebook runs from top to bottom, its assertions holding."

import multiprocessing
import os
import sys

import pytest
from conftest import ROOT

# Each has a process of its own, forked from one that has the slow imports behind it and has done nothing else.
FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["torch", "matplotlib.pyplot", "transformers", "nbdev.test"])


def work(nb, log):
    "What `nbdev-test` does with one notebook."
    from nbdev.test import test_nb

    with open(log, "wb") as f:
        for n in (1, 2):
            os.dup2(f.fileno(), n)
    ok, _ = test_nb(nb, basepath=ROOT)
    sys.stdout.flush()
    os._exit(not ok)  # whatever threads a notebook has left


@pytest.mark.parametrize("nb", sorted(ROOT.glob("nbs/**/*.ipynb")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_notebook(nb, tmp_path):
    p = FRESH.Process(target=work, args=(nb, tmp_path / "log"))
    p.start()
    p.join(600)
    p.kill()
    p.join()
    assert p.exitcode == 0, (tmp_path / "log").read_text(errors="replace")[-3000:]
