"Tracking with the real wandb: failing services cost training nothing; afterwards every row is there once."

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
from conftest import ENV, ROOT, here

# A loop writes rows from `first` to `last` by tens. At step `dies` it waits for the file `go`, and is killed.
LOOP = """
import os, signal, sys, time
from pathlib import Path
from elite112m.training.tracking import follow
from elite112m.training.metrics import Metrics
folder, first, last, dies, go, patience = Path(sys.argv[1]), *map(int, sys.argv[2:5]), sys.argv[5], float(sys.argv[6])
born, metrics = time.time(), Metrics(folder/"metrics.jsonl", first)
with follow(folder, patience, nice=0):  # the machine is busy with other checks
    for s in range(first + 10, last + 1, 10):
        metrics.log(s, loss=9 - s/20, tok_s=time.time())
        if s % 20 == 0: metrics.log(s, val_loss=9 - s/25)
        if s == dies:
            while not Path(go).exists() and time.time() < born + 400: time.sleep(.05)
            os.kill(os.getpid(), signal.SIGKILL)
    metrics.close()
"""


class Service(ThreadingHTTPServer):
    "As much of Weights & Biases as its client needs; `mode` is ok, hang, or the HTTP status that everything gets."

    daemon_threads = True

    def __init__(self, mode="ok"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode, self.runs, self.heard, self.over = mode, {}, [], threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, address):
        pass  # a client that was killed

    def rows(self, run):
        return [json.loads(line) for line in self.runs[run]]

    def answer(self, q):
        v = q["variables"] if q.get("variables") else {}
        lines = self.runs.get(v.get("name"))
        project = {"id": "p", "name": v.get("project"), "entity": {"id": "e", "name": "me"}}
        run = {
            "id": "r",
            "name": v.get("name"),
            "config": "{}",
            "summaryMetrics": "{}",
            "logLineCount": 0,
            "eventsLineCount": 0,
            "historyLineCount": len(lines or []),
            "historyTail": json.dumps((lines or [])[-1:]),
            "eventsTail": "[]",
            "wandbConfig": '{"t": {"1": []}}',
            "project": project,
        }
        if q["operationName"] == "RunResumeStatus":
            return {"model": project | {"bucket": run if lines is not None else None}}
        if q["operationName"] == "UpsertBucket":
            self.runs.setdefault(v["name"], [])
            return {"upsertBucket": {"bucket": run, "inserted": lines is None}}
        return {
            "createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []},
            "viewer": {"id": "u", "entity": "me", "flags": "{}", "teams": {"edges": []}},
        }


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *a):
        pass

    def do_POST(self):
        body, service = self.rfile.read(int(self.headers["Content-Length"])), self.server
        service.heard.append(body.decode())
        status, found = 200, {}
        if service.mode == "hang":
            service.over.wait()
        elif service.mode != "ok":
            status, found = service.mode, {"errors": [{"message": "no"}]}
        elif "file_stream" in self.path:
            history = json.loads(body).get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
            at, lines = history["offset"], service.runs[self.path.split("/")[-2]]
            lines[at : at + len(history["content"])] = history["content"]
        else:
            found = {"data": service.answer(json.loads(body))}
        text = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def env(service=None, **more):
    url = f"http://127.0.0.1:{service.server_port}" if service else "http://127.0.0.1:9"
    kept = {k: v for k, v in ENV.items() if not k.startswith("WANDB_")}
    return (
        kept
        | {
            "ELITE112M_TRACK": "wandb:notes",
            "WANDB_BASE_URL": url,
            "WANDB_API_KEY": "0" * 40,
            "NETRC": os.devnull,
            "PYTHONPATH": str(ROOT),
        }
        | more
    )


def stage(tmp_path, name="mine"):
    "A run folder whose pretraining has begun, with something private in its settings."
    from elite112m.core.files import write_json
    from elite112m.core.presets import preset
    from elite112m.core.runs import Run, save_preset

    run = Run(tmp_path / name)
    folder = run.folder("pretrain")
    folder.mkdir(parents=True)
    save_preset(run, preset("nano"))
    write_json(
        folder / "stage.json",
        {"settings": {"pretrain.lr": 0.02, "data.sources": [str(tmp_path / "secret" / "diary.txt")]}},
    )
    return folder


def loop(folder, first, last, dies=0, go="-", patience=40, **kw):
    return subprocess.Popen(
        [sys.executable, "-c", LOOP, *map(str, (folder, first, last, dies, go, patience))],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        **kw,
    )


def state(folder):
    return json.loads((folder / "tracking.json").read_text())


def until(true, seconds=180):
    "Wait for something that has to happen."
    end = time.time() + seconds
    while not true():
        assert time.time() < end, "it did not happen"
        time.sleep(0.1)


def followers(folder):
    "The processes of this folder's follower, those of wandb below it, and what earlier followers have left behind."
    found = []
    for p in psutil.process_iter():
        try:
            line = p.cmdline()
            if "from elite112m.training.tracking import upload_main; upload_main()" in line and str(folder) in line:
                found += [p, *p.children(recursive=True)]
            elif (
                line[:1]
                and "wandb-core" in line[0]
                and p.cwd() == str(ROOT)
                and not psutil.pid_exists(int(line[line.index("--pid") + 1]))
            ):
                found.append(p)
        except psutil.Error:
            pass
    return found


def expected(last):
    return [v for s in range(10, last + 1, 10) for v in [(s, 9 - s / 20)] + [(s, 9 - s / 25)] * (s % 20 == 0)]


def sent(rows):
    return [(r["step"], r.get("loss", r.get("val_loss"))) for r in rows]


def sync(folder, *args, **kw):
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from elite112m.workbook.cli import main; main()",
            "track",
            "sync",
            str(folder.parent),
            *args,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        **kw,
    )


@contextmanager
def services(**modes):
    made = {name: Service(mode) for name, mode in modes.items()}
    try:
        yield made
    finally:
        for s in made.values():
            s.over.set()
            s.shutdown()
            s.server_close()


def test_outages_cost_training_nothing_and_sync_makes_good(tmp_path):
    with services(hanging="hang", failing=500, denying=401, well="ok") as at:
        well = at.pop("well")
        envs = {name: env(s) for name, s in at.items()} | {
            "down": env(),
            "no key": env(well, WANDB_API_KEY=""),
            "missing": env(well),
        }
        (tmp_path / "shadow/wandb").mkdir(parents=True)
        (tmp_path / "shadow/wandb/__init__.py").write_text("raise ModuleNotFoundError('not installed', name='wandb')")
        envs["missing"]["PYTHONPATH"] += os.pathsep + str(tmp_path / "shadow")
        folders = {name: stage(tmp_path, name) for name in envs}
        loops = {
            name: loop(folders[name], 0, 100, env=envs[name], patience=8 if name == "hanging" else 40) for name in envs
        }
        for name, p in loops.items():  # the hanging service has let nobody go yet
            err = p.communicate(timeout=300)[1]
            assert p.returncode == 0 and "Error" not in err, (name, err)
            assert sent(map(json.loads, open(folders[name] / "metrics.jsonl"))) == expected(100), name
        until(lambda: not any(followers(f) for f in folders.values()))
        says = {name: (folders[name] / "tracking.log").read_text() for name in folders}
        for name, text in says.items():
            assert text.count("\n") == 1 and "offline" in text, says
        assert (
            "500" in says["failing"]
            and "refuses the API key" in says["denying"]
            and "connection refused" in says["down"]
        ), says
        assert "WANDB_API_KEY" in says["no key"] and "elite112m[track]" in says["missing"], says
        assert not well.runs
        done = sync(folders["no key"], env=envs["no key"])  # the same from the command line
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "WANDB_API_KEY" in done.stderr, done.stderr
        done = sync(folders["hanging"], env=env(well))  # and when all is well again
        assert done.returncode == 0 and "15 rows sent" in done.stdout, done.stderr
        assert sent(well.rows(state(folders["hanging"])["run"])) == expected(100)
        assert not any(followers(f) for f in folders.values())


def test_a_service_that_comes_back_gets_everything_while_training_goes_on(tmp_path):
    folder, go = stage(tmp_path), tmp_path / "go"
    with services(shaky=500) as at:
        p = loop(folder, 0, 200, dies=100, go=go, env=env(at["shaky"]), patience=15)
        until(lambda: (folder / "tracking.log").exists() and "offline" in (folder / "tracking.log").read_text())
        at["shaky"].mode = "ok"
        until(lambda: state(folder)["rows"] == 15)  # tries again by itself, after a pause
        go.touch()
        assert p.wait(120) == -signal.SIGKILL
        until(lambda: not followers(folder))  # its stage was killed; what was written is brought home all the same
        assert sent(at["shaky"].rows(state(folder)["run"])) == expected(100)


def test_killed_and_resumed_every_row_arrives_once(tmp_path):
    folder, go = stage(tmp_path), tmp_path / "go"
    with services(well="ok") as at:
        well = at["well"]
        assert loop(folder, 0, 60, env=env(well)).wait(180) == 0
        until(lambda: state(folder)["state"] == "sent")
        run = state(folder)["run"]
        assert sent(well.rows(run)) == expected(60)
        p = loop(
            folder, 40, 200, dies=100, go=go, env=env(well)
        )  # resumed at 40, has sent some of it, and dies with its follower
        until(lambda: state(folder)["state"] == "sending" and state(folder)["rows"] == 15)
        followers(folder)[0].kill()
        go.touch()
        assert p.wait(120) == -signal.SIGKILL
        until(lambda: not followers(folder))  # what wandb had below it has gone by itself
        assert loop(folder, 80, 120, env=env(well)).wait(180) == 0
        until(lambda: state(folder)["state"] == "sent")
        rows = well.rows(run)
        assert state(folder)["run"] == run and list(well.runs) == [run]
        assert sent(rows) == expected(120) and [r["_step"] for r in rows] == list(range(18))
        done = sync(folder, env=env(well))
        assert done.returncode == 0 and "0 rows sent, 18 there" in done.stdout and len(well.rows(run)) == 18, (
            done.stderr
        )
        said = "\n".join(well.heard)
        assert "diary.txt" in said and "secret" not in said and str(ROOT) not in said and str(tmp_path) not in said
        assert len(well.heard) > 4 and "requirements" not in said and "output.log" not in said

        shutil.rmtree(folder)  # as --force does
        stage(tmp_path, "other")
        shutil.copytree(tmp_path / "other/pretrain", folder)
        assert loop(folder, 0, 20, env=env(well)).wait(180) == 0
        until(lambda: state(folder)["state"] == "sent")
        assert (
            state(folder)["run"] != run
            and sent(well.rows(state(folder)["run"])) == expected(20)
            and len(well.rows(run)) == 18
        )


def test_offline_files_hold_every_row_once_and_stay_in_the_run(tmp_path):
    folder, go, elsewhere = stage(tmp_path), tmp_path / "go", tmp_path / "elsewhere"
    elsewhere.mkdir()
    off = dict(env=env(WANDB_MODE="offline"), cwd=elsewhere)
    p = loop(folder, 0, 200, dies=60, go=go, **off)
    until(lambda: (folder / "tracking.json").exists() and state(folder)["rows"] == 9)
    for q in followers(folder):
        q.kill()
    go.touch()
    assert p.wait(120) == -signal.SIGKILL
    assert loop(folder, 40, 100, **off).wait(180) == 0
    until(lambda: state(folder)["state"] == "sent")
    files = list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 1 and not list(elsewhere.iterdir())
    with services(well="ok") as at:  # wandb's own reader
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", str(files[0].parent)],
            env=env(at["well"]),
            cwd=elsewhere,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        assert sent(at["well"].rows(state(folder)["run"])) == expected(100), done.stderr


def test_a_redone_stage_is_left_alone_by_the_follower_of_the_old_one(tmp_path):
    folder = stage(tmp_path)
    with services(hanging="hang") as at:
        assert loop(folder, 0, 20, env=env(at["hanging"]), patience=8).wait(180) == 0
        until(lambda: at["hanging"].heard)
        assert followers(folder)
        shutil.rmtree(folder, ignore_errors=True)
        until(lambda: not followers(folder))
    assert not (folder / "tracking.json").exists()


@pytest.mark.parametrize(
    "args, said",
    [
        (["track", "sync", "nowhere"], "no run.json"),
        (["track", "sync", "empty"], "no metrics yet"),
        (["track", "status", "empty"], "no metrics yet"),
        (["track", "sync", "mine"], "nobody has said where"),
        (["track", "sync", "mine", "--to", "wandbb"], "did you mean 'wandb'"),
        (["run", "nano", "--track", "paper"], "unknown tracker"),
    ],
)
def test_bad_wishes_are_one_line(tmp_path, args, said):
    (stage(tmp_path) / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (tmp_path / "empty").mkdir()
    shutil.copy(tmp_path / "mine/run.json", tmp_path / "empty/run.json")
    before = sorted(tmp_path.rglob("*"))
    done = here("elite112m", *args, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
    assert sorted(tmp_path.rglob("*")) == before
