"""Which jobs question answering adds: none to a config without it."""

import re
import subprocess
from pathlib import Path

import pytest

from retro.config.schema import load
from retro.qa.finetune import name_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
OWN = {"finetune": 2, "answer": 6, "score": 1, "qa": 1}


@pytest.fixture
def plan(warm):
    def planned(tmp_path, *words, **config):
        command = [warm.python, "-m", "snakemake", "--dry-run", "--cores", "1", *words]
        command += ["--config", f"results={tmp_path}", *(f"{key}={value}" for key, value in config.items())]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    return planned


def jobs(done):
    assert done.returncode == 0, done.stdout + done.stderr
    table = (done.stdout + done.stderr).partition("Job stats:")[2]
    found = re.findall(r"^([a-z_]+)\s+(\d+)$", table, re.M)
    return {name: int(count) for name, count in found}


def test_its_config_adds_its_jobs(plan, tmp_path):
    found = jobs(plan(tmp_path, "qa", "--configfile", "config/qa.yaml"))
    assert {name: found.get(name) for name in OWN} == OWN


def test_the_default_run_has_none_of_them(plan, tmp_path):
    assert not OWN.keys() & jobs(plan(tmp_path)).keys()


def test_instructions_are_a_config_of_their_own(plan, tmp_path):
    done = plan(tmp_path, "qa", "--configfile", "config/instruct.yaml")
    assert {name: jobs(done).get(name) for name in OWN} == OWN
    assert "runs/retro-s1-instruct/model.json" in done.stdout and "parts/instruct.html" in done.stdout
    assert "s1-qa" not in done.stdout


def test_every_seed_answers(plan, tmp_path):
    found = jobs(plan(tmp_path, "qa", "--configfile", "config/qa.yaml", seeds="[1,2]"))
    assert (found["finetune"], found["answer"], found["score"], found["train"]) == (4, 12, 1, 4)


def test_a_run_may_be_called_like_a_fine_tuned_one(tmp_path):
    config = tmp_path / "named.yaml"
    runs = "gpt-qa: {architecture: gpt}, retro-qa: {architecture: retro, twin: gpt-qa}"
    config.write_text(f"preset: config/qa.yaml\nruns: {{{runs}}}\n")
    parsed = load(config)
    names = list(parsed.models())
    tuned = [name_of(name, parsed.qa.name) for name in names]
    assert not set(names) & set(tuned) and len(set(tuned)) == len(names)


def test_without_questions_it_says_where_to_get_some(plan, tmp_path):
    done = plan(tmp_path, "qa")
    assert done.returncode and "config/qa.yaml" in done.stdout + done.stderr
