"""What `make run` shows of a run under way: lines in a pipe or a log, a live view on a terminal.

A line says that a stage has ended: how many have, what it is called, what it made, how long it took. Below them a
terminal shows what is running; a log has a line now and then of what runs long.
"""

import os
import sys
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from retro.base.log import duration
from retro.tools.progress import TRAINING, Job, Run

WIDTH = 120  # columns, the most that are used
NAME = 34  # of them for what a job is called
SELDOM, OTHERS = 30.0, 120.0  # seconds between lines of a training that runs, and of another job
SHARE, SILENCE = 0.1, 600.0  # and the share of it between them; or seconds, however little was done
BAR = 20  # columns


def view_of(run: Run) -> "Lines":
    """A live view if stdout is a terminal that can show one."""
    terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    return LiveView(run) if terminal else Lines(run)


class Lines:
    """Plain lines on stdout, which may have been closed: a run does not fail because nobody looks any more."""

    def __init__(self, run: Run, width: int = WIDTH):
        self.run, self.width = run, width
        self.shown: dict[int, tuple[float, float]] = {}  # by job: when it was shown last, and how far it was

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, text: str) -> None:
        """A line."""
        try:
            print(text, flush=True)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)

    def begun(self) -> None:
        """Say how much there is to do."""
        run = self.run
        about = remaining(run, run.began)
        parts = [
            f"{run.total} stages",
            f"on {run.cores} cores" if run.cores else "",
            about and f"{about}, by an earlier run",
        ]
        self.write(", ".join(filter(None, parts)))

    def ended(self, job: Job, seconds: float) -> None:
        """Say that a job has ended."""
        self.write(ended(self.run, job, seconds, self.width))

    def refresh(self, now: float) -> None:
        """Say how far those jobs are that run long: a tenth further each time, or now and then."""
        self.run.look(now)
        for number, job in self.run.running.items():
            last, share = self.shown.get(number, (job.began, 0.0))
            if now - last < (SELDOM if job.rule in TRAINING else OTHERS) or (said := job.said) is None:
                continue
            if said.share - share >= SHARE or now - last >= SILENCE:
                self.shown[number] = (now, said.share)
                about = remaining(self.run, now)
                words = [" " * 8, *running(job, now, NAME), about and f"  the run: {about}"]
                self.write(fitted(" ".join(words).rstrip(), self.width))


class LiveView(Lines):
    """The same lines, and below them what is running, drawn anew while it changes."""

    def __init__(self, run: Run):
        self.console = Console(highlight=False, soft_wrap=False)
        super().__init__(run)
        self.live = Live(console=self.console, auto_refresh=False, transient=True, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def write(self, text: str) -> None:
        """A line, above what is running."""
        self.console.print(Text(text), soft_wrap=True)

    def ended(self, job: Job, seconds: float) -> None:
        """The same, as wide as the terminal is now."""
        width = min(WIDTH, self.console.width)
        text = Text(ended(self.run, job, seconds, width))
        text.stylize("dim", 0, 8)
        text.stylize("bold", 9, 9 + named(width))
        self.live.update(drawn(self.run, job.began + seconds, width), refresh=True)  # it runs no longer
        self.console.print(text, soft_wrap=True)

    def refresh(self, now: float) -> None:
        """Draw what is running."""
        self.run.look(now)
        self.live.update(drawn(self.run, now, min(WIDTH, self.console.width)), refresh=True)


def ended(run: Run, job: Job, seconds: float, width: int) -> str:
    """The line of a job that has ended, no longer than `width`."""
    took = duration(round(seconds, 1 if seconds < 10 else 0))
    name = named(width)
    head = f"{f'{run.done}/{run.total}':>8} {fitted(job.label, name):{name}} "
    room = max(width - len(head) - 12, 0)
    return f"{head}{fitted(job.made(run.folder, room), room):{room}}{took:>12}"


def named(width: int) -> int:
    """Columns for what a job is called."""
    return max(min(NAME, width - 54), 8)


def fitted(text: str, width: int) -> str:
    """A text, cut where it is longer than `width`."""
    return text if len(text) <= width else f"{text[: max(width - 1, 0)]}…"


def clock(seconds: float) -> str:
    """Seconds as a stopwatch shows them: 2:10, 1:02:10."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def running(job: Job, now: float, name: int) -> list[str]:
    """How far a job is: name, share, what it says, time."""
    said = job.said
    if said is None:
        return [f"{fitted(job.label, name):{name}}", "", "", f"{clock(now - job.began)} so far"]
    left = f"{clock(said.left)} left" if said.left is not None else f"{clock(now - job.began)} so far"
    return [f"{fitted(job.label, name):{name}}", f"{100 * said.share:3.0f} %", f" {said.said:9} ", left]


def remaining(run: Run, now: float) -> str:
    """About how long the rest takes, in words; empty while that cannot be said."""
    left = run.remaining(now)
    if left is None:
        return ""
    step = 10 if left < 120 else 60 if left < 7200 else 600
    return f"about {duration(max(round(left / step), 1) * step)} left"


def drawn(run: Run, now: float, width: int) -> Group:
    """What is running, and how far all of it is, in lines of `width`."""
    name = named(width)
    table = Table.grid(padding=(0, 1))
    for column in range(5):
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=name if column == 0 else None)
    for job in run.running.values():
        told, said = running(job, now, name), job.said
        full = round(BAR * said.share) if said else 0
        line = Text("━" * full, "cyan").append("━" * (BAR - full) if said else "", "dim")
        table.add_row(Text(told[0], "bold"), line, told[1], told[2].strip(), Text(told[3], "dim"))
    done = f"{run.done} of {run.total} stages done" if run.total else "reading the config"
    parts = [done, f"{clock(now - run.began)} so far", remaining(run, now)]
    whole = Text(fitted(" · ".join(filter(None, parts)), width - 1), "dim")
    return Group(table, whole) if run.running else Group(whole)
