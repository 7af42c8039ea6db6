"""Measure preprocessing at two sizes of a corpus: python -m retro.bench.corpus

The corpus is text that is installed: sources and documentation of Python, of its packages and of the system
(/usr/share/doc). Each file of up to 100 kB is a document, equal ones once, in the order of a hash of their content, so
that the smaller corpus is a random sample of the larger; the same installation gives the same corpus. Snakemake
preprocesses both with the static encoder and an index of inverted lists, one thread a job. Reported are each job's peak
memory and CPU seconds for every 1,000 chunks: the kernel's own counts, because Snakemake's benchmark files sample every
30 s, or theirs where they are higher. All of it is done three times: of the memory the most is taken, of the CPU
seconds, to which a busy machine adds up to a quarter, the least. A second call goes on where the first was stopped.
Exit status 1 if a job needs more than 2 GiB, or if its memory or its cost grows by more than 20 % from the smaller to
the larger corpus.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import psutil

from retro.base import stage
from retro.base.artifacts import read_json, replacing, write_json
from retro.base.stage import UserError, whole

KINDS = {".py", ".pyi", ".h", ".md", ".rst", ".txt", ".jsonl"}
LONGEST = 100_000  # bytes of a file; longer ones are mostly tables and generated code
SKIPPED = {"__pycache__", "site-packages"}  # the latter: of the Python that a virtual environment was made with
ROUNDS = 3
MEMORY, GROWTH = 2048, 1.2  # MiB; larger over smaller
LISTS = 5  # inverted lists for each megabyte of text: as many vectors a list at both sizes
SAMPLE = 80_000  # vectors that the lists are trained on, enough for the larger size: too few make lists uneven
STARTS = 5.0  # CPU seconds of a job below which starting Python is most of it, and cost says nothing
PAUSE = 0.1  # seconds between two looks at the jobs' memory
LOG = re.compile(r"/logs/(\S+\.log)")  # in a job's shell command
MARK = re.compile(r"VmHWM:\s+(\d+) kB")
COLUMNS = ["job", "MiB", "MiB ", "growth", "CPU s / 1000 chunks", "CPU s / 1000 chunks ", "growth "]


def roots() -> list[Path]:
    """Folders whose text is taken."""
    paths = sysconfig.get_paths()
    return [Path(paths["stdlib"]), Path(paths["purelib"]), Path("/usr/share/doc")]


def found(folders: list[Path]) -> list[Path]:
    """One file for each different content, in the order of the sha256 of that content."""
    files: dict[str, Path] = {}
    for folder in folders:
        for place, below, names in os.walk(folder):
            below[:] = sorted(name for name in below if name not in SKIPPED and not name.startswith("."))
            for name in sorted(names):
                path = Path(place, name)
                if path.suffix in KINDS and path.is_file() and not path.is_symlink() and path.stat().st_size <= LONGEST:
                    files.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), path)
    return [files[key] for key in sorted(files)]


def documents(paths: list[Path], size: int) -> Iterator[bytes]:
    """Lines of JSON of the first files that are valid UTF-8, of `size` bytes of text in all; the last is cut."""
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        text = text.encode()[:size].decode(errors="ignore")
        size -= len(text.encode())
        if text.strip():
            yield json.dumps({"id": path.as_posix(), "text": text}, ensure_ascii=False).encode() + b"\n"
        if size <= 0:
            return
    raise UserError(f"{size} bytes of text are missing: install more packages, or give a smaller --megabytes.")


def written(paths: list[Path], folder: Path, megabytes: int) -> Path:
    """The corpus of one size, made if it is not there: written again, it would be preprocessed again."""
    corpus = folder / f"{megabytes}mb.jsonl"
    if not corpus.exists():
        with replacing(corpus) as temporary, open(temporary, "wb") as file:
            file.writelines(documents(paths, megabytes * 1_000_000))
    return corpus


def config(corpus: Path, folder: Path, megabytes: int) -> dict:
    """The config of one size and round."""
    return {
        "preset": "tiny",
        "results": str(folder),
        "dataset": {
            "name": f"{megabytes}mb",
            "sources": {"installed": {"path": str(corpus)}},
            "split": {"by": "document"},
            "tokenizer": {"vocab_size": 8192, "train_bytes": 10_000_000},
            "encoder": {"type": "static"},
            "index": {
                "factory": f"IVF{LISTS * megabytes}_HNSW8,SQ8",
                "train_vectors": SAMPLE,
                "nprobe": 3,
                "ef_search": 32,
                "k_factor": 2,
            },
            "neighbours": {"saved": 10, "recall_sample": 200},
        },
        "resources": dict.fromkeys(["tokenize_threads", "embed_threads", "search_threads"], 1),
    }


def named(path: str) -> str:
    """The job that a log or a benchmark file, named below its folder, is of."""
    return path.rpartition(".")[0].replace("/installed", "")


def watch(process: subprocess.Popen) -> dict[str, tuple[float, float]]:
    """Wait for Snakemake; of the largest process of each job, as the kernel counts: most MiB, CPU seconds."""
    marks: dict[str, tuple[float, float]] = {}
    while process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.Error, OSError):
                parent = child.parent()  # None if it has ended
                shell = LOG.search(" ".join(parent.cmdline())) if parent else None
                mark = MARK.search(Path(f"/proc/{child.pid}/status").read_text(encoding="utf-8"))
                if shell and mark:
                    job, times = named(shell[1]), child.cpu_times()
                    memory, cpu = marks.get(job, (0.0, 0.0))
                    marks[job] = max(memory, int(mark[1]) / 1024), max(cpu, times.user + times.system)
        time.sleep(PAUSE)
    return marks


def preprocess(corpus: Path, folder: Path, megabytes: int, cores: int) -> pd.DataFrame:
    """Run the pipeline up to the recorded config; MiB and CPU seconds for every 1,000 chunks of each job."""
    settings = folder / f"{megabytes}mb.json"
    write_json(settings, config(corpus, folder, megabytes))
    command = [sys.executable, "-m", "snakemake", "preprocess", "--configfile", str(settings), "--cores", str(cores)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--resources", "gpu=0", "--quiet", "all"], env=environment)
    marks = watch(process)
    if process.returncode:
        raise UserError(f"snakemake preprocess failed for {settings}: correct what its log above says.")
    made = folder / f"{megabytes}mb"
    chunks = read_json(made / "chunks/installed/manifest.json")["counts"]["chunks"]
    marks_file = folder / f"{megabytes}mb.marks.json"  # of jobs that an earlier call ran
    marks = (read_json(marks_file) if marks_file.exists() else {}) | marks
    write_json(marks_file, marks)
    rows = []
    for path in sorted((made / "benchmarks").rglob("*.jsonl")):
        facts = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
        job = named(path.relative_to(made / "benchmarks").as_posix())
        memory, cpu = marks.get(job, (0.0, 0.0))
        memory, cpu = max(memory, float(facts["max_rss"])), max(cpu, float(facts["cpu_time"]))
        rows.append({"job": job, "memory": memory, "cpu": cpu})
    table = pd.DataFrame(rows).set_index("job")
    table["cost"] = table["cpu"] / chunks * 1000
    print(f"{megabytes} MB: {chunks:,} chunks", file=sys.stderr)
    return table


def combined(rounds: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Of each job the most memory and the least CPU seconds and cost of all rounds of one size."""
    return pd.concat(rounds).groupby(level=0).agg({"memory": "max", "cpu": "min", "cost": "min"})


def compared(small: pd.DataFrame, large: pd.DataFrame) -> tuple[str, list[str]]:
    """The table in Markdown, and what is over a bound."""
    rows, wrong = [], []
    for job in large.index:
        before, after = small.loc[job], large.loc[job]
        memory, cost = after["memory"] / before["memory"], after["cost"] / before["cost"]
        rows.append(
            [
                job,
                *(f"{value:.0f}" for value in (before["memory"], after["memory"])),
                f"{memory:.2f}",
                *(f"{value:.3f}" for value in (before["cost"], after["cost"])),
                f"{cost:.2f}",
            ]
        )
        if after["memory"] > MEMORY:
            wrong.append(f"{job}: {after['memory']:.0f} MiB, the bound is {MEMORY}")
        if memory > GROWTH:
            wrong.append(f"{job}: memory grows by a factor of {memory:.2f}")
        if cost > GROWTH and after["cpu"] > STARTS:
            wrong.append(f"{job}: cost a chunk grows by a factor of {cost:.2f}")
    head = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in rows)]), wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--megabytes", type=whole, default=100, help="text of the larger corpus; the smaller has a quarter"
    )
    parser.add_argument("--folder", type=Path, default=Path("results/bench-preprocess"), help="where it all goes")
    parser.add_argument("--cores", type=whole, default=1, help="jobs at a time")
    options = parser.parse_args()
    paths = found(roots())
    corpora = {size: written(paths, options.folder, size) for size in (options.megabytes // 4, options.megabytes)}
    rounds = []
    for number in range(1, ROUNDS + 1):
        folder = options.folder / f"round-{number}"
        rounds.append([preprocess(corpus, folder, size, options.cores) for size, corpus in corpora.items()])
    small, large = (combined(tables) for tables in zip(*rounds, strict=True))
    table, wrong = compared(small, large)
    print(table)
    for line in wrong:
        print(line)
    if wrong:
        raise UserError(f"{len(wrong)} figures are over their bound; wanted none.")


if __name__ == "__main__":
    stage.run(main)
