"""What an outage of the tracking service costs: nano pretrainings with a dead service and without, taking turns.

    python benchmarks/tracking.py                        # a service that takes connections and never answers
    python benchmarks/tracking.py --service refuse       # one that is not there
    python benchmarks/tracking.py --steps 720 --rounds 5 # the whole of nano's pretraining

Each pretraining is the real command on its own copy of one prepared run. Printed are the stage's seconds by its own
record (without the start of its Jupyter kernel) and, of each round, tracked / untracked. The bar is a median of at
most 1.01. Every third pretraining is untracked as well: the ratio of two untracked ones shows the noise of the machine.
On a shared machine that is more than the bar, so Linux is asked too: for how many seconds training was ready to run
while something else had its processor. That is what another process on this machine can take from it.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

COMMAND = [sys.executable, "-c", "from elite112m.workbook.cli import main; main()"]


def dead_service(kind):
    "The address of a service that is of no use, and what it has heard."
    server, heard = socket.create_server(("127.0.0.1", 0)), []
    port = server.getsockname()[1]
    if kind == "refuse":
        server.close()
    else:

        def take():
            while True:
                heard.append(server.accept()[0])  # kept, and never answered

        threading.Thread(target=take, daemon=True).start()
    return f"http://127.0.0.1:{port}", heard


def waited(pid):
    "Seconds that a process's threads were ready and had no processor, from Linux's schedstat (run, waited, turns)."
    return sum(int(f.read_text().split()[1]) for f in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def pretrain(prepared, folder, env, *options):
    "Seconds of one pretraining, and how many of them it waited for a processor."
    shutil.copytree(prepared, folder)
    log = tempfile.TemporaryFile("w+")
    p, wait = (
        subprocess.Popen(
            [*COMMAND, "pretrain", "--run", str(folder), *options], env=env, stdout=subprocess.DEVNULL, stderr=log
        ),
        0.0,
    )
    while p.poll() is None:
        with contextlib.suppress(OSError, psutil.Error):
            for kernel in psutil.Process(p.pid).children():
                if "ipykernel_launcher" in kernel.cmdline():
                    wait = max(wait, waited(kernel.pid))
        time.sleep(0.5)
    if p.returncode:
        log.seek(0)
        sys.exit(log.read())
    return json.loads((folder / "pretrain/stage.json").read_text())["seconds"], wait


def ended(folder):
    "Wait for the end of a follower, so that it is not part of the next measurement; what it says."
    state = folder / "pretrain/tracking.json"
    if not state.exists():
        sys.exit("the pretraining was not tracked at all")
    while json.loads(state.read_text())["state"] not in ("offline", "sent"):
        time.sleep(1)
    time.sleep(35)  # its DRAIN_TIMEOUT
    return json.loads(state.read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service", choices=["hang", "refuse"], default="hang")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="as for elite112m run"
    )
    a = parser.parse_args()
    url, heard = dead_service(a.service)
    plain = {k: v for k, v in os.environ.items() if k not in ("ELITE112M_TRACK", "WANDB_MODE")}
    env = plain | {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40}
    with tempfile.TemporaryDirectory() as tmp:
        prepared, ratios, noise, waits = Path(tmp) / "prepared", [], [], []
        sets = [x for s in [f"pretrain.steps={a.steps}", *a.set] for x in ("--set", s)]
        done = subprocess.run(
            [*COMMAND, "prepare", "--run", str(prepared), "--preset", "nano", *sets],
            env=plain,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(done.stderr)
        for r in range(a.rounds):
            before, w0 = pretrain(prepared, Path(tmp) / f"{r}a", plain)
            tracked, w1 = pretrain(prepared, Path(tmp) / f"{r}b", env, "--track", "wandb:bench")
            how = ended(Path(tmp) / f"{r}b")
            after, w2 = pretrain(prepared, Path(tmp) / f"{r}c", plain)
            ratios.append(tracked / ((before + after) / 2))
            noise.append(after / before)
            waits.append((w1 - (w0 + w2) / 2) / tracked)
            state = f"{how['state']}: {how['why'][:60]}"
            print(
                f"untracked {before:6.1f} s   tracked {tracked:6.1f} s ({state})   untracked {after:6.1f} s   ", end=""
            )
            print(f"ratio {ratios[-1]:.4f}   waited {w0:.2f}, {w1:.2f}, {w2:.2f} s", flush=True)
        if a.service == "hang" and not heard:
            sys.exit("nothing came to the service: its silence cost nothing because nobody asked")
        print(f"tracked / untracked, median of {a.rounds}: {statistics.median(ratios):.4f}; ", end="")
        print(f"untracked / untracked: {min(noise):.4f} to {max(noise):.4f}")
        print("waited for a processor because of the uploader, all threads together, ", end="")
        print(f"median share of the time: {statistics.median(waits):.2%}")
