"""Snakemake, started and watched: its events become lines or a live view, its own output goes to a file.

Two processes, so that whatever Snakemake and its jobs print goes to the file, and nothing that happens there harms what
is shown here. Ctrl-C reaches both, as all processes of a terminal; a signal that only this one was sent is handed on.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import psutil

from retro.tools.progress import Run
from retro.tools.view import Lines, view_of

STEP = 0.5  # seconds between two looks
PATIENCE = 2.0  # seconds in which Snakemake says that it has heard a signal, before it is handed on
STOPPING = (
    "Stopping: what runs is ended, and a training writes a checkpoint first. Another Ctrl-C would not make it faster."
)


def log_file(folder: Path) -> Path:
    """A new file for what a run prints: logs/run-20261128-210158.log of its dataset."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    return folder / "logs" / f"run-{time.strftime('%Y%m%d-%H%M%S')}.log"


class Signals:
    """Remembers that SIGINT or SIGTERM came, and when first."""

    def __init__(self) -> None:
        self.came, self.number = 0.0, 0

    def __call__(self, number: int, _frame: object) -> None:
        self.came, self.number = self.came or time.time(), self.number or number

    @contextlib.contextmanager
    def minded(self) -> Iterator["Signals"]:
        """Mind them while the block runs."""
        heeded = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self) for number in heeded}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def watch(arguments: list[str], run: Run, log: Path) -> tuple[int, int]:
    """Run Snakemake with `arguments` to its end. Its exit status, and the signal that ended it before, or 0."""
    command = [sys.executable, "-m", "retro.tools.events", *arguments]
    with open(log, "ab") as file, Signals().minded() as signals, view_of(run) as view:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file, text=True)
        assert child.stdout is not None
        events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        threading.Thread(target=_read, args=(child.stdout, events), daemon=True).start()
        try:
            _follow(child, run, view, events, signals)
        except BaseException:  # nothing shall run on unseen
            hand_on(child.pid)
            raise
        return child.wait(), signals.number


def _read(stream: TextIO, events: "queue.Queue[dict[str, Any] | None]") -> None:
    """Events, and None at their end; what a library may have printed among them is none."""
    for line in stream:
        with contextlib.suppress(ValueError):
            events.put(json.loads(line))
    events.put(None)


def _follow(
    child: subprocess.Popen, run: Run, view: Lines, events: "queue.Queue[dict[str, Any] | None]", signals: Signals
) -> None:
    """Show what the events say until they end."""
    said = handed = heard = False
    while True:
        view.refresh(time.time())
        try:
            event = events.get(timeout=STEP)
        except queue.Empty:
            event = {}
        if event is None:
            return
        if event:
            heard = heard or event["event"] == "stopping"
            job = run.take(event)
            if job is not None:
                view.ended(job, event["time"] - job.began)
            elif event["event"] == "run_info" and run.total:
                view.begun()
        if signals.came and not said:
            view.write(STOPPING)
            said = True
        if signals.came and not heard and not handed and time.time() - signals.came > PATIENCE:
            hand_on(child.pid)
            handed = True


def hand_on(pid: int) -> None:
    """Send SIGINT to Snakemake and to the stages it runs, as a terminal would; `tee` shall write their last words."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                if each.name() not in ("tee", "bash", "sh"):
                    os.kill(each.pid, signal.SIGINT)
