"""Build the static site: `make site`. Its sources are gathered in build/site-source; the site is build/site.

The notebooks keep their committed outputs; only the widgets of the gallery are executed.
"""

import importlib.util
import json
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build"
SOURCE, PARTS, STATIC, SITE = (BUILD / name for name in ("site-source", "site-parts", "site-static", "site"))
PAGES = ("CHANGELOG.md", "docs/*.md", "tutorials/*.ipynb")
FILES = ("docs/pictures/*.png", "docs/experiments/*.csv")
"""Files that pages show or offer for download."""
LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")
"""A relative Markdown link or picture."""


def repository() -> str:
    """The repository's address, from the setting that `make address` writes; empty if none is set."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    name = settings.get("saelab", {}).get("repository", "")
    return f"https://github.com/{name}" if name else ""


def sources(*patterns: str) -> list[Path]:
    """Files of the repository that match these patterns, relative to its root."""
    found = (path.relative_to(ROOT) for pattern in patterns for path in ROOT.glob(pattern))
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts)


def gather() -> None:
    """Lay out all pages as in the repository, so that links between them keep working."""
    import reference

    shutil.rmtree(SOURCE, ignore_errors=True)
    pages, files = sources(*PAGES), sources(*FILES)
    inside = {*pages, *files}
    for path in files:
        _place(path, (ROOT / path).read_bytes())
    for path in pages:
        text, mend = (ROOT / path).read_text(encoding="utf-8"), partial(mend_links, page=path, inside=inside)
        _place(path, (_mend_notebook(text, mend) if path.suffix == ".ipynb" else mend(text)).encode())
    for page in (HERE / "pages").iterdir():
        _place(Path(page.name), page.read_bytes())
    for name, text in reference.pages().items():
        _place(Path("api", name), text.encode())


def mend_links(text: str, *, page: Path, inside: set[Path]) -> str:
    """Point links to files outside the site at the repository; without an address, drop them."""

    def mended(link: re.Match[str]) -> str:
        picture, words, target, _ = link.groups()
        path = Path(os.path.normpath(page.parent / target))
        if picture or path in inside or not (ROOT / path).exists():
            return link[0]
        return f"[{words}]({repository()}/blob/HEAD/{path.as_posix()})" if repository() else words

    return LINK.sub(mended, text)


def _mend_notebook(text: str, mend: Callable[[str], str]) -> str:
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = mend("".join(cell["source"]))
    return json.dumps(notebook, ensure_ascii=False, indent=1)


def _place(path: Path, content: bytes) -> None:
    (SOURCE / path).parent.mkdir(parents=True, exist_ok=True)
    (SOURCE / path).write_bytes(content)


def gather_mathjax() -> None:
    """Copy the part of MathJax that pages load from its package, so that no page requests it from another host."""
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    assert spec is not None and spec.origin is not None
    mathjax = Path(spec.origin).parent / "static" / "mathjax"
    for part in ("tex-chtml.js", "output/chtml/fonts/woff-v2", "input/tex/extensions"):
        copy = shutil.copytree if (mathjax / part).is_dir() else shutil.copy2
        (STATIC / "mathjax" / part).parent.mkdir(parents=True, exist_ok=True)
        copy(mathjax / part, STATIC / "mathjax" / part)


def main() -> int:
    """Build the site and return Sphinx's exit code; warnings are errors."""
    import gallery
    from sphinx.cmd.build import main as sphinx

    gallery.save_pages(PARTS / "widgets")
    gather()
    shutil.rmtree(STATIC, ignore_errors=True)
    gather_mathjax()
    shutil.rmtree(SITE, ignore_errors=True)
    doctrees = BUILD / "site-doctrees"
    code: int = sphinx(
        ["-b", "html", "-E", "-W", "--keep-going", "-q", "-c", str(HERE), "-d", str(doctrees), str(SOURCE), str(SITE)]
    )
    print(f"{SITE.relative_to(ROOT)}/index.html" if code == 0 else "The site was not built.", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
