"""Which jobs question answering adds: none to a config without it."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OWN = {"finetune": 2, "answer": 6, "score": 1, "qa": 1}


def plan(tmp_path, *words):
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", *words]
    command += ["--config", f"results={tmp_path}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def jobs(done):
    assert done.returncode == 0, done.stdout + done.stderr
    table = (done.stdout + done.stderr).partition("Job stats:")[2]
    found = re.findall(r"^([a-z_]+)\s+(\d+)$", table, re.M)
    return {name: int(count) for name, count in found}


def test_its_config_adds_its_jobs(tmp_path):
    found = jobs(plan(tmp_path, "qa", "--configfile", "config/qa.yaml"))
    assert {name: found.get(name) for name in OWN} == OWN


def test_the_default_run_has_none_of_them(tmp_path):
    assert not OWN.keys() & jobs(plan(tmp_path)).keys()


def test_without_questions_it_says_where_to_get_some(tmp_path):
    done = plan(tmp_path, "qa")
    assert done.returncode and "config/qa.yaml" in done.stdout + done.stderr
