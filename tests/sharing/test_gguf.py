"GGUF files as llama.cpp reads them: the same vocabulary, the same answer."

import pytest
import torch


@pytest.fixture(scope="module")
def model():
    "A small model with SmolLM2's vocabulary, and weights so large that it has clear preferences."
    from elite112m.core.config import ModelConfig
    from elite112m.model.transformer import CausalLM

    torch.manual_seed(0)
    shape = dict(n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, d_ff=96, context=128)
    model = CausalLM(ModelConfig(vocab_size=49_152, **shape)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3) if p.ndim == 2 else p.uniform_(0.5, 1.5)
    return model


def test_llama_cpp_answers_as_we_do(tmp_path, model):
    "Greedy tokens of prompts in words, split by llama.cpp itself, on SmolLM2's real vocabulary."
    from elite112m.chat.generate import generate
    from elite112m.data.tokenizer import load_tokenizer
    from elite112m.sharing.gguf import llama_cpp_answer, llama_cpp_server, write_gguf

    tok = load_tokenizer("smollm2")
    write_gguf(model, tok, tmp_path / "m.gguf", "f32")
    server = llama_cpp_server(tmp_path / "m.gguf", 128, 1, exact=True)
    for text in ("The capital of France", "  42 + 17 =\n", "def f(x):\n    return x * 12", "Ünïcode, and it's \t fine"):
        theirs = llama_cpp_answer(server, text, 24)
        assert theirs["tokens_evaluated"] == len(tok.encode(text))
        assert theirs["tokens"] == generate(model, [tok.encode(text)], 24, stop=())[0]


@pytest.mark.parametrize(("kind", "most"), [("f16", 3e-4), ("q8_0", 1e-2), ("q4_0", 0.12)])
def test_read_back(tmp_path, model, kind, most):
    "The same tokenizer, and weights as near as their format allows."
    from elite112m.data.tokenizer import load_tokenizer
    from elite112m.model.pretrained import load_model
    from elite112m.sharing.gguf import write_gguf

    tok = load_tokenizer("smollm2")
    write_gguf(model, tok, tmp_path / "m.gguf", kind)
    assert load_tokenizer(tmp_path / "m.gguf").fingerprint == tok.fingerprint
    for name, w in load_model(tmp_path / "m.gguf").state_dict().items():
        want = model.state_dict()[name]
        assert (w - want).norm() <= most * want.norm(), name


def test_other_rules_of_splitting_are_refused(tmp_path, model):
    "llama.cpp would split text differently and say nothing."
    import tokenizers

    from elite112m.core.config import InputError
    from elite112m.data.tokenizer import Tokenizer, load_tokenizer
    from elite112m.sharing.gguf import write_gguf

    core = tokenizers.Tokenizer.from_str(load_tokenizer("smollm2").core.to_str())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # digits stay together
    with pytest.raises(InputError, match="other rules"):
        write_gguf(model, Tokenizer(core), tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []
