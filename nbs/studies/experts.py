"""Dense against experts, and QK-norm, on nano: each is pretrained on the same batches, one thread, FP32.

`python nbs/studies/experts.py RUN OUT.json SEED [STEPS]`, where the run folder RUN has prepared data.
"""

import json
import sys
import time
from pathlib import Path

import torch

from elite112m.core.presets import preset
from elite112m.data.batches import Batches
from elite112m.model.experts import router_load
from elite112m.model.transformer import CausalLM
from elite112m.training.optimizer import lr_factor, make_optimizers, set_lr
from elite112m.training.pretrain import per_byte
from elite112m.training.step import accumulate, validate

VARIANTS = {  # two experts of half the width are as wide as the dense network
    "dense": {},
    "qk_norm": {"model.qk_norm": True},
    "4 experts": {"model.n_experts": 4, "model.d_ff": 256},
    "8 experts": {"model.n_experts": 8, "model.d_ff": 256},
    "8 experts, no balancing": {"model.n_experts": 8, "model.d_ff": 256, "model.router_aux": 0.0},
}


def trained(run, variant, seed, steps):
    "One pretraining with its whole schedule; what it was, bits a byte at its end, processor time, load of the experts."
    p = preset("nano", VARIANTS[variant] | {"pretrain.steps": steps, "pretrain.seed": seed})
    m, cfg = p.model, p.pretrain
    data = Batches(Path(run) / "data", "train", m.context, cfg.batch_size, seed)
    held = Batches(Path(run) / "data", "val", m.context, cfg.batch_size, 0)
    held_out = [held[i] for i in range(8)]
    torch.manual_seed(seed)
    model = CausalLM(m)
    opts, began = make_optimizers(model, cfg), time.process_time()
    for step in range(steps):
        set_lr(opts, lr_factor(step, steps, cfg))
        accumulate(model.train(), [data[step]], "cpu", "fp32")
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip)
        for opt in opts:
            opt.step()
            opt.zero_grad()
    seconds = time.process_time() - began
    loss = validate(model.eval(), held_out, "cpu", "fp32")
    bits = loss / torch.tensor(2.0).log().item() * per_byte(held.data.manifest)
    row = {"variant": variant, "seed": seed, "steps": steps, "bits": round(bits, 4), "cpu_seconds": round(seconds, 1)}
    row |= {"parameters": m.n_params, "active": m.n_active_params}
    if m.n_experts:
        load = router_load(model, [torch.as_tensor(ids) for ids, *_ in held_out])
        row["load"] = [[round(x, 3) for x in layer] for layer in load.tolist()]
    return row


def main(run, out, seed, steps=80):
    "Train every variant, and the dense model once more for as long as each kind of experts took."
    rows = []

    def add(variant, steps, **more):
        rows.append(trained(run, variant, seed, steps) | more)
        Path(out).write_text(json.dumps(rows, indent=1) + "\n")
        print(rows[-1], flush=True)
        return rows[-1]["cpu_seconds"]

    took = {variant: add(variant, steps) for variant in ("dense", "qk_norm", "4 experts", "8 experts")}
    for variant in ("4 experts", "8 experts"):
        add("dense", round(steps * took[variant] / took["dense"]), as_long_as=variant)
    add("8 experts, no balancing", steps)


if __name__ == "__main__":
    run, out, *numbers = sys.argv[1:]
    main(run, out, *map(int, numbers))
