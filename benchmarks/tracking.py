"""What an outage of the tracking service costs: nano pretrainings with tracking to a dead service and without, taking turns.

    python benchmarks/tracking.py                        # a service that takes connections and never answers
    python benchmarks/tracking.py --service refuse       # one that is not there
    python benchmarks/tracking.py --steps 720 --rounds 5 # the whole of nano's pretraining

Each pretraining is the real command on its own copy of one prepared run. Printed are the stage's seconds by its own record (the kernel's
start left out) and, of each round, tracked / untracked. The bar is a median of at most 1.01. Every third pretraining is untracked
as well: the ratio of two untracked ones shows how far the machine's noise reaches.
"""
import argparse
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

COMMAND = [sys.executable, "-c", "from elite112m.cli import main; main()"]


def dead_service(kind):
    "The address of a service that is of no use, and what it has heard."
    server, heard = socket.create_server(("127.0.0.1", 0)), []
    port = server.getsockname()[1]
    if kind == "refuse": server.close()
    else:
        def take():
            while True: heard.append(server.accept()[0])  # kept, and never answered
        threading.Thread(target=take, daemon=True).start()
    return f"http://127.0.0.1:{port}", heard


def pretrain(prepared, folder, env, *options):
    "Seconds of one pretraining."
    shutil.copytree(prepared, folder)
    done = subprocess.run([*COMMAND, "pretrain", "--run", str(folder), *options], env=env, capture_output=True, text=True)
    if done.returncode: sys.exit(done.stderr)
    return json.loads((folder/"pretrain/stage.json").read_text())["seconds"]


def ended(folder):
    "Wait for the end of a follower, so that it is not part of the next measurement; what it says."
    state = folder/"pretrain/tracking.json"
    if not state.exists(): sys.exit("the pretraining was not tracked at all")
    while json.loads(state.read_text())["state"] not in ("offline", "sent"): time.sleep(1)
    time.sleep(35)  # its LINGER
    return json.loads(state.read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service", choices=["hang", "refuse"], default="hang")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="as for elite112m run")
    a = parser.parse_args()
    url, heard = dead_service(a.service)
    plain = {k: v for k, v in os.environ.items() if k not in ("ELITE112M_TRACK", "WANDB_MODE")}
    env = plain | {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0"*40}
    with tempfile.TemporaryDirectory() as tmp:
        prepared, ratios, noise = Path(tmp)/"prepared", [], []
        sets = [x for s in [f"pretrain.steps={a.steps}", *a.set] for x in ("--set", s)]
        done = subprocess.run([*COMMAND, "prepare", "--run", str(prepared), "--preset", "nano", *sets], env=plain, capture_output=True, text=True)
        if done.returncode: sys.exit(done.stderr)
        for r in range(a.rounds):
            before = pretrain(prepared, Path(tmp)/f"{r}a", plain)
            tracked = pretrain(prepared, Path(tmp)/f"{r}b", env, "--track", "wandb:bench")
            how = ended(Path(tmp)/f"{r}b")
            after = pretrain(prepared, Path(tmp)/f"{r}c", plain)
            ratios.append(tracked/((before + after)/2)); noise.append(after/before)
            print(f"untracked {before:6.1f} s   tracked {tracked:6.1f} s ({how['state']}: {how['why'][:60]})   untracked {after:6.1f} s   ratio {ratios[-1]:.4f}", flush=True)
        if a.service == "hang" and not heard: sys.exit("nothing came to the service: its silence cost nothing because nobody asked")
        print(f"tracked / untracked, median of {a.rounds}: {statistics.median(ratios):.4f}; untracked / untracked: {min(noise):.4f} to {max(noise):.4f}")
