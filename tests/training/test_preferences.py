"Preferences: TRL's loss and gradients, what the command does with pairs, bad pairs, and a killed run."

import json

import pytest
import torch
from conftest import here, kill_often, stage_process, steps_of

from elite112m.core.presets import TINY

STAGE = """import sys
from elite112m.core.runs import run_stage
from elite112m.training.preferences import prefer
run_stage(prefer, sys.argv[1])"""


@pytest.fixture(scope="module")
def base(tiny_sft_run):
    return tiny_sft_run


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    "Two hundred pairs in which the shorter reply is the better one."
    rows = [
        {"prompt": f"What is {n}+1?", "chosen": str(n + 1), "rejected": f"It may be {n + 1} or so."} for n in range(200)
    ]
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def hugging_face(model, tok, folder):
    "The same model and tokenizer in transformers."
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from elite112m.model.pretrained import export_hf

    export_hf(model, tok, folder)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("normalised", [False, True])
def test_loss_and_gradients_are_those_of_trl(base, tmp_path, normalised):
    "Of the same pairs and weights, with another model as the reference, to 1e-5."
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from elite112m.data.tokenizer import load_tokenizer
    from elite112m.model.pretrained import load_model
    from elite112m.training.preferences import Preference, _stacked, pair_arrays, reference_logprobs

    tok, policy, first = load_tokenizer(base / "sft"), load_model(base / "sft"), load_model(base / "pretrain")
    texts = [
        ("How are you?", "Well.", "I do not know, and why?"),
        ("2+2", "4", "five"),
        ("Name a fish.", "cod", "oak!"),
    ]
    talk = lambda ask, reply: [{"role": "user", "content": ask}, {"role": "assistant", "content": reply}]
    arrays = pair_arrays(tok, [(talk(ask, one), talk(ask, two)) for ask, one, two in texts], 128)
    logprobs = reference_logprobs(first, arrays, tmp_path / "reference.safetensors")
    rows = [(*pair, said) for pair, said in zip(arrays, logprobs)]
    batch = [_stacked(rows, which, filler) for which, filler in ((0, 0), (1, -100), (2, 0))]
    policy.requires_grad_(True)
    loss = Preference(0.3, normalised).loss(policy, batch, torch.device("cpu")) / len(texts)
    loss.backward()

    model, auto = hugging_face(policy, tok, tmp_path / "policy")
    reference, _ = hugging_face(first, tok, tmp_path / "first")
    kind = "sigmoid_norm" if normalised else "sigmoid"
    args = DPOConfig(str(tmp_path / "out"), beta=0.3, loss_type=kind, report_to="none", use_cpu=True, bf16=False)
    data = Dataset.from_list([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in texts])
    trainer = DPOTrainer(model, reference, args, train_dataset=data, processing_class=auto)
    x, y = (torch.as_tensor(a).transpose(0, 1).flatten(0, 1) for a in batch[:2])  # TRL: all chosen, then all rejected
    last = (y != -100).cumsum(1).argmax(1, keepdim=True)  # where the last target is
    ids = torch.cat([x, torch.zeros_like(x[:, :1])], 1)
    ids.scatter_(1, last + 1, y.gather(1, last))
    mask = torch.cat([torch.zeros_like(y[:, :1]), (y != -100).long()], 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask}
    model.eval()
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), abs=1e-5) and loss.item() != pytest.approx(0.6931, abs=1e-3)
    wanted = {n: p.grad for n, p in model.named_parameters()}
    for name, parameter in policy.named_parameters():
        assert torch.allclose(parameter.grad, wanted[name], atol=1e-5), name


def test_the_command(base, pairs, tmp_path):
    "A given model learns from pairs; the result chats, has its status, and is skipped the second time."
    out, few = tmp_path / "kind", [f"--set={k}={v}" for k, v in TINY.items()]
    words = ["elite112m", "prefer", "--run", out, "--preset", "nano", "--from", base, "--pairs", pairs, *few]
    ended = here(*words, "--set", "prefer.steps=3", "--device", "cpu")
    assert ended.returncode == 0 and "held out" in ended.stderr, ended.stderr
    assert "prefer" in here("elite112m", "status", "--run", out).stdout
    page = (out / "report.html").read_text()
    assert "reward of the better reply" in page and "<h2>Evaluation</h2>" not in page
    assert "skipped" in here(*words, "--set", "prefer.steps=3", "--device", "cpu").stderr
    ended = here("elite112m", "chat", "--model", out, "--input", "hi", "--device", "cpu")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    "rows, why",
    [
        ([{"prompt": "2+2", "chosen": "4", "rejected": "4"}], "1 without a difference"),
        ([{"question": "2+2"}], "holds no pair"),
        ([{"chosen": "4", "rejected": "5"}], "the assistant speaks first"),
        ([{"prompt": 3, "chosen": "4", "rejected": "5"}], "not text or messages"),
    ],
)
def test_bad_pairs(base, tmp_path, rows, why):
    "One line, exit code 2, and no folder."
    path, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    path.write_text("\n".join(map(json.dumps, rows)))
    ended = here("elite112m", "prefer", "--run", out, "--preset", "nano", "--from", base, "--pairs", path)
    assert ended.returncode == 2 and why in ended.stderr and len(ended.stderr.splitlines()) == 1, ended.stderr
    assert not out.exists()


def test_killed_and_resumed_ends_the_same(base, pairs, tmp_path):
    "To the bit, with the same metrics."
    from elite112m.core.presets import preset
    from elite112m.core.runs import Run, save_preset

    more = {"prefer.init": str(base), "prefer.sources": [str(pairs)], "prefer.steps": 60, "prefer.lr": 1e-3}
    settings = TINY | more | {"prefer.checkpoint_every": 4, "prefer.eval_every": 5, "prefer.log_every": 3}
    whole, run = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, run):
        folder.mkdir()
        save_preset(Run(folder), preset("nano", settings))
    out = stage_process(STAGE, whole).communicate(timeout=300)[0]
    rows = lambda r: steps_of(r, "prefer")
    assert kill_often(STAGE, run, "prefer", 60, seed=1)
    out = stage_process(STAGE, run).communicate(timeout=300)[0]
    assert "continues at step" in out, out
    assert (run / "prefer/model.safetensors").read_bytes() == (whole / "prefer/model.safetensors").read_bytes()
    assert rows(run) == rows(whole) and any("margin" in r for r in rows(run))
