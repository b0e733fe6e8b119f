"""Processor seconds of a training step of nano with either recipe, taking turns.

`OMP_NUM_THREADS=1 python nbs/studies/step_cost.py RUN`, where the run folder RUN has prepared data.
"""

import statistics
import sys
import time

import torch

from elite112m.core.presets import preset
from elite112m.data.batches import Batches
from elite112m.model.transformer import CausalLM
from elite112m.training.optimizer import lr_factor, make_optimizers, set_lr
from elite112m.training.step import accumulate

presets = {r: preset("nano", {"pretrain.recipe": r}) for r in ("original", "ours")}
models = {r: CausalLM(p.model) for r, p in presets.items()}
opts = {r: make_optimizers(models[r], p.pretrain) for r, p in presets.items()}
data, spent = Batches(sys.argv[1] + "/data", "train", 256, 4), {r: [] for r in presets}
for step in range(24):
    batch = [tuple(a if a is None else torch.from_numpy(a) for a in data[step])]
    for r, p in presets.items():
        began = time.process_time()
        set_lr(opts[r], lr_factor(step, 720, p.pretrain))
        accumulate(models[r], batch, "cpu", "fp32")
        torch.nn.utils.clip_grad_norm_(models[r].parameters(), p.pretrain.clip)
        for o in opts[r]:
            o.step()
            o.zero_grad()
        if step >= 4:
            spent[r].append(time.process_time() - began)
for r, s in spent.items():
    print(f"{r}: {statistics.median(s):.3f} s a step")
