"""Documents kept apart in attention: the kernel for variable lengths, and the dense mask.

That kernel exists on NVIDIA GPUs alone, where this has not run. Here a loop over the documents takes its place, below
torch's `varlen_attn`, so that its arguments, its backward pass and what we do around it are the real ones."""

import pytest
import torch
import torch.nn.functional as F

from elite112m.core.config import ModelConfig
from elite112m.fp8.precision import autocast
from elite112m.model import transformer
from elite112m.model.meter import saved_bytes
from elite112m.model.transformer import CausalLM, document_mask, takes_bounds
from elite112m.training.step import recompute

SHAPE = ModelConfig(vocab_size=64, n_layers=3, d_model=48, n_heads=6, n_kv_heads=2, d_ff=64, context=32)
CPU = torch.device("cpu")


def documents(q, k, v, bounds):
    "Causal attention in each document; q: (tokens, heads, head_dim), k and v with fewer heads."
    parts = []
    for a, b in zip(bounds.tolist(), bounds.tolist()[1:]):
        one = (t[a:b].transpose(0, 1)[None] for t in (q, k, v))
        parts.append(F.scaled_dot_product_attention(*one, is_causal=True, enable_gqa=True)[0].transpose(0, 1))
    return torch.cat(parts)


def forward(q, k, v, bounds, bounds_k, longest, longest_k, dropout, causal, debug, **options):
    assert causal and not dropout and bounds.dtype == torch.int32 and torch.equal(bounds, bounds_k)
    assert longest >= bounds.diff().max() and longest_k == longest
    none = torch.zeros(0)
    return documents(q, k, v, bounds), torch.zeros(q.shape[1], q.shape[0]), none, none, none


def backward(grad, q, k, v, out, lse, bounds, *unused, **options):
    "The derivatives of `documents`, written out: below autograd, torch cannot find them."
    group = q.shape[1] // k.shape[1]  # query heads that share a key head
    found = [torch.zeros_like(t) for t in (q, k, v)]
    for a, b in zip(bounds.tolist(), bounds.tolist()[1:]):
        g, x, y, z = (t[a:b].transpose(0, 1).float() for t in (grad, q, k, v))  # (heads, tokens, head_dim)
        y, z = y.repeat_interleave(group, 0), z.repeat_interleave(group, 0)
        scale = x.shape[-1] ** -0.5
        weights = (x @ y.mT * scale).masked_fill(torch.ones(b - a, b - a).triu(1).bool(), -torch.inf).softmax(-1)
        d_weights = g @ z.mT
        d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True)) * scale
        for t, d in zip(found, (d_scores @ y, d_scores.mT @ x, weights.mT @ g)):
            t[a:b] = d.unflatten(0, (t.shape[1], -1)).sum(1).transpose(0, 1)
    return tuple(found)


@pytest.fixture(scope="module", autouse=True)
def kernels():
    "Stand-ins for the two CUDA kernels, on the CPU."
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    yield
    library._destroy()


@pytest.fixture
def on_gpu(monkeypatch):
    "The choice that a GPU would make."
    monkeypatch.setattr(transformer, "takes_bounds", lambda *_: True)


def batch(rows=2):
    "Ids, targets and documents: three a row, of which the last is the padding of fine-tuning."
    torch.manual_seed(1)
    ids = torch.randint(0, 64, (rows, 32))
    docs = torch.tensor([[0] * 9 + [1] * 15 + [-1] * 8, [0] * 20 + [1] * 11 + [-1]]).repeat(rows // 2, 1)
    return ids, ids.roll(-1, 1).masked_fill(docs < 0, -100), docs


def gradients(model, ids, labels, docs, precision="fp32"):
    model.zero_grad()
    with autocast(precision, CPU):
        loss, _ = model(ids, labels=labels, doc_ids=docs)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


def made():
    torch.manual_seed(0)
    return CausalLM(SHAPE)


@pytest.mark.parametrize("precision, error", [("fp32", 1e-4), ("bf16", 0.05)])
def test_bounds_give_the_loss_and_the_gradients_of_the_dense_mask(monkeypatch, precision, error):
    model = made()
    dense = gradients(model, *batch(), precision)
    monkeypatch.setattr(transformer, "takes_bounds", lambda *_: True)
    for a, b in zip(dense, gradients(model, *batch(), precision)):
        assert torch.isfinite(b).all() and (a - b).norm() <= error * a.norm()


def test_no_token_sees_another_document(on_gpu):
    model, (ids, _, docs) = made().eval(), batch()
    other = ids.masked_fill(docs == 0, 5)
    assert torch.equal(model(ids, doc_ids=docs)[docs != 0], model(other, doc_ids=docs)[docs != 0])


def test_recomputed_layers_give_the_same_gradients(on_gpu):
    model = made()
    kept = gradients(model, *batch())
    recompute(model)
    for a, b in zip(kept, gradients(model, *batch())):
        torch.testing.assert_close(a, b)


def test_a_compiled_decoder_serves_any_number_of_documents(on_gpu):
    "The second number of documents may compile anew; after it none does."
    model, (ids, labels, docs) = made(), batch()
    eager = gradients(model, ids, labels, docs)
    torch.compiler.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    graphs.clear()
    model.model.compile(fullgraph=True, backend="aot_eager")
    for a, b in zip(eager, gradients(model, ids, labels, docs)):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    for length in (16, 8, 4, 3, 32):
        loss = gradients(model, ids, labels, torch.arange(32).expand(2, 32) // length)[0]
        assert loss.isfinite()
    assert graphs["unique_graphs"] <= 2


def test_the_dense_mask_is_saved_once_and_not_by_each_layer():
    model, (ids, labels, docs) = made(), batch(8)
    loss = lambda docs: lambda: model(ids, labels=labels, doc_ids=docs)[0]
    mask = model.mask_for(docs)
    extra = saved_bytes(loss(docs), model.parameters()) - saved_bytes(loss(None), model.parameters())
    assert mask.shape == (8, 1, 32, 32) and torch.equal(mask == 0, document_mask(docs))
    assert extra <= mask.nbytes + 4096, (extra, mask.nbytes)


def test_only_a_gpu_with_16_bits_takes_bounds(monkeypatch):
    cuda = torch.device("cuda")
    assert not any(takes_bounds(torch.device(d), torch.bfloat16, 64) for d in ("cpu", "mps", "meta"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    for capability, wanted in {(7, 5): False, (8, 0): True, (12, 0): True}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        assert takes_bounds(cuda, torch.bfloat16, 64) == takes_bounds(cuda, torch.float16, 64) == wanted
        assert not takes_bounds(cuda, torch.float32, 64) and not takes_bounds(cuda, torch.bfloat16, 20)


@pytest.mark.parametrize("masked", [False, True])
def test_old_cards_get_a_key_head_for_each_query_head(monkeypatch, masked):
    "The same numbers; fused attention is then asked for without shared keys. Not run on such a card."
    m = CausalLM(ModelConfig(vocab_size=64, n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, d_ff=64))
    ids = torch.randint(0, 64, (2, 24))
    docs = torch.arange(24).repeat(2, 1) // 9 if masked else None
    shared = m(ids, doc_ids=docs)
    asked, attention = [], F.scaled_dot_product_attention
    heads = lambda q, k, v, **how: asked.append((q.shape[1], k.shape[1], v.shape[1])) or attention(q, k, v, **how)
    monkeypatch.setattr(F, "scaled_dot_product_attention", heads)
    monkeypatch.setattr(transformer, "fuses_groups", lambda device: False)
    torch.testing.assert_close(m(ids, doc_ids=docs), shared)
    assert asked == [(4, 4, 4)] * 2
