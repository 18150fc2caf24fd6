"""Write the repository's address, or its absence, wherever it is shown: `make address REPOSITORY=owner/name`.

The setting is ``repository`` of ``[tool.saelab]`` in pyproject.toml; it is empty by default, and then there are no
badges and no dead links. The badges of README.md and of each tutorial, the address in CITATION.cff, and that in each
tutorial's setup cell, which is inserted if missing, are derived from it. Running the command twice changes nothing; an
empty address restores every file to the byte.
"""

import argparse
import base64
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BRANCH = "main"
FIRST_TUTORIAL = "00_start_here.ipynb"

SETUP = """\
# Installs SAELab on Google Colab; does nothing elsewhere.
import sys
from importlib.metadata import version
from importlib.util import find_spec

REPOSITORY = "{repository}"

if "google.colab" in sys.modules and find_spec("saelab_widgets") is None:
    if not REPOSITORY:
        raise RuntimeError(
            "SAELab is not installed here. Write the owner/name of a GitHub "
            "repository that has it into REPOSITORY, and run this cell again."
        )
    import subprocess

    print("Installing SAELab; it takes a minute or two.")
    package = f"saelab[lm,widgets] @ git+https://github.com/{{REPOSITORY}}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, f"torch=={{version('torch')}}", package], check=True)
"""

_BADGE = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img">'
    '<rect width="{width}" height="20" rx="3" fill="{colour}"/>'
    '<text x="{middle}" y="14" fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" '
    'text-anchor="middle">{label}</text></svg>'
)


def badge(label: str, colour: str, link: str) -> str:
    """A Markdown link on an embedded picture, so that showing it makes no request to another host."""
    width = 7 * len(label) + 12
    svg = _BADGE.format(label=label, colour=colour, width=width, middle=width / 2)
    return f"[![{label}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})]({link})"


def binder_link(repository: str, tutorial: str) -> str:
    return f"https://mybinder.org/v2/gh/{repository}/{BRANCH}?urlpath=lab/tree/tutorials/{tutorial}"


def colab_link(repository: str, tutorial: str) -> str:
    return f"https://colab.research.google.com/github/{repository}/blob/{BRANCH}/tutorials/{tutorial}"


def between_marks(text: str, mark: str, content: str) -> str:
    """Replace the lines after the line ``mark`` up to the next line ``mark``."""
    parts = text.split(f"{mark}\n")
    if len(parts) != 3:
        raise ValueError(f"expected two lines {mark!r}, found {len(parts) - 1}")
    return f"{mark}\n".join([parts[0], content, parts[2]])


def readme(text: str, repository: str) -> str:
    """README.md with badges and the clone command, or without them."""
    content = ""
    if repository:
        content = (
            f"[![Binder](https://mybinder.org/badge_logo.svg)]({binder_link(repository, FIRST_TUTORIAL)})\n"
            f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
            f"({colab_link(repository, FIRST_TUTORIAL)})\n\n"
            f"Clone it with `git clone https://github.com/{repository}`.\n\n"
        )
    return between_marks(text, "<!-- address -->", content)


def citation(text: str, repository: str) -> str:
    """CITATION.cff with the repository's address, or without it."""
    content = f'repository-code: "https://github.com/{repository}"\n' if repository else ""
    return between_marks(text, "# address", content)


def notebook(text: str, repository: str, name: str) -> str:
    """A tutorial with its setup cell, which runs first, and with or without badges at its top."""
    document = json.loads(text)
    cells = [cell for cell in document["cells"] if cell.get("id") != "badges"]
    source = SETUP.format(repository=repository).splitlines(keepends=True)
    source[-1] = source[-1].rstrip("\n")
    setup = next((cell for cell in cells if cell.get("id") == "setup"), None)
    if setup is None:
        setup = _setup_before(cells)
    setup["source"] = source
    if repository:
        links = [
            badge("open in Colab", "#c2570c", colab_link(repository, name)),
            badge("launch on Binder", "#0072b2", binder_link(repository, name)),
        ]
        head = {"cell_type": "markdown", "id": "badges", "metadata": {"tags": ["badges"]}, "source": [" ".join(links)]}
        cells = [head, *cells]
    document["cells"] = cells
    return json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _setup_before(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Insert a setup cell below the title, and raise the execution counts of executed cells by one."""
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    executed = any(cell["execution_count"] is not None for cell in code)
    for counted in [*code, *(output for cell in code for output in cell["outputs"])]:
        if counted.get("execution_count") is not None:
            counted["execution_count"] += 1
    setup: dict[str, Any] = {
        "cell_type": "code",
        "execution_count": 1 if executed else None,
        "id": "setup",
        "metadata": {"jupyter": {"source_hidden": True}, "tags": ["setup"]},
        "outputs": [],
    }
    cells.insert(1 if cells and cells[0]["cell_type"] == "markdown" else 0, setup)
    return setup


def checked(repository: str) -> str:
    """``owner/name``, from that or from the full URL.

    Raises
    ------
    ValueError
        ``repository`` is neither.
    """
    short = repository.removeprefix("https://github.com/").removesuffix("/").removesuffix(".git")
    if short and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+", short):
        raise ValueError(f"the address must be owner/name of a repository on GitHub, or empty; not {repository!r}")
    return short


def write(root: Path, repository: str | None = None) -> list[Path]:
    """Set the address if one is given, write it wherever it belongs, and return the files that changed."""
    pyproject = root / "pyproject.toml"
    project = pyproject.read_text(encoding="utf-8")
    if repository is None:
        repository = tomllib.loads(project)["tool"]["saelab"]["repository"]
    address = checked(repository)
    setting = re.compile(r'(?<=\n\[tool\.saelab\]\nrepository = ")[^"\n]*(?=")')
    if not setting.search(project):
        raise ValueError("pyproject.toml must have the line [tool.saelab], and repository = ... as the next one")
    wanted = {
        pyproject: setting.sub(address, project),
        root / "README.md": readme((root / "README.md").read_text(encoding="utf-8"), address),
        root / "CITATION.cff": citation((root / "CITATION.cff").read_text(encoding="utf-8"), address),
    }
    for path in sorted((root / "tutorials").glob("*.ipynb")):
        wanted[path] = notebook(path.read_text(encoding="utf-8"), address, path.name)
    changed = [path for path, text in wanted.items() if path.read_text(encoding="utf-8") != text]
    for path in changed:
        path.write_text(wanted[path], encoding="utf-8", newline="\n")
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--set", metavar="OWNER/NAME", dest="repository", help="the address; empty: there is none")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the clone; by default this one")
    arguments = parser.parse_args()
    try:
        changed = write(arguments.root, arguments.repository)
    except ValueError as error:
        sys.exit(f"Error: {error}")
    for path in changed:
        print(f"wrote {path.relative_to(arguments.root)}")


if __name__ == "__main__":
    main()
