"Fine-tuning as a user does it: from models of all kinds, with files of all kinds, extended, and with what follows it."

import json
import random
import re
import shutil

import pytest
from conftest import here

CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def turn(role, text):
    return {"role": role, "content": text}


def rows_to(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture(scope="module")
def base(tiny_run):
    return tiny_run


@pytest.fixture(scope="module")
def foreign(base, tmp_path_factory):
    "The same weights as somebody else's Hugging Face folder, with a longer context and a chat template of its own."
    folder = tmp_path_factory.mktemp("hf") / "model"
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.copy(base / "pretrain" / name, folder)
    config = json.loads((base / "pretrain/config.json").read_text()) | {"max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    rows = [
        {
            "messages": [
                turn("user", f"Repeat {i}."),
                turn("assistant", f"{i}"),
                turn("user", "Again."),
                turn("assistant", f"{i}, {i}"),
            ]
        }
        for i in range(300)
    ]
    return rows_to(tmp_path_factory.mktemp("chats") / "chats.jsonl", rows)


def cli(*args):
    "Code and words of a command."
    done = here("elite112m", *args)
    return done.returncode, done.stderr


def small(**more):
    from elite112m.core.presets import TINY

    return [a for k, v in (TINY | more).items() for a in ("--set", f"{k}={v}")]


@pytest.fixture(scope="module")
def tuned(foreign, chats, tmp_path_factory):
    "A run that begins with somebody else's model, evaluated and exported, and what its fine-tuning said."
    from elite112m.core.runs import run_stage
    from elite112m.evaluation.evaluate import evaluate
    from elite112m.sharing.export import export

    run = tmp_path_factory.mktemp("tuned") / "mine"
    done = here(
        "elite112m",
        "sft",
        "--run",
        run,
        "--preset",
        "nano",
        "--from",
        foreign,
        "--sft-data",
        chats,
        "--steps",
        "6",
        *small(),
    )
    assert done.returncode == 0, done.stderr
    for do in (evaluate, export):
        run_stage(do, run)
    return run, done.stderr


# ---- what it may begin with ----------------------------------------------------------------------


def test_a_model_of_others_is_tuned_in_its_own_form_to_the_report(tuned, foreign, base):
    run, first = tuned
    code, rest = cli("run", "nano", "--out", run)
    assert (
        "plan: 6 steps" in first
        and "the form of conversations that it brings along" in first
        and "windows of 128 tokens (it can take 512)" in first
    )
    assert code == 0 and "prepare" not in rest and rest.count("skipped") == 3 and "report:" in rest
    assert (
        (run / "sft/chat_template.jinja").read_text() == (run / "export/hf/chat_template.jinja").read_text() == CHATML
    )
    assert json.loads((run / "sft/config.json").read_text())["max_position_embeddings"] == 512
    page = (run / "report.html").read_text()
    assert str(foreign) in page and "tokens fine-tuned on" in page
    assert (run / "sft/model.safetensors").read_bytes() != (foreign / "model.safetensors").read_bytes()


def test_what_is_asked_is_what_was_trained(tuned):
    "The prompt of chat and evaluation is the beginning of the training example, which ends where the answer stops."
    from transformers import AutoTokenizer

    from elite112m.chat.chat_model import ChatModel
    from elite112m.data.messages import render

    run = tuned[0]
    talk = [
        turn("user", "Repeat <|im_end|> 5."),
        turn("assistant", "5"),
        turn("user", "Again."),
        turn("assistant", "5, 5"),
    ]
    for folder in (run, run / "sft/best", next((run / "sft/checkpoints").iterdir()), run / "export/hf"):
        model = ChatModel.open(folder, "cpu")
        ids, mask = render(model.tok, talk)
        for k in (1, 3):
            prompt = model.prompt(talk[:k])
            assert prompt == ids[: len(prompt)] and mask[len(prompt)] and not mask[len(prompt) - 1]
        spoken = [i for i, s in zip(ids, mask) if s]
        assert model.tok.decode(spoken, special=True) == "5<|im_end|>5, 5<|im_end|>" and spoken[-1] in model.stop
    theirs = AutoTokenizer.from_pretrained(run / "export/hf")
    plain = [turn("user", "Repeat 5."), turn("assistant", "5"), turn("user", "Again.")]
    assert (
        theirs.apply_chat_template(plain, add_generation_prompt=True, return_dict=False) == model.prompt(plain)
        and theirs.eos_token == "<|im_end|>"
    )


def test_another_model_at_the_same_place_is_noticed(tuned, foreign, base, tmp_path):
    run, place = tmp_path / "run", shutil.copytree(foreign, tmp_path / "model")
    shutil.copytree(tuned[0], run)
    info = json.loads((run / "run.json").read_text())
    info["preset"]["sft"]["init"] = str(place)
    (run / "run.json").write_text(json.dumps(info))
    rec = json.loads((run / "sft/stage.json").read_text())
    rec["settings"]["sft.init"] = str(place)
    (run / "sft/stage.json").write_text(json.dumps(rec))
    code, said = cli("sft", "--run", run)
    assert code == 0 and "finished before" in said, said
    weights = bytearray((place / "model.safetensors").read_bytes())
    weights[-2] ^= 1
    (place / "model.safetensors").write_bytes(weights)
    code, said = cli("sft", "--run", run)
    assert code == 2 and "other contents of" in said and str(place) in said and said.count("\n") == 1, said
    code, said = cli("sft", "--run", run, "--from", base)
    assert code == 2 and "sft.init=" in said and "--force" in said, said
    code, said = cli("sft", "--run", run, "--from", run, "--force")  # it would be deleted before it is read
    assert code == 2 and "would write over" in said and (run / "sft/model.safetensors").exists(), said


def tune(run, **settings):
    from elite112m.core.presets import TINY
    from elite112m.core.runs import run_stage
    from elite112m.training.sft import sft

    return run_stage(
        sft,
        run,
        "nano",
        TINY | {"sft.steps": 2, "sft.optimizer": "adamw", "sft.lr": 1e-8, "sft.keep_best": False} | settings,
    )


@pytest.mark.parametrize("place", ["", "pretrain", "pretrain/best", "pretrain/checkpoints/step-00000010", "gguf"])
def test_every_model_of_ours_can_be_begun_with(base, tmp_path, place):
    "With a step too small to matter the result is the model it began with, wherever that lies."
    from safetensors.torch import load_file

    start = base / place if place != "gguf" else _gguf(base / "pretrain", tmp_path / "model.gguf")
    job = tune(tmp_path / "run", **{"sft.init": str(start)})
    was = load_file((start if place and place != "gguf" else base / "pretrain") / "model.safetensors")
    now = load_file(job.folder / "model.safetensors")
    assert was.keys() == now.keys() and max((was[n] - now[n]).abs().max().item() for n in was) < 1e-6
    assert json.loads((job.folder / "stage.json").read_text())["read_build"] is None
    assert job.run.status("sft") == "done"


def _gguf(folder, path):
    "Our folder as llama.cpp's converter would write it."
    import gguf
    from safetensors.numpy import load_file

    c, tok = json.loads((folder / "config.json").read_text()), json.loads((folder / "tokenizer.json").read_text())
    out = gguf.GGUFWriter(path, "llama")
    out.add_block_count(c["num_hidden_layers"])
    out.add_embedding_length(c["hidden_size"])
    out.add_feed_forward_length(c["intermediate_size"])
    out.add_context_length(c["max_position_embeddings"])
    out.add_head_count(c["num_attention_heads"])
    out.add_head_count_kv(c["num_key_value_heads"])
    out.add_rope_freq_base(c["rope_theta"])
    out.add_layer_norm_rms_eps(c["rms_norm_eps"])
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm")
    special = {t["content"] for t in tok["added_tokens"]}
    vocab = sorted(tok["model"]["vocab"], key=tok["model"]["vocab"].get)
    out.add_token_list(vocab)
    out.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in vocab])
    out.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tok["model"]["merges"]])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c["num_hidden_layers"])
    for n, w in load_file(folder / "model.safetensors").items():
        heads = c["num_attention_heads"] if "q_proj" in n else c["num_key_value_heads"] if "k_proj" in n else 0
        if heads:
            w = w.reshape(heads, 2, w.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(w.shape)
        out.add_tensor(names.get_name(n, try_suffixes=(".weight",)), w.copy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


@pytest.mark.parametrize(
    "bad,why",
    [
        ("gone", "no model at"),
        ("empty", "no finished model"),
        ("bert", "only Llama-shaped"),
        ("mute", "no tokenizer at"),
    ],
)
def test_what_cannot_be_begun_with_is_one_line_and_leaves_nothing(foreign, tmp_path, chats, bad, why):
    place = tmp_path / bad
    if bad == "empty":
        place.mkdir()
    if bad in ("bert", "mute"):
        shutil.copytree(foreign, place)
    if bad == "bert":
        (place / "config.json").write_text('{"model_type": "bert"}')
    if bad == "mute":
        (place / "tokenizer.json").unlink()
    code, said = cli(
        "sft", "--run", tmp_path / "run", "--preset", "nano", "--from", place, "--sft-data", chats, *small()
    )
    assert code == 2 and why in said and str(place) in said and said.count("\n") == 1, said
    assert not (tmp_path / "run").exists()


# ---- continued pretraining -----------------------------------------------------------------------


def test_pretraining_goes_on_from_a_model_with_its_vocabulary(foreign, base, tmp_path):
    text = rows_to(
        tmp_path / "t.jsonl", [{"text": f"{i} is followed by {i + 1}, and that by {i + 2}."} for i in range(3000)]
    )
    run = tmp_path / "run"
    done = here(
        "elite112m",
        "pretrain",
        "--run",
        run,
        "--preset",
        "nano",
        "--from",
        foreign,
        "--data",
        text,
        "--steps",
        "8",
        *small(
            **{
                "model.vocab_size": 300,
                "model.d_ff": 96,
                "data.curriculum": 0,
                "pretrain.lr": 1e-3,
                "pretrain.muon_lr": 2e-3,
            }
        ),
    )
    assert done.returncode == 0 and "plan: 8 steps of 512 tokens" in done.stderr, (
        done.stderr
    )  # 4 windows of 128, though it could take 512
    from elite112m.data.tokenizer import load_tokenizer
    from elite112m.training.metrics import read_metrics

    assert (
        load_tokenizer(run / "data").fingerprint == load_tokenizer(foreign).fingerprint
        and (run / "pretrain/chat_template.jinja").read_text() == CHATML
    )
    assert json.loads((run / "pretrain/config.json").read_text()) == json.loads(
        (base / "pretrain/config.json").read_text()
    ) | {"max_position_embeddings": 512}
    losses = [r["val_loss"] for r in read_metrics(run / "pretrain/metrics.jsonl") if "val_loss" in r]
    assert losses[-1] < losses[0] < 5.5  # ln(512) = 6.24 is where a fresh one starts
    code, said = cli("pretrain", "--run", run, "--from", base)
    assert code == 2 and "pretrain.init=" in said and said.count("\n") == 1, said


def test_data_of_another_vocabulary_are_refused(base, tmp_path):
    from elite112m.core.config import InputError
    from elite112m.data.tokenizer import train_tokenizer
    from elite112m.training.pretrain import initial_model

    with pytest.raises(InputError, match="another vocabulary"):
        initial_model(base, train_tokenizer(["a b c"] * 9, 300))


# ---- killed, extended, kept ----------------------------------------------------------------------


def rows(run):
    from elite112m.training.metrics import read_metrics, timeless

    return timeless(read_metrics(run / "sft/metrics.jsonl"))


def test_sft_is_extended_by_steps(tuned, tmp_path, capsys):
    run = shutil.copytree(tuned[0], tmp_path / "run")
    code, said = cli("sft", "--run", run, "--steps", "9")
    assert code == 2 and "--extend" in said and said.count("\n") == 1, said
    from elite112m.core.runs import Run, run_stage
    from elite112m.training.sft import sft

    run_stage(sft, run, settings={"sft.steps": 9}, extend=True)
    assert "plan: 3 steps" in capsys.readouterr().out and rows(run)[-1]["step"] == 9
    assert [Run(run).status(s) for s in ("sft", "evaluate", "export")] == ["done", "stale", "stale"]


# ---- packing -------------------------------------------------------------------------------------


def test_the_loss_can_leave_out_what_a_calculator_writes():
    "Those tokens and no others; in a third party's form of conversations too."
    import numpy as np

    from elite112m.core.config import SFTConfig
    from elite112m.data.tokenizer import load_tokenizer
    from elite112m.training.sft import _windows

    for template in (None, CHATML):
        tok = load_tokenizer("smollm2")
        tok.template = template
        (x, y, _), (_, masked, _) = (
            _windows(tok, SFTConfig(mask_computed=mask), "train", 300, 512) for mask in (False, True)
        )
        flat, changed = y[y != -100], masked != y
        assert (masked[changed] == -100).all() and 0 < changed.sum() < 0.2 * len(flat)
        said, notes = tok.decode(flat), r"<<[^<>=]+=([0-9]+)>>"
        assert tok.decode(y[changed]) == "".join(re.findall(notes, said)), "the values, and nothing else"
        assert np.array_equal(x, _windows(tok, SFTConfig(mask_computed=True), "train", 300, 512)[0])


def test_packed_is_as_one_by_one():
    "The loss and the gradient, in FP32, for many lengths, over windows, micro-batches and accumulation."
    import torch

    from elite112m.core.config import ModelConfig
    from elite112m.fp8.precision import pick_device
    from elite112m.model.transformer import CausalLM
    from elite112m.training.sft import pack
    from elite112m.training.step import accumulate

    torch.manual_seed(3)
    rng, model = random.Random(3), CausalLM(ModelConfig(300, 2, 64, 4, 2, 96, 96))
    talks = []
    for n in [*range(3, 97, 4), 97, 97]:
        ids, reply = [rng.randrange(300) for _ in range(n)], rng.randint(1, n - 2)
        talks.append((ids, [k >= n - reply for k in range(n)]))
    talks += [([5, 6, 7], [False, False, True]), ([5, 6, 0, 7, 0], [False, False, True, False, True])]
    x, y, docs = pack(talks, 96)
    assert len(x) < len(talks) and (docs.max(1) > 0).any() and (y != -100).sum() == sum(sum(m[1:]) for _, m in talks)
    grads = lambda: torch.cat([p.grad.flatten() for p in model.parameters()])
    device = pick_device("cpu")
    packed = accumulate(
        model, [(x[i : i + 3], y[i : i + 3], docs[i : i + 3]) for i in range(0, len(x), 3)], device, "fp32"
    )
    g, _ = grads(), model.zero_grad()
    total, n = 0, sum(sum(m[1:]) for _, m in talks)
    for ids, mask in talks:
        loss, _ = model(
            torch.tensor([ids[:-1]]), labels=torch.tensor([[t if s else -100 for t, s in zip(ids[1:], mask[1:])]])
        )
        (loss / n).backward()
        total += loss.item()
    assert abs(packed.item() - total / n) < 1e-5 and (g - grads()).abs().max() < 1e-5
    assert abs(packed.item() - 5.7) < 1  # it is a loss


# ---- conversations of all kinds ------------------------------------------------------------------


def test_odd_conversations_each_get_what_the_table_says(base, tmp_path, capsys):
    good = [{"messages": [turn("user", f"Repeat {i}."), turn("assistant", f"{i}")]} for i in range(200)]
    odd = [
        [],
        [turn("system", "Be kind.")],
        [turn("user", "Anybody?")],
        [turn("user", "Hm?"), turn("assistant", "")],
        [turn("assistant", "I first."), turn("user", "Oh."), turn("assistant", "Yes.")],
        [
            turn("user", "One."),
            turn("user", "Two."),
            turn("assistant", "Three."),
            turn("assistant", "Four."),
            turn("user", "Five?"),
        ],
        [turn("user", "long " * 400), turn("assistant", "Yes.")],
    ]
    data = rows_to(tmp_path / "odd.jsonl", good + [{"messages": m} for m in odd])
    tune(
        tmp_path / "run", **{"sft.init": str(base), "sft.sources": [str(data)], "sft.steps": 1, "sft.examples": 10_000}
    )
    told = [line for line in capsys.readouterr().out.splitlines() if "conversations for" in line]
    both = " ".join(told)
    for what in (
        "3 in which the assistant never speaks",
        "1 only tools answer",
        "1 in which the assistant speaks first",
        "1 unanswered turn",
        "1 too long",
    ):
        assert what in both, told
    kept = sum(int(line.split("sft: ")[1].split()[0]) for line in told)
    assert kept == 201, told  # the good ones, and the one of five turns


def test_files_without_a_usable_conversation_are_refused(base, tmp_path):
    for name, row, why in (
        ("system", {"messages": [turn("system", "Be kind.")]}, "40 in which the assistant never speaks"),
        ("empty", {"instruction": "", "output": "x"}, "40 empty"),
        ("number", {"messages": [turn("user", 5)]}, "number.jsonl, row 1"),
    ):
        data = rows_to(tmp_path / f"{name}.jsonl", [row] * 40)
        code, said = cli(
            "sft", "--run", tmp_path / "run", "--preset", "nano", "--from", base, "--sft-data", data, *small()
        )
        assert code == 2 and why in said and said.count("\n") == 1 and not (tmp_path / "run").exists(), said


def test_recipe_and_weights(base, tmp_path, capsys):
    "The original's recipe by its name, on two sources in the proportion of their weights."
    alpaca = tmp_path / "alpaca.json"
    alpaca.write_text(json.dumps([{"instruction": f"Say {i}", "input": "", "output": "A"} for i in range(400)]))
    gsm = rows_to(
        tmp_path / "gsm.jsonl",
        [
            {"question": f"How much is {i}+1?", "answer": f"{i}+1=<<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"}
            for i in range(400)
        ],
    )
    from elite112m.data.conversations import chosen

    first = [m[0]["content"] for m in chosen([f"{alpaca}:weight=2", str(gsm)], "train", 90, 1)]
    assert sum(t.startswith("Say") for t in first) == 60
    from elite112m.core.presets import TINY
    from elite112m.core.runs import run_stage
    from elite112m.training.sft import sft

    run_stage(
        sft,
        tmp_path / "run",
        "nano",
        TINY | {"sft.init": str(base), "sft.sources": [f"{alpaca}:weight=2", str(gsm)], "sft.recipe": "original"},
    )
    assert "plan: 50 steps" in capsys.readouterr().out
    rates = [r["lr"] for r in rows(tmp_path / "run") if "lr" in r]
    assert max(rates) == pytest.approx(3e-4) and rates[-1] < 6e-5
