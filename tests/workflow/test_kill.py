"""kill -9 of the whole process group, and a run that ends in the same bytes all the same."""

import random
import time

import pytest

from tests.workflow.conftest import Project, kill_group

WEIGHTS = "runs/retro-s1/model.safetensors"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(finished, tmp_path, seed):
    project = Project.create(tmp_path / "killed")
    process = project.start("--until", "train")
    time.sleep(random.Random(seed).uniform(3, 25))
    kill_group(process)
    done = project.run("python", "-m", "retro.tools.run", "--config", "config/tiny.yaml", "--cores", "2", "train_all")
    assert done.returncode == 0, done.stdout[-4000:]
    assert project.results(WEIGHTS).read_bytes() == finished.results(WEIGHTS).read_bytes()
