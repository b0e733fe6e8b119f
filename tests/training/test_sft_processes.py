"Fine-tuning that is killed, as a process of its own."

import pytest
from conftest import kill_often, steps_of

STAGE = """import sys
from elite112m.core.runs import run_stage
from elite112m.training.sft import sft
run_stage(sft, sys.argv[1])"""


@pytest.fixture(scope="module")
def base(tiny_run):
    return tiny_run


def rows(run):
    return steps_of(run, "sft")


@pytest.mark.parametrize("adapter", ["", "lora"])
def test_killed_and_resumed_ends_the_same(base, tmp_path, capsys, adapter):
    "To the bit, the best weights among them, although they are what the stage ends with; an adapter alike."
    from elite112m.core.presets import TINY, preset
    from elite112m.core.runs import Run, run_stage, save_preset
    from elite112m.model.pretrained import load_model
    from elite112m.training.sft import sft

    # eight conversations again and again, at a rate far too high: the best step is not the last
    settings = TINY | {
        "sft.init": str(base),
        "sft.adapter": adapter,
        "sft.examples": 8,
        "sft.steps": 60,
        "sft.lr": 0.3,
        "sft.alpha": 5000.0,  # makes the rate far too high for an adapter too
        "sft.muon_lr": 0.5,
        "sft.eval_every": 5,
        "sft.log_every": 3,
        "sft.checkpoint_every": 4,
        "sft.decay_fraction": 0.0,
    }
    runs = [tmp_path / n for n in ("whole", "killed")]
    for r in runs:
        r.mkdir()
        save_preset(Run(r), preset("nano", settings))
    whole, run = runs
    run_stage(sft, whole)
    out = capsys.readouterr().out
    assert "are kept: their validation loss is" in out, out
    assert kill_often(STAGE, run, "sft", 60, seed=1)
    run_stage(sft, run)
    out = capsys.readouterr().out
    assert "continues at step" in out, out
    results = ["model.safetensors", *(["adapter/adapter_model.safetensors"] if adapter else [])]
    assert all((run / "sft" / r).read_bytes() == (whole / "sft" / r).read_bytes() for r in results)
    assert rows(run) == rows(whole)
    kept = load_model(run / "sft").state_dict()
    assert all(t.equal(kept[n]) for n, t in load_model(run / "sft/best").state_dict().items())
    losses = {r["step"]: r["val_loss"] for r in rows(run) if "val_loss" in r}
    assert f"the weights of step {min(losses, key=losses.get)} are kept" in out and min(losses.values()) < losses[60]
    last = load_model(run / "sft/checkpoints/step-00000060").state_dict()  # from here on an extension would go
    assert not all(t.equal(last[n]) for n, t in kept.items())
