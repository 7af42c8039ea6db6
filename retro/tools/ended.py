"""What `make run` ends with: the result in a few lines, pages and what to try next; or what went wrong.

Read from what the run has made, so that a run with nothing left to do ends with the same.
"""

import os
import shlex
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from retro.base.artifacts import read_json
from retro.base.log import duration, table
from retro.base.names import ALL
from retro.base.stage import UserError
from retro.evaluation.conditions import NONE, ON
from retro.tools.progress import TRAINING, Job, Run

PAGES = {
    "report.html": "the whole story",
    "neighbours.html": "what each chunk looked up, and what it was worth",
    "summary.csv": "the figures",
}
WIDTH = 120  # of sentences
CELLS = (  # columns that tell; a row of comparison.csv lacks some
    "retrieval", "bits_per_byte", "difference_percent", "low", "high", "copier_percent", "copier_low", "copier_high"
)  # fmt: skip
TAIL = 12  # lines of a log that ends without a message of ours
OWN = "run-*.log"  # what `make run` itself writes into logs


def found(folder: Path) -> str:
    """The result: the report's headline, and the bits per byte that it is about."""
    from retro.dataset.dataset import Dataset
    from retro.report import story  # with matplotlib, which rules, that import `retro.tools.run`, need not wait for
    from retro.report.copying import differences, label
    from retro.report.read import read_csv, read_runs, where
    from retro.report.report_page import reach

    comparison = read_csv(folder / "comparison.csv")
    main = story.main_rows(comparison)
    if not main:
        rows = where(read_csv(folder / "summary.csv"), source=ALL)
        told = [(f"{row['run']}, retrieval {row['retrieval']}", f"{row['bits_per_byte']:.3f}") for row in rows]
        return table([("", "bits per byte"), *told])
    on, copying = main[ON], folder / "copying.csv"
    mixed = where(read_csv(copying), kind=ALL, split=on["split"]) if copying.exists() else []
    documents = int(on["documents"])
    headline, _ = story.headline(comparison, documents, documents, story.copier(mixed))
    if (folder / "config.json").exists():
        runs = read_runs(sorted(folder.glob("runs/*/model.json")))
        advice = story.advice(reach(Dataset.open(folder / "config.json"), on["split"], runs, comparison))
        headline = " ".join(advice) if advice else headline  # of too little text a figure proves nothing
    shown = next((row["k"] for row in mixed if row["retrieval"] == ON), 0)  # as many neighbours as in training
    rows = [row for row in mixed if row["k"] in (0, shown) and row["retrieval"] != f"{ON}+copy"]
    if not rows:
        twin = {"retrieval": NONE, "bits_per_byte": on["twin_bits_per_byte"]}
        rows = [twin, *main.values()]
    others = where(comparison, seed=ALL, source=ALL, split=on["split"], retrieval=ON)
    named = [(label(row), row) for row in rows] + [(row["run"], row) for row in others if row["run"] != on["run"]]
    lines = [("", "bits per byte", "against the GPT (95 %)", "against GPT + copier (95 %)")]
    for name, row in named:
        cells = differences({key: row.get(key) for key in CELLS})
        lines.append((name, f"{row['bits_per_byte']:.3f}", " ".join(cells[:2]), " ".join(cells[2:])))
    columns = 4 if mixed else 3
    wrapped = textwrap.fill(headline.replace(" %", "\u00a0%"), WIDTH).replace("\u00a0", " ")
    return f"{wrapped}\n\n{table([row[:columns] for row in lines])}"


def pages(folder: Path) -> str:
    """What to open; the first two need a RETRO run with a twin."""
    there = [(f"{folder / name}", what) for name, what in PAGES.items() if (folder / name).exists()]
    width = max((len(path) for path, _ in there), default=0)
    return "Open in a browser:" + "".join(f"\n  {path:{width}}  {what}" for path, what in there)


def next_commands(folder: Path) -> str:
    """Three commands to go on with: look up, write, serve; with the RETRO run that wrote the report's sample."""
    written = sorted(folder.glob("runs/*/sample.json"))
    if not written:
        return ""
    try:
        prompt = " ".join(read_json(written[0])["samples"][0]["prompt"].split()[:3]).rstrip(":;,")
    except (UserError, LookupError, AttributeError, TypeError):
        prompt = ""
    retro = "retro" if Path(sys.executable).with_name("retro").exists() else "python -m retro.tools.cli"
    if retro == "retro" and Path(sys.prefix).resolve() == Path(".venv").resolve():
        retro = ".venv/bin/retro"  # whether or not the environment is activated
    run, text = shlex.quote(str(written[0].parent)), shlex.quote(prompt or "The")
    commands = [
        f"show --config {shlex.quote(str(folder / 'config.json'))} --text {text}",
        f"write --run {run} --prompt {text} --show",
        f"serve --run {run}",
    ]
    return "Then look something up, let it write, write on a page of your own machine:" + "".join(
        f"\n  {retro} {command}" for command in commands
    )


def _logs(logs: Path, begin: float) -> Iterator[tuple[Path, list[str]]]:
    """Logs that were written to since `begin`, and their lines."""
    for path in sorted(logs.rglob("*.log")):
        if path.stat().st_mtime >= begin:
            yield path, path.read_text(encoding="utf-8", errors="replace").splitlines()


def warned(logs: Path, begin: float) -> str:
    """The warnings of the stages of this run, each once: they have scrolled by."""
    lines = dict.fromkeys(line for _, text in _logs(logs, begin) for line in text if line.startswith("warning: "))
    return "".join(f"\n{textwrap.fill(line, WIDTH, subsequent_indent='  ')}" for line in ["", *lines]) if lines else ""


def failed(run: Run, logs: Path, begin: float, log: Path, status: int) -> str:
    """What went wrong: the messages of stages of this run; without one, the end of a failed stage's log, or Snakemake's
    own message."""
    lines = [
        f"  {path}: {line}"
        for path, text in _logs(logs, begin)
        if not path.match(OWN)
        for line in text
        if line.startswith("error: ")
    ]
    for job in run.failed if not lines else []:
        if job.log is not None:
            lines += [f"  {job.log} ends with:", *(f"    {line}" for line in job.lines()[-TAIL:])]
    if not lines:
        lines = [f"  {line}" for message in run.errors for line in message.splitlines()]
    if not lines and status < 0:
        lines = [f"  Snakemake was ended by {signal.Signals(-status).name}."]
    if not lines:
        end = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:] if log.exists() else []
        lines = [f"  {line}" for line in end]
    names = dict.fromkeys(job.label for job in run.failed)
    head = f"What went wrong ({', '.join(names)}):" if names else "What went wrong:"
    ends = [
        f"All that was printed: {log}",
        "Messages and their ways out: docs/troubleshooting.md. Then run the same command again.",
    ]
    return "\n".join(["", head, *dict.fromkeys(lines), *ends])


def stopped(run: Run, seconds: float) -> str:
    """What Ctrl-C left: what is finished, and where the trainings that ran go on."""
    reached = f"after {run.done} of {run.total} stages" if run.total else "before the first stage"
    lines = [f"Stopped {reached}, {duration(round(seconds))}."]
    for job in run.stopped():
        if job.rule in TRAINING:
            lines.append(f"  {job.label}: {_checkpoint(run.folder, job)}")
    return "\n".join([*lines, "What is finished is kept: the same command goes on from there."])


def _checkpoint(folder: Path, job: Job) -> str:
    """The newest checkpoint of a training, in words."""
    path = folder / "runs" / job.label / "checkpoints"
    marks = [*path.glob("*/step-*.safetensors.sha256"), *path.glob("*/step-*.json")]  # written when one is whole
    last = max(marks, key=os.path.getmtime, default=None)
    return f"goes on from {str(last).removesuffix('.sha256')}" if last else "had no checkpoint yet, and begins again"
