"The self-test's child processes: the command on a tiny budget, a crash, a hang."

import json

from conftest import sh


def test_what_does_not_fit_into_the_time_is_skipped(tmp_path):
    done = sh("elite112m", "selftest", "--device", "cpu", "--minutes", "0.001", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "selftest.json").read_text())
    rows = found["checks"] + found["speeds"]
    assert len(rows) > 25 and all(r["result"] == "skipped" and r["reason"].startswith("time") for r in rows)


def test_a_child_that_dies_or_hangs_fails_one_check_and_the_others_go_on(monkeypatch, tmp_path):
    "The child runs code that replaces two checks: one kills its process, one never ends."
    from elite112m.workbook.selftest import run_apart, run_selftest_checks

    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\n"
        "if 'selftest_child' in ' '.join(__import__('sys').orig_argv):\n"
        "    from elite112m.workbook import selftest\n"
        "    right = selftest.run_check\n"
        "    act = {'documents': lambda: os._exit(7), 'head loss': lambda: time.sleep(600)}\n"
        "    selftest.run_check = lambda c, d: act.get(c.name, lambda: None)() or right(c, d)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{__import__('os').environ.get('PYTHONPATH', '')}")
    rows = run_selftest_checks(
        ["documents", "head loss", "generation"], "cpu", 120, apart=lambda n, d, s: run_apart(n, d, s, limit=5)
    )
    assert [r["result"] for r in rows] == ["failed", "failed", "passed"], rows
    assert "ended with 7" in rows[0]["reason"] and "more than 5 s" in rows[1]["reason"]
