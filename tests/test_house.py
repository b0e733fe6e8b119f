"Notebooks and package agree, imports run one way, names are unique, code is readable, links resolve."

import ast
import configparser
import filecmp
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from conftest import ROOT, sh

KEPT = {"__init__.py", "all.py"}  # of the package's own folder, written by hand: they only name things
CHAPTERS = sorted(d.name for d in (ROOT / "nbs").glob("[0-9][0-9]_*"))
MODULES = sorted(f.relative_to(ROOT / "elite112m") for f in ROOT.glob("elite112m/*/*.py"))
NOTEBOOKS = sorted(ROOT.glob("nbs/**/*.ipynb"))


def copy_of_house(tmp):
    for name in ("nbs", "elite112m"):
        shutil.copytree(ROOT / name, tmp / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("pyproject.toml", "settings.ini", "setup.py", "README.md"):
        shutil.copy(ROOT / name, tmp / name)


def test_notebooks_are_clean(tmp_path):
    copy_of_house(tmp_path)
    done = sh("nbdev-clean", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    dirty = [
        f.name
        for f in sorted(tmp_path.glob("nbs/**/*.ipynb"))
        if not filecmp.cmp(f, ROOT / f.relative_to(tmp_path), shallow=False)
    ]
    assert not dirty, f"run nbdev-clean: {dirty}"


def test_package_is_what_the_notebooks_export(tmp_path):
    copy_of_house(tmp_path)
    for f in (tmp_path / "elite112m").rglob("*.py"):
        if f.parent.name != "elite112m" or f.name not in KEPT:
            f.unlink()
    done = sh("nbdev-export", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ours, made = (
        {f.relative_to(d) for f in (d / "elite112m").rglob("*.py") if "__pycache__" not in f.parts}
        for d in (ROOT, tmp_path)
    )
    assert ours == made, f"modules without a notebook, or the other way round: {ours ^ made}"
    stale = [str(n) for n in sorted(made) if not filecmp.cmp(tmp_path / n, ROOT / n, shallow=False)]
    assert not stale, f"run nbdev-export: {stale}"


def test_version_is_the_same_everywhere():
    import elite112m

    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini")
    assert elite112m.__version__ == settings["DEFAULT"]["version"]


# The layout


def cells(path, kind):
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def test_a_notebook_its_module_and_its_title_have_one_name():
    assert len(CHAPTERS) == 10 and all(c[:2] == f"{i:02}" for i, c in enumerate(CHAPTERS, 1))
    wrong = []
    for f in NOTEBOOKS:
        if f.name == "index.ipynb":
            continue
        chapter, name = f.parent.name, re.fullmatch(r"\d\d_([a-z0-9_]+)", f.stem)
        target = next(iter(re.findall(r"#\| default_exp (\S+)", "\n".join(cells(f, "code")))), None)
        if not name or (chapter != "studies" and target != f"{chapter[3:]}.{name[1]}"):
            wrong.append(f"{f.relative_to(ROOT)} exports {target}")
    assert not wrong


def imports(module):
    "The modules of the package that a module imports, also within its functions: `chapter.module`."
    chapter, found = module.parts[0], set()
    for n in ast.walk(ast.parse((ROOT / "elite112m" / module).read_text())):
        if isinstance(n, ast.Import):
            found |= {a.name.removeprefix("elite112m.") for a in n.names if a.name.startswith("elite112m.")}
        if not isinstance(n, ast.ImportFrom):
            continue
        full = {0: n.module or "", 1: f"elite112m.{chapter}.{n.module or ''}", 2: f"elite112m.{n.module or ''}"}[
            n.level
        ]
        if full.split(".")[0] != "elite112m":
            continue
        parts = [p for p in full.split(".")[1:] if p]
        found |= {".".join(parts)} if len(parts) > 1 else {".".join([*parts, a.name]) for a in n.names}
    return found


def test_imports_run_one_way():
    order = [c[3:] for c in CHAPTERS]
    against, arrows = [], defaultdict(set)
    for m in MODULES:
        name = ".".join(m.with_suffix("").parts)
        for target in imports(m) - {name}:
            arrows[name].add(target)
            if order.index(target.split(".")[0]) > order.index(m.parts[0]):
                against.append(f"{name} imports {target}")
    assert not against

    def circle(name, path):
        for t in arrows[name]:
            if t in path:
                return [*path[path.index(t) :], t]
            if found := circle(t, [*path, t]):
                return found

    assert not any(filter(None, (circle(name, [name]) for name in list(arrows))))


def test_public_names_are_unique():
    "One name means one thing, wherever it is imported from."
    where = defaultdict(list)
    for m in MODULES:
        tree = ast.parse((ROOT / "elite112m" / m).read_text())
        for n in tree.body:
            if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__":
                for name in ast.literal_eval(n.value):
                    where[name].append(str(m))
    assert len(where) > 500 and not {k: v for k, v in where.items() if len(v) > 1}


# Code that can be read


@pytest.mark.parametrize("what", ["elite112m", "nbs", "tests", "benchmarks", "docs"])
def test_code_is_readable(what):
    "Nothing undefined or unused, no line over 120 characters, one statement a line, imports in order."
    own = ["--config", "extend-exclude=[]", "--select", "F,E501,E701,E702"] if what == "elite112m" else []
    done = sh("ruff", "check", "--no-cache", "--exclude", "_modidx.py", *own, "--output-format", "json", what, cwd=ROOT)
    found = [f for f in json.loads(done.stdout) if not by_nbdev(f)]
    assert not found, [(f["filename"], f["cell"], f["location"]["row"], f["message"]) for f in found]


def by_nbdev(found):
    "Whether a finding is about the first line of an `__all__`, which nbdev wraps without counting the words before it."
    if found["code"] != "E501" or found["filename"].endswith(".ipynb"):
        return False
    line = Path(found["filename"]).read_text().splitlines()[found["location"]["row"] - 1]
    return line.startswith("__all__ = ")


def test_code_is_formatted():
    done = sh("ruff", "format", "--no-cache", "--check", "nbs", "tests", "benchmarks", cwd=ROOT)
    assert done.returncode == 0, f"run ruff format: {done.stdout}"


def test_rooms_have_a_readable_size():
    files = {str(m): len((ROOT / "elite112m" / m).read_text().splitlines()) for m in MODULES}
    assert not {m: n for m, n in files.items() if n > 600}


def test_methods_are_where_a_reader_finds_them():
    "A method is written in its class, or with fastcore's `@patch`; never attached by assignment."
    attached = [
        f"{m}:{n.lineno}"
        for m in MODULES
        for n in ast.parse((ROOT / "elite112m" / m).read_text()).body
        if isinstance(n, ast.Assign)
        for t in ast.walk(n.targets[0])
        if isinstance(t, ast.Attribute) and isinstance(t.value, ast.Name) and t.value.id[:1].isupper()
    ]
    assert not attached


# Finding one's way


def links(text):
    "Targets of Markdown links and of HTML images that are paths, without their anchors."
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S))
    found += re.findall(r'<img[^>]*src="([^"]+)"', text)
    return [t.partition("#")[0] for t in found if not re.match(r"[a-z]+:|#", t)]


def test_links_resolve():
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("nbs/**/*.md")]
    texts = {p: p.read_text() for p in pages} | {f: "\n".join(cells(f, "markdown")) for f in NOTEBOOKS}
    broken = [
        f"{p.relative_to(ROOT)}: {t}" for p, text in texts.items() for t in links(text) if not (p.parent / t).exists()
    ]
    assert sum(len(links(t)) for t in texts.values()) > 100 and not broken


def test_every_chapter_opens_with_a_page_that_shows_its_rooms():
    for folder in [ROOT / "nbs" / c for c in CHAPTERS] + [ROOT / "nbs/studies"]:
        shown = links("\n".join(cells(folder / "index.ipynb", "markdown")))
        missing = {f.name for f in folder.glob("[0-9]*.ipynb")} - set(shown)
        assert not missing, f"{folder.name}/index.ipynb does not show {missing}"
    shown = links("\n".join(cells(ROOT / "nbs/index.ipynb", "markdown")))
    assert not {f"{c}/index.ipynb" for c in CHAPTERS} - set(shown)


def test_no_page_speaks_of_the_old_rooms():
    "Notebooks were numbered with letters once; nothing refers to those names any more."
    old = re.compile(r"\b(0\d|1[0-5])[a-z]{1,2}_[a-z]+")
    tracked = sh_git("ls-files").split()
    texts = {f: (ROOT / f).read_text(errors="replace") for f in tracked if f.endswith((".md", ".py", ".ipynb", "file"))}
    assert not {f: m.group() for f, t in texts.items() if (m := old.search(t))}


def sh_git(*args):
    return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout


# What people type


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path("/"))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light():
    out = python(
        "import sys, elite112m; print(sorted({'torch', 'transformers', 'numpy', 'datasets'} & {*sys.modules}))"
    )
    assert out == "[]\n"


def test_the_names_of_the_front_door():
    "Each is offered by name, documented, completed with the tab key, and the same as in its module."
    code = """
import elite112m as e, inspect
from pkgutil import resolve_name
assert set(e.__all__) == set(e.NAMES) <= set(dir(e))
for name, module in e.NAMES.items():
    thing = getattr(e, name)
    assert thing is getattr(resolve_name(module), name), name
    assert inspect.getdoc(thing), name
from elite112m.all import *
assert preset is e.preset and suite is e.suite and Trainer is e.Trainer
print(len(e.__all__))
"""
    assert int(python(code)) >= 25
