"""What the training loop costs beside the training: its overhead, and how long a checkpoint holds it up.

python benchmarks/engine.py --overhead    # nano, 200 steps: time that is not forward, backward or optimizer
python benchmarks/engine.py --checkpoint  # elite112m's weights and moments: seconds that a save takes from training
python benchmarks/engine.py --checkpoint --optimizer muon
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import torch

from elite112m.core.presets import preset
from elite112m.core.runs import Job, Run, run_stage
from elite112m.data.prepare import prepare
from elite112m.model.transformer import CausalLM
from elite112m.training import trainer
from elite112m.training.metrics import read_metrics
from elite112m.training.plan import Plan
from elite112m.training.pretrain import pretrain


class Watch:
    "Adds up the time spent in functions; calls inside each other count once."

    def __init__(self):
        self.total, self.inside = 0.0, False

    def __call__(self, f):
        def timed(*args, **kw):
            if self.inside:
                return f(*args, **kw)
            self.inside, start = True, time.perf_counter()
            try:
                return f(*args, **kw)
            finally:
                self.total, self.inside = self.total + time.perf_counter() - start, False

        return timed


def overhead(steps):
    run = Path(tempfile.mkdtemp()) / "run"
    settings = {
        "pretrain.steps": steps,
        "pretrain.eval_every": steps,
        "pretrain.checkpoint_every": steps,
        "data.tokens": 400_000,
    }
    run_stage(prepare, run, "nano", settings)
    watch, update = Watch(), trainer.Trainer.update
    CausalLM.forward, torch.Tensor.backward = watch(CausalLM.forward), watch(torch.Tensor.backward)
    busy = []  # time in forward, backward and optimizer, by step

    def counted(self, batch):
        if not busy:
            for opt in self.opts:
                opt.step = watch(opt.step)
        before = watch.total
        update(self, batch)
        busy.append(watch.total - before)

    trainer.Trainer.update = counted
    job = run_stage(pretrain, run)
    rows = [r for r in read_metrics(job.folder / "metrics.jsonl") if "tok_s" in r]
    tokens = rows[0]["tokens"] / rows[0]["step"]
    seconds = sum((b["step"] - a["step"]) * tokens / b["tok_s"] for a, b in zip([{"step": 0}, *rows], rows))
    work, wait = sum(busy) / seconds, sum(r["wait"] / r["tok_s"] for r in rows) / sum(1 / r["tok_s"] for r in rows)
    print(f"{steps} steps, {seconds / steps * 1e3:.1f} ms each: {work:.2%} forward, backward, optimizer;")
    print(f"{1 - work:.2%} everything else, of it {wait:.2%} waiting for data")
    shutil.rmtree(run.parent)


def checkpoint(optimizer):
    run = Run(tempfile.mkdtemp(dir="."))
    p = preset("elite112m", {"pretrain.optimizer": optimizer, "pretrain.compile": False})
    t = trainer.Trainer(Job(run, "pretrain", p, "start"), CausalLM(p.model), None, torch.device("cpu"))
    t.plan = Plan(last=10)
    for q in t.model.parameters():
        q.grad = torch.randn_like(q)
    for opt in t.opts:
        opt.step()
    for _ in range(3):
        t.step += 1
        start = time.perf_counter()
        t.save()
        stalled = time.perf_counter() - start
        t.saver.finish()
        size = sum(f.stat().st_size for f in (t.folder / f"checkpoints/step-{t.step:08d}").iterdir())
        beside = time.perf_counter() - start - stalled
        print(f"{size / 1e9:.2f} GB: training waits {stalled:.2f} s, the rest is written in {beside:.1f} s beside it")
    shutil.rmtree(run.path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--checkpoint", action="store_true")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw")
    a = parser.parse_args()
    if a.overhead:
        overhead(a.steps)
    if a.checkpoint:
        checkpoint(a.optimizer)
    if not (a.overhead or a.checkpoint):
        parser.print_help()
