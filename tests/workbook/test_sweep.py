"Grids that a sweep refuses."

import pytest
from conftest import here


@pytest.mark.parametrize(
    "args, why",
    [
        (["--grid", "pretrain.lr=fast"], "not a number"),
        (["--grid", "pretrain.recipe=orginal"], "did you mean 'original'"),
        (["--grid", "pretrain.lr=1e-3,0.001"], "same settings"),
        (["--grid", "sft.lr=1e-3"], "changes nothing in pretraining"),
        (["--seeds", "301"], "more than 300"),
        (["--data", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_grid_is_one_line_and_nothing_made(args, why, tmp_path):
    done = here("elite112m", "sweep", "nano", *args, "--out", tmp_path / "s")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and why in done.stderr, done.stderr
    assert not (tmp_path / "s").exists()
