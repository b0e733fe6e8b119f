"Generation on real weights: SmolLM2-135M-Instruct as transformers answers, in other formats, and a folder that is not Llama-shaped."

import pytest
import torch
from conftest import sh

QUESTIONS = [
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue, and then why sunsets are red.",
    "Write a short poem about the sea.",
]


@pytest.fixture(scope="module")
def smol():
    from elite112m.chat.chat_model import ChatModel

    return ChatModel.open("smollm2-135m-instruct", "cpu")


def ask(text):
    return [{"role": "user", "content": text}]


def test_greedy_tokens_are_those_of_transformers(smol):
    "40 tokens, three prompts of different lengths: in a batch, alone, and as transformers has them, padded on the left."
    from elite112m.chat.generate import generate
    from elite112m.workbook.bench import theirs_of

    prompts = [smol.prompt(ask(q)) for q in QUESTIONS]
    longest = max(map(len, prompts))
    ids, mask = (
        torch.tensor([[0] * (longest - len(p)) + f(p) for p in prompts]) for f in (list, lambda p: [1] * len(p))
    )
    theirs = theirs_of(smol.model).generate(
        ids, attention_mask=mask, max_new_tokens=40, do_sample=False, use_cache=True, eos_token_id=None, pad_token_id=0
    )
    together = generate(smol.model, prompts, 40, stop=())
    assert together == theirs[:, longest:].tolist()
    assert generate(smol.model, prompts[1:2], 40, stop=())[0] == together[1]


def test_stop_strings_cut_the_text_where_they_begin(smol):
    "The stop string spans tokens and ends inside one; neither the reply nor what is streamed shows any of it."
    from elite112m.chat.conversation import respond

    whole = smol.replies([ask(QUESTIONS[0])], 24)[0]
    assert "capital of France is Paris" in whole.text and whole.ended
    shown = []
    reply = smol.replies([ask(QUESTIONS[0])], 24, stop_strings=["f France is Pa"])[0]
    assert (
        reply.ended
        and len(reply.ids) < len(whole.ids)
        and whole.text.startswith(reply.text)
        and reply.text.endswith("capital o")
    )
    streamed = respond(
        smol,
        smol.prompt(ask(QUESTIONS[0])),
        smol.stop,
        {"max_new_tokens": 24},
        lambda text, token: shown.append(text),
        stop_strings=["f France is Pa"],
    )
    assert streamed.text == reply.text == "".join(shown).strip()


def test_eight_bits_answer_alike(smol):
    "Perplexity within 1 % of FP32's, and the same answer to a plain question."
    from elite112m.chat.chat_model import ChatModel
    from elite112m.data.prepare import sample
    from elite112m.workbook.bench import logits_and_loss, windows

    small = ChatModel.open("smollm2-135m-instruct", "cpu", format="int8")
    assert small.replies([ask(QUESTIONS[0])], 24)[0].text == smol.replies([ask(QUESTIONS[0])], 24)[0].text
    rows = windows(smol.tok, sample(["stdlib"], 20_000), 256, 3)
    assert abs(logits_and_loss(small.model, rows)[1] - logits_and_loss(smol.model, rows)[1]) < 0.01


def test_a_gpt2_folder_chats(tmp_path):
    "A folder that only transformers can open, through the command line; one of its files damaged is one line."
    from transformers import GPT2Config, GPT2LMHeadModel

    from elite112m.data.tokenizer import train_tokenizer

    train_tokenizer(["a b c d e"] * 4, 300).save(tmp_path)
    GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64, vocab_size=300, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(tmp_path)
    chat = "elite112m", "chat", "--model", tmp_path, "--input", "a b", "--max-new-tokens", "8", "--device", "cpu"
    done = sh(*chat)
    assert done.returncode == 0, done.stderr
    (tmp_path / "model.safetensors").write_bytes(b"no")
    done = sh(*chat)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "transformers cannot open" in done.stderr, (
        done.stderr
    )
