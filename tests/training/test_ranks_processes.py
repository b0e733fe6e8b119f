"Two ranks over gloo: the gradient of one process, and a process group that is left in order, also when a rank fails."

import subprocess
import sys

import pytest
from conftest import ENV

STEP = """import sys, torch
from elite112m.core.config import ModelConfig
from elite112m.model.transformer import CausalLM
from elite112m.training.step import accumulate
from elite112m.training.ranks import join, whole
cpu = torch.device("cpu")
torch.manual_seed(0)
with join(cpu) as ranks:
    model = CausalLM(ModelConfig(64, 2, 32, 2, 1, 64, 32))
    ids = torch.randint(0, 64, (4, 32))
    labels = ids.roll(-1, 1)
    labels[2:, 5:] = -100
    mine = range(2 * ranks.rank, 2 * ranks.rank + 2) if ranks.together else range(4)
    parts = [(ids[i:i + 1], labels[i:i + 1], None) for i in mine]
    loss = accumulate(ranks.wrap(model, "shard" in sys.argv), parts, cpu, "fp32", ranks=ranks)
    norm = whole(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.))
    if ranks.first:
        print(loss.item(), norm.item())
assert not torch.distributed.is_initialized()
"""
FAILING = """import torch, torch.distributed as dist
from elite112m.training.ranks import join
try:
    with join(torch.device("cpu")) as ranks:
        ranks.sum(torch.ones(1))
        if not ranks.first:
            raise ValueError("this rank fails")
        ranks.sum(torch.ones(1))  # the other one is gone
finally:
    print("left" if not dist.is_initialized() else "still open", flush=True)
"""
TWO = "-m torch.distributed.run --nproc-per-node=2 --rdzv-backend=c10d --rdzv-endpoint=127.0.0.1:0".split()


def python(*args):
    return subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, env=ENV, timeout=200)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    script = tmp_path_factory.mktemp("ranks") / "step.py"
    script.write_text(STEP)
    return script, figures(python(script))


def figures(done):
    assert done.returncode == 0, done.stderr[-2000:]
    assert "SIGABRT" not in done.stderr
    return [float(x) for x in done.stdout.split()[-2:]]


@pytest.mark.parametrize("how", ["copies", "shard"])
def test_two_ranks_have_the_loss_and_gradient_of_one(alone, how):
    script, wanted = alone
    assert figures(python(*TWO, script, how)) == pytest.approx(wanted, abs=1e-5)


def test_a_rank_that_fails_ends_the_job_without_an_abort(tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    done = python(*TWO, script)
    assert done.returncode not in (0, None) and "this rank fails" in done.stderr, done.stderr[-2000:]
    assert "SIGABRT" not in done.stderr and "exitcode  : -6" not in done.stderr, done.stderr[-2000:]
    assert "left" in done.stdout and "still open" not in done.stdout
