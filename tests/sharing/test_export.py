"Exports as people make them: the command, the folder it writes, `verify` on it, and input that cannot be exported."

import json
import shutil

import pytest
import torch
from conftest import here, sh


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A model folder with random weights that are large enough for clear preferences, and a trained vocabulary."
    from elite112m.core.config import ModelConfig
    from elite112m.data.prepare import sample
    from elite112m.data.tokenizer import train_tokenizer
    from elite112m.model.pretrained import export_hf
    from elite112m.model.transformer import CausalLM

    torch.manual_seed(0)
    shape = dict(n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, d_ff=128, context=256)
    model = CausalLM(ModelConfig(vocab_size=600, **shape)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3) if p.ndim == 2 else p.uniform_(0.5, 1.5)
    folder = tmp_path_factory.mktemp("m") / "mine"
    export_hf(model, train_tokenizer(sample(["stdlib"], 60_000), 600), folder)
    return folder


def flip(path, at):
    "Change one bit of a file."
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def refused(*args):
    "The one line with which a command refuses."
    done = here("elite112m", *args)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_to_llama_cpp_and_back(tmp_path, model):
    "F32 says the same as our engine; the proof holds, in another folder too, until one bit is changed."
    out = tmp_path / "out"
    done = here("elite112m", "export", "--model", model, "--to", "gguf", "--format", "f32,bf16,q8_0", "--out", out)
    assert done.returncode == 0, done.stderr
    files = {"model-f32.gguf", "model-bf16.gguf", "model-q8_0.gguf", "Modelfile"}
    assert {f.name for f in out.iterdir()} == files | {"README.md", "manifest.json", "proof.safetensors"}
    manifest = json.loads((out / "manifest.json").read_text())
    exact = manifest["compared"]["f32"]
    assert exact["same_replies"] == exact["replies"] >= 20 and "llama.cpp" in exact["runtime"]

    moved = tmp_path / "elsewhere"
    shutil.copytree(out, moved)
    done = sh("elite112m", "verify", moved)
    assert done.returncode == 0 and "the proof holds" in done.stdout, done.stdout + done.stderr
    for name in ("model-bf16.gguf", "proof.safetensors", "manifest.json", "README.md"):
        before = (moved / name).read_bytes()
        flip(moved / name, -40)
        done = here("elite112m", "verify", moved)
        assert done.returncode == 1 and done.stderr.startswith("elite112m: "), (name, done)
        (moved / name).write_bytes(before)
    assert here("elite112m", "verify", moved).returncode == 0


@pytest.mark.skipif(not shutil.which("npm"), reason="Node.js is not installed, which the page needs")
def test_everything_at_once_and_again(tmp_path, model):
    "Each target has its folder; what is ours is replaced, what is not stays and is named."
    out = tmp_path / "all"
    formats = "q4_0,fp32"
    command = ("elite112m", "export", "--model", model, "--to", "all", "--format", formats, "--out", out)
    done = here(*command)
    assert done.returncode == 0, done.stderr
    for name in ("hf/config.json", "gguf/model-q4_0.gguf", "onnx/onnx/model.onnx", "onnx/tokenizer.json"):
        assert (out / name).is_file(), name
    onnx = json.loads((out / "onnx/manifest.json").read_text())["compared"]["fp32"]
    assert onnx["same_replies"] == onnx["replies"] >= 20 and "onnxruntime" in onnx["runtime"]
    assert here("elite112m", "verify", out).stdout.count("are as they were written") == 4
    (out / "gguf/notes.txt").write_text("mine")
    before = (out / "hf/manifest.json").stat().st_mtime_ns
    assert here(*command).returncode == 0 and (out / "gguf/notes.txt").read_text() == "mine"
    assert (out / "hf/manifest.json").stat().st_mtime_ns > before
    for file in ("gguf/model-q4_0.gguf", "onnx/onnx/model.onnx", "hf"):
        done = here("elite112m", "chat", "--model", out / file, "--input", "hi")
        assert done.returncode == 0, (file, done.stderr)
    asked = ("chat", "--input", "hi", "--model")
    assert f"name one of {out / 'onnx/onnx/model.onnx'}" in refused(*asked, out / "onnx")
    assert f"elite112m web {out / 'web'}" in refused(*asked, out / "web")
    assert "an ONNX file has its own numbers" in refused(*asked, out / "onnx/onnx/model.onnx", "--format", "int8")

    (out / "hf/README.md").write_text("My own card.")
    assert "README.md, which was changed since" in refused(*command[1:])
    assert (out / "hf/README.md").read_text() == "My own card."
    own = tmp_path / "own"
    own.mkdir()
    (own / "config.json").write_text("{}")
    assert "config.json, which is no export" in refused("export", "--model", model, "--out", own)
    assert "holds an export for gguf" in refused("export", "--model", model, "--out", out / "gguf")


def test_k_quants_need_wide_rows(tmp_path, model):
    "A model whose rows are no multiples of 256 is refused before anything is written."
    out = tmp_path / "out"
    line = refused("export", "--model", model, "--to", "gguf", "--format", "q4_k_m", "--out", out)
    assert "multiples of 256, not 64 and 128" in line and not out.exists()


def test_what_cannot_be_exported_is_named(tmp_path, model):
    "One line, exit code 2, and no folder."
    out = tmp_path / "out"

    def damaged(name, change):
        folder = tmp_path / name
        shutil.copytree(model, folder)
        change(folder)
        return folder

    def write_config(**fields):
        def change(folder):
            config = json.loads((folder / "config.json").read_text()) | fields
            (folder / "config.json").write_text(json.dumps(config))

        return change

    def change_tensors(change):
        from safetensors.torch import load_file, save_file

        def apply(folder):
            tensors = load_file(folder / "model.safetensors")
            change(tensors)
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})

        return apply

    first = "model.layers.0.mlp.up_proj.weight"
    cases = {
        "nothing": (lambda f: shutil.rmtree(f), "no model at"),
        "no weights": (lambda f: (f / "model.safetensors").unlink(), "no finished model in"),
        "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
        "missing": (change_tensors(lambda t: t.pop(first)), first),
        "misshapen": (change_tensors(lambda t: t.update({first: t[first][:, :5].clone()})), first),
        "untied": (change_tensors(lambda t: t.update({"lm_head.weight": torch.ones(600, 64)})), "untied"),
        "other kind": (write_config(model_type="gpt2"), "gpt2"),
        "cut short": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), "damaged"),
        "small vocabulary": (write_config(vocab_size=300), "embed_tokens"),
    }
    for name, (change, why) in cases.items():
        for to in ("hf", "gguf"):
            folder = tmp_path / name
            if not folder.exists():
                damaged(name, change)
            assert why in refused("export", "--model", folder, "--to", to, "--out", out), name
    assert not out.exists() and not list(tmp_path.glob(".*.tmp"))
    assert "no folder" in refused("verify", tmp_path / "nowhere")


def test_a_full_disk_leaves_nothing(tmp_path, model):
    "The system refuses to write more: one line, and no half-made folder."
    import resource

    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    command = ("elite112m", "export", "--model", model, "--to", "gguf", "--format", "f32", "--out", tmp_path / "out")
    done = sh(*command, preexec_fn=limit)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot write" in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []
