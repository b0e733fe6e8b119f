"The site is built from what is committed, without a warning, and everything on it leads somewhere."

import re
import subprocess
import sys
from html import unescape
from urllib.parse import unquote

from conftest import ENV, ROOT


def test_site(tmp_path):
    target = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, ROOT / "docs/build_site.py", target], capture_output=True, text=True, env=ENV, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not re.search("warning", done.stderr, re.I), done.stderr
    pages = {p: p.read_text(encoding="utf-8") for p in target.rglob("*.html")}
    notebooks = [p.relative_to(ROOT) for p in ROOT.glob("nbs/**/*.ipynb")]
    assert all((target / p).with_suffix(".html") in pages for p in notebooks)
    ids = {p: set(re.findall(r'id="([^"]+)"', text)) for p, text in pages.items()}
    broken, outside = [], []
    for page, text in pages.items():
        for link in map(unescape, re.findall(r'<(?:a|img|link|script)\b[^>]*?\b(?:href|src)="([^"]+)"', text)):
            path, _, anchor = link.partition("#")
            if re.match("[a-z]+:|//", link):
                continue
            to = (page.parent / unquote(path.partition("?")[0])).resolve() if path else page
            if not to.exists() or (anchor and to in ids and unquote(anchor) not in ids[to]):
                broken.append(f"{page.relative_to(target)}: {link}")
        outside += re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="((?:https?:)?//[^"]+)"', text)
    assert not broken and not outside
    comment = re.compile(r'<span class="c1">#\| *(export|hide|default_exp|eval)')
    assert not comment.search("\n".join(pages.values())), "a directive of nbdev's is shown"
