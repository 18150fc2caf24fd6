"""Let nbval execute each tutorial from cold caches, in an empty folder, and within limits of time and memory."""

import os
import shutil
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from nbval.plugin import IPyNbFile

sys.path.insert(0, str(Path(__file__).parent / "tests" / "tutorials"))
from execute import peak_memory  # type: ignore[import-not-found]

MAX_SECONDS, MAX_BYTES = 150, 1.5e9
CACHES = pytest.StashKey[Path]()
"""The folder that keeps what the tutorials made in this session: ``NAME/runs`` and ``NAME/cache``."""


class Tutorial(IPyNbFile):  # type: ignore[misc]
    """nbval's notebook, whose kernel starts from nothing; its last item checks the time and memory of the others."""

    def setup(self) -> None:
        here = self.config.stash[CACHES] / self.path.stem
        shutil.rmtree(here, ignore_errors=True)
        (here / "cache").mkdir(parents=True)
        self.begun = time.monotonic()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(here / "cache"))
            patch.setenv("HF_HUB_OFFLINE", "1")
            # nbval reads a cell's messages only after it has run: a long cell on a slow machine could send more of them
            # for its progress bars than the sockets buffer, and the last, which marks the end, would be lost.
            patch.setenv("TQDM_MININTERVAL", "1")
            super().setup()  # starts the kernel
        # Not beside the notebooks, where a reader's own runs may be kept.
        moved = self.kernel.execute_cell_input(f"import os; os.chdir({str(here)!r}); del os", allow_stdin=False)
        self.kernel.await_reply(moved, timeout=60)

    def collect(self) -> Iterator[pytest.Item]:
        yield from super().collect()
        yield WithinLimits.from_parent(self, name="limits")


class WithinLimits(pytest.Item):
    """Fails if the notebook took too long, or its kernel too much memory."""

    parent: Any

    def runtest(self) -> None:
        if not self.parent.kernel.is_alive():
            pytest.fail(f"{self.path.name} was not run to its end: its kernel is gone", pytrace=False)
        seconds, peak = time.monotonic() - self.parent.begun, peak_memory(self.parent.kernel.km.provisioner.pid)
        self.add_report_section("call", "tutorial", f"{seconds:.0f} s, {peak / 1e6:,.0f} MB")
        if seconds > MAX_SECONDS or peak > MAX_BYTES:
            pytest.fail(
                f"{self.path.name} took {seconds:.0f} s and {peak / 1e6:,.0f} MB from cold caches; "
                f"at most {MAX_SECONDS} s and {MAX_BYTES / 1e6:,.0f} MB are allowed",
                pytrace=False,
            )

    def reportinfo(self) -> tuple[os.PathLike[str], int | None, str]:
        return self.path, None, f"{self.path.name} within limits"


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> Generator[None, list[Any], list[Any]]:
    collected = yield
    return [Tutorial.from_parent(parent, path=file_path) if isinstance(file, IPyNbFile) else file for file in collected]


@pytest.hookimpl(trylast=True)  # once there is a factory of temporary folders
def pytest_configure(config: pytest.Config) -> None:
    config.stash[CACHES] = Path(config._tmp_path_factory.mktemp("tutorials"))  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def tutorial_caches(pytestconfig: pytest.Config) -> Path:
    """What nbval's run of the tutorials left: ``NAME/runs`` and ``NAME/cache`` for each tutorial that ran."""
    return pytestconfig.stash[CACHES]
