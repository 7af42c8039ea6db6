"""The pipeline on a real SLURM of three nodes: what it makes, and what it survives."""

import subprocess

from tests.slurm.cluster import wait
from tests.told import tell

WEIGHTS = "runs/retro-s1/model.safetensors"
LONG = "config/long.yaml"
# The same as tiny.yaml, with a training that lasts longer than a minute, the shortest limit SLURM knows.
LONG_CONFIG = """preset: config/tiny.yaml
dataset: {samples: {train_samples: 12000}}
train: {checkpoint_interval: 100}
"""


def queue(state: str) -> list[str]:
    """Numbers of the jobs in a state."""
    return subprocess.run(["squeue", "-h", "-t", state, "-o", "%i"], capture_output=True, text=True).stdout.split()


def log(project, run: str) -> str:
    path = project.results(f"logs/train/{run}.log")
    return path.read_text(encoding="utf-8") if path.exists() else ""


def test_the_tiny_pipeline_gives_the_bytes_of_a_run_without_cluster(ran, finished):
    for name in [WEIGHTS, "runs/gpt-s1/model.safetensors", "neighbours/train/ids.npy", "index/index.faiss"]:
        assert ran.results(name).read_bytes() == finished.results(name).read_bytes(), name
    assert ran.planned() == set()
    tell("neighbours, index and weights: the same bytes as without a cluster")


def test_a_failing_job_is_said_to_fail_and_where_its_log_is(ran, tmp_path):
    project = ran.clone(tmp_path / "project")
    with open(project.folder / "data/tiny.jsonl", "a", encoding="utf-8") as corpus:
        corpus.write("{not json\n")
    done = project.snakemake("all", "--jobs", "6", "--retries", "0")
    assert done.returncode != 0
    assert "tiny.jsonl, line 52" in done.stdout, done.stdout[-4000:]
    assert "slurm_logs" in done.stdout
    tell("a job that fails: exit status and message reach the user, with file and line of the bad record")


def test_preemption_and_time_limits_cost_nothing_but_time(ran, tmp_path):
    project = ran.clone(tmp_path / "project")
    (project.folder / LONG).write_text(LONG_CONFIG, encoding="utf-8")
    calm = project.clone(tmp_path / "calm")
    target = f"results/tiny/{WEIGHTS}"
    process = project.start(
        target,
        "--jobs",
        "1",
        "--retries",
        "12",
        "--set-resources",
        "train:runtime=1",
        "train:slurm_partition=cpu",
        config=LONG,
    )
    try:
        wait(
            240,
            "the training's first checkpoint",
            lambda: list(project.results("runs/retro-s1").glob("checkpoints/*/step-*")),
        )
        urgent = subprocess.run(
            [
                "sbatch",
                "--parsable",
                "-p",
                "urgent",
                "-N3",
                "-n3",
                "-c2",
                "--mem=15000",
                "-o",
                "/dev/null",
                "--wrap",
                "srun sleep 3",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        wait(90, "the urgent job", lambda: urgent in queue("running"))
        assert not log(project, "retro-s1").count("wrote model.safetensors")
        process.wait(timeout=1500)
    finally:
        if process.poll() is None:
            process.terminate()
    assert process.returncode == 0
    calmly = project.run(
        "python", "-m", "snakemake", target, "--cores", "1", "--configfile", LONG, "--directory", str(calm.folder)
    )
    assert calmly.returncode == 0, calmly.stdout[-4000:]
    assert project.results(WEIGHTS).read_bytes() == calm.results(WEIGHTS).read_bytes()
    states = subprocess.run(["squeue", "-h", "-t", "all", "-o", "%T"], capture_output=True, text=True).stdout.split()
    assert "TIMEOUT" in states
    tell(f"a training preempted once and stopped by {states.count('TIMEOUT')} time limit(s): the same weights")
