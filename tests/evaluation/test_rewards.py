"Rewards: the command, rewards that are never given, a killed run; pairs from a model's own replies."

import pytest
from conftest import here, kill_often, stage_process, steps_of

from elite112m.core.presets import TINY

STAGE = """import sys
from elite112m.core.runs import run_stage
from elite112m.evaluation.rewards import reinforce
run_stage(reinforce, sys.argv[1], reward=lambda reply, item, ended, tokens: reply.count("e") / max(len(reply), 1))"""


@pytest.fixture(scope="module")
def base(tiny_sft_run):
    return tiny_sft_run


def test_rewards_that_are_never_given(base, tmp_path):
    "A model that is never right learns nothing from being right: one line, exit code 2, nothing left behind."
    few = [f"--set={k}={v}" for k, v in TINY.items()] + ["--set=reinforce.end_reward=0"]
    out = tmp_path / "out"
    ended = here("elite112m", "reinforce", "--run", out, "--preset", "nano", "--from", base, *few, "--device", "cpu")
    assert ended.returncode == 2 and "the reward is never given" in ended.stderr.splitlines()[-1], ended.stderr
    assert not (out / "reinforce").exists()


def test_unknown_category(base):
    ended = here("elite112m", "reinforce", "--run", base, "--set", "reinforce.categories=Maths:", "--device", "cpu")
    assert ended.returncode == 2 and "did you mean 'Math:'" in ended.stderr.splitlines()[-1], ended.stderr


def test_kl_keeps_the_model_near_its_beginning(base, tmp_path):
    "With a weight on the distance, the log-probabilities move less, and the distance is in the metrics."
    from elite112m.core.runs import run_stage
    from elite112m.evaluation.rewards import reinforce
    from elite112m.training.metrics import read_metrics

    def last_kl(weight):
        settings = {"reinforce.init": str(base), "reinforce.steps": 12, "reinforce.lr": 3e-3, "reinforce.kl": weight}
        job = run_stage(
            reinforce, tmp_path / str(weight), "nano", TINY | settings, reward=lambda reply, *_: reply.count("e")
        )
        return [r["kl"] for r in read_metrics(job.folder / "metrics.jsonl") if "kl" in r][-1]

    assert last_kl(3.0) < last_kl(1e-6) / 2


def test_the_reward_before_training_is_measured_once(base, tmp_path, capsys):
    "Training that goes on tells what the first start has found, and asks the model no questions beforehand."
    from elite112m.core.files import read_json, write_json
    from elite112m.core.runs import run_stage
    from elite112m.evaluation.rewards import reinforce

    asked = []
    settings = TINY | {"reinforce.init": str(base), "reinforce.steps": 2, "reinforce.eval_every": 100}

    def letter_e(reply, *_):
        asked.append(reply)
        return reply.count("e") / max(len(reply), 1)

    job = run_stage(reinforce, tmp_path / "run", "nano", settings, reward=letter_e)
    first, before = len(asked), read_json(job.folder / "before.json")["reward"]
    assert f" {before:.3f} of 1.1 before" in capsys.readouterr().out
    write_json(job.folder / "before.json", {"reward": 0.789})
    run_stage(reinforce, job.run.path, settings={"reinforce.steps": 4}, extend=True, reward=letter_e)
    assert "at the end, 0.789 before" in capsys.readouterr().out
    cfg = job.preset.reinforce
    in_training = 3 * cfg.prompts * cfg.samples + cfg.held_out  # a trial and two steps, and the end's validation
    assert len(asked) - first == in_training < first
    run_stage(reinforce, job.run.path, settings={"reinforce.steps": 2}, force=True, reward=letter_e)
    assert read_json(job.folder / "before.json")["reward"] == before  # starting over measures again


def test_killed_and_resumed_ends_the_same(base, tmp_path):
    "To the bit, with the same metrics, although every batch depends on the weights."
    from elite112m.core.presets import preset
    from elite112m.core.runs import Run, save_preset

    settings = TINY | {"reinforce.init": str(base), "reinforce.steps": 30, "reinforce.lr": 2e-3, "reinforce.kl": 0.01}
    settings |= {"reinforce.checkpoint_every": 3, "reinforce.eval_every": 4, "reinforce.log_every": 5}
    whole, run = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, run):
        folder.mkdir()
        save_preset(Run(folder), preset("nano", settings))
    out = stage_process(STAGE, whole).communicate(timeout=300)[0]
    told = [line for line in out.splitlines() if line.endswith("before")]
    assert len(told) == 2 and (whole / "reinforce/model.safetensors").exists(), out
    rows = lambda r: steps_of(r, "reinforce")
    assert kill_often(STAGE, run, "reinforce", 30, seed=1)
    out = stage_process(STAGE, run).communicate(timeout=300)[0]
    assert "nothing to do" in out or ("continues at step" in out and all(line in out for line in told)), out
    assert (run / "reinforce/model.safetensors").read_bytes() == (whole / "reinforce/model.safetensors").read_bytes()
    assert rows(run) == rows(whole) and any("reward" in r for r in rows(run))
