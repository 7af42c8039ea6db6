"""One of several training processes: the trainer, which ends when the process that started it ends, in whatever way."""

import ctypes
import os
import signal
import sys

TRAINER = "retro.training.train"
LAUNCHER = "RETRO_LAUNCHER"  # environment: process number of the launcher
PR_SET_PDEATHSIG = 1  # prctl(2)


def follow(signum: int) -> None:
    """Let the kernel send this process a signal when its parent has ended. It survives exec. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum, 0, 0, 0)


def main() -> None:
    follow(signal.SIGKILL)
    if os.getppid() != int(os.environ[LAUNCHER]):  # it ended before
        sys.exit(1)
    os.execv(sys.executable, [sys.executable, "-m", TRAINER, *sys.argv[1:]])


if __name__ == "__main__":
    main()
