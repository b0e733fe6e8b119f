"Generation on real weights: SmolLM2-135M-Instruct as transformers answers, and in eight bits."

import pytest
import torch

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
    "40 tokens, three prompts of different lengths: in a batch, alone, and from transformers with left padding."
    from elite112m.chat.generate import generate
    from elite112m.workbook.bench_generate import theirs_of

    prompts = [smol.prompt(ask(q)) for q in QUESTIONS]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
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
    from elite112m.workbook.bench_generate import logits_and_loss, windows

    small = ChatModel.open("smollm2-135m-instruct", "cpu", format="int8")
    assert small.replies([ask(QUESTIONS[0])], 24)[0].text == smol.replies([ask(QUESTIONS[0])], 24)[0].text
    rows = windows(smol.tok, sample(["stdlib"], 20_000), 256, 3)
    assert abs(logits_and_loss(small.model, rows)[1] - logits_and_loss(smol.model, rows)[1]) < 0.01
