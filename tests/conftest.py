"""One thread a process: tests share the machine, and thread counts are part of what makes bytes.

Tests may run in several processes (`pytest -n`, as `make test` does). The tests of a file run in one of them, so that
its fixtures are made once; those of tests/workflow, which are long, are dealt out one by one. What takes long to make
and all of them need is made by one process (`made_once`).
"""

import fcntl
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.warm import Warm

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

pytest_plugins = ["tests.quick"]

FOLDER = Path(__file__).parent
LONG = ["workflow", "training"]  # folders with the longest tests, which begin first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests first."""

    def rank(item: pytest.Item) -> int:
        folder = item.path.relative_to(FOLDER).parts[0]
        return LONG.index(folder) if folder in LONG else len(LONG)

    if all(item.path.is_relative_to(FOLDER) for item in items):
        items.sort(key=rank)


def pytest_collection_finish() -> None:
    """What is imported by now is no garbage: looking through it again and again takes long."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Say which tests run in the same process."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if nodeid.startswith("tests/workflow/") else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A function that gives a folder by its name, made by the first process of this test run that asks for it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        with open(folder / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / f"{name}.made").exists():
                make(folder / name)
                (folder / f"{name}.made").touch()
        return folder / name

    return made


@pytest.fixture(scope="session")
def warm(made_once) -> Iterator[Warm]:
    """A Python that starts at once; where there is no such thing, the real one."""
    if not hasattr(os, "pidfd_open"):
        yield SimpleNamespace(python=Path(sys.executable))
        return
    started: list[Warm] = []  # its server, by this process
    found = Warm(made_once("warm", lambda folder: started.append(Warm.start(folder))))
    yield found
    for each in [found, *started]:
        each.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium with an empty profile; where there is none, and none can be installed, a skip that says so."""
    from tests.generation.browser import Browser, find_or_install

    find_or_install()
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()
