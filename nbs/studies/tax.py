"""What rewards and preferences change in a finished model: the script behind 17_tax.

    python nbs/studies/tax.py RUN FOLDER OUT.json [SEED ...]

RUN is a finished run, FOLDER is for the trainings; what is there already is not done again. Each method is a few
commands of elite112m; the table of all categories comes from a paired comparison with RUN.
"""

import json
import subprocess
import sys
from pathlib import Path

from elite112m.core.runs import Run
from elite112m.evaluation.compare import compared

REINFORCE = {"reinforce.steps": 60, "reinforce.eval_every": 20}
PREFER = {"prefer.epochs": 3, "prefer.lr": 5e-5}


def elite112m(*words):
    subprocess.run(["elite112m", *map(str, words), "--threads", "1"], check=True)


def given(settings):
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def reinforced(run, folder, seed):
    out = folder / f"rl-{seed}"
    if Run(out).status("reinforce") != "done":
        settings = REINFORCE | {"reinforce.seed": seed, "pretrain.precision": "fp32"}
        elite112m("reinforce", "--run", out, "--preset", "nano", "--from", run, *given(settings))
    return out, "reinforce"


def preferred(run, folder, seed):
    out, pairs = folder / f"dpo-{seed}", folder / f"pairs-{seed}.jsonl"
    if Run(out).status("prefer") != "done":
        if not pairs.exists():
            elite112m("pairs", "--model", run, "--out", pairs, "--items", 400, "--seed", seed)
        settings = PREFER | {"prefer.seed": seed, "pretrain.precision": "fp32"}
        elite112m("prefer", "--run", out, "--preset", "nano", "--from", run, "--pairs", pairs, *given(settings))
    return out, "prefer"


def evaluated(model, out):
    if not (out / "results.json").exists():
        elite112m("evaluate", "--model", model, "--out", out, "--tasks", "suite,casual")
    return json.loads((out / "results.json").read_text())


def few(d):
    "The figures of a paired difference that are kept."
    return {"before": d["a"]["rate"], "after": d["b"]["rate"]} | {k: d[k] for k in ("difference", "lo", "hi", "p")}


def taxed(run, folder, seed, method):
    "One training: what changed, in how long, with how much memory."
    out, stage = method(run, folder, seed)
    before, after = folder / "before-eval", out.with_name(f"{out.name}-eval")
    casual = [evaluated(m, f)["tasks"]["casual"]["sensible"] for m, f in ((run, before), (out / stage, after))]
    found, record = compared(before, after), Run(out).record(stage)
    return {
        "method": stage,
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
    run, folder, out, *seeds = sys.argv[1:]
    rows = [
        taxed(Path(run), Path(folder), int(seed), method)
        for method in (reinforced, preferred)
        for seed in seeds or (1, 2, 3)
    ]
    Path(out).write_text(json.dumps(rows, indent=1) + "\n")
