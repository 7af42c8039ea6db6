"""What rules hand to stages: all the settings that a stage names, and the dataset's own retriever."""

import json
import re

import pytest

from retro.config.layers import merged
from retro.training.settings import PACKAGES, _installed
from tests.workflow.conftest import ROOT
from tests.workflow.keys import BASE
from tests.workflow.plan import Plan
from tests.workflow.test_rerun_keys import base, folder  # noqa: F401

NAMED = re.compile(r'"--settings".*help="JSON: ([\w, ]+)"')  # the keys that a stage's help lists


def given(params) -> dict:
    """The settings among a job's params, as Snakemake records them."""
    return next(json.loads(eval(param)) for param in params if param.startswith("'{"))


def test_every_rule_hands_its_stage_all_the_settings_that_it_names(base):  # noqa: F811
    tried = set()
    for (rule, _), (params, _, shell) in base.records.items():
        stage = re.search(r"python -m (retro[\w.]+)", shell or "")
        wanted = stage and NAMED.search((ROOT / f"{stage[1].replace('.', '/')}.py").read_text(encoding="utf-8"))
        if wanted:
            assert given(params).keys() == set(wanted[1].split(", ")), rule
            tried.add(rule)
    assert tried >= {"tokenize", "embed", "index", "neighbours", "candidates", "subsample", "retrieval_bm25_index"}


@pytest.mark.parametrize("retriever", ["dense", "bm25", "hybrid", "random", "shuffled"])
def test_smaller_databases_are_searched_by_the_datasets_own_retriever(folder, retriever):  # noqa: F811
    plan = Plan.of(folder, merged(BASE, {"dataset": {"retriever": retriever}}), {"experiments"})
    (candidates,) = (record for (rule, _), record in plan.records.items() if rule == "candidates")
    (neighbours,) = (record for job, record in plan.records.items() if job[0] == "neighbours" and "/test/" in job[1][0])
    assert given(candidates[0])["retriever"] == retriever
    assert given(candidates[0])["index"] == given(neighbours[0])["index"]
    assert candidates[1] == neighbours[1], "they read the same files"


def test_candidates_of_a_bm25_dataset_are_found_by_their_words(finished, tmp_path):
    project = finished.clone(tmp_path / "project")
    project.edit("config/tiny.yaml", "chunk_length: 32", "chunk_length: 32\n  retriever: bm25")
    done = project.snakemake("results/tiny/candidates/test/manifest.json")
    assert done.returncode == 0, done.stdout[-4000:]
    facts = json.loads(project.results("candidates/test/manifest.json").read_text(encoding="utf-8"))
    assert facts["settings"]["retriever"] == "bm25"
    assert "../../bm25/manifest.json" in facts["inputs"]


def test_what_a_config_hardly_means_is_said_when_it_is_read(finished):
    done = finished.snakemake("--dry-run", "--config", "train={warmup_samples: 900}")
    assert "warning: runs.retro: train.warmup_samples 900 is more than the 48 samples" in done.stdout
    assert "warning: " not in finished.snakemake("--dry-run").stdout


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_made(finished):
    if any(map(_installed, PACKAGES["wandb"])):
        pytest.skip("wandb is installed here")
    done = finished.snakemake("--dry-run", "--config", "train={trackers: [wandb]}")
    assert done.returncode == 1 and "train.trackers: wandb is not installed. `pip install wandb`" in done.stdout
