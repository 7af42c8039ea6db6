"""What a process holds of a model: how each tensor was cut, and how the pieces are put together and cut again."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from retro.training.distribution import World


@dataclass(frozen=True)
class Cut:
    """How tensor parallel cuts a tensor: along `dim`, each of its `blocks` (shares of that side) for itself.

    Query, key and value heads, say, are blocks of one matrix: each rank needs some rows of all three.
    """

    dim: int
    blocks: tuple[int, ...] = (1,)

    def permuted(self, whole: Tensor, ranks: int) -> Tensor:
        """Ordered by rank, then block: so that equal consecutive pieces are the ranks' parts."""
        if len(self.blocks) == 1:
            return whole
        pieces = [block.chunk(ranks, self.dim) for block in whole.split(self._sizes(whole), self.dim)]
        return torch.cat([piece[rank] for rank in range(ranks) for piece in pieces], self.dim)

    def restored(self, permuted: Tensor, ranks: int) -> Tensor:
        """The inverse of `permuted`."""
        if len(self.blocks) == 1:
            return permuted
        sizes = [size // ranks for size in self._sizes(permuted)]
        pieces = [part.split(sizes, self.dim) for part in permuted.chunk(ranks, self.dim)]
        return torch.cat([torch.cat([own[i] for own in pieces], self.dim) for i in range(len(sizes))], self.dim)

    def _sizes(self, whole: Tensor) -> list[int]:
        unit = whole.shape[self.dim] // sum(self.blocks)
        return [unit * share for share in self.blocks]


@dataclass
class Parts:
    """What this process holds of a model: plain tensors by name, the optimizer's parameters.

    Alone, or with plain data parallel, they are the model's parameters themselves; else they share their memory.
    """

    model: nn.Module
    world: World
    fsdp: bool = False
    cuts: dict[str, Cut] = field(default_factory=dict)
    own: dict[str, nn.Parameter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shapes = {name: parameter.shape for name, parameter in self.model.named_parameters()}

    @property
    def spread(self) -> bool:
        """Whether processes hold different parts."""
        return self.fsdp or self.world.tensor > 1

    @property
    def count(self) -> int:
        """Parameters of the whole model."""
        return sum(shape.numel() for shape in self.shapes.values())

    def parameters(self) -> Iterator[nn.Parameter]:
        """The own parts, for an optimizer."""
        return iter(self.own.values())

    def find(self) -> None:
        """Take the model's tensors as they lie now."""
        for name, parameter in self.model.named_parameters():
            local = parameter.to_local().detach() if isinstance(parameter, DTensor) else parameter
            self.own[name] = local if local is parameter else nn.Parameter(local, parameter.requires_grad)

    def take_gradients(self) -> list[Tensor]:
        """Give each own part its gradient, summed over all processes; return those that there are."""
        for name, parameter in self.model.named_parameters():
            own, grad = self.own[name], parameter.grad
            if own is not parameter and grad is not None:
                own.grad = grad.to_local() if isinstance(grad, DTensor) else grad
        found = [own.grad for own in self.own.values() if own.grad is not None]
        if not self.fsdp:  # it has summed them already
            self.world.sum_tensors(found)
        return found

    def drop_gradients(self) -> None:
        """Forget all gradients."""
        for parameter in [*self.model.parameters(), *self.own.values()]:
            parameter.grad = None

    def total(self, values: list[Tensor], of: Callable[[Tensor], Tensor]) -> float:
        """The sum over the whole model of a number `of` each tensor; `values` are parts, in the order of `own`.

        Where several processes hold the same part, one of them counts it.
        """
        sums = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for name, value in zip(self.own, values, strict=True):
            if (self.fsdp or self.world.data_rank == 0) and (name in self.cuts or self.world.tensor_rank == 0):
                sums += of(value).double()
        return self.world.sum_everywhere(float(sums))

    def norm(self, tensors: Mapping[str, Tensor]) -> float:
        """The 2-norm of parts by name, as if they were whole."""
        squares = [tensors.get(name, torch.zeros(0, device=self.world.device)) for name in self.own]
        return self.total(squares, lambda value: torch.linalg.vector_norm(value.float()).square()) ** 0.5

    def whole(self, name: str, part: Tensor) -> Tensor:
        """The tensor of which all processes hold a part: a parameter, or what an optimizer keeps of it."""
        if part.dim() == 0:
            return part
        world, cut, shape = self.world, self.cuts.get(name), list(self.shapes[name])
        size = shape[0]
        if cut is not None and cut.dim == 0:
            size = chunk_sizes(size, world.tensor)[world.tensor_rank]
        if self.fsdp:
            part = gather(part, 0, chunk_sizes(size, world.data), world.group("data"))
        if cut is not None:
            part = gather(part, cut.dim, chunk_sizes(shape[cut.dim], world.tensor), world.group("tensor"))
            part = cut.restored(part, world.tensor)
        return part

    def part(self, name: str, whole: Tensor) -> Tensor:
        """This process's part of a whole tensor."""
        world, cut, part = self.world, self.cuts.get(name), whole
        if part.dim() == 0:
            return part
        if cut is not None:
            sizes = chunk_sizes(part.shape[cut.dim], world.tensor)
            part = cut.permuted(part, world.tensor).split(sizes, cut.dim)[world.tensor_rank]
        if self.fsdp:
            part = part.split(chunk_sizes(part.shape[0], world.data))[world.data_rank]
        return part


def chunk_sizes(size: int, ranks: int) -> list[int]:
    """How long the pieces are that `torch.chunk` makes; 0 for ranks that get none."""
    step = -(-size // ranks)
    return [max(0, min(step, size - rank * step)) for rank in range(ranks)]


def gather(part: Tensor, dim: int, sizes: list[int], group: dist.ProcessGroup) -> Tensor:
    """Put the pieces of a group's processes, of these sizes along `dim`, together."""
    if len(sizes) == 1:
        return part
    rows = part.movedim(dim, 0)
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    pieces = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(pieces, padded, group=group)
    return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)]).movedim(0, dim).contiguous()
