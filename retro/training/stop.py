"""SIGTERM and SIGINT: noticed at once, obeyed where it is safe."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stopped(Exception):
    """The process was asked to stop; `signum` says by which signal."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Stop:
    """Remembers the first signal that asks to stop."""

    def __init__(self) -> None:
        self.signum = 0

    def __call__(self, signum: int, _frame: object) -> None:
        self.signum = self.signum or signum

    def check(self) -> None:
        """Raise `Stopped` if a signal came."""
        if self.signum:
            raise Stopped(self.signum)

    @classmethod
    @contextmanager
    def listening(cls) -> Iterator["Stop"]:
        """Catch SIGTERM and SIGINT while the block runs."""
        stop = cls()
        before = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield stop
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
