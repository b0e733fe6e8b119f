"Every notebook runs from top to bottom, its assertions holding."
import pytest

from conftest import ROOT, sh


@pytest.mark.parametrize("nb", sorted(ROOT.glob("nbs/**/*.ipynb")), ids=lambda p: p.stem)
def test_notebook(nb):
    done = sh("nbdev-test", nb, cwd=ROOT, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
