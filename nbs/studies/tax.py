"""What further trainings change in a finished model: the script behind 17_tax.

    python nbs/studies/tax.py RUN TEXTS FOLDER OUT.json [SEED ...]

RUN is a finished run of nano, TEXTS are conversations of another kind (here 500 of Alpaca's), FOLDER is for the
trainings; what is there already is not done again. Each method is a few commands of elite112m; the table of all
categories comes from a paired comparison with RUN.
"""

import json
import subprocess
import sys
from pathlib import Path

from elite112m.core.runs import Run
from elite112m.evaluation.compare import compared

PREFER = {"prefer.epochs": 3, "prefer.lr": 5e-5}
TEXTS = {"sft.examples": 500, "sft.epochs": 1, "sft.optimizer": "adamw", "sft.eval_every": 10}
DISTILL = {"distill.level": "sequence", "distill.examples": 200, "distill.steps": 20, "distill.optimizer": "adamw"}
DISTILL |= {"distill.lr": 1e-4, "distill.warmup_steps": 2, "distill.eval_every": 10}


def elite112m(*words):
    subprocess.run(["elite112m", *map(str, words), "--threads", "1"], check=True)


def given(settings):
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def finished(out, stage):
    return Run(out).status(stage) == "done"


def reinforced(run, texts, out, seed):
    if not finished(out, "reinforce"):
        settings = {"reinforce.seed": seed, "pretrain.precision": "fp32"}
        elite112m("reinforce", "--run", out, "--preset", "nano", "--from", run, *given(settings))
    return "reinforce"


def preferred(run, texts, out, seed):
    pairs = out.with_suffix(".jsonl")
    if not finished(out, "prefer"):
        if not pairs.exists():
            elite112m("pairs", "--model", run, "--out", pairs, "--items", 400, "--seed", seed)
        settings = PREFER | {"prefer.seed": seed, "pretrain.precision": "fp32"}
        elite112m("prefer", "--run", out, "--preset", "nano", "--from", run, "--pairs", pairs, *given(settings))
    return "prefer"


def tuned(run, texts, out, seed, rate=1e-4, *more):
    "Fine-tuning on the other texts, of all weights unless `more` says otherwise."
    if not finished(out, "sft"):
        settings = TEXTS | {"sft.lr": rate, "sft.seed": seed, "pretrain.precision": "fp32"}
        words = "sft", "--run", out, "--preset", "nano", "--from", run, "--sft-data", texts
        elite112m(*words, *more, *given(settings))
    return "sft"


def adapted(run, texts, out, seed):
    return tuned(run, texts, out, seed, 1e-3, "--adapter", "lora")


def distilled(run, texts, out, seed):
    if not finished(out, "distill"):
        settings = DISTILL | {"distill.init": run, "distill.seed": seed, "pretrain.precision": "fp32"}
        elite112m("distill", "--run", out, "--preset", "nano", *given(settings))
    return "distill"


METHODS = {"reinforce": reinforced, "prefer": preferred, "full": tuned, "adapter": adapted, "distill": distilled}


def evaluated(model, out):
    if not (out / "results.json").exists():
        elite112m("evaluate", "--model", model, "--out", out, "--tasks", "suite,casual")
    return json.loads((out / "results.json").read_text())


def few(d):
    "The figures of a paired difference that are kept."
    return {"before": d["a"]["rate"], "after": d["b"]["rate"]} | {k: d[k] for k in ("difference", "lo", "hi", "p")}


def taxed(run, texts, folder, seed, method):
    "One training: what changed, in how long, with how much memory."
    out = folder / f"{method}-{seed}"
    stage = METHODS[method](run, texts, out, seed)
    before, after = folder / "before-eval", out.with_name(f"{out.name}-eval")
    casual = [evaluated(m, f)["tasks"]["casual"]["sensible"] for m, f in ((run, before), (out / stage, after))]
    found, record = compared(before, after), Run(out).record(stage)
    return {
        "method": method,
        "seed": seed,
        "seconds": record["seconds"],
        "peak_memory_gb": record["peak_memory_gb"],
        "machine": record["machine"],
        "all": few(found["all"]),
        "wordings": {w: few(d) for w, d in found["wordings"].items()},
        "categories": {c: few(d) for c, d in found["categories"].items()},
        "casual_prompts": casual,
    }


if __name__ == "__main__":
    run, texts, folder, out, *seeds = sys.argv[1:]
    places = Path(run), Path(texts), Path(folder)
    rows = [taxed(*places, int(seed), method) for method in METHODS for seed in seeds or (1, 2, 3)]
    Path(out).write_text(json.dumps(rows, indent=1) + "\n")
