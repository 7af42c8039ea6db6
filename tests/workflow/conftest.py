"""A throw-away copy of the project in which the tiny pipeline has run once, for tests of the workflow itself."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORDING = Path(__file__).parent / "recording"
PARTS = ["Snakefile", "rules", "retro", "config", "profiles", "docs/captions", "data/tiny.jsonl"]


class Project:
    """A copy of the project, its own package included, in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        # The copy's package must win over the installed one, in Snakemake's process and in every stage's.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, "PYTHONPATH": str(folder), "PATH": path}
        self.environment.pop("SNAKEMAKE_PROFILE", None)

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
        return [sys.executable, "-m", "snakemake", "--configfile", config, "--cores", "2", *words]

    def start(self, *words: str, config: str = "config/tiny.yaml") -> subprocess.Popen:
        """Start Snakemake in a process group of its own, so that all of it can be killed."""
        return subprocess.Popen(
            self.command(*words, config=config),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def snakemake(self, *words: str, config: str = "config/tiny.yaml") -> subprocess.CompletedProcess:
        return self.run(*self.command(*words, config=config))

    def recording(self) -> "Project":
        """The same project, whose runs note which code of the package they run: `ran` reads it."""
        self.notes.mkdir(exist_ok=True)
        found = type(self)(self.folder)
        path = f"{RECORDING}{os.pathsep}{self.environment['PYTHONPATH']}"
        found.environment |= {"PYTHONPATH": path, "RETRO_RECORDED": str(self.notes)}
        return found

    @property
    def notes(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.notes")

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
        rules = re.findall(r"^([a-z_]+)\s+\d+\s*$", table, re.MULTILINE)
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


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """The tiny pipeline after one complete run. Tests must leave it as they found it, or clone it."""
    project = Project.create(tmp_path_factory.mktemp("workflow") / "project")
    done = project.recording().snakemake("all")
    assert done.returncode == 0, done.stdout[-8000:]
    return project
