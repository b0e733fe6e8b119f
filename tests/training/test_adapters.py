"LoRA as a user does it: trained, opened everywhere, exchanged with peft, switched in a chat, refused in one line."

import json
import shutil

import pytest
import torch
from conftest import here

IDS = torch.arange(40).reshape(2, 20)


def small(**more):
    from elite112m.core.presets import TINY

    return [a for k, v in (TINY | more).items() for a in ("--set", f"{k}={v}")]


def made(run, base, *more, **settings):
    "A run whose adapter is trained on a base by the command."
    settings = {"sft.rank": 4, "sft.steps": 6, "sft.lr": 0.01, "sft.checkpoint_every": 3} | settings
    start = ("elite112m", "sft", "--run", run, "--preset", "nano", "--from", base)
    return here(*start, "--adapter", "lora", *small(**settings), *more)


def logits(path, **how):
    from elite112m.core.locate import find_model
    from elite112m.model.pretrained import load_model

    with torch.no_grad():
        return load_model(find_model(path), **how)(IDS)


@pytest.fixture(scope="module")
def base(tiny_run):
    return tiny_run


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    run = tmp_path_factory.mktemp("tuned") / "first"
    done = made(run, base)
    assert done.returncode == 0, done.stderr
    return run, done.stderr


def test_only_the_adapter_is_trained_and_kept(tuned, base):
    run, said = tuned
    assert "LoRA of rank 4" in said and "AdamW at sft.lr" in said
    files = {f.name for f in (run / "sft/checkpoints/step-00000003").iterdir()}
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    assert (run / "sft/checkpoints/step-00000003/optimizer.safetensors").stat().st_size < 60_000
    assert (logits(run) - logits(base)).abs().max() > 0.01


def test_the_merged_model_its_adapter_and_its_checkpoint_are_one(tuned):
    run = tuned[0]
    places = ("sft", "sft/adapter", "sft/checkpoints/step-00000006")
    assert all(torch.equal(logits(run / place), logits(run)) for place in places)


def test_transformers_and_peft_open_it_with_the_same_logits(tuned, base):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tuned[0] / "sft/adapter"
    model = AutoModelForCausalLM.from_pretrained(base / "pretrain", dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder)
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, logits(tuned[0]), atol=1e-5, rtol=0)
    assert AutoTokenizer.from_pretrained(folder)("Hello").input_ids
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base / "pretrain")


def test_an_adapter_made_by_peft_opens(base, tmp_path):
    "Also with other targets, a rank-stabilised scale, and no tokenizer of its own."
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base / "pretrain", dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["v_proj", "up_proj"], use_rslora=True)
    model = get_peft_model(model, config)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    model.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, logits(tmp_path / "theirs"), atol=1e-4, rtol=1e-4)
    asked = here("elite112m", "chat", "--model", tmp_path / "theirs", "--device", "cpu", "--input", "Hello")
    assert asked.returncode == 0, asked.stderr


def test_a_chat_switches_adapters(tuned, base, tmp_path):
    from elite112m.chat.conversation import Chat

    assert made(tmp_path / "second", base, **{"sft.seed": 3, "sft.lr": 0.2}).returncode == 0
    adapters = [tuned[0], tmp_path / "second/sft/adapter"]
    bot = Chat.open(base, "cpu", adapters=adapters)

    def now():
        with torch.no_grad():
            return bot.model.model(IDS)

    assert bot.model.adapter == "first" and torch.equal(now(), logits(tuned[0]))
    for name, same in (("second", tmp_path / "second"), ("none", base), ("first", tuned[0])):
        bot.model.use_adapter(name)
        assert torch.equal(now(), logits(same))


def test_slash_adapter(tuned, base, monkeypatch, capsys):
    from elite112m.chat.conversation import Chat
    from elite112m.chat.terminal import Terminal

    terminal = Terminal(Chat.open(base, "cpu", adapters=[tuned[0]], max_new_tokens=4))
    for line in ("/adapter none", "Hello", "/adapter firts", "/adapter"):
        assert terminal.line(line)
    out, err = capsys.readouterr()
    assert "adapter: none, of first" in err and "did you mean 'first'" in err and "Assistant:" in out


def test_an_adapter_is_exported_evaluated_and_trained_on(tuned, tmp_path):
    adapter = tuned[0] / "sft/adapter"
    done = here("elite112m", "export", "--model", adapter, "--to", "hf", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    torch.testing.assert_close(logits(tmp_path / "out"), logits(tuned[0]), atol=1e-5, rtol=0)
    judged = ("--items", "1", "--max-new-tokens", "2", "--device", "cpu")
    done = here("elite112m", "evaluate", "--model", adapter, "--out", tmp_path / "judged", *judged)
    assert done.returncode == 0, done.stderr
    assert made(tmp_path / "again", adapter).returncode == 0
    assert torch.equal(logits(tmp_path / "again/sft/adapter"), logits(tmp_path / "again"))


def test_adapters_on_one_base_are_compared(tuned, base, tmp_path):
    "Each is evaluated on it; comparing their folders before says how."
    from elite112m.core.files import read_json

    assert made(tmp_path / "second", base, **{"sft.seed": 3, "sft.lr": 0.2}).returncode == 0
    adapters = {"one": tuned[0] / "sft/adapter", "two": tmp_path / "second"}
    told = here("elite112m", "compare", adapters["one"], adapters["one"])
    how = f"elite112m evaluate --model {base / 'pretrain'} --adapter {adapters['one']} --out DIR"
    assert told.returncode == 2 and how in told.stderr, told.stderr
    judged = ("--items", "1", "--max-new-tokens", "4", "--device", "cpu")
    for name, adapter in adapters.items():
        out = tmp_path / name
        done = here("elite112m", "evaluate", "--model", base, "--adapter", adapter, "--out", out, *judged)
        assert done.returncode == 0, done.stderr
        results = read_json(out / "results.json")
        assert results["model"] == str(base) and results["adapter"].endswith("sft/adapter")
    done = here("elite112m", "compare", tmp_path / "one", tmp_path / "two", "--json", tmp_path / "found.json")
    assert done.returncode == 0 and "All categories" in done.stdout, done.stderr
    replies = [[json.loads(r)["reply"] for r in open(tmp_path / n / "generations.jsonl")] for n in adapters]
    assert replies[0] != replies[1] and len(replies[0]) == len(replies[1])
    merged = here("elite112m", "evaluate", "--model", adapters["two"], "--out", tmp_path / "merged", *judged)
    assert merged.returncode == 0, merged.stderr
    assert [json.loads(r)["reply"] for r in open(tmp_path / "merged/generations.jsonl")] == replies[1]


def test_finished_training_goes_on(tuned, tmp_path):
    run = shutil.copytree(tuned[0], tmp_path / "run")
    done = here("elite112m", "sft", "--run", run, "--steps", "9", "--extend")
    assert done.returncode == 0 and "continues at step 6" in done.stderr, done.stderr
    assert not torch.equal(logits(run), logits(tuned[0])) and torch.equal(logits(run), logits(run / "sft/adapter"))


def refused(done, why):
    assert done.returncode == 2 and why in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_another_base_is_noticed(tuned, base, tmp_path):
    place, run = shutil.copytree(base / "pretrain", tmp_path / "model"), tmp_path / "run"
    assert made(run, place).returncode == 0
    adapted = tmp_path / "adapted"
    assert made(adapted, run / "sft/adapter").returncode == 0
    weights = bytearray((place / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (place / "model.safetensors").write_bytes(weights)
    for place in (run, adapted):
        refused(here("elite112m", "sft", "--run", place), "other contents of")


CHAT = ("elite112m", "chat", "--device", "cpu", "--input", "Hello", "--model")


@pytest.mark.parametrize(
    "change, why",
    [
        ({"base_model_name_or_path": "nobody/nothing"}, "nobody/nothing, which is not here"),
        ({"base_model_name_or_path": None}, "does not say to which model it belongs"),
        ({"peft_type": "PREFIX_TUNING"}, "is a PREFIX_TUNING adapter; only LORA"),
        ({"use_dora": True}, "use_dora=True is not supported"),
        ({"r": 5}, "its config says rank 5"),
        ({"r": []}, "is not a number above 0"),
    ],
)
def test_odd_settings_are_refused(tuned, tmp_path, change, why):
    folder = shutil.copytree(tuned[0] / "sft/adapter", tmp_path / "odd")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | change))
    refused(here(*CHAT, folder), why)


def test_damaged_and_foreign_files_are_refused(tuned, base, tmp_path):
    folder = shutil.copytree(tuned[0] / "sft/adapter", tmp_path / "odd")
    whole = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(whole[:500])
    refused(here(*CHAT, folder), "damaged or not safetensors")
    (folder / "adapter_model.safetensors").unlink()
    refused(here(*CHAT, folder), "no weights at")
    (folder / "adapter_config.json").write_text("{")
    refused(here(*CHAT, folder), "is not JSON")
    refused(here(*CHAT, base, "--adapter", base), "no adapter at")


def test_an_adapter_for_another_shape_is_refused(tuned, tmp_path):
    from elite112m.core.presets import TINY, preset
    from elite112m.model.pretrained import save_model
    from elite112m.model.transformer import CausalLM

    save_model(CausalLM(preset("nano", TINY | {"model.d_model": 64, "model.n_heads": 4}).model), tmp_path / "wide")
    shutil.copy(tuned[0] / "sft/tokenizer.json", tmp_path / "wide")
    refused(here(*CHAT, tmp_path / "wide", "--adapter", tuned[0]), "is for a model of another shape")


@pytest.mark.parametrize(
    "settings, why",
    [
        ({"sft.adapter": "lore"}, "did you mean 'lora'?"),
        ({"sft.targets": "q_proj,down"}, "sft.targets=down is not one of"),
        ({"sft.targets": ""}, "sft.targets is empty"),
        ({"sft.rank": 0}, "sft.rank=0 must be more than 0"),
        ({"sft.rank": 32}, "the matrices are 32 wide"),
        ({"pretrain.precision": "fp8"}, "not trained in FP8"),
    ],
)
def test_impossible_adapters_are_refused(base, tmp_path, settings, why):
    adapter = {"sft.adapter": "lora"} | settings
    done = here("elite112m", "sft", "--run", tmp_path / "r", "--preset", "nano", "--from", base, *small(**adapter))
    assert done.returncode == 2 and why in done.stderr.splitlines()[-1], done.stderr
    assert not (tmp_path / "r/sft/model.safetensors").exists()


def test_without_peft_the_extra_is_named(base, tmp_path, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    refused(made(tmp_path / "r", base), "pip install 'elite112m[adapters]'")


def test_the_estimate_counts_the_adapters_of_experts():
    from elite112m.core.config import SFTConfig
    from elite112m.core.presets import TINY, adapter_numbers, preset
    from elite112m.model.transformer import CausalLM
    from elite112m.training.adapters import add_adapter, lora_of

    for experts in ({}, {"model.n_experts": 4}, {"model.n_experts": 4, "model.shared_expert": True}):
        shape = preset("nano", TINY | experts).model
        model = add_adapter(CausalLM(shape), lora_of(SFTConfig(rank=4)))
        assert adapter_numbers(shape, 4) == sum(p.numel() for p in model.parameters() if p.requires_grad)
