"""Lines for the log, which may have been closed: a run must not fail because nobody listens any more."""

import sys


def say(text: str) -> None:
    """A line on stderr. A closed pipe is ignored: whoever stops a job often stops its log first."""
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        return


def warn(text: str) -> None:
    """Say what went wrong and how it goes on."""
    say(f"warning: {text}")
