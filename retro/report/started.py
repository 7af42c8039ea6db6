"""When, from what code, by what command and on what machine a dataset's folder was worked on: D/started.jsonl.

Manifests hold none of this, so that the same inputs give the same bytes. Snakemake adds a line each time it begins
(`note`), and the report's provenance shows them (`read`). It reruns nothing.
"""

import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

NAME = "started.jsonl"


def note(folder: Path, code: Path) -> None:
    """Add a line for this process to `folder`; `code` is where the project lies. Nothing where it cannot be written."""
    program = Path(sys.argv[0]).name.replace("__main__.py", "snakemake")  # python -m snakemake
    command = shlex.join([program, *sys.argv[1:]])
    facts = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(code),
        "command": command,
        "machine": machine(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / NAME, "a", encoding="utf-8") as file:
            file.write(json.dumps(facts, ensure_ascii=False) + "\n")
    except OSError:
        return


def read(path: Path) -> list[dict[str, str]]:
    """The lines, oldest first; what is not a line of ours is passed over."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            facts: Any = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(facts, dict):
            found.append({key: str(value) for key, value in facts.items() if value})
    return found


def configs(begun: list[dict[str, str]]) -> str:
    """`--configfile …` of the last of these lines, as it stood there; empty where it named none."""
    try:
        words = shlex.split(begun[-1].get("command", "")) if begun else []
    except ValueError:  # a quotation without an end
        words = []
    at = next((number for number, word in enumerate(words) if word in ("--configfile", "--configfiles")), len(words))
    files = itertools.takewhile(lambda word: not word.startswith("-"), words[at + 1 :])
    return shlex.join([*words[at : at + 1], *files])


def commit(code: Path) -> str:
    """The commit that the code in a folder is at, with a word if files differ from it; empty where git tells none."""

    def git(*arguments: str) -> str:
        made = subprocess.run(["git", "-C", str(code), *arguments], capture_output=True, text=True, timeout=20)
        return made.stdout.strip() if made.returncode == 0 else ""

    try:
        if Path(git("rev-parse", "--show-toplevel") or "/").resolve() != code.resolve():  # of another project
            return ""
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + (", with changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def machine() -> str:
    """The machine in words, without its name: processor, cores, memory, GPUs, system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().total / 2**30
    gpus = [_after(path, "Model") for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    kinds = [f"{gpus.count(kind)} × {kind}" for kind in dict.fromkeys(gpus)]
    processor = _after(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine()
    parts = [processor, f"{cores} core{'s' if cores > 1 else ''}", f"{memory:.0f} GB of memory", *kinds]
    return ", ".join([*parts, f"{platform.system()} {platform.machine()}"])


def _after(path: Path, name: str) -> str:
    """The value of the first line `name: value` of a file."""
    try:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    except OSError:
        pass
    return ""
