"The tasks beside the suite, on whole models: what other programs say of the same model."

import json

import pytest


@pytest.fixture(scope="module")
def toy():
    "A model of random weights that has seen nothing."
    import torch

    from elite112m.chat.chat_model import ChatModel
    from elite112m.core.config import ModelConfig
    from elite112m.data.tokenizer import train_tokenizer
    from elite112m.model.transformer import CausalLM

    torch.manual_seed(1)
    tok = train_tokenizer(["Grass is green, the sky is blue, and snow is white; so they say."] * 20, 320)
    return ChatModel(CausalLM(ModelConfig(320, 2, 32, 2, 1, 64, 64)).eval(), tok)


TEXTS = ["Grass is green.", "The sky is blue, so they say.", "snow – white"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    "Two tasks in files, in the harness's form."
    folder = tmp_path_factory.mktemp("lm")
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    (folder / "colours.jsonl").write_text(
        "".join(
            json.dumps({"q": q, "choices": c, "a": a}) + "\n"
            for q, c, a in [
                ("Grass is", [" green", " blue"], 0),
                ("The sky is", [" white", " blue"], 1),
                ("Snow is", [" white", " green, so they say"], 0),
            ]
        )
    )
    start = "dataset_path: json\ndataset_kwargs:\n  data_files: {}\ntest_split: train\n"
    (folder / "texts.yaml").write_text(
        "task: texts\n"
        + start.format(folder / "texts.jsonl")
        + """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
"""
    )
    (folder / "colours.yaml").write_text(
        "task: colours\n"
        + start.format(folder / "colours.jsonl")
        + """output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_target: "{{a}}"
doc_to_choice: "{{choices}}"
target_delimiter: ""
metric_list: [{metric: acc}]
"""
    )
    return folder


def test_lm_eval_agrees_with_us(toy, tasks, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="an extra")
    import torch

    from elite112m.evaluation.base_model import nats
    from elite112m.evaluation.lm_eval import lm_eval

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    found = lm_eval(toy, tmp_path / "new", {"tasks": [str(tasks / "texts.yaml"), str(tasks / "colours.yaml")]})["rows"]
    ids = [toy.tok.encode(t) for t in TEXTS]
    ours = nats(toy, ids, 64, 64) / torch.tensor(2.0).log().item() / sum(len(t.encode()) for t in TEXTS)
    assert found["texts"]["bits_per_byte"]["value"] == pytest.approx(ours, rel=1e-4)

    def likely(row):
        "The choice whose tokens are likeliest after the question, by our own model."

        def score(c):
            q, whole = toy.tok.encode(row["q"]), toy.tok.encode(row["q"] + c)
            logp = toy.model(torch.tensor([whole]))[0].log_softmax(-1)
            return sum(logp[k - 1, whole[k]].item() for k in range(len(q), len(whole)))

        return max(range(2), key=lambda k: score(row["choices"][k])) == row["a"]

    rows = [json.loads(line) for line in (tasks / "colours.jsonl").read_text().splitlines()]
    assert found["colours"]["acc"]["value"] == pytest.approx(sum(map(likely, rows)) / 3)
    kept = json.loads((tmp_path / "new/lm_eval.json").read_text())
    assert kept["n-samples"]["texts"]["effective"] == 3


def test_an_unknown_task_is_refused(toy, tasks, tmp_path):
    pytest.importorskip("lm_eval", reason="an extra")
    from elite112m.core.config import InputError
    from elite112m.evaluation.lm_eval import lm_eval

    (tasks / "broken.yaml").write_text("task: [")
    with pytest.raises(InputError, match="not YAML"):
        lm_eval(toy, tmp_path, {"tasks": str(tasks / "broken.yaml")})
    with pytest.raises(InputError, match="did you mean 'tasks'"):
        lm_eval(toy, tmp_path, {"task": "arc"})
    assert not (tmp_path / "lm_eval.json").exists()
