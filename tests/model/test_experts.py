"Models with experts and with normed queries and keys, through the whole journey and in every engine."

import json
import shutil

import pytest
import torch
from conftest import here

KINDS = {
    "Qwen3ForCausalLM": {"model.qk_norm": True},
    "MixtralForCausalLM": {"model.n_experts": 4},
    "Qwen3MoeForCausalLM": {"model.n_experts": 4, "model.qk_norm": True},
    "Qwen2MoeForCausalLM": {"model.n_experts": 3, "model.shared_expert": True},
}


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    "A prepared run of the smallest size."
    from elite112m.core.presets import TINY
    from elite112m.core.runs import run_stage
    from elite112m.data.prepare import prepare

    path = tmp_path_factory.mktemp("ready") / "run"
    run_stage(prepare, path, "nano", TINY)
    return path


def pretrained(ready, path, settings):
    from elite112m.core.presets import TINY, preset
    from elite112m.core.runs import Run, run_stage, save_preset
    from elite112m.training.pretrain import pretrain

    if not path.exists():
        shutil.copytree(ready, path)
        save_preset(Run(path), preset("nano", TINY | settings))
    return run_stage(pretrain, path).folder


class PowerCut(Exception):
    pass


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_training_ends_with_the_same_bits(ready, tmp_path, monkeypatch, kind):
    "Read back from a checkpoint under Hugging Face's names, Muon's momenta and all."
    from elite112m.training.metrics import read_metrics, timeless
    from elite112m.training.trainer import Trainer

    whole, update = pretrained(ready, tmp_path / "whole", KINDS[kind]), Trainer.update

    def cut(self, batch):
        if self.step == 8:
            raise PowerCut
        update(self, batch)

    with monkeypatch.context() as m, pytest.raises(PowerCut):
        m.setattr(Trainer, "update", cut)
        pretrained(ready, tmp_path / "parts", KINDS[kind])
    rest = pretrained(ready, tmp_path / "parts", KINDS[kind])
    assert (whole / "model.safetensors").read_bytes() == (rest / "model.safetensors").read_bytes()
    assert json.loads((whole / "config.json").read_text())["architectures"] == [kind]
    kept = [timeless(read_metrics(folder / "metrics.jsonl")) for folder in (whole, rest)]
    assert kept[0] == kept[1] and any("router_load_min" in r for r in kept[0]) == ("model.n_experts" in KINDS[kind])


def test_the_metrics_tell_of_an_expert_that_starves(ready, tmp_path, monkeypatch):
    "What is logged is the load on the last batch; an expert whose router never chooses it is at 0."
    from elite112m.model.experts import router_load
    from elite112m.training.metrics import read_metrics
    from elite112m.training.trainer import Trainer

    ask, loads = Trainer.router_figures, []

    def starved(self):
        with torch.no_grad():
            for layer in self.model.model.layers:  # equal probabilities: always the same two are chosen
                layer.mlp.gate.weight[:] = 0.0
        loads.append(router_load(self.model, [torch.as_tensor(self.seen[0])]))
        return ask(self)

    monkeypatch.setattr(Trainer, "router_figures", starved)
    folder = pretrained(ready, tmp_path / "run", {"model.n_experts": 4, "pretrain.optimizer": "adamw"})
    rows = [r for r in read_metrics(folder / "metrics.jsonl") if "loss" in r]
    assert len(rows) == len(loads) and all(r["router_load_min"] == 0 for r in rows)
    assert [r["router_load_max"] for r in rows] == pytest.approx([load.max().item() for load in loads])


def test_from_text_to_chat_and_export(ready, tmp_path, tiny):
    "With experts and normed queries: train, chat, evaluate, export; transformers says the same."
    from transformers import AutoModelForCausalLM

    from elite112m.model.pretrained import load_model
    from elite112m.training.metrics import read_metrics

    run, sets = tmp_path / "run", ["--set", "model.n_experts=4", "--set", "model.qk_norm=true"]
    sets += ["--set", "model.experts_per_token=2", "--set", "evaluate.max_new_tokens=2"]
    done = here("elite112m", "run", "nano", "--out", run, *tiny, *sets)
    assert done.returncode == 0, done.stderr
    for stage in ("pretrain", "sft"):
        rows = [r for r in read_metrics(run / stage / "metrics.jsonl") if "loss" in r]
        assert rows and all(0 <= r["router_load_min"] <= 1 <= r["router_load_max"] <= 2 for r in rows)
    assert "experts, pretrain" in (run / "report.html").read_text()
    done = here("elite112m", "chat", "--model", run, "--input", "hi", "--max-new-tokens", "4")
    assert done.returncode == 0, done.stderr
    ours, theirs = load_model(run / "export/hf"), AutoModelForCausalLM.from_pretrained(run / "export/hf")
    ids = torch.arange(40)[None]
    assert type(theirs).__name__ == "Qwen3MoeForCausalLM"
    assert (ours(ids) - theirs(ids).logits).abs().max() < 1e-4
    for to in ("gguf", "onnx", "web"):
        out = tmp_path / to
        done = here("elite112m", "export", "--model", run, "--to", to, "--out", out)
        assert done.returncode == 2 and "cannot hold model.n_experts=4" in done.stderr and not out.exists()
    done = here("elite112m", "chat", "--model", run, "--format", "int8", "--input", "hi")
    assert done.returncode == 2 and done.stderr.strip().count("\n") == 0


def test_pretraining_goes_on_from_a_model_with_experts_and_an_adapter(tmp_path, tiny):
    "With the settings of the largest preset: it begins with their sum, and all blocks keep their experts."
    from elite112m.model.pretrained import load_model
    from elite112m.training.metrics import read_metrics

    local = "data.sources=stdlib tokenizer.name=train sft.sources=curriculum pretrain.compile=false".split()
    sets = [*tiny, *(a for s in [*local, "pretrain.accumulation=1", "model.n_experts=4"] for a in ("--set", s))]
    first, more = tmp_path / "first", tmp_path / "more"
    stages = ("--stages", "prepare,pretrain,sft", "--adapter", "lora", "--set", "sft.rank=4", "--set", "sft.lr=0.05")
    done = here("elite112m", "run", "elite350m", "--out", first, *sets, *stages)
    assert done.returncode == 0, done.stderr
    still = ("--steps", "3", "--set", "pretrain.lr=1e-9", "--set", "pretrain.muon_lr=1e-9")
    start = ("pretrain", "--run", more, "--preset", "elite350m", "--from", first / "sft/adapter")
    done = here("elite112m", *start, *sets, *still)
    assert done.returncode == 0, done.stderr
    began, ended, base = (load_model(p).state_dict() for p in (first / "sft", more / "pretrain", first / "pretrain"))
    assert all((began[n] - t).abs().max() < 1e-5 for n, t in ended.items())
    assert any((base[n] - t).abs().max() > 1e-3 for n, t in ended.items() if ".experts." in n)
    assert any("router_load_min" in r for r in read_metrics(more / "pretrain/metrics.jsonl"))


@pytest.mark.parametrize(
    "bad, why",
    [
        (["model.n_experts=4", "model.experts_per_token=5"], "experts_per_token=5 is over model.n_experts=4"),
        (["model.n_experts=4", "model.experts_per_token=1"], "no router learns"),
        (["model.n_experts=-1"], "must lie between 0 and"),
        (["model.n_experts=4", "model.router_aux=-1"], "must be 0 or a positive number"),
        (["model.shared_expert=true"], "needs experts beside it"),
        (["model.n_experts=4", "model.shared_expert=true", "model.qk_norm=true"], "no class with both"),
        (["model.n_experts=4", "pretrain.precision=fp8"], "choose pretrain.precision=bf16"),
    ],
)
def test_bad_settings_get_one_line(tmp_path, bad, why):
    done = here("elite112m", "run", "nano", "--out", tmp_path / "run", *(a for s in bad for a in ("--set", s)))
    assert done.returncode == 2 and why in done.stderr and done.stderr.strip().count("\n") == 0
    assert not (tmp_path / "run").exists()


def test_a_run_from_before_these_fields_goes_on(ready, tmp_path):
    "Its `run.json` and its finished stage lack them."
    from elite112m.core.runs import Run

    path = tmp_path / "run"
    pretrained(ready, path, {})
    new = ("qk_norm", "n_experts", "experts_per_token", "shared_expert", "router_aux")
    for f in (path / "run.json", *path.glob("*/stage.json")):
        found = json.loads(f.read_text())
        shape = found.get("preset", {}).get("model", {})
        assert f.name != "run.json" or "n_experts" in shape
        for name in new:
            shape.pop(name, None)
            found.get("settings", {}).pop(f"model.{name}", None)
        f.write_text(json.dumps(found))
    before = (path / "pretrain/model.safetensors").read_bytes()
    assert Run(path).status("pretrain") == "done" and Run(path).preset.model.n_experts == 0
    pretrained(ready, path, {})  # does nothing
    assert (path / "pretrain/model.safetensors").read_bytes() == before


def model_of(**more):
    from elite112m.core.config import ModelConfig
    from elite112m.model.transformer import CausalLM

    torch.manual_seed(0)
    shape = dict(vocab_size=320, n_layers=2, d_model=32, n_heads=2, n_kv_heads=1, d_ff=48, context=64, n_experts=4)
    return CausalLM(ModelConfig(**shape | more))


def batch_of(rows):
    ids = torch.randint(0, 320, (rows, 33), generator=torch.Generator().manual_seed(1))
    return ids[:, :-1].numpy(), ids[:, 1:].numpy(), None


def gradients(step, batch):
    step.accumulate([batch])
    found = [p.grad.clone() for p in step.masters]
    for p in step.masters:
        p.grad = None
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_parts_on_threads_give_the_gradients_of_the_whole(precision):
    "Without the balancing loss, which is not a sum over tokens; experts that nobody chose have zeros, not None."
    from elite112m.training.parallel import ParallelStep

    model, batch = model_of(router_aux=0.0, n_experts=16), batch_of(4)
    whole, parts = (gradients(ParallelStep(model, precision, n), batch) for n in (1, 4))
    for a, b in zip(whole, parts):
        assert (a - b).norm() <= (1e-5 if precision == "fp32" else 0.05) * a.norm().clamp(min=1e-3)


def test_recomputed_activations_give_the_same_gradients():
    from elite112m.training.parallel import ParallelStep
    from elite112m.training.step import recompute

    model, batch = model_of(qk_norm=True), batch_of(2)
    kept = gradients(ParallelStep(model), batch)
    recompute(model)
    assert all(torch.equal(a, b) for a, b in zip(kept, gradients(ParallelStep(model), batch)))


def test_an_expert_that_nobody_chooses_has_a_gradient_of_zeros():
    model = model_of(router_aux=0.0)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.zero_()  # all probabilities are equal: the same two are chosen for every token
    loss, _ = model(*map(torch.as_tensor, batch_of(2)[:2]))
    loss.backward()
    slopes = [e.up_proj.weight.grad.abs().sum().item() for e in model.model.layers[0].mlp.experts]
    assert sorted(s > 0 for s in slopes) == [False, False, True, True]


def test_balancing_evens_the_load_of_a_router_that_prefers_two():
    from elite112m.model.experts import router_load

    def after(router_aux):
        model = model_of(router_aux=router_aux, n_layers=1)
        opt = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
        often = 1 / torch.arange(1, 321.0)
        for _ in range(60):
            ids = torch.multinomial(often, 8 * 33, True).view(8, 33)
            loss, n = model(ids[:, :-1], labels=ids[:, 1:])
            (loss / n).backward()
            opt.step()
            opt.zero_grad()
        return router_load(model, [torch.multinomial(often, 1024, True).view(32, 32)])

    free, even = after(0.0), after(0.05)
    assert even.min() > 0.5 and even.max() - even.min() < free.max() - free.min()


def test_generation_with_a_cache_says_what_the_whole_sequence_says():
    from elite112m.model.quantised import as_format
    from elite112m.model.transformer import KVCache

    for more in ({"qk_norm": True}, {"shared_expert": True}):
        model, ids = model_of(**more).eval(), torch.randint(0, 320, (2, 20))
        with torch.no_grad():
            cache, steps = KVCache(model.config, 2, 20), []
            for part in (ids[:, :8], *ids[:, 8:].split(1, 1)):
                steps.append(model(part, cache=cache))
            whole = model(ids)
            assert (torch.cat(steps, 1) - whole).abs().max() < 1e-4
            half = as_format(model, "bf16")
            assert (half(ids).float() - whole).abs().max() < 0.1


def test_presets_show_what_a_token_passes(tmp_path):
    done = here("elite112m", "presets", "--size", "30M", "--set", "model.n_experts=8")
    assert done.returncode == 0 and "2 of 8 experts" in done.stdout and "a token)" in done.stdout

    def memory(*more):
        "The first preset's estimates, training and adapter, in GB."
        lines = here("elite112m", "presets", "--size", "30M", *more).stdout.splitlines()
        return [float(line.split("(estimate)")[1].split()[0]) for line in lines if "(estimate)" in line]

    dense, experts, rank = memory(), memory("--set", "model.n_experts=8"), memory("--set", "sft.rank=200")
    assert len(dense) == 2 and all(a < b for a, b in zip(dense, experts))
    assert dense[0] == rank[0] and dense[1] < rank[1]
    done = here("elite112m", "presets")
    assert "GB, recomputing" in done.stdout
    done = here("elite112m", "presets", "--set", "model.n_experts=8", "--set", "model.experts_per_token=9")
    assert done.returncode == 2 and "experts_per_token=9 is over" in done.stderr


def objectives():
    "What is trained after the base model: an objective, a batch for it, the inputs of the model, terms of the loss."
    from elite112m.evaluation.rewards import PolicyGradient
    from elite112m.training.distillation import Distillation
    from elite112m.training.preferences import Preference

    ids = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    x, y = ids[:, :-1], ids[:, 1:].clone()
    said = torch.randn(2, 8, 300, generator=torch.Generator().manual_seed(1)).log_softmax(-1).topk(5)
    y[:, :3] = -100
    yield pytest.param(Distillation(), (x, ids[:, 1:], said.indices, said.values), x, 16, id="distill")
    yield pytest.param(Preference(), (x[None], y[None], torch.zeros(1, 2, 8)), x, 1, id="prefer")
    yield pytest.param(PolicyGradient(), (x, y, torch.tensor([1.0, -1.0]), None), x, 10, id="reinforce")


@pytest.mark.parametrize("objective, batch, x, n", list(objectives()))
def test_later_trainings_balance_too(objective, batch, x, n):
    "The balancing loss acts on the router's gradient, as in pretraining, and leaves the value as it is."
    from elite112m.core.config import ModelConfig
    from elite112m.model.transformer import CausalLM

    def loss_and_gradient(router_aux):
        torch.manual_seed(0)
        shape = dict(vocab_size=300, n_layers=1, d_model=32, n_heads=2, n_kv_heads=1, d_ff=32, context=16)
        model = CausalLM(ModelConfig(**shape, n_experts=4, router_aux=router_aux)).train()
        loss = objective.loss(model, batch, "cpu")
        gate = model.model.layers[0].mlp.gate.weight
        extra = n * router_aux * model.balance(model.model(x, routers=True)[1])
        return loss.item(), *(torch.autograd.grad(part, gate, retain_graph=True)[0] for part in (loss, extra))

    (plain, g, _), (shown, more, extra) = loss_and_gradient(0.0), loss_and_gradient(0.5)
    assert plain == shown and extra.abs().max() > 1e-4
    torch.testing.assert_close(more, g + extra, atol=1e-5, rtol=1e-4)
