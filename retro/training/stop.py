"""SIGTERM, SIGINT, SIGUSR1 and the end of a job's time: noticed at once, obeyed where it is safe."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

OUT_OF_TIME = 1000  # a reason beside the numbers of signals
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: an exit status that is not success, after which to start again


class Stopped(Exception):
    """The process was asked to stop; `status` is its exit status."""

    def __init__(self, reason: int):
        timed = reason == OUT_OF_TIME
        super().__init__("its time limit" if timed else signal.Signals(reason).name)
        self.status = TRY_AGAIN if timed or reason == signal.SIGUSR1 else 128 + reason


def deadline(minutes: float | None, before: float) -> float:
    """When to stop, in seconds since 1970: `minutes` from now, and `before` minutes before the SLURM job's end."""
    limits = [] if minutes is None else [time.time() + 60 * minutes]
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    return min([*limits, *([int(end) - 60 * before] if end.isdecimal() else []), float("inf")])


class Stop:
    """Remembers the first signal that asks to stop, and when time is up."""

    def __init__(self, end: float = float("inf")) -> None:
        self.signum, self.end = 0, end

    def __call__(self, signum: int, _frame: object) -> None:
        self.signum = self.signum or signum

    def reason(self) -> int:
        """The signal that came, OUT_OF_TIME, or 0."""
        return self.signum or (OUT_OF_TIME if time.time() >= self.end else 0)

    def check(self) -> None:
        """Raise `Stopped` if there is a reason."""
        if reason := self.reason():
            raise Stopped(reason)

    @classmethod
    @contextmanager
    def listening(cls, end: float = float("inf")) -> Iterator["Stop"]:
        """Catch SIGTERM, SIGINT and SIGUSR1 while the block runs, and mind the `end`, in seconds since 1970."""
        stop = cls(end)
        before = {signum: signal.signal(signum, stop) for signum in SIGNALS}
        try:
            yield stop
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
