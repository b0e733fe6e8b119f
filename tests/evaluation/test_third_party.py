"Models that transformers runs for us, in every task; and what the lm-eval bridge would open."

import importlib
import json
import math
import sys

import pytest
import torch
import transformers
from conftest import here
from transformers import AutoModelForCausalLM

from elite112m.chat.chat_model import ChatModel
from elite112m.core.config import InputError
from elite112m.data.tokenizer import train_tokenizer
from elite112m.model.third_party import ThirdPartyLM

NAMES = dict(vocab_size=400, bos_token_id=0, eos_token_id=0, pad_token_id=0)
SIZES = NAMES | dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128)
GROUPED = SIZES | dict(intermediate_size=64, num_key_value_heads=2)
FAMILIES = {
    "GPT2LMHeadModel": dict(NAMES, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "Qwen2ForCausalLM": GROUPED,
    "Qwen3ForCausalLM": GROUPED | dict(head_dim=16),
    "Gemma2ForCausalLM": GROUPED | dict(head_dim=8, sliding_window=16),
    "GPTNeoXForCausalLM": SIZES | dict(intermediate_size=64),
    "OPTForCausalLM": SIZES | dict(ffn_dim=64, word_embed_proj_dim=32),
    "BloomForCausalLM": dict(NAMES, hidden_size=32, n_layer=2, n_head=4),
    "MixtralForCausalLM": GROUPED | dict(num_local_experts=2, num_experts_per_tok=1),
}
TEXT = "Grass is green, the sky is blue, and snow is white; so they say. " * 9


@pytest.fixture(scope="module")
def tok():
    return train_tokenizer([TEXT] * 20, 400)


@pytest.fixture(scope="module")
def made(tok, tmp_path_factory):
    "A function of a family's name: the folder of a tiny model of random weights."
    place = tmp_path_factory.mktemp("families")

    def make(name):
        if not (place / name).exists():
            torch.manual_seed(1)
            kind = getattr(transformers, name)
            kind(kind.config_class(**FAMILIES[name])).eval().save_pretrained(place / name)
            tok.save(place / name)
        return place / name

    return make


def bits_of(net, ids, size, context=64, stride=32):
    "Bits per byte as the definition has it: each token from at most `context` tokens before it."
    total = 0
    for j, target in enumerate(ids):
        begin = 0 if j < context else (j - context) // stride * stride + stride
        logits = net(input_ids=torch.tensor([([0] + ids)[begin : j + 1]])).logits[0, -1]
        total -= logits.float().log_softmax(-1)[target].item()
    return total / math.log(2) / size


@pytest.mark.parametrize("name", FAMILIES)
def test_bits_are_those_of_transformers(name, made, tok, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    args = ["--device", "cpu", "--max-new-tokens", "2", "--task-set", f"bits.data={tmp_path / 'text.txt'}"]
    more = ["--task-set", "bits.context=64", "--task-set", "bits.bytes=300", "--tasks", "base,bits"]
    done = here("elite112m", "evaluate", "--model", made(name), "--out", tmp_path / "o", *args, *more)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "o/results.json").read_text())["tasks"]
    assert list(found) == ["base", "bits"]
    text = TEXT[:300]
    net = AutoModelForCausalLM.from_pretrained(made(name), dtype=torch.float32).eval()
    with torch.no_grad():
        theirs = bits_of(net, tok.encode(text), len(text))
    assert found["bits"]["all"]["bits_per_byte"] == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "Qwen2ForCausalLM"])
def test_losses_and_documents_as_in_our_own_model(name, made):
    "Labels give the pair that `CausalLM` gives; a document sees no other, and windows longer than the rest are padded."
    net = ChatModel.open(made(name), "cpu").model
    assert type(net) is ThirdPartyLM
    ids, labels = torch.randint(1, 400, (3, 20)), torch.randint(1, 400, (3, 20))
    labels[1, 5:] = -100
    docs = torch.tensor([[0] * 7 + [1] * 13, [4] * 20, [0] * 2 + [1] * 2 + [2] * 16])
    with torch.no_grad():
        loss, n = net(ids, labels=labels, doc_ids=docs)
        parts = [(0, 0, 7), (0, 7, 20), (1, 0, 20), (2, 0, 2), (2, 2, 4), (2, 4, 20)]
        want = sum(net(ids[r : r + 1, a:b], labels=labels[r : r + 1, a:b])[0] for r, a, b in parts)
    assert n == 45 and loss.dtype == torch.float32 and loss.item() == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize("format", ["bf16", "int8", "int4"])
def test_bits_in_every_format(format, tok, tmp_path):
    "Our own model too, when it is packed, gives its losses; they are near those of FP32."
    from elite112m.core.config import ModelConfig
    from elite112m.model.pretrained import save_model
    from elite112m.model.transformer import CausalLM

    if format != "bf16":
        pytest.importorskip("onnxruntime", reason="an extra")
    torch.manual_seed(2)
    shape = ModelConfig(vocab_size=400, n_layers=1, d_model=32, n_heads=2, n_kv_heads=1, d_ff=64, context=64)
    save_model(CausalLM(shape), tmp_path / "m")
    tok.save(tmp_path / "m")
    (tmp_path / "text.txt").write_text(TEXT)
    found = {}
    for f in ("fp32", format):
        more = ["--format", f, "--device", "cpu", "--tasks", "bits", "--task-set", f"bits.data={tmp_path / 'text.txt'}"]
        done = here("elite112m", "evaluate", "--model", tmp_path / "m", "--out", tmp_path / f, *more)
        assert done.returncode == 0, done.stderr
        found[f] = json.loads((tmp_path / f / "results.json").read_text())["tasks"]["bits"]["all"]["bits_per_byte"]
    assert found[format] == pytest.approx(found["fp32"], rel=0.02)


FAKE = {
    "__init__.py": "seen = {}\n\n\ndef simple_evaluate(model, **how):\n    seen.update(how, model=model)\n"
    "    return {'results': {'t': {'acc,none': 0.5}}}\n",
    "tasks.py": "class TaskManager:\n    all_tasks = ['t']\n\n    def __init__(self, **how):\n        pass\n",
    "models/__init__.py": "",
    "models/huggingface.py": "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n\nclass HFLM:\n"
    "    def __init__(self, pretrained, tokenizer, max_length, **how):\n"
    "        self.net = AutoModelForCausalLM.from_pretrained(pretrained).eval()\n"
    "        self.tok, self.max_length = AutoTokenizer.from_pretrained(tokenizer), max_length\n",
}


@pytest.fixture
def harness(tmp_path, monkeypatch):
    "A stand-in for lm-eval that opens what it is given, as the harness does."
    for name, text in FAKE.items():
        path = tmp_path / "fake/lm_eval" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in [m for m in sys.modules if m.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "fake")
    yield importlib.import_module("lm_eval")
    for name in [m for m in sys.modules if m.partition(".")[0] == "lm_eval"]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "Qwen2ForCausalLM", "without tokenizer.json"])
def test_the_bridge_to_lm_eval_opens_third_party_models(name, made, tok, harness, tmp_path):
    from elite112m.evaluation.lm_eval import lm_eval

    folder = made("GPT2LMHeadModel" if name.startswith("without") else name)
    if name.startswith("without"):  # a vocabulary from before tokenizer.json, which transformers opens for us
        old, words = tmp_path / "old", json.loads(tok.core.to_str())["model"]
        old.mkdir()
        for file in ("config.json", "model.safetensors"):
            (old / file).write_bytes((folder / file).read_bytes())
        (old / "vocab.json").write_text(json.dumps(words["vocab"]))
        (old / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, words["merges"])))
        folder = old
    model = ChatModel.open(folder, "cpu")
    found = lm_eval(model, tmp_path / "o", {"tasks": "t"})
    lm = harness.seen["model"]
    ids = model.tok.encode("Grass is green.")
    assert found["rows"]["t"]["acc"]["value"] == 0.5 and lm.max_length == model.context
    assert lm.tok("Grass is green.").input_ids == ids
    with torch.no_grad():
        ours, theirs = model.model(torch.tensor([ids])), lm.net(torch.tensor([ids])).logits
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_the_bridge_refuses_packed_models(harness, tmp_path, toy):
    from elite112m.evaluation.lm_eval import lm_eval

    pytest.importorskip("onnxruntime", reason="an extra")
    with pytest.raises(InputError, match="take --format fp32"):
        lm_eval(ChatModel.open(toy(64), "cpu", "int8"), tmp_path, {"tasks": "t"})


def test_bits_begin_with_the_token_that_the_tokenizer_puts_first(made, tok, tmp_path):
    "A tokenizer of others that begins each text with a token of its own: so does the text that is measured."
    from elite112m.evaluation.base_model import nats

    model = ChatModel.open(made("Qwen2ForCausalLM"), "cpu")
    ids = tok.encode(TEXT)[:10]
    model.tok.start = [7]
    found = nats(model, [ids], 64, 64)
    logits = model.model(torch.tensor([[7] + ids]))[0].log_softmax(-1)
    assert found == pytest.approx(-sum(logits[k, i].item() for k, i in enumerate(ids)), rel=1e-5)
