"""Where training runs: device, threads, determinism, and the processes that share a step.

Processes form a mesh, data x tensor. Under `torchrun` each data rank takes its share of every step's samples;
gradients are summed, so that all make the same update. Tensor ranks of one data rank work on the same samples
(`retro.training.parallel`). Alone, every function here is the identity.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from retro.base.machine import keep_memory
from retro.base.stage import UserError

Result = TypeVar("Result")


def own_rank() -> int:
    """This process's number, before it has joined the others."""
    return int(os.environ.get("RANK", 0))


def own_size() -> int:
    """How many processes there are, before this one has joined the others."""
    return int(os.environ.get("WORLD_SIZE", 1))


@dataclass(frozen=True)
class World:
    """This process among `size` processes, its device, and its place in the mesh."""

    rank: int
    size: int
    device: torch.device
    tensor: int = 1  # ranks that share a model's heads
    mesh: DeviceMesh | None = None  # ("data", "tensor"), None alone

    @classmethod
    def start(cls, threads: int, tensor: int = 1) -> "World":
        """Set threads and determinism, keep freed memory, choose the device, and join the other processes, if any.

        Raises UserError if `tensor` does not divide their number.
        """
        # cuBLAS reads this when it starts; without it deterministic algorithms are refused.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        keep_memory()
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        # A pass over every new tensor, for nothing; torch adds the switch to its module by hand.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        rank, size = own_rank(), own_size()
        if size % tensor:
            raise UserError(
                f"train.parallel.tensor is {tensor}, which does not divide the {size} processes of this run. Start a "
                f"multiple of it (torchrun --nproc-per-node), or lower it."
            )
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        if size > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            mesh = init_device_mesh(device.type, (size // tensor, tensor), mesh_dim_names=("data", "tensor"))
            return cls(rank, size, device, tensor, mesh)
        return cls(rank, size, device)

    @property
    def data(self) -> int:
        """Ranks that share a step's samples."""
        return self.size // self.tensor

    @property
    def data_rank(self) -> int:
        return self.rank // self.tensor

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor

    def group(self, name: str) -> dist.ProcessGroup:
        """The processes of this one's row or column of the mesh."""
        return self.along(name).get_group()

    def along(self, name: str) -> DeviceMesh:
        """This process's row or column of the mesh, which there is where there are several."""
        assert self.mesh is not None
        return self.mesh[name]

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
        """Processes and device: with the settings, what decides the result's bits."""
        return f"{self.size} x {self.kind}"

    @property
    def kind(self) -> str:
        """The device's name."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def share(self, numbers: np.ndarray) -> np.ndarray:
        """This process's part of sample numbers; all parts have one length, −1 standing for no sample.

        All must run the model equally often, as they exchange tensors while it runs.
        """
        mine = np.array_split(numbers, self.data)[self.data_rank]
        return np.pad(mine, (0, -(-len(numbers) // self.data) - len(mine)), constant_values=-1)

    def sum(self, values: list[float]) -> list[float]:
        """Sums over the data ranks, in float64."""
        if self.data == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total, group=self.group("data"))
        return total.tolist()

    def sum_everywhere(self, value: float) -> float:
        """The sum over all processes, in float64."""
        return self._reduced(value, dist.ReduceOp.SUM)

    def largest(self, value: float) -> float:
        """The largest over all processes: what one of them has noticed, all know."""
        return self._reduced(value, dist.ReduceOp.MAX)

    def _reduced(self, value: float, operation: Any) -> float:
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total, operation)
        return float(total)

    def sum_tensors(self, tensors: list[torch.Tensor]) -> None:
        """Replace each tensor by its sum over the data ranks."""
        if self.data == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat, group=self.group("data"))
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            dist.barrier()

    def finish(self) -> None:
        """Leave the group."""
        if self.size > 1:
            dist.destroy_process_group()

    def leave(self) -> None:
        """End this process, whose work is done, if it is one of several.

        At the interpreter's own end, threads of a group that is still referred to are destroyed while they run: seldom,
        but one abort would make the whole training a failure.
        """
        if self.size > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def autocast(self, precision: str) -> Any:
        """A context in which matrix products run in bf16, if `precision` says so."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
