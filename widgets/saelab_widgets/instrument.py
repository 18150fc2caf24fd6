"""What all widgets share: files, status line, messages, and what stands for a widget where none can run."""

import base64
import html
import json
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import traitlets

from saelab_widgets.background import one_thread_on_small_machines
from saelab_widgets.quantities import palette
from saelab_widgets.specs import ColorSpec

STATIC = Path(__file__).parent / "static"
NOT_THE_WIDGETS_OWN = ("_esm", "_css", "layout", "tabbable", "tooltip")


class Instrument(anywidget.AnyWidget):
    """Base of every widget. A subclass names its front end by ``_esm`` and ``_css`` and draws its `_picture`.

    The front end may call the methods named in `ACTIONS`: a message ``{"kind": name, **arguments}``, acknowledged when
    it has been dealt with, so that the page knows whether a kernel is there.
    """

    ACTIONS: ClassVar[tuple[str, ...]] = ()

    status = traitlets.Unicode("").tag(sync=True)
    """What it does, in the line below it."""
    error = traitlets.Unicode("").tag(sync=True)
    """What went wrong, there."""
    kernel = traitlets.Bool(True).tag(sync=True)
    """False in an exported page only, where controls that need Python are off."""
    palette = traitlets.Dict().tag(sync=True)
    """The colours that charts and series name, as `saelab_widgets.quantities.palette` gives them."""

    @traitlets.default("palette")
    def _palette_of_now(self) -> dict[str, ColorSpec]:
        return palette()

    _made_by_cell: ClassVar[dict[str, tuple[str, list["weakref.ref[Instrument]"]]]] = {}

    def __init__(self, **state: Any) -> None:
        self._replace_those_of_an_earlier_run()
        super().__init__(**state)
        self.on_msg(self._receive)

    def _replace_those_of_an_earlier_run(self) -> None:
        """Close what an earlier run of the same cell made: else ipywidgets would keep all of it for good."""
        cell, run = _cell_and_run()
        if cell is None:
            return
        of_run, made = self._made_by_cell.get(cell, (run, []))
        if of_run != run:
            for reference in made:
                earlier = reference()
                if earlier is not None:
                    earlier.close()
            made = []
        self._made_by_cell[cell] = (run, [*made, weakref.ref(self)])

    @contextmanager
    def _handling(self) -> Iterator[None]:
        """Around a callback: an exception ends in a log that nobody opens, so it is shown in the widget, too."""
        try:
            with one_thread_on_small_machines():
                yield
        except Exception as error:
            self._show_error(error)
            raise

    def _show_error(self, error: Exception) -> None:
        self.error = str(error) or type(error).__name__

    def _receive(self, _: Any, content: dict[str, Any], buffers: list[bytes]) -> None:
        arguments = {name: value for name, value in content.items() if name not in ("kind", "id")}
        kind = content.get("kind", "")
        try:
            with self._handling():
                if kind == "hello":  # Colab drops the buffers of a widget's first state
                    self._send_again(arguments.get("need", []))
                elif kind in self.ACTIONS:
                    getattr(self, kind)(**arguments)
        finally:
            self.send({"kind": "done", "id": content.get("id")})

    def _send_again(self, names: list[str]) -> None:
        filled = [name for name in names if name in self.keys and getattr(self, name)]
        if filled:
            self.send_state(filled)

    def _picture(self) -> bytes:
        """A PNG of what it shows."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Add a picture, for where no widget can run: GitHub, an untrusted notebook, a PDF."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is not None:
            data = bundle[0] if isinstance(bundle, tuple) else bundle
            data["image/png"] = self._picture()
            data["text/plain"] = repr(self)
        return bundle

    def to_html(self) -> str:
        """A page that shows the widget with no kernel, no network and no other file.

        What is looked up works there; controls that need Python are off.
        """
        state = {name: value for name, value in self.get_state().items() if name not in NOT_THE_WIDGETS_OWN}
        state["kernel"] = False
        parts = {
            "style": f"<style>{(STATIC / f'{self._front_end()}.css').read_text(encoding='utf-8')}</style>",
            "script": _json_in_html("saelab-script", (STATIC / f"{self._front_end()}.js").read_text(encoding="utf-8")),
            "state": _json_in_html("saelab-state", _without_bytes(state)),
            "mount": f'<script type="module">{(STATIC / "standalone.js").read_text(encoding="utf-8")}</script>',
            "title": html.escape(repr(self)),
        }
        return _PAGE.format(**parts)

    def save_html(self, path: str | os.PathLike[str]) -> Path:
        """Write `to_html` to a file."""
        path = Path(path)
        path.write_text(self.to_html(), encoding="utf-8")
        return path

    @classmethod
    def _front_end(cls) -> str:
        """Name of its files in ``static/``, which is that of its module."""
        return cls.__module__.rpartition(".")[2]


_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<link rel="icon" href="data:,"><style>:root {{ color-scheme: light dark }}</style>{style}</head>
<body><main id="saelab-widget"></main>{script}{state}{mount}</body>
</html>
"""


def _json_in_html(name: str, value: object) -> str:
    # Within a script element, only "<" could end it, or open a comment.
    text = json.dumps(value, allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _without_bytes(value: Any) -> Any:
    """Bytes, anywhere in it, as ``{"base64": ...}``; NaN, which JSON has not, as None."""
    if isinstance(value, bytes | bytearray | memoryview):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {name: _without_bytes(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_bytes(inner) for inner in value]
    return None if isinstance(value, float) and value != value else value


def _cell_and_run() -> tuple[str | None, str]:
    """Which cell of a notebook is running, and which run of it this is; None outside of a notebook.

    A cell is known by its identifier or, where the front end sends none (nbclassic), by its code.
    """
    from IPython.core.getipython import get_ipython

    get_parent = getattr(get_ipython(), "get_parent", None)
    parent = get_parent() if get_parent is not None else {}
    cell = parent.get("metadata", {}).get("cellId") or parent.get("content", {}).get("code")
    return cell, parent.get("header", {}).get("msg_id", "")
