"""Start a training: as one process, several on this machine, or several on each node of a SLURM job.

    python -m retro.training.launch --nodes 2 --processes 8 -- <arguments of retro.training.train>

One process is the trainer itself. Several are started by torchrun, which runs in this process; for several nodes,
`srun` starts this module once on each, within the SLURM job.

SIGTERM, SIGINT, SIGHUP and SIGUSR1 reach every process: all save the same step, and the exit status is 75, which asks
to be started again. If one process fails, all end, and its message is the last one shown. If the launcher is killed,
so are they. Of the processes' output the first one's is shown.
"""

import argparse
import ctypes
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from retro.base import stage
from retro.base.log import say
from retro.base.stage import UserError, whole
from retro.training.loop import TRY_AGAIN

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
STOPPED = {TRY_AGAIN, *(128 + signum for signum in SIGNALS)}  # exit statuses of a trainer that has saved
TRAINER = "retro.training.train"
FOLLOW = "--follow"  # the first argument of one of several processes
LAUNCHER = "RETRO_LAUNCHER"  # environment: process number of the launcher
PR_SET_PDEATHSIG = 1  # prctl(2)
PATIENCE = 900  # seconds that processes have to finish a step and save
LINGER = 3  # seconds for other nodes to end by themselves, before srun ends them
SHOWN = 30  # lines of a failed process's output
# What processes say whose partner has gone: not the cause.
ECHO = re.compile(r"Connection (closed|reset) by peer|DistNetworkError|DistBackendError|NCCL error")


def follow(signum: int) -> None:
    """Let the kernel send this process a signal when its parent has ended. It survives exec. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)


def become_trainer(arguments: list[str]) -> None:
    """One of several processes: the trainer, which ends when the process that started it ends, in whatever way."""
    follow(signal.SIGKILL)
    if os.getppid() != int(os.environ[LAUNCHER]):  # it ended before
        sys.exit(1)
    os.execv(sys.executable, [sys.executable, "-m", TRAINER, *arguments])


def main() -> None:
    if sys.argv[1:2] == [FOLLOW]:
        become_trainer(sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=whole, default=1, help="nodes of the SLURM job")
    parser.add_argument("--processes", type=whole, default=1, help="training processes on each node")
    parser.add_argument("--inside", default="", help="several nodes: a command that starts the container on each")
    parser.add_argument("--rendezvous", help=argparse.SUPPRESS)  # host:port; given to the launcher of each node
    parser.add_argument("arguments", nargs="+", help="after --: the trainer's")
    options = parser.parse_args()
    if options.nodes * options.processes == 1:
        os.execv(sys.executable, [sys.executable, "-m", TRAINER, *options.arguments])
    if options.nodes > 1 and not options.rendezvous:
        sys.exit(on_nodes(options.nodes, options.processes, options.inside, options.arguments))
    sys.exit(on_this(options.nodes, options.processes, options.rendezvous, options.arguments))


def on_nodes(nodes: int, processes: int, inside: str, arguments: list[str]) -> int:
    """Start a launcher on each node of the SLURM job; the exit status."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        raise UserError(
            f"resources.nodes is {nodes}, but this is no SLURM job. Run snakemake with --workflow-profile "
            f"profiles/slurm, or set resources.nodes to 1."
        )
    if shutil.which("srun") is None:
        raise UserError(
            f"resources.nodes is {nodes}, but there is no srun here, as in a container. Call this outside of it, with "
            f"the command that starts the container on each node as --inside."
        )
    command = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    # All CPUs and GPUs of the job, even if a job step holds them; one node's end is the end of all.
    command += ["--overlap", "--cpu-bind=none", "--mpi=none", "--kill-on-bad-exit=1", "--wait=0", "--input=none"]
    command += [*shlex.split(inside), "python" if inside else sys.executable, "-m", "retro.training.launch"]
    command += ["--nodes", str(nodes), "--processes", str(processes)]
    command += ["--rendezvous", f"{first_node(job)}:{free_port()}", "--", *arguments]
    step = subprocess.Popen(command, preexec_fn=partial(follow, signal.SIGTERM))
    stopped = []

    def stop(signum: int, _frame: Any) -> None:
        stopped.append(signum)
        step.send_signal(signal.SIGUSR1)  # which srun hands on; at SIGTERM it would kill

    for signum in SIGNALS:
        signal.signal(signum, stop)
    status = step.wait()
    return TRY_AGAIN if stopped and status else status


def first_node(job: str) -> str:
    """Name of a SLURM job's first node."""
    names = subprocess.run(["squeue", "-h", "-j", job, "-o", "%N"], capture_output=True, text=True, check=True).stdout
    found = subprocess.run(["scontrol", "show", "hostnames", names.strip()], capture_output=True, text=True, check=True)
    return found.stdout.split()[0]


def free_port() -> int:
    """A port that nobody uses: of this machine, which in a batch job is the first node."""
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


def on_this(nodes: int, processes: int, rendezvous: str | None, arguments: list[str]) -> int:
    """Start this node's processes and wait for their end; the exit status."""
    # Here, as where srun is called there may be no torch.
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    def stop(signum: int, _frame: Any) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # once: torchrun must not be disturbed while it waits for the others
        raise SignalException(signal.Signals(signum).name, signal.SIGTERM)

    for signum in SIGNALS:
        signal.signal(signum, stop)
    logging.disable(logging.CRITICAL)  # torchrun's own account of what is told below
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the trainer sets its own
    os.environ[LAUNCHER] = str(os.getpid())
    node = int(os.environ["SLURM_PROCID"]) if rendezvous else 0
    place = ["--standalone"]
    if rendezvous:
        place = ["--nnodes", str(nodes), "--node-rank", str(node), "--rdzv-backend", "static"]
        place += ["--rdzv-endpoint", rendezvous, "--rdzv-id", rendezvous]
    silent = [f"{rank}:3" for rank in range(processes) if node or rank]  # all but the first of all: to files
    with tempfile.TemporaryDirectory(prefix="retro-") as logs:
        words = ["--nproc-per-node", str(processes), "--log-dir", logs, "--redirects", ",".join(silent) or "0"]
        words += ["--shutdown-timeout", str(PATIENCE), "--signals-to-handle", "SIGUSR2", "--max-restarts", "0"]
        try:
            arguments = [word.replace("$", "$$") for word in arguments]  # torchrun fills in its own ${…}
            run.run(run.parse_args([*place, *words, "-m", "--", "retro.training.launch", FOLLOW, *arguments]))
        except SignalException:
            return TRY_AGAIN
        except ChildFailedError as error:
            if {failure.exitcode for failure in error.failures.values()} & STOPPED:  # then all have saved
                time.sleep(LINGER if rendezvous else 0)
                return TRY_AGAIN
            say(f"error: {told(error.failures, Path(logs), nodes * processes)}")
            return 1
    return 0


def told(failures: dict[int, Any], logs: Path, size: int) -> str:
    """Which process failed first, and its last words, unless it is the one whose output is shown anyway.

    `failures`: torch's ProcessFailure by rank; `logs`: where it put the others' output.
    """
    found = []
    for rank, failure in sorted(failures.items()):
        path = next(logs.glob(f"*/attempt_0/{failure.local_rank}/stderr.log"), None)
        text = path.read_text(encoding="utf-8", errors="replace") if path else None
        echo = failure.exitcode == -signal.SIGTERM or (text and ECHO.search(text))
        order = (2, 0.0) if echo else (0, path.stat().st_mtime) if path else (1, 0.0)
        found.append((order, rank, failure.exitcode, text))
    _, rank, code, text = min(found)
    name = f"training process {rank + 1} of {size} on {socket.gethostname()}"
    if code == -signal.SIGKILL:
        return f"{name} was killed by SIGKILL: out of memory?"
    ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    words = "\n".join(text.rstrip().splitlines()[-SHOWN:]) if text else "its message is above"
    return f"{name} {ended}: {words}"


if __name__ == "__main__":
    stage.run(main)
