"""What every widget does: it answers its page, shows its errors, and stands in a page without a kernel."""

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest
import traitlets
from saelab_widgets import instrument
from saelab_widgets.instrument import Instrument


class Small(Instrument):
    """A widget with one action, one number, and one buffer."""

    _esm = "export default { render() {} }"
    ACTIONS = ("double", "fail")
    number = traitlets.Float(1.0).tag(sync=True)
    buffer = traitlets.Bytes(b"").tag(sync=True)

    def double(self, times: int = 1) -> None:
        self.number *= 2**times

    def fail(self) -> None:
        raise ValueError("no such thing; try another")

    def secret(self) -> None:
        raise AssertionError("the page must not call this")

    def _picture(self) -> bytes:
        return b"\x89PNG"

    @classmethod
    def _front_end(cls) -> str:
        return "training_lab"


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    messages: list[Any] = []
    monkeypatch.setattr(Small, "send", lambda self, content, buffers=None: messages.append(content))
    monkeypatch.setattr(Small, "send_state", lambda self, key=None: messages.append(key))
    return messages


def test_the_page_may_call_actions_with_arguments_and_gets_an_answer(sent: list[Any]) -> None:
    small = Small()
    sent.clear()
    small._receive(small, {"kind": "double", "times": 3, "id": 7}, [])
    assert small.number == 8 and sent[-1] == {"kind": "done", "id": 7}


def test_the_page_may_call_nothing_else(sent: list[Any]) -> None:
    small = Small()
    for kind in ("secret", "close", "no such method"):
        small._receive(small, {"kind": kind, "id": 1}, [])
    assert sent[-1] == {"kind": "done", "id": 1}


def test_an_error_of_an_action_is_shown_and_still_answered(sent: list[Any]) -> None:
    small = Small()
    with pytest.raises(ValueError, match="no such thing"):
        small._receive(small, {"kind": "fail", "id": 2}, [])
    assert small.error == "no such thing; try another" and sent[-1] == {"kind": "done", "id": 2}


def test_a_buffer_that_is_empty_or_unknown_is_not_sent_again(sent: list[Any]) -> None:
    small = Small()
    sent.clear()
    small._receive(small, {"kind": "hello", "need": ["buffer", "unknown"], "id": 1}, [])
    assert sent == [{"kind": "done", "id": 1}]
    small.buffer = b"1234"
    sent.clear()
    small._receive(small, {"kind": "hello", "need": ["buffer"], "id": 2}, [])
    assert sent == [["buffer"], {"kind": "done", "id": 2}]


def test_a_page_without_a_kernel_holds_the_state_and_nothing_that_ends_its_scripts() -> None:
    page = Small(status="</script><!-- <b>", buffer=b"\x00\x01").to_html()
    state = re.search(r'id="saelab-state">(.*?)</script>', page, re.DOTALL)
    assert state is not None
    values = json.loads(state[1])
    assert values["status"] == "</script><!-- <b>" and values["kernel"] is False
    assert values["buffer"] == {"base64": "AAE="}
    assert "_esm" not in values
    assert "http" not in page.replace("http://www.w3.org/", "")


def test_a_cell_that_is_run_again_closes_what_its_earlier_run_made(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ("cell-1", "run-1")
    monkeypatch.setattr(instrument, "_cell_and_run", lambda: run)
    first, beside = Small(), Small()
    run = ("cell-2", "run-2")
    elsewhere = Small()
    assert all(small.comm is not None for small in (first, beside, elsewhere))
    run = ("cell-1", "run-3")
    again = Small()
    assert first.comm is None and beside.comm is None
    assert elsewhere.comm is not None and again.comm is not None


@pytest.mark.parametrize("metadata", [{}, {"cellId": None}])
def test_a_cell_without_an_identifier_is_known_by_its_code(
    metadata: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nbclassic sends none."""

    def run_cell(code: str, message: str) -> Small:
        parent = {"metadata": metadata, "header": {"msg_id": message}, "content": {"code": code}}
        shell = SimpleNamespace(get_parent=lambda: parent)
        monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: shell)
        return Small()

    first, other = run_cell("lab = Small()", "run-1"), run_cell("other = Small()", "run-2")
    again = run_cell("lab = Small()", "run-3")
    assert first.comm is None
    assert other.comm is not None and again.comm is not None


def test_outside_of_a_notebook_nothing_is_closed() -> None:
    assert instrument._cell_and_run()[0] is None
    first, second = Small(), Small()
    assert first.comm is not None and second.comm is not None


def test_in_colab_its_widget_manager_is_enabled_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    import anywidget._util

    enabled: list[bool] = []
    output = types.ModuleType("google.colab.output")
    output.enable_custom_widget_manager = lambda: enabled.append(True)  # type: ignore[attr-defined]
    output._widgets = types.SimpleNamespace(_installed_url="colab.js")  # type: ignore[attr-defined]
    for name, module in {
        "google": types.ModuleType("google"),
        "google.colab": types.ModuleType("google.colab"),
        "google.colab.output": output,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    enable = anywidget._util.enable_custom_widget_manager_once
    enable.cache_clear()
    try:
        bundles = [Small()._repr_mimebundle_() for _ in range(3)]
    finally:
        enable.cache_clear()
    assert enabled == [True]
    for data, metadata in bundles:
        assert "image/png" in data and "colab" in metadata["application/vnd.jupyter.widget-view+json"]
