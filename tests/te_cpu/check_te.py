"""The `te` backend against the real Python of TransformerEngine 2.20.2, its kernels emulated.

Run by `make test-te`, in a process of its own.
"""

import inspect
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import emulate

emulate.install((12, 0))
import torch
import transformer_engine.pytorch as te
from safetensors.torch import load_file, save_file
from torch import nn
from transformer_engine.common import recipe as te_recipes
from transformer_engine.pytorch.quantization import check_recipe_support

from elite112m.core.config import InputError, ModelConfig
from elite112m.fp8.linear import NativeFP8
from elite112m.fp8.precision import FORWARD
from elite112m.fp8.scaling import Recipe, Slots
from elite112m.fp8.transformer_engine import TransformerEngineFP8, recipes_for, te_recipe
from elite112m.model.transformer import CausalLM

SMALL = ModelConfig(64, 2, 32, 2, 1, 64, 32)
CAPABILITIES = [(8, 9), (9, 0), (10, 0), (12, 0)]


@pytest.fixture(autouse=True)
def fresh():
    emulate.install((12, 0))
    te.quantization.FP8GlobalStateManager.reset()
    emulate.products.clear()
    torch.manual_seed(0)


def pair(recipe, warmup=0):
    "The same model twice, with TransformerEngine's layers and with ours."
    models = [CausalLM(SMALL), CausalLM(SMALL)]
    models[1].load_state_dict(models[0].state_dict())
    return [(m, kind(m, recipe, warmup)) for m, kind in zip(models, (TransformerEngineFP8, NativeFP8))]


def train_step(model, fp8, ids, step, lr=0.1):
    "Forward, backward, plain gradient descent; returns the loss."
    fp8.begin(step)
    model.zero_grad()
    with fp8.forward():
        loss, n = model(ids, labels=ids.roll(-1, 1))
    (loss / n).backward()
    fp8.backward_done()
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(lr * p.grad)
    return (loss / n).item()


def test_the_version_is_the_one_in_the_documentation():
    from importlib.metadata import version

    assert version("transformer_engine") == "2.20.2"


def test_every_keyword_exists():
    for f, names in (
        (te.Linear.__init__, ("bias", "params_dtype", "device")),
        (te.Linear.forward, ("is_first_microbatch",)),
        (te.autocast.__init__, ("enabled", "recipe")),
        (te_recipes.Float8CurrentScaling, ("fp8_format",)),
        (te_recipes.DelayedScaling, ("margin", "fp8_format", "amax_history_len", "amax_compute_algo")),
    ):
        assert set(names) <= set(inspect.signature(f).parameters), f


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_recipe_choice_is_theirs(capability):
    emulate.install(capability)
    classes = {
        "delayed": te_recipes.DelayedScaling,
        "current": te_recipes.Float8CurrentScaling,
        "block": te_recipes.Float8BlockScaling,
        "mxfp8": te_recipes.MXFP8BlockScaling,
    }
    for name, cls in classes.items():
        try:
            check_recipe_support(cls())
            theirs = True
        except RuntimeError:
            theirs = False
        assert theirs == (cls.__name__ in recipes_for(capability)), (name, capability)
    assert (capability != (12, 0)) or "MXFP8BlockScaling" not in recipes_for(capability)
    for name in ("delayed", "current"):
        assert type(te_recipe(Recipe(name), capability)) is classes[name]
    with pytest.raises(InputError, match="8.9"):
        te_recipe(Recipe("delayed"), (8, 0))


def test_update_is_theirs_to_the_bit():
    theirs_recipe = te_recipes.DelayedScaling(amax_history_len=5, amax_compute_algo="max", margin=0)
    ours = Slots(6, FORWARD, Recipe(history=5))
    scale, history = ours.scale.clone(), ours.history.clone()
    odd = torch.tensor([0.0, float("inf"), float("nan"), 1e-40, 3e38, 1e-45])
    for step in range(60):
        row = torch.where(torch.rand(6) < 0.3, odd[torch.randperm(6)], 10 * torch.rand(6))
        ours.history[0], history[0] = row, row
        ours.update()
        te.quantization._amax_and_scale_update(history, scale, 448.0, theirs_recipe)
        assert torch.equal(ours.scale, scale) and torch.equal(ours.history.nan_to_num(-1), history.nan_to_num(-1)), step


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_twenty_steps_scales_and_histories(capability):
    "One layer of each kind on the same inputs and gradients, with zeros, infinities, spikes and evaluations mixed in."
    emulate.install(capability)
    recipe, nets = Recipe(history=4), [nn.Sequential(nn.Linear(32, 48, bias=False)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    runs = TransformerEngineFP8(nets[0], recipe), NativeFP8(nets[1], recipe)
    fit = 0
    for step in range(20):
        x, g = torch.randn(16, 32) * 10 ** torch.randn(()), torch.randn(16, 48) * 1e-6
        if step in (3, 11):
            x.zero_()
        if step in (5, 12):
            g.zero_()
        if step == 7:
            x[0, 0] = float("inf")
        if step == 8:
            g[0, 0] = float("inf")
        if step == 15:
            x *= 1e30
        results = []
        for net, fp8 in zip(nets, runs):
            if step % 3 == 1:
                with torch.no_grad(), fp8.forward():
                    net(1e4 * torch.ones(16, 32))
            net.zero_grad()
            with fp8.forward():
                y = net(x)
            y.backward(g)
            fp8.backward_done()
            results.append((y.detach(), net[0].weight.grad))
        a, b = (fp8.tensors() for fp8 in runs)
        assert a.keys() == b.keys() and len(a) == 4
        for k in a:
            assert torch.equal(a[k], b[k]), (step, k)
        for s, t in zip(*results):
            if t.isfinite().all():
                assert torch.allclose(s, t, rtol=1e-4, atol=1e-5 * t.abs().max().item())
                fit += 1
    assert fit > 30
    used = [v for k, v in runs[0]._slots().items() if k.endswith("scale")]
    assert used[0][2] == 1 and used[1][1] == 1  # the slots of output and gradient of the input are never used


def test_evaluation_pollutes_theirs_without_us():
    "The reason for putting the state aside: bare TransformerEngine writes into row 0 under no_grad."
    net = nn.Sequential(nn.Linear(32, 48, bias=False))
    fp8 = TransformerEngineFP8(net, Recipe(history=4))
    with torch.no_grad(), te.autocast(enabled=True, recipe=fp8.te_recipe):
        net(1e4 * torch.ones(16, 32))
    assert fp8._slots()["0.fwd.history"][0, 0] == 1e4


def test_state_dict_is_canonical_both_ways():
    plain = CausalLM(SMALL)
    (model, _), _ = pair(Recipe())
    assert list(model.state_dict()) == list(plain.state_dict())
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}
    model.load_state_dict(plain.state_dict())
    for n, t in plain.state_dict().items():
        assert torch.equal(model.state_dict()[n], t) and t.dtype == torch.float32
    plain.load_state_dict(model.state_dict())
    assert isinstance(model.model.layers[0].mlp.up_proj, te.Linear)


def test_formats_and_nothing_accumulates():
    (model, fp8), _ = pair(Recipe())
    train_step(model, fp8, torch.randint(0, 64, (2, 32)), 0)
    forward, dgrad, wgrad = ([p for p in emulate.products if p[0] == kind] for kind in ("TN", "NN", "NT"))
    assert len(forward) == len(dgrad) == len(wgrad) == 14
    assert (
        {p[1:] for p in forward} == {(7, 7, False)}
        and {p[1:] for p in dgrad} == {(7, 8, False)}
        and {p[1:] for p in wgrad} == {(7, 8, False)}
    )


@pytest.mark.parametrize("name", ["delayed", "current"])
@pytest.mark.parametrize("warmup", [0, 6])
def test_loss_curves_agree(name, warmup):
    runs = pair(Recipe(name, history=4), warmup)
    losses = []
    for step in range(25):
        ids = torch.randint(0, 64, (2, 32)).sort(-1).values
        losses.append([train_step(m, fp8, ids, step, lr=0.3) for m, fp8 in runs])
    a, b = torch.tensor(losses).T
    assert b[-1] < b[0] - 0.3 and (a - b).abs().max() < 0.01 * b[0], (a - b).abs().max()
    if warmup:
        assert (a[:warmup] - b[:warmup]).abs().max() < 1e-5  # no FP8 yet


def test_checkpoint_without_a_pickle_and_across_backends(tmp_path):
    batches = torch.randint(0, 64, (12, 2, 32))
    (model, fp8), _ = pair(Recipe(history=4), warmup=3)
    for step in range(6):
        train_step(model, fp8, batches[step], step)
    save_file({k: t.contiguous() for k, t in fp8.tensors().items()}, tmp_path / "fp8.safetensors")
    save_file({k: t.clone() for k, t in model.state_dict().items()}, tmp_path / "model.safetensors")
    on = [train_step(model, fp8, batches[step], step) for step in range(6, 12)]

    te.quantization.FP8GlobalStateManager.reset()
    (again, fp8_again), (ours, native) = pair(Recipe(history=4), warmup=3)
    for m, f in ((again, fp8_again), (ours, native)):
        m.load_state_dict(load_file(tmp_path / "model.safetensors"))
        f.restore(load_file(tmp_path / "fp8.safetensors"))
    assert [train_step(again, fp8_again, batches[step], step) for step in range(6, 12)] == on
    for k, t in fp8.tensors().items():
        assert torch.equal(t, fp8_again.tensors()[k])
    assert torch.allclose(
        torch.tensor([train_step(ours, native, batches[step], step) for step in range(6, 12)]),
        torch.tensor(on),
        rtol=0.01,
    )


def test_shapes_are_refused_in_one_line():
    (model, fp8), _ = pair(Recipe())
    with pytest.raises(InputError, match="multiple of 16 tokens"):
        with fp8.forward():
            model(torch.randint(0, 64, (1, 15)))
    with pytest.raises(InputError, match="multiples of 16"):
        TransformerEngineFP8(nn.Sequential(nn.Linear(24, 16, bias=False)), Recipe())
