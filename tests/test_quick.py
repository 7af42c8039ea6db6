"""`make test-quick` runs nothing that starts Snakemake."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
TESTS = """
import subprocess, sys
import pytest

def test_of_nothing():
    subprocess.run([sys.executable, "-c", ""])

def test_started():
    subprocess.run([sys.executable, "-m", "snakemake", "--version"])

def test_imported():
    from snakemake.api import SnakemakeApi

@pytest.mark.slow
def test_marked():
    subprocess.run(["snakemake", "--version"])
"""


def test_a_test_that_starts_snakemake_and_is_not_marked_fails_in_it(tmp_path):
    (tmp_path / "test_these.py").write_text(TESTS, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "tests.quick", "-c", ROOT / "pyproject.toml", "-m", "not slow"]
    done = subprocess.run([*command, "--rootdir", tmp_path, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert "2 failed, 1 passed, 1 deselected" in done.stdout, done.stdout
    assert done.stdout.count("Mark this test: @pytest.mark.slow") >= 2
