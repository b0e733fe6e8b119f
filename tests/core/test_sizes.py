"One number for a whole preset."

import json

import pytest
from conftest import here


def test_sizes_are_met_and_ordered():
    from elite112m.core.sizes import shape_of_size

    asked = [round(3e5 * 1.05**i) for i in range(167)]
    shapes = [shape_of_size(n) for n in asked]
    got = [m.n_params for m in shapes]
    assert asked[-1] > 9.8e8 and got == sorted(got)
    assert max(abs(g / n - 1) for g, n in zip(got, asked)) < 0.05
    assert all(m.head_dim == 64 and m.d_ff % 64 == 0 and m.vocab_size % 64 == 0 for m in shapes)


@pytest.mark.parametrize("name", ["nano", "micro", "elite112m", "elite350m"])
def test_presets_are_near_the_dial(name):
    from elite112m.core.presets import PRESETS
    from elite112m.core.sizes import MUON_RATE, adamw_rate, batch_of_run, shape_of_size

    p = PRESETS[name]
    m, n = shape_of_size(p.model.n_params), p.pretrain.batch_size * p.pretrain.accumulation * p.model.context
    assert abs(m.n_params / p.model.n_params - 1) < 0.05 and 0.7 < m.d_model / p.model.d_model < 1.4
    tokens = p.pretrain.steps * n
    if name == "nano":  # nine tenths of its training are fine-tuning, about 45 tokens a conversation
        tokens += 45 * p.sft.examples
    assert 0.2 < batch_of_run(tokens) / n < 2.1
    assert 0.7 < MUON_RATE / p.pretrain.muon_lr < 1.5 and 0.3 < adamw_rate(m.d_model) / p.pretrain.lr < 4


def test_a_run_of_a_size_is_a_run_of_that_preset(tmp_path, tiny):
    "It reads what is there, says that this is less than planned, and is continued under the same name."
    words = ["run", "--size", "3M", "--stages", "prepare,pretrain", *tiny, "--set", "pretrain.steps=500"]
    done = here("elite112m", *words, "--set", "pretrain.max_epochs=0.2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "runs/3M/run.json").read_text())
    assert (run["preset"]["name"], run["preset"]["pretrain"]["steps"]) == ("3M", 500)
    assert "tokens were planned and the data hold" in done.stdout + done.stderr
    again = here("elite112m", *words, "--set", "pretrain.max_epochs=0.2", cwd=tmp_path)
    assert again.returncode == 0 and again.stderr.count("skipped") == 2


def test_a_size_can_be_asked_for_in_one_way_only(tmp_path):
    done = here("elite112m", "run", "nano", "--size", "3M", cwd=tmp_path)
    assert done.returncode == 2 and "give one" in done.stderr
    done = here("elite112m", "run", cwd=tmp_path)
    assert done.returncode == 2 and "which preset" in done.stderr
