"""The Python that starts at once does what the real one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from retro.base.provenance import RECORDED

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


def both(warm, *words: str, folder: Path = ROOT, **environment: str) -> list[subprocess.CompletedProcess]:
    """What the real Python and the other make of a command line."""
    given = {"cwd": folder, "env": {**os.environ, **environment}, "capture_output": True, "text": True, "input": "in"}
    return [subprocess.run([python, *words], **given) for python in (sys.executable, str(warm.python))]


@pytest.mark.parametrize(
    "code",
    [
        "print('out'); import sys; print('err', file=sys.stderr); print(sys.stdin.read())",
        "raise SystemExit(3)",
        "raise SystemExit('told')",
        "1 / 0",
        "import os; os.kill(os.getpid(), 15)",
        "import atexit, threading; atexit.register(print, 'end'); threading.Timer(0.2, print, ['late']).start()",
        "import os, sys; print(os.getcwd(), os.environ['GIVEN'], sys.argv, __name__, sys.path[0])",
    ],
)
def test_status_output_and_surroundings_are_the_same(warm, tmp_path, code):
    real, other = both(warm, "-c", code, "one", "$two", folder=tmp_path, GIVEN="here")
    assert (other.returncode, other.stdout) == (real.returncode, real.stdout)
    assert other.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


@pytest.mark.parametrize("module", ["retro.training.train", "snakemake.api"])
def test_libraries_are_seen_when_they_are_imported(warm, module):
    code = f"import sys, {module}; print(*[name for name in {RECORDED!r} if name in sys.modules])"
    real, other = both(warm, "-c", code)
    assert other.stdout == real.stdout != "", other.stderr


def test_a_library_can_be_looked_for_and_run(warm):
    code = "import importlib.util, sys; print(importlib.util.find_spec('torch').origin, 'torch' in sys.modules)"
    real, other = both(warm, "-c", code)
    assert other.stdout == real.stdout != "", other.stderr
    real, other = both(warm, "-m", "snakemake", "--version")
    assert other.stdout == real.stdout != "", other.stderr


def test_the_project_is_the_askers(warm, tmp_path):
    package = tmp_path / "retro"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mine.py").write_text("import retro, sys\nprint(retro.__file__, sys.argv[1:])\n", encoding="utf-8")
    for environment in ({"PYTHONPATH": str(tmp_path)}, {"PYTHONPATH": ""}):
        real, other = both(warm, "-m", "retro.mine", "x", folder=tmp_path, **environment)
        assert other.stdout == real.stdout == f"{package}/__init__.py ['x']\n", other.stderr
