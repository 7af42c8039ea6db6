"""Lines and progress for the log, which may have been closed: a run must not fail because nobody listens any more."""

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm


def say(text: str) -> None:
    """A line on stderr. A closed pipe is ignored: whoever stops a job often stops its log first."""
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        # What could not be written waits in a buffer, and would fail again, at exit too.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)


def warn(text: str) -> None:
    """Say what went wrong and how it goes on."""
    say(f"warning: {text}")


class _Lines:
    """Writes each state of a bar as a line of its own, for logs."""

    def write(self, text: str) -> None:
        text = text.replace("\r", "").strip()
        if text:
            sys.stderr.write(f"{text}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def bar(total: int | None, what: str, unit: str) -> tqdm:
    """A tqdm bar over `total` `unit`s; call `.update(n)`, use as a context manager."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        unit_scale=True,
        ascii=None if terminal else " #",
        ncols=100,
        delay=0 if terminal else 1,
        mininterval=0.2 if terminal else 10.0,
        maxinterval=10.0,
        file=sys.stderr if terminal else _Lines(),
    )


BEAT = 10.0  # seconds


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say every ten seconds that `what`, of which nobody knows how far along it is, goes on."""
    start, done = time.monotonic(), threading.Event()

    def beat() -> None:
        while not done.wait(BEAT):
            print(f"{what}: {time.monotonic() - start:.0f} s so far", file=sys.stderr, flush=True)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def track(items: Iterable, total: int | None, what: str, unit: str) -> Iterator:
    """Yield `items` and show how far along they are."""
    with bar(total, what, unit) as shown:
        for item in items:
            yield item
            shown.update(1)


def duration(seconds: float) -> str:
    """Seconds for a reader: 8 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest and minutes < 20 else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text, indented: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join("  " + line.rstrip() for line in lines)
