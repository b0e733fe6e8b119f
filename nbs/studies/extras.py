"""Small changes that help in other projects, tried on nano.

`python nbs/studies/extras.py RUN OUT.csv [VARIANT...]`, where the run folder RUN has prepared data.
"""

import csv
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from elite112m.core.presets import preset
from elite112m.data.batches import Batches
from elite112m.model.transformer import CausalLM
from elite112m.training.optimizer import Muon, lr_factor, make_optimizers, set_lr
from elite112m.training.step import accumulate, validate

STEPS, SEEDS = 160, (1, 2)


class Cautious(Muon):
    "Decays a weight only where the update pulls it towards zero anyway (Chen et al. 2025, cautious weight decay)."

    def _update(self, params, group):
        before, wd = [p.clone() for p in params], group["weight_decay"]
        group["weight_decay"] = 0.0
        super()._update(params, group)
        group["weight_decay"] = wd
        for p, old in zip(params, before):
            p.sub_(torch.where((old - p) * old > 0, old, 0.0), alpha=group["lr"] * wd)


def optimizers(model, cfg, variant):
    opts = make_optimizers(model, cfg)
    if variant == "cautious":
        opts[0] = Cautious(opts[0].param_groups[0]["params"], cfg.muon_lr, weight_decay=cfg.weight_decay)
    if variant == "gains-lr/8":
        ps = opts[1].param_groups[0]["params"]
        opts[1] = torch.optim.AdamW(
            [{"params": [p for p in ps if p.ndim == 2]}, {"params": [p for p in ps if p.ndim == 1], "lr": cfg.lr / 8}],
            lr=cfg.lr,
            betas=(0.9, cfg.beta2),
            weight_decay=0.0,
            fused=True,
        )
    return opts


CHANGES = {
    "base": {},
    "cautious": {},
    "no-decay": {"weight_decay": 0.0},
    "gains-lr/8": {},
    "batch-ramp": {},
    "constant-lr": {"decay_fraction": 0.0},
}


def train(run, variant, seed):
    "One training; validation losses of the last weights and of averages over the last shares of the steps."
    p = preset("nano", {"pretrain.steps": STEPS, "pretrain.seed": seed})
    cfg = replace(p.pretrain, **CHANGES[variant])
    rows = Batches(Path(run) / "data", "train", p.model.context, 1, seed)
    held = Batches(Path(run) / "data", "val", p.model.context, cfg.batch_size, 0)
    held_out = [held[i] for i in range(32)]
    torch.manual_seed(seed)
    model = CausalLM(p.model)
    opts, total = optimizers(model, cfg, variant), STEPS * cfg.batch_size
    sums, seen, began = {share: None for share in (0.05, 0.1, 0.2, 0.4)}, 0, time.time()
    while seen < total:  # in windows, so that a ramp changes nothing but the batch
        size = 2 if variant == "batch-ramp" and seen < total // 3 else cfg.batch_size
        set_lr(opts, lr_factor(seen // cfg.batch_size, STEPS, cfg))
        model.train()
        accumulate(
            model,
            [tuple(None if a is None else torch.from_numpy(a) for a in b) for b in [_stack(rows, seen, size)]],
            "cpu",
            "fp32",
        )
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        for o in opts:
            o.step()
            o.zero_grad()
        seen += size
        for share in sums:
            if seen > total * (1 - share):
                sums[share] = _add(sums[share], model)
    seconds, losses = time.time() - began, {"last": validate(model.eval(), held_out, "cpu", "fp32")}
    for share, (n, weights) in sums.items():
        model.load_state_dict({k: (w / n).float() for k, w in weights.items()})
        losses[f"average of {share:.0%}"] = validate(model, held_out, "cpu", "fp32")
    return losses, seconds


def _stack(rows, seen, size):
    import numpy as np

    parts = [rows[seen + i] for i in range(size)]
    return tuple(None if a[0] is None else np.concatenate(a) for a in zip(*parts))


def _add(held, model):
    n, sums = held or (0, {k: torch.zeros_like(w, dtype=torch.float64) for k, w in model.state_dict().items()})
    for k, w in model.state_dict().items():
        sums[k] += w
    return n + 1, sums


if __name__ == "__main__":
    run, out, *variants = sys.argv[1:]
    with open(out, "a", newline="") as f:
        table = csv.writer(f, lineterminator="\n")
        if f.tell() == 0:
            table.writerow(["variant", "seed", "weights", "val_loss", "seconds"])
        for variant in variants or CHANGES:
            for seed in SEEDS:
                losses, seconds = train(run, variant, seed)
                for weights, loss in losses.items():
                    table.writerow([variant, seed, weights, f"{loss:.4f}", f"{seconds:.1f}"])
                f.flush()
                print(variant, seed, losses, f"{seconds:.0f} s", flush=True)
