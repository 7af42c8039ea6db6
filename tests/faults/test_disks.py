"""Disks that are full, read-only or wrong about the time."""

import os
import subprocess
import time

import pytest

from tests.faults.conftest import differing, go_on
from tests.told import tell
from tests.workflow.conftest import Project

needs_mount = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


@pytest.fixture
def disk(tmp_path):
    """A project whose results lie on a disk of their own, and a function that remounts it."""
    project = Project.create(tmp_path / "project")
    folder = project.folder / "results"
    folder.mkdir()

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "retro-test", folder], check=True)

    try:
        yield project, mount
    finally:
        subprocess.run(["umount", "-l", folder], stderr=subprocess.DEVNULL)


@needs_mount
@pytest.mark.parametrize("kilobytes", [300, 1500])
def test_a_full_disk(finished, disk, kilobytes):
    project, mount = disk
    mount(f"size={kilobytes}k")
    full = go_on(project)
    assert full.returncode != 0
    assert "No space left on device" in full.stdout, full.stdout[-3000:]
    assert "Traceback" not in full.stdout, full.stdout[-3000:]
    mount("remount,size=500m")
    done = go_on(project)
    assert done.returncode == 0, done.stdout[-3000:]
    assert differing(project, finished) == []
    tell(f"a disk full at {kilobytes} kB: said in one line; after making room, the same bytes")


@needs_mount
def test_a_read_only_results_folder(disk):
    project, mount = disk
    mount("size=10m")
    mount("remount,ro")
    done = go_on(project)
    assert done.returncode != 0
    assert "ead-only" in done.stdout, done.stdout[-3000:]
    tell("a read-only results folder: refused, in words")


@pytest.mark.parametrize("jump", [-400 * 86400, 400 * 86400], ids=["back", "forward"])
def test_a_clock_that_jumps(finished, tmp_path, jump):
    """Half the files bear times of another clock: what runs again gives the same bytes, and then nothing runs."""
    project = finished.clone(tmp_path / "project")
    then = time.time() + jump
    for path in sorted(path for path in (project.folder / "results").rglob("*") if path.is_file())[::2]:
        os.utime(path, (then, then))
    done = go_on(project)
    assert done.returncode == 0, done.stdout[-3000:]
    assert differing(project, finished) == []
    tell(f"a clock {abs(jump) // 86400} days {'behind' if jump < 0 else 'ahead'} for half the files: the same bytes")
