"""A throw-away copy of the project in which the tiny pipeline has run once, for tests of the workflow itself."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORDING = Path(__file__).parent / "recording"
PARTS = ["Snakefile", "rules", "retro", "config", "profiles", "docs/captions", "data/tiny.jsonl"]


class Project:
    """A copy of the project, its own package included, in a folder of its own."""

    python = sys.executable  # what runs Snakemake and the stages; `quick_start` puts another in its place

    def __init__(self, folder: Path, python: str | None = None):
        self.folder, self.python = folder, python or self.python
        # The copy's package must win over the installed one, in Snakemake's process and in every stage's.
        path = os.pathsep.join([str(Path(self.python).parent), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = {**os.environ, "PYTHONPATH": str(folder), "PATH": path}
        self.environment.pop("SNAKEMAKE_PROFILE", None)

    def cold(self) -> Self:
        """The same project, run by the real Python."""
        return type(self)(self.folder, sys.executable)

    @classmethod
    def create(cls, folder: Path) -> "Project":
        folder.mkdir(parents=True)
        for part in PARTS:
            source, target = ROOT / part, folder / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, target)
        return cls(folder)

    def clone(self, folder: Path) -> Self:
        """A copy with everything made so far, time stamps kept."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return type(self)(folder)

    def command(self, *words: str, config: str = "config/tiny.yaml") -> list[str]:
        return [self.python, "-m", "snakemake", "--configfile", config, "--cores", "2", *words]

    def start(self, *words: str, config: str = "config/tiny.yaml") -> subprocess.Popen:
        """Start Snakemake, by the real Python, in a process group of its own, so that all of it can be killed."""
        cold = self.cold()
        return subprocess.Popen(
            cold.command(*words, config=config),
            cwd=self.folder,
            env=cold.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def snakemake(self, *words: str, config: str = "config/tiny.yaml") -> subprocess.CompletedProcess:
        return self.run(*self.command(*words, config=config))

    def make_run(self, *targets: str, config: str = "config/tiny.yaml") -> subprocess.CompletedProcess:
        """What `make run` runs."""
        return self.run(self.python, "-m", "retro.tools.run", "--config", config, "--cores", "2", *targets)

    def recording(self) -> "Project":
        """The same project, whose runs note which code of the package they run: `ran` reads it."""
        self.notes.mkdir(exist_ok=True)
        found = type(self)(self.folder, self.python)
        path = f"{RECORDING}{os.pathsep}{self.environment['PYTHONPATH']}"
        found.environment |= {"PYTHONPATH": path, "RETRO_RECORDED": str(self.notes)}
        return found

    @property
    def notes(self) -> Path:
        return self.folder / ".notes"

    def ran(self) -> dict[str, set[tuple[str, str]]]:
        """Module and name of every definition of which code ran while a run was recorded, by the program that ran."""
        found: dict[str, set[tuple[str, str]]] = {}
        for path in self.notes.iterdir():
            for line in path.read_text(encoding="utf-8").splitlines():
                program, module, name = line.split(" ")
                found.setdefault(program, set()).add((module, name))
        return found

    def run(self, *command: str) -> subprocess.CompletedProcess:
        """Run a command in the project's folder; stdout and stderr together in `stdout`."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def planned(self, *words: str, config: str = "config/tiny.yaml") -> set[str]:
        """The rules a dry run would execute, without the target rule `all`."""
        done = self.snakemake("--dry-run", *words, config=config)
        assert done.returncode == 0, done.stdout
        table = done.stdout.partition("Job stats:")[2].partition("total")[0]
        rules = re.findall(r"^([a-z0-9_]+)\s+\d+\s*$", table, re.MULTILINE)
        assert rules or "Nothing to be done" in done.stdout, done.stdout
        return set(rules) - {"all"}

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace text that must be there."""
        file = self.folder / path
        text = file.read_text(encoding="utf-8")
        assert old in text, f"{path} has no {old!r}"
        file.write_text(text.replace(old, new, 1), encoding="utf-8")

    def results(self, name: str) -> Path:
        return self.folder / "results/tiny" / name


def kill_group(process: subprocess.Popen) -> None:
    """kill -9 the whole process group."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="session", autouse=True)
def quick_start(warm) -> Iterator[None]:
    """Projects run Snakemake and their stages by forks of a Python that has imported the libraries."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Project, "python", str(warm.python))
        yield


def run_all(folder: Path) -> None:
    project = Project.create(folder / "project").cold()
    done = project.recording().make_run()
    assert done.returncode == 0, done.stdout[-8000:]
    (folder / "shown.txt").write_text(done.stdout, encoding="utf-8")


@pytest.fixture(scope="session")
def finished(made_once, tmp_path_factory) -> Project:
    """The tiny pipeline after one complete run, by the real Python; what else runs is compared with it.

    Tests must leave it as they found it, or clone it.
    """
    folder = tmp_path_factory.mktemp("workflow") / "finished"
    shutil.copytree(made_once("finished", run_all), folder, symlinks=True)
    return Project(folder / "project")
