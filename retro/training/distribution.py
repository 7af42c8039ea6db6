"""Where training runs: device, threads, determinism, and the processes that share a step.

The only module that knows of several processes. Under `torchrun` each of them takes its share of every step's
samples; gradients are summed, so that all make the same update. Alone, every function here is the identity.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

Result = TypeVar("Result")


def own_rank() -> int:
    """This process's number, before it has joined the others."""
    return int(os.environ.get("RANK", 0))


@dataclass(frozen=True)
class World:
    """This process among `size` processes, and its device."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def start(cls, threads: int) -> "World":
        """Set threads and determinism, choose the device, and join the other processes if there are any."""
        # cuBLAS reads this when it starts; without it deterministic algorithms are refused.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # a pass over every new tensor, for nothing
        rank, size = own_rank(), int(os.environ.get("WORLD_SIZE", 1))
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        if size > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(rank, size, device)

    def first_alone(self, work: Callable[[], Result]) -> Result:
        """Let the first process do `work` before all others do it too."""
        if not self.first:
            self.barrier()
        done = work()
        if self.first:
            self.barrier()
        return done

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    @property
    def place(self) -> str:
        """What of it decides the result's bits."""
        kind = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return f"{self.size} x {kind}"

    def share(self, numbers: np.ndarray) -> np.ndarray:
        """This process's part of a step's sample numbers."""
        return np.array_split(numbers, self.size)[self.rank]

    def sum(self, values: list[float]) -> list[float]:
        """Sums over all processes, in float64."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def sum_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Replace each gradient by its sum over all processes."""
        if self.size == 1:
            return
        # A process whose share brought no gradient takes part with zeros: all must send the same.
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.reshape(-1) for parameter in parameters])
        dist.all_reduce(flat)
        start = 0
        for parameter in parameters:
            parameter.grad.copy_(flat[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def finish(self) -> None:
        """Leave the group."""
        if self.size > 1:
            dist.destroy_process_group()

    def autocast(self, precision: str) -> Any:
        """A context in which matrix products run in bf16, if `precision` says so."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
