"""Run one test on the pretend accelerator, in a process that has it (`conftest.py` starts one for all tests)."""

import functools
import importlib.util
import traceback
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch


def run(path: str, name: str, rules: str, arguments: Mapping[str, Any]) -> str | None:
    """Call test ``name`` in file ``path`` under ``rules``, one of `conftest.RULES`; what went wrong, or None."""
    import pretend_device  # type: ignore[import-not-found]

    pretend_device.register()
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch, pretend_device.following("mps" if rules == "mps" else "cuda"):
        if rules != "mps":
            always = 1.0 if rules == "cuda, sparse" else -1.0
            patch.setattr("saelab.sae.sparse.dense_above", lambda *arguments, **options: always)
        try:
            getattr(_module(path), name)(**arguments)
        except Exception as error:
            return _told(error, but=(__file__, pretend_device.__file__))
    return None


def _told(error: Exception, *, but: Sequence[str]) -> str:
    """The error with the lines of tests and library that led to it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and frame.filename not in but]
    return "".join([*traceback.format_list(own), *traceback.format_exception_only(error)])


@functools.cache
def _module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("on_pretend_device", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
