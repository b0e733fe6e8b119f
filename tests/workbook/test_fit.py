"Does it fit my card: the command `plan`, by what it prints and how it ends."

import json

import pytest
from conftest import here


def plan(*args):
    return here("elite112m", "plan", *args)


def test_a_preset_that_fits_is_told_with_what_to_type():
    done = plan("--preset", "elite112m", "--gpu", "RTX 4090")
    assert done.returncode == 0 and "fits on RTX 4090" in done.stdout and "PREDICTED" in done.stdout
    assert done.stdout.splitlines()[-1] == "next:   elite112m run elite112m --device cuda"


def test_a_preset_that_does_not_fit_is_told_with_what_would():
    done = plan("--size", "1B", "--gpu", "rtx3060")
    assert done.returncode == 1 and "does not fit" in done.stdout
    smaller = done.stdout.splitlines()[-1].split()[2]
    assert "would fit" in done.stdout and plan("--size", smaller, "--gpu", "rtx3060").returncode == 0


def test_an_unknown_card_has_no_speed_and_says_why():
    done = plan("--memory", "12GB")
    assert done.returncode == 0 and "no prediction" in done.stdout and "tok/s" not in done.stdout


@pytest.mark.parametrize("gpu", ["T4", "rtx4090"])
def test_what_is_printed_as_json_adds_up(gpu):
    found = json.loads(plan("--gpu", gpu, "--json").stdout)
    assert found["micro_batch"] * found["accumulation"] * found["context"] == found["step_tokens"] == 262_144
    assert found["needed_gb"] == pytest.approx(sum(found["parts_gb"].values()) + found["margin_gb"])
    assert found["fits"] and found["needed_gb"] < found["memory_gb"]
    assert found["hours"] == pytest.approx(found["tokens"] / found["tok_s"] / 3600)
    assert found["precision"] == {"T4": "fp16", "rtx4090": "bf16"}[gpu]
    assert set(found["disk_gb"]) == {"data", "checkpoints", "result"}


def test_less_memory_means_a_smaller_micro_batch_then_recompute_then_no():
    found = [json.loads(plan("--memory", f"{gb}GB", "--json").stdout) for gb in (80, 24, 12, 3.5, 2)]
    assert [f["fits"] for f in found] == [True] * 4 + [False]
    sizes = [f["micro_batch"] for f in found[:3]]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    assert [f["recompute"] for f in found[:4]] == [False, False, False, True]


def test_several_cards_share_a_step():
    one, two = (json.loads(plan("--gpu", "t4", "--gpus", n, "--json").stdout) for n in (1, 2))
    assert two["micro_batch"] * two["accumulation"] * 2 == one["micro_batch"] * one["accumulation"]
    assert (one["sharding"], two["sharding"]) == ("none", "ddp")
    arguments = ("--preset", "elite350m", "--gpu", "t4", "--gpus", 4, "--json")
    sharded, copied = (
        json.loads(plan(*arguments, "--set", f"pretrain.shard={on}").stdout)["parts_gb"] for on in ("true", "false")
    )
    assert sharded["weights"] * 4 == pytest.approx(copied["weights"])


@pytest.mark.parametrize(
    "args",
    [
        ["--gpu", "rtx9999"],
        ["--gpu", "a100"],
        ["--memory", "much"],
        ["--gpu", "t4", "--precision", "fp8"],
        ["--gpu", "t4", "--gpus", "3"],
        ["--preset", "nano", "--size", "3M", "--gpu", "t4"],
        ["--size", "30X", "--gpu", "t4"],
        ["--size", "70B", "--gpu", "h100"],
        [],  # this machine has no GPU
    ],
)
def test_bad_input_is_one_line(args):
    import torch

    if not args and torch.cuda.is_available():
        pytest.skip("there is a GPU to plan for")
    done = plan(*args)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("elite112m: "), done.stderr
