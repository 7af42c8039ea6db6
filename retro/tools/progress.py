"""What is known of a run under way: its jobs, how far each is, what it made, and about how long the rest will take.

Snakemake's events (`retro.tools.events`) say which jobs there are, begin and end. How far a job is says its log, which
lies in the results and so can be read here wherever the job runs, in a container or on another machine: a training's
lines and the bars of `retro.base.log` are looked for at its end.
"""

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retro.base.artifacts import read_text
from retro.base.names import retrieval
from retro.base.stage import UserError

END = 4096  # bytes of a log that are looked at
STEP = re.compile(r"step ([\d,]+)/([\d,]+) .*?loss (\S+) .*  (\S.*) left$")  # of retro.training.loop
BAR = re.compile(r"(\d+)%\|.*\[\S+<([\d:?]+)")  # of tqdm
UNITS = {"s": 1, "min": 60, "h": 3600}
TRAINING = ("train", "finetune")  # rules that take most of a run, and as long as nothing else does
TARGETS = ("all", "preprocess", "retrievals", "train_all")


@dataclass(frozen=True)
class Progress:
    """How far a job is: the share done, what it says of itself, and seconds left if it says so."""

    share: float
    said: str = ""
    left: float | None = None


def progress_of(line: str) -> Progress | None:
    """What a line of a log says of progress; None if it is another line."""
    if found := STEP.search(line):
        step, steps = (int(number.replace(",", "")) for number in found.groups()[:2])
        return Progress(step / steps, f"loss {float(found[3]):.2f}", seconds(found[4]))
    if found := BAR.search(line):
        parts = found[2].split(":")
        left = None if "?" in found[2] else sum(int(part) * 60**at for at, part in enumerate(reversed(parts)))
        return Progress(int(found[1]) / 100, "", left)
    return None


def seconds(text: str) -> float | None:
    """Seconds of a duration as `retro.base.log.duration` writes it; None for anything else."""
    words = text.split()
    try:
        return sum(float(number) * UNITS[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
    except (ValueError, KeyError):
        return None


@dataclass
class Job:
    """A job of Snakemake's, from its beginning."""

    rule: str
    wildcards: dict[str, str]
    log: Path | None
    benchmark: Path | None
    began: float  # seconds since 1970
    before: float | None = None  # time of its log when it began: that of an earlier attempt, if there was one
    said: Progress | None = None  # the last of how far it is, at the last look

    @property
    def label(self) -> str:
        """What it is called: a training by its run, others by rule and wildcards."""
        values = [retrieval(value) if name == "retrieval" else value for name, value in self.wildcards.items()]
        if self.rule in TRAINING:
            return " ".join(values)
        return " ".join(filter(None, [self.rule.replace("_", " "), *(value.lstrip("-") for value in values)]))

    def lines(self) -> list[str]:
        """The last lines of its log, none of an earlier attempt."""
        try:
            if self.log is None or ((at := self.log.stat().st_mtime) == self.before and at < self.began - 1):
                return []
            with open(self.log, "rb") as file:
                file.seek(max(0, file.seek(0, 2) - END))
                return file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return []

    def look(self) -> None:
        """Look how far it is."""
        self.said = next(filter(None, map(progress_of, reversed(self.lines()))), None)

    def made(self, folder: Path, width: int) -> str:
        """What it says that it made: the last line that names a file, or the last; files as below `folder`, where there
        is room."""
        lines = [line for line in self.lines() if line and not line.startswith(("warning: ", "error: "))]
        lines = [line for line in lines if progress_of(line) is None]
        line = next((line for line in reversed(lines) if " → " in line), lines[-1] if lines else "")
        what, colon, rest = line.partition(": ")
        if colon and all(value in what for value in self.wildcards.values()):
            line = rest  # it repeats what the job is called
        line = line.replace(f"{folder}/", "")
        return line if len(line) <= width else line.partition(" → ")[0]


def written(path: Path | None) -> float | None:
    """When a file was written; None where there is none, as Snakemake may just have removed it."""
    try:
        return path.stat().st_mtime if path else None
    except OSError:
        return None


@dataclass
class Run:
    """A run of Snakemake, as its events tell it.

    `earlier`: seconds that each job took in an earlier run of this dataset, by its benchmark file.
    """

    folder: Path
    earlier: dict[Path, float] = field(default_factory=dict)
    began: float = field(default_factory=time.time)
    running: dict[int, Job] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)  # jobs that have not begun, by rule
    took: dict[str, list[float]] = field(default_factory=dict)  # seconds of jobs that ended, by rule
    begun: set[Path | None] = field(default_factory=set)  # benchmark files of jobs that have begun
    failed: list[Job] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # Snakemake's own messages
    done: int = 0
    total: int = 0
    cores: int | None = None
    looked: float = float("-inf")

    @classmethod
    def of(cls, folder: Path) -> "Run":
        """A run that begins, of the dataset in `folder`."""
        return cls(folder, {path: took for path in folder.glob("benchmarks/**/*.jsonl") if (took := _took(path))})

    def take(self, event: dict[str, Any]) -> Job | None:
        """Take an event in; the job that it ends, if it does."""
        kind = event["event"]
        if kind == "run_info":
            self.left = {rule: jobs for rule, jobs in event["stats"].items() if rule not in ("total", *TARGETS)}
            self.total = sum(self.left.values())
        elif kind == "resources_info":
            self.cores = event.get("cores") or self.cores
        elif kind == "job_info" and event["rule_name"] not in TARGETS:
            rule, log, benchmark = event["rule_name"], event["log"], event["benchmark"]
            where = (Path(log[0]) if log else None, Path(benchmark) if benchmark else None)
            self.running[event["jobid"]] = Job(rule, event["wildcards"], *where, event["time"], written(where[0]))
            self.begun.add(where[1])
            self.left[rule] = max(self.left.get(rule, 0) - 1, 0)
        elif kind in ("job_finished", "job_error"):
            job = self.running.pop(event["job_id"] if kind == "job_finished" else event["jobid"], None)
            if job is not None and kind == "job_finished":
                self.done += 1
                self.failed = [each for each in self.failed if each.label != job.label]  # it was tried again
                self.took.setdefault(job.rule, []).append(event["time"] - job.began)
                return job
            if job is not None:
                self.failed.append(job)
                self.left[job.rule] = self.left.get(job.rule, 0) + 1  # until it is tried again, if it is
        elif kind == "error":
            self.errors.append(event["message"])
        return None

    def look(self, now: float) -> None:
        """Look how far the jobs are, but at no more than twenty files a second."""
        if now - self.looked >= len(self.running) / 20:
            self.looked = now
            for job in self.running.values():
                job.look()

    def stopped(self) -> list[Job]:
        """Jobs that had begun and did not end well."""
        return [*self.running.values(), *self.failed]

    def remaining(self, now: float) -> float | None:
        """About how many seconds the rest will take; None while too little is known to say.

        A job that runs says itself how long it will, or takes what it took in an earlier run, or what its like took in
        this one; so does one that waits. With a rule of which nothing is known there is no estimate, unless all
        trainings are known: what follows them is short, and counts as the mean of what has ended.
        """
        mine = {rule: list(took) for rule, took in self.took.items()}
        lefts = []
        for job in self.running.values():
            elapsed = now - job.began
            if job.said is not None and job.said.left is not None:
                lefts.append(job.said.left)
                mine.setdefault(job.rule, []).append(elapsed + job.said.left)
                continue
            likely = self.earlier.get(job.benchmark or Path()) or _mean(self.took.get(job.rule, []))
            if likely is None and job.rule in TRAINING:
                return None
            lefts.append(max((likely or 0.0) - elapsed, 0.0))
        waiting = {rule: jobs for rule, jobs in self.left.items() if jobs}
        if not waiting and not self.running:
            return None
        known = {rule: self._known(rule, mine.get(rule, [])) for rule in waiting}
        short = _mean([each for rule, took in self.took.items() if rule not in TRAINING for each in took])
        trains = any(rule in TRAINING for rule in [*self.took, *waiting, *(job.rule for job in self.running.values())])
        todo = sum(lefts)
        for rule, jobs in waiting.items():
            one = known[rule] or (short if trains and rule not in TRAINING else None)
            if one is None:
                return None
            todo += jobs * one
        busy = sum(map(sum, self.took.values())) + sum(now - job.began for job in self.running.values())
        return max([todo / max(1.0, busy / max(now - self.began, 1.0)), *lefts])

    def _known(self, rule: str, mine: list[float]) -> float | None:
        """What a waiting job of a rule is likely to take."""
        earlier = {path: took for path, took in self.earlier.items() if _rule(path) == rule}
        waiting = [took for path, took in earlier.items() if path not in self.begun]
        return _mean(waiting or mine or list(earlier.values()))


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _took(path: Path) -> float | None:
    """Seconds that a benchmark file of Snakemake's tells."""
    try:
        return float(json.loads(read_text(path).splitlines()[-1])["s"])
    except (UserError, OSError, ValueError, LookupError, TypeError):
        return None


def _rule(path: Path) -> str:
    """The rule of a benchmark file: benchmarks/<rule>/….jsonl, or below retrievals/<name>."""
    parts = path.with_suffix("").parts
    parts = parts[len(parts) - parts[::-1].index("benchmarks") :]
    return parts[2] if parts[0] == "retrievals" and len(parts) > 2 else parts[0]
