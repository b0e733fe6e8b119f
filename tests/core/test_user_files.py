"Nothing of the user's is ever changed: random trees of files, random commands; and what must work still does."

import random
import shutil

import pytest
from conftest import here

from elite112m.core.config import InputError
from elite112m.core.files import files_below, read_json, write_json
from elite112m.core.runs import Run
from elite112m.core.stages import MAIN_STAGES, STAGES

SMALLER = {
    "tokenizer.sample_mb": 0.1,
    "pretrain.steps": 2,
    "pretrain.eval_batches": 1,
    "pretrain.eval_every": 2,
    "pretrain.checkpoint_every": 1,
    "sft.examples": 8,
    "sft.steps": 2,
    "sft.sources": "curriculum",
    "evaluate.items": 1,
    "evaluate.max_new_tokens": 1,
}
FOLDERS = [STAGES[name].folder for name in MAIN_STAGES]
TEXT = "The tide came in before noon. Nobody had moved the boats, so they floated away.\n" * 40
PAIRS = '{"instruction": "Say yes.", "output": "yes"}\n' * 40
# Names that we never write; in a folder that we have made they are somebody's own.
OWN = [
    "data/book.txt",
    "data/train.jsonl",
    "data/raw/part.txt",
    "data/train-extra.bin",
    "data/progress.sqlite.bak",
    "pretrain/notes.txt",
    "pretrain/corpus.tmp",
    "pretrain/checkpoints/mine/weights.bin",
    "pretrain/checkpoints/step-00000005/notes.txt",
    "pretrain/best/why.md",
    "pretrain/wandb/mine.txt",
    "sft/pairs.jsonl",
    "sft/.hidden/pairs.jsonl",
    "eval/figures.csv",
    "eval/paper/suite.png",
    "export/hf/NOTES.md",
    "export/model.gguf",
    "data/.gitignore",
    "eval/.gitkeep",
    "thesis.txt",
    "src/book.txt",
]
# Names that we write, in folders that we have not made.
SAME = [
    "data/train.bin",
    "data/manifest.json",
    "data/stage.json",
    "data/tokenizer.json",
    "pretrain/model.safetensors",
    "pretrain/checkpoints/step-00000005/state.json",
    "sft/metrics.jsonl",
    "eval/results.json",
    "export/hf/config.json",
    "export/stage.json",
]


def plant(root, names, rng):
    "Write some of the files, and some links to them and to their folders; returns their paths."
    made = []
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = PAIRS if name.endswith("jsonl") else rng.choice(['{"a": 1}', '{"stage": "mine"}'])
        path.write_text(text if name.endswith(("json", "jsonl")) else TEXT)
        made.append(path)
        if rng.random() < 0.3:
            link = root.parent / f"link{len(made)}{path.suffix}"
            link.symlink_to(path if rng.random() < 0.6 else path.parent)
            made.append(link)
    return made


def contents(paths):
    "What there is at the paths: bytes, or where a link leads."
    return {p: p.readlink() if p.is_symlink() else p.read_bytes() if p.is_file() else None for p in paths}


def command(rng, root, mine, tiny):
    "A command on a run at, above or below the user's folder, that reads some of the user's files."
    place = rng.choice([root, root, root, root.parent, root / "data", root / "runs/x"])
    stage = rng.choice([*MAIN_STAGES, "run", "prepare", "run"])
    words = ["run", "nano", "--out", place] if stage == "run" else [stage, "--run", place]
    if stage != "run" and not (place / "run.json").exists():
        words += ["--preset", "nano"]
    sources = [p for p in mine if p.suffix in (".txt", ".jsonl", "")] + [root / "data", root]
    if rng.random() < 0.6:
        words += ["--data", rng.choice(sources)]
    if rng.random() < 0.3:
        words += ["--sft-data", rng.choice(sources)]
    if rng.random() < 0.15 and stage in ("run", "prepare", "pretrain", "sft"):
        words += ["--from", rng.choice([root, root / "sft", root / "pretrain"])]
    if rng.random() < 0.5:
        words.append("--force")
    return [*words, *tiny, "--device", "cpu"]


@pytest.fixture(scope="module")
def tiny(tiny):
    "Options that shrink the nano preset even more: what is computed matters little here."
    return [*tiny, *(word for k, v in SMALLER.items() for word in ("--set", f"{k}={v}"))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny):
    "A finished run of the smallest size."
    path = tmp_path_factory.mktemp("finished") / "run"
    ended = here("elite112m", "run", "nano", "--out", path, *tiny, "--device", "cpu")
    assert ended.returncode == 0, ended.stderr
    return path


@pytest.mark.parametrize("seed", range(32))
def test_random_commands_change_no_file_of_the_user(seed, tmp_path, finished, tiny):
    "Whatever a command does beside, below or above them: the user's files stay as they are."
    rng = random.Random(seed)
    root, ours = tmp_path / "home/project", rng.random() < 0.5
    root.parent.mkdir()
    if ours:
        shutil.copytree(finished, root)
    names = rng.sample(OWN if ours else OWN + SAME, rng.randint(1, 5))
    mine = plant(root, names, rng)
    for _ in range(2):
        before = contents(mine)
        words = command(rng, root, mine, tiny)
        ended = here("elite112m", *words, cwd=rng.choice([root, root.parent]))
        assert contents(mine) == before, (words, ended.stderr)
        assert "Traceback" not in ended.stderr, (words, ended.stderr)
        assert ended.returncode in (0, 2), (words, ended.stderr)
        if ended.returncode == 0:
            break


def test_the_first_file_in_the_way_is_named(finished, tmp_path, tiny):
    "A refusal is one line with the file's name, and nothing at all has changed."
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for name in ("data/book.txt", "pretrain/checkpoints/step-00000005/notes.txt", "export/hf/NOTES.md"):
        mine = run / name
        mine.parent.mkdir(exist_ok=True)
        mine.write_text(TEXT)
        before = contents(run / f for f in files_below(run))
        ended = here("elite112m", "run", "nano", "--out", run, "--force", *tiny)
        assert ended.returncode == 2 and str(mine) in ended.stderr, ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1
        assert contents(run / f for f in files_below(run)) == before
        mine.unlink()


@pytest.mark.parametrize("words", [["prepare", "--preset", "nano", "--run"], ["run", "nano", "--out"]])
@pytest.mark.parametrize("where", FOLDERS)
def test_a_project_of_the_user_is_no_run(words, where, tmp_path, tiny):
    "A folder that happens to have the name of one of ours is refused; an empty one is taken."
    mine = tmp_path / "project" / where / "book.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text(TEXT)
    if where == "data" or words[0] == "run":
        ended = here("elite112m", *words, ".", "--data", mine.parent, *tiny, cwd=tmp_path / "project")
        assert ended.returncode == 2 and "book.txt" in ended.stderr or "write over" in ended.stderr, ended.stderr
    assert files_below(tmp_path / "project") == [mine.relative_to(tmp_path / "project")]
    mine.unlink()
    if words[0] == "prepare" and where == "data":
        ended = here("elite112m", *words, ".", *tiny, cwd=tmp_path / "project")
        assert ended.returncode == 0, ended.stderr


def test_force_redoes_a_run_of_ours(finished, tmp_path, tiny):
    "A finished run is redone with --force; hidden files of the user survive it, and what follows is stale."
    run = Run(tmp_path / "run")
    shutil.copytree(finished, run.path)
    hidden = [run.path / folder / ".gitkeep" for folder in FOLDERS] + [run.path / "data/.dvc/config"]
    for path in hidden:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (run.path / "pretrain/.model.safetensors.0a1b2c3d.tmp").write_text("left by a killed process")
    old = run.record("pretrain")["build"]
    ended = here("elite112m", "pretrain", "--run", run.path, "--force", *tiny, "--device", "cpu")
    assert ended.returncode == 0 and run.record("pretrain")["build"] != old, ended.stderr
    assert [run.status(s) for s in MAIN_STAGES] == ["done", "done", "stale", "stale", "stale"]
    assert set(contents(hidden).values()) == {b"mine"}
    assert not list((run.path / "pretrain").glob(".*.tmp"))


def test_an_interrupted_beginning_and_an_interrupted_removal(finished, tmp_path, tiny):
    "Killed between mkdir and the record, or while it removed what it was to redo: the same command goes on."
    run = Run(tmp_path / "run")
    shutil.copytree(finished, run.path)
    shutil.rmtree(run.folder("export"))
    run.folder("export").mkdir()
    (run.folder("export") / ".stage.json.0a1b2c3d.tmp").write_text('{"sta')
    write_json(run.folder("evaluate") / "stage.json", run.record("evaluate") | {"status": "removed"})
    (run.folder("evaluate") / "results.json").unlink()
    assert [run.status(s) for s in ("evaluate", "export")] == ["absent", "absent"]
    for stage in ("evaluate", "export"):
        ended = here("elite112m", stage, "--run", run.path)
        assert ended.returncode == 0 and run.status(stage) == "done", ended.stderr
    assert files_below(run.folder("export"))[-1].name == "stage.json"
    assert read_json(run.folder("evaluate") / "results.json")["items"]


def test_what_is_read_must_not_be_written_over(finished, tmp_path, tiny):
    "A model, a text or a vocabulary in a folder that the command writes, also through a link."
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    link = tmp_path / "model"
    link.symlink_to(run / "sft")
    vocabulary = tmp_path / "vocabulary.json"
    vocabulary.symlink_to(run / "data/tokenizer.json")
    before = contents(run / f for f in files_below(run))
    for words in (
        ["sft", "--run", run, "--from", link, "--force"],
        ["prepare", "--run", run, "--set", f"tokenizer.name={vocabulary}", "--force"],
        ["prepare", "--run", run, "--data", run / "data", "--force"],
        ["sft", "--run", run, "--sft-data", run / "sft/metrics.jsonl", "--force"],
    ):
        ended = here("elite112m", *words)
        assert ended.returncode == 2 and "would write over" in ended.stderr, (words, ended.stderr)
        assert contents(run / f for f in files_below(run)) == before, words


def test_checkpoints_with_somebodys_files_stay(tmp_path):
    "Old checkpoints are removed, except those in which somebody keeps a file, and those that are links."
    import torch

    from elite112m.core.config import ModelConfig
    from elite112m.model.transformer import CausalLM
    from elite112m.training.checkpoint import Saver, remove_partial, snapshot, steps_in, verify_checkpoint

    model = CausalLM(ModelConfig(300, 1, 32, 2, 1, 48, 32))
    optimizer = torch.optim.AdamW(model.parameters())
    what = (snapshot(model, [optimizer]), model.config, {})
    saver = Saver(tmp_path, keep_last=1)
    saver.save(1, *what)
    assert saver.finish() is None
    (tmp_path / "step-00000001/notes.txt").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "step-00000000").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".notes.tmp").write_text("mine")
    (tmp_path / ".step-00000009.0a1b2c3d.tmp").mkdir()
    for step in (2, 3, 1):  # the last one is written over
        saver.save(step, *what)
        assert saver.finish() is None
    assert [p.name for p in steps_in(tmp_path)] == ["step-00000000", "step-00000001", "step-00000003"]
    assert (tmp_path / "step-00000001/notes.txt").read_text() == "mine"
    assert verify_checkpoint(tmp_path / "step-00000001") is None
    remove_partial(tmp_path)
    assert sorted(p.name for p in tmp_path.glob(".*")) == [".notes.tmp"]


def test_a_chat_is_saved_over_a_chat_only(tmp_path, toy):
    "A file of messages that no chat has saved is somebody's, such as one to train on."
    from elite112m.chat.chat_model import ChatModel
    from elite112m.chat.conversation import Chat

    chat, path = Chat(ChatModel.open(toy(128), "cpu")), tmp_path / "talk.json"
    assert chat.save(path) == chat.save(path)
    for text in ('{"messages": []}', '{"messages": [], "model": "gpt"}', "[]", '{"settings": {}}'):
        path.write_text(text)
        with pytest.raises(InputError):
            chat.save(path)
        assert path.read_text() == text


def test_results_are_replaced_not_what_lies_beside_them(tmp_path):
    "`evaluate_model` replaces what evaluations have written, an added task's files too."
    from elite112m.evaluation.evaluate import _check_folder

    out = tmp_path / "results"
    (out / "own").mkdir(parents=True)
    _check_folder(out, force=False)
    write_json(out / "results.json", {"tasks": {}, "files": ["own/rows.csv"]})
    (out / "own/rows.csv").write_text("1")
    _check_folder(out, force=True)
    with pytest.raises(InputError, match="holds results already"):
        _check_folder(out, force=False)
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="such as .*thesis.txt"):
        _check_folder(out, force=True)
    (out / "thesis.txt").unlink()
    write_json(out / "results.json", {"score": 1})
    with pytest.raises(InputError, match="holds other things"):
        _check_folder(out, force=True)
