"""A cluster for all tests of this folder, and the pipeline that runs on it as a user's would."""

import os
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, install
from tests.told import TOLD, tell
from tests.workflow.conftest import Project, finished  # noqa: F401


def pytest_terminal_summary(terminalreporter):
    if TOLD:
        terminalreporter.section("what ran on the cluster")
        for line in TOLD:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    reason = install()
    if reason:
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    began = time.monotonic()
    try:
        cluster.start()
        tell(
            f"SLURM with {cluster.nodes} nodes of {cluster.gpus} fake GPUs started in {time.monotonic() - began:.1f} s"
        )
        yield cluster
    finally:
        cluster.stop()


class ClusterProject(Project):
    """A copy of the project whose jobs go through profiles/slurm, edited as its comments say."""

    @classmethod
    def create(cls, folder: Path) -> "ClusterProject":
        project = super().create(folder)
        project.edit("profiles/slurm/profile.yaml", '  slurm_account: "retro"            # yours\n', "")
        project.edit("profiles/slurm/profile.yaml", "# slurm-status-command: squeue", "slurm-status-command: squeue")
        with open(folder / "profiles/slurm/profile.yaml", "a", encoding="utf-8") as profile:
            # This cluster is one machine: its answers come at once, and nobody pays for an account.
            profile.write(
                "slurm-no-account: true\nslurm-init-seconds-before-status-checks: 1\nseconds-between-status-checks: 2\n"
            )
        return project

    def command(self, *words: str, config: str = "config/tiny.yaml") -> list[str]:
        words = (*words, "--configfile", config, "--workflow-profile", "profiles/slurm", "--latency-wait", "5")
        return ["snakemake", *words]


@pytest.fixture(scope="session")
def ran(cluster, tmp_path_factory):
    """The tiny pipeline, run through the cluster; and what Snakemake said."""
    project = ClusterProject.create(tmp_path_factory.mktemp("slurm") / "project")
    for name in [name for name in project.environment if name.startswith("SLURM_")]:
        del project.environment[name]
    project.environment["PATH"] += f"{os.pathsep}/usr/sbin"
    began = time.monotonic()
    done = project.snakemake("all", "--jobs", "6")
    assert done.returncode == 0, done.stdout[-8000:]
    tell(
        f"tiny.yaml from text to report: {done.stdout.count('Finished jobid')} jobs in {time.monotonic() - began:.0f} s"
    )
    return project
