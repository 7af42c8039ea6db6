"""What `make test-quick` leaves out (tests marked `slow`), and a guard against a test that is not marked and should be.

A test is slow if it starts Snakemake, a browser or the real Python (but for once), trains for long, or stands in a file
that takes many seconds. All of tests/workflow are.

What stages run in this process is not compared with their digests then (tests/base/watched.py): to note every call
takes a fourth of their time.
"""

import sys
from pathlib import Path

import pytest

QUICK = "not slow"  # the -m of make test-quick
running = False  # whether this is such a run
WORKFLOW = Path(__file__).parent / "workflow"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.option.markexpr == QUICK and collection_path == WORKFLOW else None


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if WORKFLOW in item.path.parents or "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


def pytest_configure(config: pytest.Config) -> None:
    global running
    running = config.option.markexpr == QUICK
    if running:
        sys.addaudithook(refuse)


def refuse(event: str, arguments: tuple) -> None:
    """What Python reports before it does it: a program to be started, a module to be imported."""
    if event == "subprocess.Popen":
        words = [arguments[1]] if isinstance(arguments[1], str | bytes | Path) else arguments[1]
        found = any("snakemake" in Path(str(word)).name for word in words)
    else:
        found = event == "import" and arguments[0] == "snakemake"
    if found:
        pytest.fail("Snakemake is started, which takes seconds. Mark this test: @pytest.mark.slow", pytrace=False)
