"Two evaluations of a small model on the command line, and what changed between them."

import json

import pytest
from conftest import here, sh
from replies import make_models

from elite112m.curriculum.lessons import CATEGORIES


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


def test_two_evaluations_and_what_changed(model, tmp_path):
    done = sh(
        "elite112m",
        "evaluate",
        "--model",
        model / "model",
        "--out",
        tmp_path / "a",
        "--items",
        "2",
        "--max-new-tokens",
        "4",
        "--tasks",
        "suite,base",
    )
    assert done.returncode == 0, done.stderr
    assert "Factual Q&A" in done.stdout and "210 items" in done.stdout and "first token's MRR" in done.stdout
    results = json.loads((tmp_path / "a/results.json").read_text())
    assert (
        results["items"] == 210
        and list(results["categories"]) == CATEGORIES
        and results["options"]["max_new_tokens"] == 4
    )
    assert 0 < results["tasks"]["base"]["mrr"] <= 1 and len(results["tasks"]["base"]["continuations"]) == 10
    assert sorted(f.name for f in (tmp_path / "a").iterdir()) == [
        ".elite112m.json",  # the record of what the command wrote
        "base.jsonl",
        "generations.jsonl",
        "results.json",
        "suite.png",
    ]
    assert (tmp_path / "a/suite.png").read_bytes()[:4] == b"\x89PNG"

    rows = [json.loads(line) for line in (tmp_path / "a/generations.jsonl").read_text().splitlines()]
    (tmp_path / "b").mkdir()
    (tmp_path / "b/results.json").write_text(json.dumps(results))
    (tmp_path / "b/generations.jsonl").write_text(
        "".join(
            json.dumps(r | {"reply": r["reference"], "correct": True} if k < 18 else r) + "\n"
            for k, r in enumerate(rows)
        )
    )
    done = here("elite112m", "compare", tmp_path / "a", tmp_path / "b", "--json", tmp_path / "c.json")
    found = json.loads((tmp_path / "c.json").read_text())
    assert done.returncode == 0 and "wrong in A, right in B: 18" in done.stdout, done.stderr
    assert len(found["fixed"]) == 18 and found["broken"] == [] and found["all"]["lo"] > 0
    assert found["all"]["fixed"] == 6 and found["all"]["p"] == 2 / 2**6, "three wordings are one exercise"
