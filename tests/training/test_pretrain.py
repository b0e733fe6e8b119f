"Pretraining with batches that are spoilt, a weight that is struck, and too little memory, in this process."

import math
import shutil

import numpy as np
import pytest
import torch

LONG = {"steps": 70, "checkpoint_every": 20, "log_every": 1, "eval_every": 70}


@pytest.fixture(scope="module")
def ready():
    "The folder of a prepared run of the smallest size."
    from elite112m.core.runs import run_stage
    from elite112m.data.prepare import prepare

    return run_stage(prepare).run.path


@pytest.fixture
def train(ready, tmp_path):
    "Pretrain a copy of `ready`, its setting `pretrain.x` given as `x`; the rows of its metrics."
    from elite112m.core.runs import run_stage
    from elite112m.training.metrics import read_metrics
    from elite112m.training.pretrain import pretrain

    def trained(name="run", **settings):
        path = shutil.copytree(ready, tmp_path / name)
        job = run_stage(pretrain, path, settings={f"pretrain.{k}": v for k, v in settings.items()})
        return read_metrics(job.folder / "metrics.jsonl")

    return trained


def event_of(rows):
    return next(r for r in rows if "event" in r)


def spoil(patch, bad):
    "Batches `bad` become zeros on their way to the model, a sign at which the loss is not a number."
    from elite112m.data.batches import Batches
    from elite112m.training.trainer import Trainer

    get, gradients = Batches.__getitem__, Trainer.gradients

    def spoilt(self, i):
        parts = get(self, i)
        return (np.zeros_like(parts[0]), *parts[1:]) if i in bad and self.data.split == "train" else parts

    def lost(self, parts, *a):
        return gradients(self, parts, *a) * (math.nan if (torch.as_tensor(parts[0]) == 0).all() else 1)

    patch.setattr(Batches, "__getitem__", spoilt)
    patch.setattr(Trainer, "gradients", lost)


def test_too_little_memory_is_found_by_the_trial_and_gives_the_same_losses(train, monkeypatch):
    from elite112m.model.transformer import CausalLM

    losses = lambda rows: [r["val_loss"] for r in rows if "val_loss" in r]
    wanted, forward = losses(train("whole")), CausalLM.forward

    def refuse(self, ids, **given):
        if len(ids) > 2 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, ids, **given)

    monkeypatch.setattr(CausalLM, "forward", refuse)
    np.testing.assert_allclose(losses(train("small")), wanted, atol=2e-3)


def test_a_step_whose_loss_is_not_a_number_is_skipped(train, monkeypatch):
    spoil(monkeypatch, {6})
    rows = train()
    assert [r.get("skipped_steps") for r in rows if "loss" in r] == [None, None, None, 1, None, None]
    assert all(math.isfinite(r["loss"]) for r in rows if "loss" in r)


def test_after_five_bad_batches_the_run_rolls_back_and_leaves_them_out(train, monkeypatch):
    spoil(monkeypatch, set(range(44, 52)))
    rows = train(**LONG)
    event = event_of(rows)
    assert (event["step"], event["batches_left_out"], rows[-1]["step"]) == (41, [[43, 49]], 70)


def test_a_loss_that_jumps_rolls_the_run_back(train, monkeypatch):
    "After the update of batch 64 all of the embedding becomes thirty times as large."
    from elite112m.training.guards import batch_of
    from elite112m.training.trainer import Trainer

    update = Trainer.update

    def hit(self, parts):
        update(self, parts)
        if batch_of(self.step - 1, self.skips) == 64:
            self.model.model.embed_tokens.weight.data.mul_(30)

    monkeypatch.setattr(Trainer, "update", hit)
    rows = train(**LONG)
    event = event_of(rows)
    assert "jumped" in event["event"], event
    assert (event["step"], event["batches_left_out"], rows[-1]["step"]) == (61, [[64, 66]], 70)


def test_a_rate_that_no_checkpoint_can_save_ends_the_run(train):
    from elite112m.training.guards import Diverged

    with pytest.raises(Diverged, match="lower pretrain.lr"):
        train(lr=1e30, muon_lr=1e30, steps=40)
