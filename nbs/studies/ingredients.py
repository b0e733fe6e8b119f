"""What each ingredient of nano bought: short runs that differ in one thing.

`python nbs/studies/ingredients.py run RUNS ARM SEED` trains and evaluates one of `ARMS` in the folder RUNS/ARM-SEED;
`python nbs/studies/ingredients.py collect RUNS nbs/studies/data/ingredients.json` gathers the finished runs. With
`OMP_NUM_THREADS=1` a run has one thread, so that two of them can run side by side. Before, `lr RUNS RATE` tries a rate
for AdamW on 4,000 conversations; the environment's ADAMW_LR is the one that is taken.
"""

import json
import os
import sys
from pathlib import Path

from elite112m.core.files import write_json
from elite112m.core.runs import Run, run_stage
from elite112m.curriculum import everyday, lessons
from elite112m.data.prepare import prepare
from elite112m.evaluation.evaluate import evaluate, evaluate_model
from elite112m.training.metrics import read_metrics
from elite112m.training.pretrain import pretrain
from elite112m.training.sft import sft

EXAMPLES = int(os.environ.get("EXAMPLES", 9_500))  # conversations of fine-tuning; nano has 38,000
SEEDS = (1, 2)
ADAMW_LR = float(os.environ.get("ADAMW_LR", 3e-3))  # the best of those that `lr` tried; half of it in fine-tuning
ARMS = {
    "base": {},
    "taught-only": {},  # see `only_taught`
    "adamw": {
        **{"pretrain.optimizer": "adamw", "pretrain.lr": ADAMW_LR},
        **{"sft.optimizer": "adamw", "sft.lr": ADAMW_LR / 2},
    },
    "vocabulary-2048": {"model.vocab_size": 2048},
    "vocabulary-8192": {"model.vocab_size": 8192},
    "lessons-0.4": {"data.curriculum": 0.4},
    "mask-computed": {"sft.mask_computed": True},
    "longer": {"sft.examples": 2 * EXAMPLES},
}


def only_taught():
    "Make lessons ask by the sentences of their tables as they stand: no frames, short forms, casual styles or slips."
    whole_grammar, write = lessons.prompt_of, lessons._write

    def asked(core, slots, r, frames="train", styles=(), names=()):
        plain = frames == "train" and not styles
        return whole_grammar(core, slots, r, *(("asked", ("neat",)) if plain else (frames, styles)), names)

    def written(drawn, split, r, wording="taught"):
        if split != "test":
            drawn.cores = [c for c in drawn.cores if c[0] != "short"] or drawn.cores
        return write(drawn, split, r, wording)

    lessons.prompt_of = everyday.prompt_of = asked
    lessons._write = written


def settings_of(arm: str, seed: int) -> dict:
    common = {"pretrain.precision": "bf16", "sft.examples": EXAMPLES}
    return common | {"pretrain.seed": seed, "sft.seed": seed} | ARMS[arm]


def run(folder: Path, arm: str, seed: int):
    "All stages of one run, and the casual prompts."
    if arm == "taught-only":
        only_taught()
    run_stage(prepare, folder, "nano", settings_of(arm, seed))
    for stage in (pretrain, sft, evaluate):
        run_stage(stage, folder, device="cpu")
    evaluate_model(folder, folder / "casual", ("casual",), device="cpu")


def rates(found: dict) -> dict:
    return {name: round(r["rate"], 4) for name, r in found.items()}


def last_loss(folder: Path) -> float:
    "The last validation loss of a training."
    return round([r["val_loss"] for r in read_metrics(folder / "metrics.jsonl") if "val_loss" in r][-1], 4)


def result(folder: Path) -> dict:
    "What one run has learnt, and what it took."
    read = lambda name: json.loads((folder / name).read_text(encoding="utf-8"))
    suite, casual = read("eval/results.json"), read("casual/results.json")["tasks"]["casual"]
    return {
        **{"all": round(suite["all"]["rate"], 4), "wordings": rates(suite["wordings"]), "rows": rates(suite["rows"])},
        **{"lines": rates(suite["lines"]), "categories": rates(suite["categories"])},
        **{"casual": [casual["sensible"]["correct"], casual["sensible"]["total"]], "ended": round(suite["ended"], 4)},
        **{"repeated": round(suite["tasks"]["suite"]["repeated"], 4)},
        "val_loss": {stage: last_loss(folder / stage) for stage in ("pretrain", "sft")},
        "parameters": Run(folder).preset.model.n_params,
        "machine": suite["machine"],
    }


def collect(runs: Path, out: Path):
    "The results of all finished runs."
    tried = {f.name.removeprefix("lr-"): last_loss(f / "sft") for f in sorted(runs.glob("lr-*")) if f.is_dir()}
    found = {"examples": EXAMPLES, "adamw_lr": ADAMW_LR, "adamw_tried": tried, "arms": {}}
    for arm in ARMS:
        folders = {str(s): runs / f"{arm}-{s}" for s in SEEDS}
        done = {s: result(f) for s, f in folders.items() if (f / "casual/results.json").is_file()}
        if done:
            found["machine"] = [r.pop("machine") for r in done.values()][0]
            found["arms"][arm] = {"settings": ARMS[arm], "seeds": done}
    write_json(out, found)


def lr(runs: Path, rate: str):
    "A short AdamW run at one rate, which ends by printing its last validation loss of fine-tuning."
    adamw = settings_of("adamw", 1) | {"pretrain.lr": float(rate), "sft.lr": float(rate) / 2, "sft.examples": 4000}
    folder = runs / f"lr-{rate}"
    run_stage(prepare, folder, "nano", adamw)
    for stage in (pretrain, sft):
        run_stage(stage, folder, device="cpu")
    print(rate, last_loss(folder / "sft"))


if __name__ == "__main__":
    what, place, *more = sys.argv[1:]
    if what == "run":
        run(Path(place) / f"{more[0]}-{more[1]}", more[0], int(more[1]))
    elif what == "lr":
        lr(Path(place), more[0])
    else:
        collect(Path(place), Path(more[0]))
