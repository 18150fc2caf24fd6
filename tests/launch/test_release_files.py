"""The files for citing and building SAELab agree with SAELab itself."""

import importlib.metadata
import os
import re
import tomllib
from datetime import date
from pathlib import Path
from urllib.parse import urlparse

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import saelab

ROOT = Path(__file__).parents[2]
BINDER = ROOT / "binder"


def test_citation_is_of_this_version_and_names_no_address_but_the_one_that_is_set() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    # The fields that format 1.2.0 requires, and the optional ones that matter here.
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation.keys() <= {
        *("cff-version", "message", "type", "title", "abstract", "authors", "version", "date-released", "license"),
        *("keywords", "repository-code", "references", "doi"),
    }
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == saelab.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert citation["license"] == project["project"]["license"]
    assert citation["authors"] == project["project"]["authors"]
    repository = project["tool"]["saelab"]["repository"]
    assert citation.get("repository-code") == (f"https://github.com/{repository}" if repository else None)
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
        assert urlparse(reference["url"]).hostname == "arxiv.org"


def test_the_changelog_begins_with_this_version() -> None:
    heading = re.search(r"^## (\S+) \((.+)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heading is not None and heading[1] == saelab.__version__
    released = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8")).get("date-released")
    assert heading[2] == "unreleased" if released is None else date.fromisoformat(heading[2]) == released


def test_binder_installs_from_the_lock_and_the_cpu_build_of_its_torch() -> None:
    requirements = (BINDER / "requirements.txt").read_text(encoding="utf-8").splitlines()
    # pip reads both relative to the file that names them.
    assert {"--constraint ../requirements.lock", "--requirement torch-cpu.txt", "--editable .[lab]"} <= {*requirements}
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    (torch,) = re.findall(r"^torch==(\S+)$", lock, re.MULTILINE)
    assert f"torch=={torch}+cpu" in (BINDER / "torch-cpu.txt").read_text(encoding="utf-8").splitlines()
    version = (BINDER / "runtime.txt").read_text(encoding="utf-8").strip().removeprefix("python-")
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    assert tuple(map(int, version.split("."))) >= tuple(map(int, oldest.removeprefix(">=").split(".")))


def test_every_pin_of_the_lock_can_be_installed_on_the_lowest_python_that_is_promised() -> None:
    promised = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    lowest = Version(promised.removeprefix(">="))  # 3.11 is 3.11.0
    installed = {item.name.lower().replace("_", "-"): item for item in importlib.metadata.distributions()}
    n_checked = 0
    for pin in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        name, _, version = pin.partition("==")
        # Another system's packages are not here, and a pin that has just changed is not yet.
        if name in installed and Version(installed[name].version).public == version:
            n_checked += 1
            assert lowest in SpecifierSet(installed[name].metadata["Requires-Python"] or ""), pin
    assert n_checked > 150, "this environment was not installed from requirements.lock"


@pytest.mark.parametrize("name", ["postBuild", "start"])
def test_binders_scripts_can_be_run_and_stop_at_the_first_error(name: str) -> None:
    assert os.access(BINDER / name, os.X_OK)
    assert "set -euo pipefail" in (BINDER / name).read_text(encoding="utf-8")
