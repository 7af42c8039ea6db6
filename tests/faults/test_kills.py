"""Processes that end when they should not: a run that goes on gives the same bytes."""

import os
import random
import signal
import time

import psutil
import pytest

from tests.faults.conftest import differing, go_on
from tests.told import tell
from tests.workflow.conftest import Project, kill_group

KILLS = 30


def stages(folder) -> list[psutil.Process]:
    """Processes of this project that run a stage."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            inside = process.cwd() == str(folder)
        except psutil.Error:
            continue
        if inside and any(word.startswith("retro.") and not word.startswith("retro.tools.") for word in words[1:4]):
            found.append(process)
    return found


def test_thirty_random_kills_over_the_whole_pipeline(finished, tmp_path):
    chance, kills, rounds = random.Random(30), 0, 0
    while kills < KILLS:
        rounds += 1
        project = Project.create(tmp_path / f"round-{rounds}")
        while kills < KILLS:
            process = project.start("all")
            end = time.monotonic() + chance.uniform(2, 14)
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            if process.poll() is not None:
                break
            kill_group(process)
            kills += 1
            project.run("python", "-m", "snakemake", "--configfile", "config/tiny.yaml", "--unlock")
        done = go_on(project)
        assert done.returncode == 0, done.stdout[-4000:]
        assert differing(project, finished) == []
    tell(f"{kills} kills -9 of everything at random moments, over {rounds} runs: lost nothing, same bytes")


@pytest.mark.parametrize("stage", ["retro.database.embed", "retro.training.train", "retro.evaluation.losses"])
def test_an_out_of_memory_kill_of_one_stage(finished, tmp_path, stage):
    """The kernel kills the process that grew, not Snakemake: that must be said, and a second run must finish."""
    project = Project.create(tmp_path / "project")
    process = project.start("all", "--retries", "0")
    killed = False
    while process.poll() is None and not killed:
        for victim in stages(project.folder):
            if stage in victim.cmdline():
                victim.kill()
                killed = True
        time.sleep(0.02)
    assert killed and process.wait() != 0
    assert go_on(project).returncode == 0
    assert differing(project, finished) == []
    tell(f"{stage} killed as by the out-of-memory killer: Snakemake fails, the next run finishes with the same bytes")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group(finished, tmp_path, signum):
    project = Project.create(tmp_path / "project")
    process = project.start("train_all")
    while process.poll() is None and not any(
        "retro.training.train" in victim.cmdline() for victim in stages(project.folder)
    ):
        time.sleep(0.05)
    time.sleep(3)
    os.killpg(process.pid, signum)
    process.wait(timeout=60)
    assert go_on(project).returncode == 0
    assert differing(project, finished) == []
    tell(f"{signal.Signals(signum).name} to everything while training: same bytes after running again")


def test_a_stale_lock(finished, tmp_path):
    project = finished.clone(tmp_path / "project")
    project.results("runs/gpt-s1/model.json").unlink()
    process = project.start("train_all")
    while not stages(project.folder):
        time.sleep(0.05)
    kill_group(process)
    assert list((project.folder / ".snakemake/locks").iterdir())
    refused = project.snakemake("train_all")
    assert refused.returncode != 0 and "LockException" in refused.stdout, refused.stdout[-2000:]
    done = go_on(project)
    assert done.returncode == 0 and "its lock is taken away" in done.stdout, done.stdout[-2000:]
    assert differing(project, finished) == []
    tell("a lock left by a killed run: snakemake refuses, make run takes it away; same bytes")


def test_two_runs_on_one_results_folder(finished, tmp_path):
    project = Project.create(tmp_path / "project")
    first = project.start("all")
    while not stages(project.folder):
        time.sleep(0.05)
    second = go_on(project)
    assert second.returncode != 0 and "lock" in second.stdout.lower(), second.stdout[-2000:]
    assert first.wait() == 0
    assert differing(project, finished) == []
    tell("two runs at once: the second is refused, the first finishes undisturbed")
