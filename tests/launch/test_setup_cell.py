"""The setup cell of the tutorials: on Colab it installs what is missing, elsewhere it does nothing."""

import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

TUTORIALS = Path(__file__).parents[2] / "tutorials"


@pytest.fixture
def source() -> str:
    """The setup cell of the first tutorial; the tests of the address check that all tutorials have the same."""
    cells = json.loads((TUTORIALS / "00_start_here.ipynb").read_text(encoding="utf-8"))["cells"]
    return "".join(next(cell for cell in cells if cell["id"] == "setup")["source"])


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have been run; none is executed."""
    commands: list[list[str]] = []

    def record(command: list[str], **_: Any) -> None:
        commands.append(command)

    monkeypatch.setattr(subprocess, "run", record)
    return commands


def stand_in_for_colab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))


def without_saelab(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "saelab" in name else find_spec(name))


def with_address(source: str, address: str) -> str:
    line = next(line for line in source.splitlines() if line.startswith("REPOSITORY = "))
    return source.replace(line, f'REPOSITORY = "{address}"')


def test_on_colab_it_installs_what_is_missing_and_keeps_the_torch_that_is_there(
    source: str, ran: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_colab(monkeypatch)
    without_saelab(monkeypatch)
    exec(with_address(source, "a-school/course"), {})
    ((python, *words),) = ran
    assert python == sys.executable and words[:3] == ["-m", "pip", "install"]
    assert words[-2:] == [
        f"torch=={torch.__version__}",
        "saelab[lm,widgets] @ git+https://github.com/a-school/course",
    ]


def test_on_colab_with_saelab_it_runs_nothing(
    source: str, ran: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in_for_colab(monkeypatch)
    exec(with_address(source, "a-school/course"), {})
    exec(with_address(source, ""), {})
    assert ran == [] and capsys.readouterr().out == ""


def test_on_colab_with_neither_saelab_nor_an_address_it_says_what_to_do(
    source: str, ran: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_colab(monkeypatch)
    without_saelab(monkeypatch)
    with pytest.raises(RuntimeError, match=r"Write the owner/name .* into REPOSITORY.* and run this cell again"):
        exec(with_address(source, ""), {})
    assert ran == []


@pytest.mark.parametrize("installed", [True, False])
def test_elsewhere_it_does_nothing(
    source: str,
    ran: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    installed: bool,
) -> None:
    if not installed:
        without_saelab(monkeypatch)
    modules, path = set(sys.modules), list(sys.path)
    exec(with_address(source, "a-school/course"), {})
    assert ran == [] and capsys.readouterr().out == ""
    assert set(sys.modules) == modules and sys.path == path


def test_on_colab_the_first_widget_turns_third_party_widgets_on_by_itself() -> None:
    code = """
import sys, types
calls = []
for name in ("google", "google.colab", "google.colab.output"):
    sys.modules[name] = types.ModuleType(name)
output = sys.modules["google.colab.output"]
output.enable_custom_widget_manager = lambda: calls.append("enabled")
output._widgets = types.SimpleNamespace(_installed_url="https://cdn")
from saelab_widgets.instrument import Instrument
class Small(Instrument):
    _esm = "export default {}"
    def _picture(self): return b"png"
for _ in range(2):
    data, metadata = Small()._repr_mimebundle_()
print(*calls, metadata["application/vnd.jupyter.widget-view+json"]["colab"]["custom_widget_manager"]["url"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
    assert done.stdout == "enabled https://cdn\n", done.stderr
