"Training in FP16 on the CPU: it learns, overflows are skipped, and a run that is resumed is the same run."

import json
import math

import pytest
import torch

from elite112m.core.config import ModelConfig
from elite112m.core.presets import preset
from elite112m.core.runs import Job, Run
from elite112m.data.shards import with_checksum
from elite112m.fp8.precision import pick_precision
from elite112m.model.transformer import CausalLM
from elite112m.training.plan import plan_for
from elite112m.training.trainer import LossSpike, Trainer

CPU = torch.device("cpu")
SHAPE = ModelConfig(64, 2, 32, 2, 1, 64, 32)


def trainer(folder, precision="fp16", **settings):
    changed = {"pretrain.batch_size": 2, "pretrain.precision": precision}
    changed |= {f"pretrain.{k}": v for k, v in settings.items()}
    torch.manual_seed(0)
    t = Trainer(Job(Run(folder), "pretrain", preset("nano", changed), "start"), CausalLM(SHAPE), None, CPU)
    t.start(plan_for(t.cfg, 40))
    return t


def batch(step=0):
    start = torch.randint(0, 64, (4, 1), generator=torch.Generator().manual_seed(step))
    ids = (start + torch.arange(33)) % 64
    return ids[:, :-1], ids[:, 1:].contiguous(), None


def train(t, to):
    while t.step < to:
        t.update(batch(t.step))


def everything(t):
    "All numbers that training changes."
    state = {p: s for o in t.opts for p, s in o.state.items()}
    moments = [state[p][k] for p in t.model.parameters() for k in sorted(state.get(p, ()))]
    return [x.detach().clone() for x in (*t.model.parameters(), *moments)]


def same(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


def overflow_at(t, steps):
    "In these steps the scale is as large as can be: the scaled gradients cannot be finite."
    gradients = t.gradients

    def scaled(*given):
        kept = t.scaler.get_scale()
        if t.step not in steps:
            return gradients(*given)
        t.scaler.load_state_dict(t.scaler.state_dict() | {"scale": 2.0**120})
        loss = gradients(*given)
        t.scaler.load_state_dict(t.scaler.state_dict() | {"scale": kept})
        return loss

    t.gradients = scaled
    return t


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_fp16_learns_as_fp32_does(tmp_path, optimizer):
    losses = {}
    for precision in ("fp32", "fp16"):
        t = trainer(tmp_path / precision, precision, optimizer=optimizer)
        train(t, 40)
        row = t.log(128)
        t.evaluate([batch(99)])
        losses[precision] = t.val[1]
    assert row["overflows"] == 0 and row["loss_scale"] == 2**16 and "skipped_steps" not in row
    assert losses["fp32"] < math.log(64) - 1 and abs(losses["fp16"] - losses["fp32"]) < 0.05, losses


def test_an_overflow_is_skipped_and_counted_and_halves_the_scale(tmp_path):
    t = overflow_at(trainer(tmp_path / "run"), {3, 5, 6, 7, 8, 9, 10})  # six in a row are no divergence
    train(t, 3)
    before = everything(t)
    train(t, 4)
    assert same(everything(t), before) and t.scaler.get_scale() == 2**15
    train(t, 5)
    assert not same(everything(t), before)
    train(t, 11)
    row = t.log(128)
    assert (row["overflows"], row["skipped_steps"], row["loss_scale"]) == (7, 7, 2.0**9)
    assert math.isfinite(row["loss"]) and t.guard.bad == 0
    train(t, 12)
    assert t.log(128)["overflows"] == 0


def test_a_loss_that_is_not_a_number_still_counts_as_a_bad_step(tmp_path):
    t = trainer(tmp_path / "run")
    gradients = t.gradients
    t.gradients = lambda *given: gradients(*given) * math.nan
    train(t, 5)
    with pytest.raises(LossSpike, match="5 steps in a row without a finite loss"):
        t.log(128)


def test_a_scale_that_falls_below_one_is_a_jump(tmp_path):
    t = overflow_at(trainer(tmp_path / "run"), set(range(17)))
    train(t, 17)
    with pytest.raises(LossSpike, match="overflow FP16 whatever the loss scale"):
        t.log(128)


def test_the_scale_doubles_after_enough_good_steps(tmp_path):
    t = trainer(tmp_path / "run")
    t.scaler.set_growth_interval(4)
    train(t, 3)
    assert t.scaler.get_scale() == 2**16
    train(t, 5)
    assert t.scaler.get_scale() == 2**17


def saved(t):
    t.save()
    assert t.saver.finish() is None
    t.metrics.close()


def test_a_resumed_run_is_the_same_to_the_last_bit(tmp_path):
    whole = overflow_at(trainer(tmp_path / "whole"), {2, 8})
    train(whole, 12)
    first = overflow_at(trainer(tmp_path / "parts"), {2})
    train(first, 6)
    saved(first)
    rest = overflow_at(trainer(tmp_path / "parts"), {8})
    assert rest.step == 6 and rest.scaler.state_dict() == first.scaler.state_dict()
    assert rest.scaler.get_scale() == 2**15  # as the overflow left it
    train(rest, 12)
    assert same(everything(whole), everything(rest)) and rest.scaler.state_dict() == whole.scaler.state_dict()


def test_a_checkpoint_without_a_scale_begins_with_the_usual_one(tmp_path):
    t = trainer(tmp_path / "run")
    train(t, 3)
    saved(t)
    (path,) = (t.folder / "checkpoints").glob("step-*/state.json")
    state = json.loads(path.read_text())
    del state["scaler"], state["checksum"]
    path.write_text(json.dumps(with_checksum(state)))
    t = trainer(tmp_path / "run")
    assert (t.step, t.scaler.get_scale()) == (3, 2**16)
    train(t, 4)


def test_auto_is_fp16_on_a_card_with_fp16_units_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    for capability, wanted in {(6, 1): "fp32", (7, 0): "fp16", (7, 5): "fp16"}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        assert pick_precision("auto", torch.device("cuda")) == wanted
