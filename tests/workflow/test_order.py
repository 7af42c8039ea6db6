"""What runs beside what: nothing waits for all cores while one of them trains, and the longest jobs begin first."""

import re

import pytest


@pytest.mark.parametrize(("cores", "threads"), [("1", "1"), ("2", "1"), ("8", "2")])
def test_embedding_leaves_a_core_for_a_training(finished, cores, threads):
    words = ["--configfile", "config/tiny.yaml", "--dry-run", "--forceall", "--cores", cores, "preprocess"]
    done = finished.run("python", "-m", "snakemake", *words)
    assert done.returncode == 0, done.stdout[-3000:]
    embed = next(each for each in re.split(r"^rule ", done.stdout, flags=re.MULTILINE) if each.startswith("embed:"))
    assert (re.findall(r"threads: (\d+)", embed) or ["1"]) == [threads]


def test_what_a_training_waits_for_is_made_before_anything_is_embedded(finished):
    words = ["--configfile", "config/tiny.yaml", "--dry-run", "--forceall", "--cores", "2", "train_all"]
    done = finished.run("python", "-m", "snakemake", *words)
    jobs = re.split(r"^rule ", done.stdout, flags=re.MULTILINE)[1:]
    found = {job.partition(":")[0]: int((re.findall(r"priority: (-?\d+)", job) or ["0"])[0]) for job in jobs}
    assert found["train"] > found["record"] > found["embed"]
