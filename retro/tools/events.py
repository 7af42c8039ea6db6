"""Snakemake with a plugin that tells of its jobs: what `retro.tools.run` starts and reads.

    python -m retro.tools.events --configfile config/tiny.yaml --cores 2     (arguments of snakemake)

Events are lines of JSON on stdout. All else, of Snakemake and of its jobs, goes to stderr, as Snakemake writes it by
itself. The plugin is an ordinary one of Snakemake's interface for loggers. Others are found by the name of their
package; this one is registered by the interface's own call, so that it needs no package and works where this module
does, from a checkout too. Jobs that Snakemake sends to a cluster do not load it.
"""

import contextlib
import json
import os
import signal
import sys
import time
from logging import LogRecord
from typing import TextIO

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry

TOLD = {  # what is told of each event
    LogEvent.RUN_INFO: ("stats",),
    LogEvent.RESOURCES_INFO: ("cores",),
    LogEvent.JOB_INFO: ("jobid", "rule_name", "wildcards", "log", "benchmark"),
    LogEvent.JOB_FINISHED: ("job_id",),
    LogEvent.JOB_ERROR: ("jobid",),
    LogEvent.ERROR: ("message",),
}
STOPPING = "Terminating processes on user request"  # how begins what Snakemake says to Ctrl-C, which is no event of its
GRACE = 2.0  # seconds in which a second Ctrl-C is the first, pressed again

channel: TextIO = sys.stdout


def tell(event: str, **facts: object) -> None:
    """A line of JSON. Who read it may have ended: the run goes on."""
    with contextlib.suppress(BrokenPipeError, ValueError):
        print(json.dumps({"event": event, "time": time.time(), **facts}, default=str), file=channel, flush=True)


class LogHandler(LogHandlerBase):
    """The plugin. It writes to neither stream nor file of Snakemake's, so that Snakemake's own output stays."""

    writes_to_stream = writes_to_file = needs_rulegraph = False
    has_filter = has_formatter = True

    def emit(self, record: LogRecord) -> None:
        """Tell of an event, if it is one of `TOLD`, or that Snakemake stops."""
        event = getattr(record, "event", None)
        if event in TOLD:
            record.message = record.getMessage()
            tell(str(event), **{name: getattr(record, name) for name in TOLD[event] if hasattr(record, name)})
        if str(record.msg).startswith(STOPPING):
            Interrupts.obeyed = True
            tell("stopping")


class Interrupts:
    """Ctrl-C interrupts once. Pressed again while Snakemake cleans up it would leave its lock and half a record."""

    obeyed = False  # Snakemake has said that it stops
    last = float("-inf")

    def __call__(self, signum: int, frame: object) -> None:
        now = time.monotonic()
        again, self.last = self.obeyed or now - self.last < GRACE, now
        if not again:  # what was lost in a handler of Snakemake's can be pressed again
            raise KeyboardInterrupt


def main() -> None:
    global channel
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background of a script
        signal.signal(signal.SIGINT, Interrupts())
    LoggerPluginRegistry().register_plugin("snakemake_logger_plugin_retro", sys.modules[__name__])
    from snakemake import cli  # takes a second; by now Ctrl-C is minded

    sys.argv[0] = "snakemake"
    cli.main(["--logger", "retro", *sys.argv[1:]])


if __name__ == "__main__":
    main()
