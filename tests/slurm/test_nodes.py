"""Training on two nodes of the real SLURM: placed as the config says, one curve, stopped and resumed as one."""

import json
import signal
import subprocess

import psutil
import pytest

from tests.slurm.cluster import wait
from tests.slurm.test_slurm import log
from tests.told import tell

NODES = "config/nodes.yaml"
ONE = "config/one.yaml"
LAUNCHER = "retro.training.launch"
WEIGHTS = "runs/retro-s1/model.safetensors"
TARGET = f"results/tiny/{WEIGHTS}"
# tiny.yaml for twenty steps, without muon, which FSDP does not go with; a node has two fake GPUs.
ONE_CONFIG = """preset: config/tiny.yaml
dataset: {samples: {train_samples: 80}}
train: {log_interval: 1, optimizer: adamw, lr: 1.0e-3, parallel: {fsdp: true}}
"""
NODES_CONFIG = f"{ONE_CONFIG}resources: {{nodes: 2, processes: 2, gpus: 2}}\n"
LONG = NODES_CONFIG.replace("train_samples: 80", "train_samples: 4000")


def losses(project):
    found = [json.loads(text) for text in project.results("runs/retro-s1/metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in found]


def submitted():
    """Number and facts of the last job of a training."""
    jobs = subprocess.run(["squeue", "-h", "-t", "all", "-o", "%i %k"], capture_output=True, text=True).stdout
    number = max(int(line.split()[0]) for line in jobs.splitlines() if "rule_train_wildcards" in line)
    command = ["scontrol", "show", "job", str(number)]
    return number, subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_two_nodes_give_the_curve_of_one_process(ran, tmp_path):
    project = ran.clone(tmp_path / "project")
    (project.folder / NODES).write_text(NODES_CONFIG, encoding="utf-8")
    (project.folder / ONE).write_text(ONE_CONFIG, encoding="utf-8")
    alone = project.clone(tmp_path / "alone")
    done = project.snakemake(TARGET, "--jobs", "1", config=NODES)
    assert done.returncode == 0, done.stdout[-8000:] + log(project, "retro-s1")
    assert "4 x cpu" in log(project, "retro-s1") and "FSDP over 4" in log(project, "retro-s1")
    _, facts = submitted()
    assert "NumNodes=2" in facts and "NumTasks=2" in facts and "CPUs/Task=2" in facts and "gres:gpu:2" in facts, facts
    done = alone.run("python", "-m", "snakemake", TARGET, "--cores", "1", "--configfile", ONE)
    assert done.returncode == 0, done.stdout[-4000:]
    assert len(losses(alone)) == 20 + 2 * 4
    assert losses(project) == pytest.approx(losses(alone), rel=1e-5)
    planned = project.run("python", "-m", "snakemake", TARGET, "--cores", "1", "--configfile", ONE, "--dry-run")
    assert "Nothing to be done" in planned.stdout, planned.stdout
    largest = max(abs(two / one - 1) for one, two in zip(losses(alone), losses(project), strict=True))
    tell(f"two nodes with two processes each, FSDP: 20 steps, losses within {largest:.0e} of those of one process")


def launchers():
    """The launchers that have called srun."""
    words = {process: process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])}
    return [process for process, given in words.items() if LAUNCHER in given and "--rendezvous" not in given]


def test_two_nodes_that_are_stopped_save_one_step_and_go_on(ran, tmp_path):
    project = ran.clone(tmp_path / "project")
    (project.folder / NODES).write_text(LONG, encoding="utf-8")
    saved = project.results("runs/retro-s1/checkpoints")
    process = project.start(TARGET, "--jobs", "1", "--retries", "1", config=NODES)

    def stopped(step, stop):
        """Stop the training after `step`; the step it has saved and goes on from."""
        wait(400, f"step {step}", lambda: f"\nstep {step}/" in log(project, "retro-s1"))
        before = set(saved.glob("*/step-*.json"))
        stop()
        wait(60, "the checkpoint", lambda: set(saved.glob("*/step-*.json")) - before)
        (index,) = set(saved.glob("*/step-*.json")) - before
        found = int(index.stem[5:])
        wait(400, "the new start", lambda: f"start      step {found} of" in log(project, "retro-s1"))
        return found

    try:
        one = stopped(20, lambda: launchers()[0].send_signal(signal.SIGTERM))
        two = stopped(one + 20, lambda: subprocess.run(["scontrol", "requeue", str(submitted()[0])], check=True))
    finally:
        process.terminate()  # Snakemake waits for what runs
        subprocess.run(["scancel", str(submitted()[0])], check=True)
        process.wait(timeout=300)  # it looks after a job every three minutes at least
    assert one < two < 500, "500 is an ordinary checkpoint"
    tell(f"two nodes, the launcher stopped, then the job requeued: saved and went on at steps {one} and {two}")
