"The notebooks are the source: cleaning them changes nothing, and exporting them gives exactly the package."
import filecmp
import shutil

from conftest import ROOT, sh

KEPT = {"__init__.py"}


def copy_of_house(tmp):
    for name in ("nbs", "elite112m"): shutil.copytree(ROOT / name, tmp / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("pyproject.toml", "settings.ini", "setup.py", "README.md"): shutil.copy(ROOT / name, tmp / name)


def test_notebooks_are_clean(tmp_path):
    copy_of_house(tmp_path)
    done = sh("nbdev-clean", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    dirty = [f.name for f in sorted(tmp_path.glob("nbs/**/*.ipynb")) if not filecmp.cmp(f, ROOT / f.relative_to(tmp_path), shallow=False)]
    assert not dirty, f"run nbdev-clean: {dirty}"


def test_package_is_what_the_notebooks_export(tmp_path):
    copy_of_house(tmp_path)
    for f in (tmp_path / "elite112m").glob("*.py"):
        if f.name not in KEPT: f.unlink()
    done = sh("nbdev-export", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ours, made = ({f.name for f in (d / "elite112m").glob("*.py")} for d in (ROOT, tmp_path))
    assert ours == made, f"modules without a notebook, or the other way round: {ours ^ made}"
    stale = [n for n in sorted(made) if not filecmp.cmp(tmp_path / "elite112m" / n, ROOT / "elite112m" / n, shallow=False)]
    assert not stale, f"run nbdev-export: {stale}"


def test_version_is_the_same_everywhere():
    import configparser
    import elite112m
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini")
    assert elite112m.__version__ == settings["DEFAULT"]["version"]


def test_modules_stay_small():
    long = {f.name: n for f in (ROOT / "elite112m").glob("*.py") if f.name != "_modidx.py" and (n := len(f.read_text().splitlines())) > 300}
    assert not long


def test_modules_stand_on_their_own():
    "A name that only the notebook's hidden cells import would break the package, not the notebook."
    done = sh("ruff", "check", "--no-cache", "--select", "F", "--exclude", "_modidx.py", "--output-format", "concise", ROOT / "elite112m")
    assert done.returncode == 0, done.stdout
