"""Run the train stage in a process of its own, forked from one that has imported what it needs."""

import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

from retro.base import stage
from retro.training import train

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["retro.training.train", "torch._dynamo"])


def work(arguments: list[str], log: str | int, environment: dict[str, str]) -> None:
    """What the process does: the stage's `main`, its output to a file or a pipe."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if isinstance(log, str) else log
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.update(environment)
    sys.argv = ["retro.training.train", *arguments]
    stage.run(train.main)


class Stage:
    """The train stage for one run of a dataset, in `folder`; its log is `log`."""

    def __init__(self, config: Path, run: str, folder: Path):
        self.folder, self.output, self.checkpoints = folder, folder / "model.json", folder / "checkpoints"
        self.arguments = ["--config", str(config), "--run", run]
        self.arguments += ["--checkpoints", str(self.checkpoints), "--output", str(self.output)]

    def start(self, log: str | int | None = None, **environment: str):
        """Start it and return the process."""
        self.folder.mkdir(parents=True, exist_ok=True)
        process = SERVER.Process(target=work, args=(self.arguments, log or str(self.log_path), environment))
        process.start()
        return process

    def run(self) -> int:
        """Run it to its end; the exit status."""
        return ended(self.start())

    def run_ranks(self, count: int) -> int:
        """Run it as `count` processes, told of each other as `torchrun` does; the first exit status that is not 0."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        place |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        ranks = [self.start(**place, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]
        try:
            return next(filter(None, [ended(rank) for rank in ranks]), 0)
        finally:
            for rank in ranks:
                rank.kill()

    def wait_for(self, text: str, process, seconds: float = 600) -> None:
        """Wait until the log holds `text`."""
        end = time.monotonic() + seconds
        while text not in self.log:
            assert process.is_alive(), self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.003)

    @property
    def log_path(self) -> Path:
        return self.folder / "log.txt"

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8") if self.log_path.exists() else ""

    @property
    def weights(self) -> bytes:
        return (self.folder / "model.safetensors").read_bytes()

    def saved(self) -> list[Path]:
        """Checkpoints, oldest first."""
        return sorted(self.checkpoints.glob("*/step-*.safetensors"))


def ended(process, seconds: float = 600) -> int:
    """Wait for a process and return its exit status, negative for a signal."""
    process.join(seconds)
    assert process.exitcode is not None, "still running"
    return process.exitcode
