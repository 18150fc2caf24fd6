"""Tests that take the fixture `rules` run in a child process, which has the pretend accelerator."""

import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import cast

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import in_child  # type: ignore[import-not-found]

RULES = ("cuda", "cuda, sparse", "mps")
"""Whose rules the device follows; of CUDA with training steps that are all dense, or all sparse."""


@pytest.fixture(params=RULES)
def rules(request: pytest.FixtureRequest, child: ProcessPoolExecutor) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(scope="session")
def child() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if "child" not in pyfuncitem.funcargs:
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    child = cast(ProcessPoolExecutor, pyfuncitem.funcargs["child"])
    name = pyfuncitem.function.__name__
    failure = child.submit(in_child.run, str(pyfuncitem.path), name, arguments["rules"], arguments).result()
    if failure is not None:
        pytest.fail(failure, pytrace=False)
    return True
