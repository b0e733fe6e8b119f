"The command line within one process: bad arguments, own text, and files that commands may not replace."

import json
from pathlib import Path

import pytest
from conftest import here


def refusal(done):
    "The one line with which a command refused its input."
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("elite112m: "), done.stderr
    return done.stderr


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["run", "nanno"],
        ["run", "nano", "--set", "model.n_heads=7"],
        ["run", "nano", "--set", "model.vocab_size=70000"],
        ["run", "nano", "--set", "pretrain.lr=fast"],
        ["run", "nano", "--device", "cuda"],
        ["run", "nano", "--stages", "bake"],
        ["evaluate", "--run", "nowhere"],
        ["chat", "--model", "nowhere", "--input", "x"],
        ["report", "--run", "nowhere"],
        ["run", "nano", "--stages", ","],
        ["run", "nano", "--from", ""],
        ["walk"],
        ["bench", "walk"],
        ["run", "nano", "--steps", "-1"],
        ["run", "nano", "--steps", "9" * 30],
        ["run", "nano", "--tokens", "nan"],
        ["run", "nano", "--tokens", "1e300"],
        ["run", "nano", "--hours", "inf"],
        ["run", "nano", "--hours", "1e300"],
        ["run", "nano", "--set", "="],
        ["run", "nano", "--set", "model.=1"],
        ["run", "nano", "--set", "model.n_layers.x=1"],
        ["run", "nano", "--set", "model.n_layers="],
        ["run", "nano", "--set", "pretrain.lr=1e999"],
        ["run", "nano", "--set", "pretrain.lr=\udcff"],
        ["chat", "--model", "a\nb"],
        ["chat", "--model", "nowhere", "--input", "\udcff"],
        ["chat", "--model", "nowhere", "--temperature", "nan"],
        ["evaluate", "--model", "nowhere", "--out", "x", "--seed", "9" * 30],
        ["evaluate", "--model", "nowhere", "--out", "."],
        ["evaluate", "--model", "nowhere", "--out", "x", "--items", "9" * 14],
        ["contamination", "nowhere", "--items", "9" * 14],
        ["exercises", "--out", "x", "--n", "9" * 14],
        ["exercises", "--out", "x", "--n", "0"],
        ["tokenizer", "train", "--out", "x", "--vocab-size", "300", "--sample-mb", "inf"],
        ["bench", "train", "--precision", "fp64"],
        ["bench", "train", "--preset", "nano", "--preset", "nano"],
        ["bench", "train", "--beside", "-1"],
        ["bench", "generate", "--beside", "some"],
        ["bench", "run", "--preset", "nanno"],
        ["bench", "run", "--device", "cuda"],
        ["bench", "run", "--every", "0"],
        ["bench", "run", "--out", "."],
        ["status", "--run", "a" * 300],
        ["sweep", "nano", "--seeds", "9" * 12],
    ],
)
def test_bad_arguments_are_one_line(tmp_path, args):
    done = here("elite112m", *args, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("elite112m: "), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_own_text(tmp_path, tiny):
    (tmp_path / "book.txt").write_text(
        "\n\n".join(f"Paragraph {i} says that {i} is followed by {i + 1}." * 20 for i in range(400))
    )
    done = here(
        "elite112m",
        "run",
        "nano",
        "--out",
        tmp_path / "run",
        "--data",
        tmp_path / "book.txt",
        "--stages",
        "prepare,pretrain",
        *tiny,
        "--set",
        "data.curriculum=0",
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run/data/manifest.json").read_text())
    assert list(manifest["sources"]) == [str(tmp_path / "book.txt")]


# ---- files of the user ---------------------------------------------------------------------------


def writers(folder):
    "Every command with an output path, and the file in `folder` that it would write."
    small = ["--n", "5"]
    shape = ["--preset", "nano", "--set", "model.n_layers=1", "--set", "model.vocab_size=320", "--rounds", "1"]
    train = ["--batch", "1x8", "--steps", "1", "--no-compile"]
    generate = ["--formats", "fp32", "--prompt-tokens", "2", "--new-tokens", "2"]
    return {
        "alpaca.json": ["exercises", "--out", folder, *small],
        "gsm8k.parquet": ["exercises", "--out", folder, *small],
        "tokenizer.json": ["tokenizer", "train", "--vocab-size", "300", "--out", folder],
        "config.json": ["import-original", folder / "best.pt", "--out", folder],
        "model.safetensors": ["import-original", folder / "best.pt", "--out", folder],
        "train.json": ["bench", "train", *shape, *train, "--json", folder / "train.json"],
        "generate.json": ["bench", "generate", *shape, *generate, "--json", folder / "generate.json"],
        "run.json": ["bench", "run", "--json", folder / "run.json"],
        "run.png": ["bench", "run", "--picture", folder / "run.png"],
        "compare.json": ["compare", folder, folder, "--json", folder / "compare.json"],
        "contamination.json": ["contamination", folder, "--json", folder / "contamination.json"],
        "results.json": ["evaluate", "--model", folder, "--out", folder, "--force"],
        "report.html": ["run", "nano", "--out", folder],
        "points": ["sweep", "nano", "--out", folder],
    }


@pytest.mark.parametrize("name", writers(Path()))
def test_own_files_stay(tmp_path, name):
    (tmp_path / name).write_text("mine")
    line = refusal(here("elite112m", *writers(tmp_path)[name]))
    assert str(tmp_path) in line and contents(tmp_path) == {Path(name): b"mine"}


def test_a_link_stays(tmp_path):
    (tmp_path / "alpaca.json").symlink_to("elsewhere.json")
    refusal(here("elite112m", "exercises", "--out", tmp_path, "--n", "5"))
    assert (tmp_path / "alpaca.json").is_symlink() and len(list(tmp_path.iterdir())) == 1


def test_written_files_may_be_written_again_until_they_are_changed(tmp_path):
    for seed in "01":
        done = here("elite112m", "exercises", "--out", tmp_path, "--n", "5", "--seed", seed)
        assert done.returncode == 0, done.stderr
    (tmp_path / "gsm8k.parquet").write_bytes(b"other")
    before = contents(tmp_path)
    line = refusal(here("elite112m", "exercises", "--out", tmp_path, "--n", "5"))
    assert "gsm8k.parquet, which was changed" in line and contents(tmp_path) == before
    (tmp_path / "gsm8k.parquet").unlink()
    assert here("elite112m", "exercises", "--out", tmp_path, "--n", "5").returncode == 0


@pytest.mark.parametrize("place", ["file", "file/deeper", "/proc/here"])
def test_places_that_cannot_be_written(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    for command in (
        ["exercises", "--n", "5"],
        ["tokenizer", "train", "--vocab-size", "300"],
        ["import-original", "best.pt"],
        ["evaluate", "--model", "nowhere"],
        ["run", "nano"],
        ["sweep", "nano"],
    ):
        refusal(here("elite112m", *command, "--out", place, cwd=tmp_path))
    assert contents(tmp_path) == {Path("file"): b"mine"}


def test_a_folder_of_the_user_is_no_run(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for command in ("status", "report", "prepare", "pretrain", "sft", "evaluate", "export"):
        refusal(here("elite112m", command, "--run", tmp_path))
    assert contents(tmp_path) == {Path("notes.txt"): b"mine"}


def test_export_of_no_run(tmp_path):
    assert "'zip' is not one of 'hf', 'gguf', 'onnx', 'web', 'all'" in refusal(
        here("elite112m", "export", "--run", tmp_path, "--to", "zip")
    )
    assert "is not a run yet" in refusal(here("elite112m", "export", "--run", tmp_path, "--to", "hf"))
