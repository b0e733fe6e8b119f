"""The site: README and the notebooks as they are committed, as static pages that can be searched.

`make docs`, or `python docs/build_site.py build/site`. Nothing is executed and nothing is fetched: outputs are those in
the notebooks, formulas become MathML. Hidden cells and nbdev's directives are left out; each page of a module ends with
a reference of its public names, made from their docstrings and docments.
"""

import inspect
import os
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path

import nbformat
from fastcore.docments import docments
from sphinx.cmd.build import build_main

WIDGET = "application/vnd.jupyter.widget-view+json"
ROOT = Path(__file__).resolve().parents[1]
CONF = """
import sys
from docutils import nodes
from latex2mathml.converter import convert

project, author, copyright, html_title = "elite112m", "The elite112m authors", "The elite112m authors", "elite112m"
extensions, nb_execution_mode = ["myst_nb"], "off"
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors, myst_update_mathjax, nb_merge_streams = 4, False, True
html_theme, html_static_path, html_css_files, html_show_sphinx = "furo", ["_static"], ["site.css"], False
pygments_style, pygments_dark_style = "friendly", "monokai"
html_copy_source = html_show_sourcelink = False
html_math_renderer = "mathml"


def mathml(display):
    def visit(self, node):
        self.body.append(convert(node.astext(), display=display))
        raise nodes.SkipNode
    return visit


def setup(app):
    app.add_html_math_renderer(
        "mathml", inline_renderers=(mathml("inline"), None), block_renderers=(mathml("block"), None)
    )
"""
CSS = """
.content { width: 53em; max-width: 100%; }
.highlight pre { font-size: .8rem; }
math[display="block"] { margin: .8em 0; overflow-x: auto; }
.cell_output img { max-width: 100%; height: auto; }
table { display: block; overflow-x: auto; }
div.cell_output pre { max-height: 30em; overflow: auto; }
"""


def shown(cell):
    "Whether a reader wants to see a cell."
    return not (cell.cell_type == "code" and re.search(r"^#\| *(hide|default_exp)", cell.source, re.M))


def without_directives(source):
    return re.sub(r"^#\| *\w[^\n]*\n?", "", source, flags=re.M).strip("\n")


def type_name(annotation):
    return "" if annotation is inspect.Parameter.empty else getattr(annotation, "__name__", str(annotation))


def escaped(text):
    "A docstring as Markdown: what stands between backquotes is code, everything else is plain."
    parts = text.split("`")
    return "`".join(p if i % 2 else re.sub(r"([<>*_|\[\]$#])", r"\\\1", p) for i, p in enumerate(parts))


def entry(name, thing):
    "The reference of one function or class: signature, docstring, a table of its documented parameters."
    try:
        signature = re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(thing)))
        signature = re.sub(r"<class '([\w.]+)'>", r"\1", signature)
    except (TypeError, ValueError):
        signature = ""
    kind = "class " if inspect.isclass(thing) else ""
    text = f"### {name}\n\n```python\n{kind}{name}{signature}\n```\n\n{escaped(inspect.getdoc(thing) or '')}\n"
    try:
        about = docments(thing, full=True, returns=False)
    except Exception:  # a class without an __init__ of its own
        return text
    rows = [(n, a) for n, a in about.items() if n != "self" and a.get("docment")]
    if not rows:
        return text
    table = "\n| parameter | type | default | what it is |\n|---|---|---|---|\n"
    for n, a in rows:
        default = "" if a.default is inspect.Parameter.empty else f"`{a.default!r}`"[:60]
        table += f"| `{n}` | {type_name(a.anno)} | {default} | {escaped(' '.join(a.docment.split()))} |\n".replace(
            " | None |", " | |"
        )
    return text + table


def reference(module):
    "The public functions and classes of a module, as Markdown."
    m = import_module(f"elite112m.{module}")
    things = [(n, getattr(m, n)) for n in m.__all__]
    entries = [entry(n, t) for n, t in things if inspect.isclass(t) or inspect.isfunction(t)]
    return "## Reference\n\n" + "\n".join(entries) if entries else ""


def toctree(names, caption=None):
    head = f":caption: {caption}\n" if caption else ""
    return "```{toctree}\n:hidden:\n" + head + "\n" + "\n".join(names) + "\n```"


def page(path):
    "A notebook as the site shows it."
    nb = nbformat.read(path, as_version=4)
    nb.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
    module = next(iter(re.findall(r"#\| default_exp (\S+)", "\n".join(c.source for c in nb.cells))), None)
    nb.cells = [c for c in nb.cells if shown(c)]
    nb.metadata.pop("widgets", None)  # they need scripts from elsewhere, and a kernel
    for c in nb.cells:
        if c.cell_type == "markdown":  # anchors keep their capitals in Jupyter, and lose them here
            c.source = re.sub(r"\]\(([^)#\s]*)(#[^)\s]+)\)", lambda m: f"]({m[1]}{m[2].lower()})", c.source)
        if c.cell_type == "code":
            c.source = without_directives(c.source)
            c.outputs = [o for o in c.outputs if WIDGET not in o.get("data", {})]
    if module and (text := reference(module)):
        nb.cells.append(nbformat.v4.new_markdown_cell(text))
    if path.name == "index.ipynb" and path.parent.name != "nbs":
        rooms = sorted(f.stem for f in path.parent.glob("[0-9]*.ipynb"))
        nb.cells.append(nbformat.v4.new_markdown_cell(toctree(rooms)))
    return nb


def stage(folder):
    "Write what Sphinx reads: the same files in the same places, so that their links hold."
    shutil.rmtree(folder, ignore_errors=True)
    for path in ROOT.glob("nbs/**/*.ipynb"):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(page(path), target)
    for path in [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/*.png"), *ROOT.glob("nbs/studies/*.py"), ROOT / "LICENSE"]:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    chapters = sorted(f.parent.name for f in ROOT.glob("nbs/*/index.ipynb"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = ["nbs/index", *(f"nbs/{c}/index" for c in chapters)]
    papers = sorted(f"docs/{f.stem}" for f in ROOT.glob("docs/*.md"))
    (folder / "index.md").write_text(
        f"{readme}\n\n{toctree(pages, 'Workbook')}\n\n{toctree(papers, 'Results and history')}\n", encoding="utf-8"
    )
    (folder / "conf.py").write_text(CONF, encoding="utf-8")
    (folder / "_static").mkdir()
    (folder / "_static/site.css").write_text(CSS, encoding="utf-8")


def build(target):
    "Build the site into `target`; returns Sphinx's exit status. A warning is an error."
    source = target.parent / f"{target.name}-source"
    os.environ["MPLBACKEND"] = "agg"
    stage(source)
    return build_main(["-b", "html", "-q", "-W", "--keep-going", "-j", "2", str(source), str(target)])


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1] if len(sys.argv) > 1 else "build/site").resolve()))
