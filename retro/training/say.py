"""Lines for the log, which may have been closed: a run must not fail because nobody listens any more."""

import os
import sys


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
