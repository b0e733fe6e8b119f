"Files of the user beside those of a run, and numbers and names that are unusual."

import json

import nbformat
import pytest
from conftest import here


def contents(folder):
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def papermill_notebook(text):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    nb.metadata["papermill"] = {"parameters": {"run": 3}}
    return nbformat.writes(nb)


@pytest.mark.parametrize(
    "name, text",
    [
        ("report.html", "<title>Mine</title>"),
        ("notebooks/1_prepare.ipynb", papermill_notebook("mine")),
        ("notebooks/1_prepare.ipynb", "not even JSON"),
        ("notebooks/1_prepare.ipynb", "[1]"),
        ("notebooks", "a file"),
    ],
)
def test_files_of_the_user_are_not_replaced(name, text, tmp_path, tiny):
    out = tmp_path / "run"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text(text)
    before = contents(tmp_path)
    done = here("elite112m", "prepare", "--run", out, "--preset", "nano", *tiny)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and name.split("/")[0] in done.stderr, done.stderr
    assert contents(tmp_path) == before


def test_unusable_data_leave_a_folder_as_it_was(tmp_path, tiny):
    "The data turn out to be unusable in the middle of the stage, when the run folder has files already."
    out, data = tmp_path / "run", tmp_path / "short.txt"
    (out / "notebooks").mkdir(parents=True)
    (out / "notebooks/mine.ipynb").write_text("mine")
    (out / "notes.txt").write_text("mine")
    data.write_text("one line\n")
    before = contents(tmp_path)
    done = here("elite112m", "run", "nano", "--out", out, "--data", data, *tiny, "--set", "data.curriculum=0")
    assert done.returncode == 2, done.stderr
    assert contents(tmp_path) == before
    done = here(
        "elite112m", "run", "nano", "--out", tmp_path / "a/b", "--data", data, *tiny, "--set", "data.curriculum=0"
    )
    assert done.returncode == 2 and not (tmp_path / "a").exists(), done.stderr


def test_line_breaks_in_names_are_refused(tmp_path, tiny):
    for args in (["prepare", "--preset", "nano", "--run"], ["sweep", "nano", "--out"]):
        done = here("elite112m", *args, tmp_path / "two\nlines", *tiny)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "two\\nlines" in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_seeds_are_exact(tmp_path, tiny):
    seeds = {"data.seed": 2**53 + 1, "pretrain.seed": 2**63 - 1}
    sets = [arg for key, seed in seeds.items() for arg in ("--set", f"{key}={seed}")]
    out = tmp_path / "run"
    done = here("elite112m", "run", "nano", "--out", out, "--stages", "prepare,pretrain", *tiny, *sets)
    assert done.returncode == 0, done.stderr
    for stage, key in (("data", "data.seed"), ("pretrain", "pretrain.seed")):
        assert json.loads((out / stage / "stage.json").read_text())["settings"][key] == seeds[key]
    done = here("elite112m", "prepare", "--run", tmp_path / "x", "--preset", "nano", "--set", f"data.seed={2**64}")
    assert done.returncode == 2 and str(2**64) in done.stderr and not (tmp_path / "x").exists()


def test_hint_for_a_column_can_be_used(tmp_path, tiny):
    data = tmp_path / "my rows.jsonl"
    rows = [{"text": "x" * 30}] * 150 + [{"words": "y"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = here("elite112m", "prepare", "--run", tmp_path / "run", "--preset", "nano", *tiny, "--data", data)
    assert done.returncode == 2 and f"name one, as in '{data}:column=NAME'" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "name, text", [("sweep.json", '{"method": "bayes"}'), ("sweep.json", "[]"), ("sweep.csv", "a,b")]
)
def test_a_folder_with_another_sweep_is_refused(name, text, tmp_path, tiny):
    out = tmp_path / "s"
    out.mkdir()
    (out / name).write_text(text)
    before = contents(tmp_path)
    done = here("elite112m", "sweep", "nano", *tiny, "--out", out)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and str(out) in done.stderr, done.stderr
    assert contents(tmp_path) == before
