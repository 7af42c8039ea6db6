"""Parallelism, laid on a model from outside: its files know nothing of it, and its tensors keep their names.

Tensor parallel (Shoeybi et al. 2019) cuts heads, hidden units and vocabulary into as many parts as the mesh has tensor
ranks; FSDP2 then cuts what each of them holds over the data ranks, layer by layer. `Parts` knows how every tensor was
cut, puts it together and cuts it again; so optimizer, clipping and checkpoints need no notion of either.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

from retro.errors import UserError
from retro.model.attention import CrossAttention, SelfAttention
from retro.model.cca import ChunkedCrossAttention
from retro.model.language_model import LanguageModel
from retro.model.layers import MLP
from retro.training.distribution import World
from retro.training.settings import ParallelSettings


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

    def norm(self, tensors: dict[str, Tensor]) -> float:
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


def parallelize(
    model: LanguageModel, world: World, settings: ParallelSettings, recompute: str, precision: str
) -> Parts:
    """Cut the model as the settings say, in place, and say how it lies."""
    parts = Parts(model, world, fsdp=settings.fsdp and world.data > 1)
    if world.tensor > 1:
        cut_tensors(model, parts)
    if recompute == "layers":
        for layer in layers_of(model):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    if parts.fsdp:
        policy = MixedPrecisionPolicy()
        if precision == "bf16":
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for module in [*layers_of(model), model]:
            fully_shard(module, mesh=world.mesh["data"], mp_policy=policy)
        for module in model.modules():
            if hasattr(module, "set_gradient_divide_factor"):  # a step's loss is a sum, divided once
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
    parts.find()
    return parts


def layers_of(model: LanguageModel) -> list[nn.Module]:
    """Every layer of decoder and encoder."""
    return [*model.decoder.layers, *(model.encoder.layers if model.encoder is not None else ())]


def cut_tensors(model: LanguageModel, parts: Parts) -> None:
    """Tensor parallel: heads, hidden units and vocabulary over the mesh's tensor ranks."""
    for path, module in list(model.named_modules()):
        if isinstance(module, SelfAttention):
            blocks = module.heads, module.kv_heads, module.kv_heads
            _columns(parts, path, "qkv", blocks)
            _rows(parts, path, "out")
            _divide(parts, path, module, "heads", "kv_heads")
        elif isinstance(module, CrossAttention):
            _columns(parts, path, "q")
            _columns(parts, path, "kv", (1, 1))
            _rows(parts, path, "out")
            _divide(parts, path, module, "heads")
        elif isinstance(module, MLP):
            _columns(parts, path, "up", (1, 1) if module.activation == "swiglu" else (1,))
            _rows(parts, path, "down")
        elif isinstance(module, ChunkedCrossAttention):
            _cut_cca(parts, path, module)
        elif isinstance(module, nn.Embedding) and path.endswith((".tokens", "encoder.embedding")):
            _cut_raw(parts, path, module, "weight")
    if model.head is not None:
        _cut_raw(parts, "head", model.head, "weight")
    tables = [module for path, module in model.named_modules() if f"{path}.weight" in parts.cuts]
    tables = [(table, "weight") for table in tables if isinstance(table, nn.Embedding) or table is model.head]
    for module in [model, *model.decoder.layers]:  # a layer that is computed again reads the tables again
        _open(module, tables, [Replicate()])


def _cut_cca(parts: Parts, path: str, module: ChunkedCrossAttention) -> None:
    _columns(parts, path, "q")
    _columns(parts, path, "kv", (1, 1))
    _rows(parts, path, "out")
    if isinstance(getattr(module, "gate", None), nn.Linear):
        _columns(parts, path, "gate")
    raw = [name for name in ("match", "relative", "null", "gate_read") if hasattr(module, name)]
    for name in raw:
        _cut_raw(parts, path, module, name)
    _open(module, [(module, name) for name in raw], [Shard(0)])
    _divide(parts, path, module, "heads", "kv_heads")
    mesh = parts.world.mesh["tensor"]

    def own_copies(_: nn.Module, inputs: tuple) -> tuple:
        """Values carry whole embeddings, features by head: each rank adds its own heads' share."""
        h, encoded, grid = inputs
        if encoded.copies is not None:
            copies = DTensor.from_local(encoded.copies, mesh, [Replicate()]).redistribute(placements=[Shard(-1)])
            encoded = encoded._replace(copies=copies.to_local())
        return h, encoded, grid

    module.register_forward_pre_hook(own_copies)


def _columns(parts: Parts, path: str, name: str, blocks: tuple[int, ...] = (1,)) -> None:
    """Cut the rows of a linear's matrix (its outputs): every rank computes its own heads or hidden units."""
    linear = parts.model.get_submodule(f"{path}.{name}")
    cut, ranks = Cut(0, blocks), parts.world.tensor
    if any(size % ranks for size in cut._sizes(linear.weight)):
        raise UserError(f"train.parallel.tensor: {ranks} does not divide the outputs of {path}.{name} evenly.")
    for key, parameter in linear.named_parameters():
        with torch.no_grad():
            parameter.copy_(cut.permuted(parameter, ranks))
        parts.cuts[f"{path}.{name}.{key}"] = cut
    parallelize_module(linear, parts.world.mesh["tensor"], ColwiseParallel())


def _rows(parts: Parts, path: str, name: str) -> None:
    """Cut the columns of a linear's matrix (its inputs): ranks' products are summed."""
    parts.cuts[f"{path}.{name}.weight"] = Cut(1)
    parallelize_module(parts.model.get_submodule(f"{path}.{name}"), parts.world.mesh["tensor"], RowwiseParallel())


def _cut_raw(parts: Parts, path: str, module: nn.Module, name: str) -> None:
    """Cut a parameter that is used as it is, along its first side."""
    parameter = getattr(module, name)
    cut = distribute_tensor(parameter.detach(), parts.world.mesh["tensor"], [Shard(0)])
    module.register_parameter(name, nn.Parameter(cut, parameter.requires_grad))
    parts.cuts[f"{path}.{name}"] = Cut(0)


def _divide(parts: Parts, path: str, module: nn.Module, *names: str) -> None:
    """A rank's module has its share of the heads."""
    for name in names:
        heads = getattr(module, name)
        if heads % parts.world.tensor:
            raise UserError(
                f"train.parallel.tensor: {parts.world.tensor} does not divide the {heads} {name} of {path}; choose a "
                f"divisor, or change the model's heads."
            )
        setattr(module, name, heads // parts.world.tensor)


def _open(module: nn.Module, parameters: list[tuple[nn.Module, str]], placements: list[Any]) -> None:
    """While `module` computes, let `parameters` be plain tensors: this rank's part, or, replicated, the whole."""
    forward = module.forward

    def opened(*args: Any, **kwargs: Any) -> Any:
        kept = [owner._parameters[name] for owner, name in parameters]
        try:
            for (owner, name), parameter in zip(parameters, kept, strict=True):
                if isinstance(parameter, DTensor):  # else it is open already
                    owner._parameters[name] = parameter.redistribute(placements=placements).to_local()
            return forward(*args, **kwargs)
        finally:
            for (owner, name), parameter in zip(parameters, kept, strict=True):
                owner._parameters[name] = parameter

    module.forward = opened
