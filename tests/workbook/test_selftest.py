"The self-test: every check notices when what it checks is broken, and the command says so."

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, here

CPU = torch.device("cpu")


def in_low_precision(patch):
    silu = F.silu
    patch.setattr(F, "silu", lambda x: silu(x) * (1.5 if x.dtype in (torch.bfloat16, torch.float16) else 1))


def products(patch):
    from elite112m.fp8 import linear

    right = linear.matmul8
    patch.setattr(linear, "matmul8", lambda *args, **kw: right(*args, **kw) * 1.2)


def places_of_products(patch):
    from elite112m.fp8 import linear

    right = linear.matmul8
    patch.setattr(linear, "matmul8", lambda *args, **kw: right(*args, **kw).roll(1, -1))


def scales_of_the_past(patch):
    from elite112m.fp8 import scaling

    patch.setattr(scaling, "update_scales", lambda scale, history, largest: scale.fill_(1e5))


def kernel(patch):
    right = F.scaled_dot_product_attention
    patch.setattr(F, "scaled_dot_product_attention", lambda *args, **kw: right(*args, **kw) * 1.1)


def walls_between_documents(patch):
    from elite112m.model import transformer

    patch.setattr(transformer, "document_mask", lambda docs: torch.ones(docs.shape[1], docs.shape[1]).tril().bool())


def chunks(patch):
    from elite112m.model import loss

    right = loss._chunk
    patch.setattr(loss, "_chunk", lambda logits, labels: right(logits, labels.roll(1)))  # targets of other rows


def compiled_code(patch):
    from elite112m.workbook import selftest_checks

    def compile(model, wanted):
        scaled = lambda out: (out[0] * 1.05, *out[1:]) if isinstance(out, tuple) else out * 1.05
        model.model.register_forward_hook(lambda module, args, out: scaled(out))

    patch.setattr(selftest_checks, "compiler", lambda device: "g++")
    patch.setattr(selftest_checks, "maybe_compile", compile)


def moments_of_a_checkpoint(patch):
    from elite112m.training import trainer

    right = trainer.load_checkpoint

    def forget(path, model, opts):
        state = right(path, model, opts)
        for opt in opts:
            opt.state.clear()
        return state

    patch.setattr(trainer, "load_checkpoint", forget)


def cached_keys(patch):
    from elite112m.model.transformer import KVCache

    right = KVCache.add
    patch.setattr(KVCache, "add", lambda self, layer, k, v: right(self, layer, k.flip(-1), v))


def packed_weights(patch):
    from elite112m.workbook import selftest_checks

    right = selftest_checks.as_format

    def packed(model, format):
        model.model.layers[0].mlp.down_proj.weight.mul_(3)
        model.model.layers[1].self_attn.o_proj.weight.mul_(3)
        return right(model, format)

    patch.setattr(selftest_checks, "as_format", packed)


BROKEN = {
    "bf16 step": in_low_precision,
    "bf16 training": in_low_precision,
    "native fp8 current": products,
    "native fp8 delayed": scales_of_the_past,
    "fp8 step": products,
    "fp8 training": places_of_products,
    "flash attention": kernel,
    "documents": walls_between_documents,
    "head loss": chunks,
    "compiled step": compiled_code,
    "resume": moments_of_a_checkpoint,
    "generation": cached_keys,
    "int8 engine": packed_weights,
    "int4 engine": packed_weights,
}
NEED_A_GPU = {"fp16 step", "te fp8 current", "te fp8 delayed"}  # the first two lines of BROKEN use the same functions


def test_every_check_that_runs_here_is_shown_to_fail():
    from elite112m.workbook.selftest_checks import SELFTEST_CHECKS

    assert set(BROKEN) | NEED_A_GPU == set(SELFTEST_CHECKS) and not set(BROKEN) & NEED_A_GPU


@pytest.mark.parametrize("name", BROKEN)
def test_a_check_fails_when_what_it_checks_is_broken(name, monkeypatch):
    from elite112m.workbook.selftest_checks import SELFTEST_CHECKS, run_check

    BROKEN[name](monkeypatch)
    row = run_check(SELFTEST_CHECKS[name], CPU)
    assert row["result"] == "failed" and "crashed" not in row, row
    assert not row["measured"] <= row["limit"]


@pytest.mark.parametrize("name", sorted(set(BROKEN) - {"compiled step"}))
def test_a_check_passes_here(name):
    from elite112m.workbook.selftest_checks import SELFTEST_CHECKS, run_check

    row = run_check(SELFTEST_CHECKS[name], CPU)
    assert row["result"] == "passed", row


@pytest.mark.parametrize("name", sorted(NEED_A_GPU))
def test_what_needs_a_gpu_is_skipped_with_a_reason(name):
    from elite112m.workbook.selftest_checks import SELFTEST_CHECKS, run_check

    row = run_check(SELFTEST_CHECKS[name], CPU)
    assert row["result"] == "skipped" and row["reason"], row


@pytest.fixture
def few(monkeypatch):
    "A self-test of two checks and no speed, within this process."
    from elite112m.workbook import selftest
    from elite112m.workbook.selftest_checks import SELFTEST_CHECKS, run_check

    def run_selftest_checks(names, device, seconds, tell, apart):
        rows = [run_check(SELFTEST_CHECKS[name], torch.device(device)) for name in names]
        for row in rows:
            tell(row)
        return rows

    monkeypatch.setattr(selftest, "run_selftest_checks", run_selftest_checks)
    monkeypatch.setattr(
        selftest, "SELFTEST_CHECKS", {n: SELFTEST_CHECKS[n] for n in ("native fp8 current", "te fp8 current")}
    )
    monkeypatch.setattr(selftest, "SELFTEST_SPEEDS", {})


def test_the_command_writes_a_file_and_ends_with_0(few, tmp_path):
    done = here("elite112m", "selftest", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0 and "passed in" in done.stdout, done.stderr
    found = json.loads((tmp_path / "selftest.json").read_text())
    assert [c["result"] for c in found["checks"]] == ["passed", "skipped"] and found["passed"] and not found["speeds"]
    assert found["format"] == 1 and "torch" in found["machine"]


def test_broken_numerics_end_with_1_and_json_stands_alone(few, tmp_path, monkeypatch):
    products(monkeypatch)
    done = here("elite112m", "selftest", "--device", "cpu", "--json", cwd=tmp_path)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert not found["passed"] and found["checks"][0]["result"] == "failed"


@pytest.mark.parametrize("args", [["--minutes", "0"], ["--device", "cuda"], ["--out", "."], ["--out", "own.json"]])
def test_bad_input_ends_with_2(few, tmp_path, args):
    (tmp_path / "own.json").write_text("mine")
    if "cuda" in args and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = here("elite112m", "selftest", *args, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert (tmp_path / "own.json").read_text() == "mine"


def test_nothing_personal_is_in_a_result():
    import getpass
    import platform
    from pathlib import Path

    from elite112m.workbook.doctor import examine
    from elite112m.workbook.selftest import machine_facts

    text = json.dumps(machine_facts(examine()))
    for private in (platform.node(), str(Path.home()), str(ROOT), f"{getpass.getuser()}@"):
        assert private not in text
    assert "/" not in machine_facts(examine())["torch.compile"]


def test_the_page_of_results_is_made_from_the_files():
    from elite112m.workbook.selftest import selftest_table

    page = (ROOT / "docs/SELFTESTS.md").read_text()
    table = selftest_table(ROOT / "docs/selftests")
    assert table.startswith("| machine") and table in page, "put selftest_table('docs/selftests') into the page"
