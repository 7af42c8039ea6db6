"""Parallelism, laid on a model from outside: its files know nothing of it, and its tensors keep their names.

Tensor parallel (Shoeybi et al. 2019) cuts heads, hidden units and vocabulary into as many parts as the mesh has tensor
ranks; FSDP2 then cuts what each of them holds over the data ranks, layer by layer. `Parts` (`retro.training.sharding`)
remembers how; so optimizer, clipping and checkpoints need no notion of either.
"""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.checkpoint import checkpoint

from retro.base.stage import UserError
from retro.model.cca import ChunkedCrossAttention
from retro.model.language_model import LanguageModel
from retro.model.layers import MLP, CrossAttention, SelfAttention
from retro.training.distribution import World
from retro.training.settings import ParallelSettings
from retro.training.sharding import Cut, Parts


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
            fully_shard(module, mesh=world.along("data"), mp_policy=policy)
        for module in model.modules():
            if isinstance(module, FSDPModule):  # a step's loss is a sum, divided once
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
    parts.find()
    return parts


def layers_of(model: LanguageModel) -> list[nn.Module]:
    """Every layer of decoder and encoder."""
    return [*model.decoder.layers, *(model.encoder.layers if model.encoder is not None else ())]


def cut_tensors(model: LanguageModel, parts: Parts) -> None:
    """Tensor parallel: heads, hidden units and vocabulary over the mesh's tensor ranks."""
    if model.settings.qk_norm != "none":
        raise UserError(
            f"train.parallel.tensor is {parts.world.tensor}, which model.qk_norm {model.settings.qk_norm} does not go "
            "with; leave it at 1 and set train.parallel.fsdp."
        )
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
    mesh = parts.world.along("tensor")

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
    if any(size % ranks for size in cut._sizes(linear.get_parameter("weight"))):
        raise UserError(
            f"train.parallel.tensor: {ranks} does not divide the outputs of {path}.{name} evenly; choose a divisor."
        )
    for key, parameter in linear.named_parameters():
        with torch.no_grad():
            parameter.copy_(cut.permuted(parameter, ranks))
        parts.cuts[f"{path}.{name}.{key}"] = cut
    parallelize_module(linear, parts.world.along("tensor"), ColwiseParallel())


def _rows(parts: Parts, path: str, name: str) -> None:
    """Cut the columns of a linear's matrix (its inputs): ranks' products are summed."""
    parts.cuts[f"{path}.{name}.weight"] = Cut(1)
    parallelize_module(parts.model.get_submodule(f"{path}.{name}"), parts.world.along("tensor"), RowwiseParallel())


def _cut_raw(parts: Parts, path: str, module: nn.Module, name: str) -> None:
    """Cut a parameter that is used as it is, along its first side."""
    parameter = getattr(module, name)
    cut = distribute_tensor(parameter.detach(), parts.world.along("tensor"), [Shard(0)])
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
        kept: list[Any] = [owner._parameters[name] for owner, name in parameters]
        try:
            for (owner, name), parameter in zip(parameters, kept, strict=True):
                if isinstance(parameter, DTensor):  # else it is open already
                    plain: Any = parameter.redistribute(placements=placements).to_local()
                    owner._parameters[name] = plain
            return forward(*args, **kwargs)
        finally:
            for (owner, name), parameter in zip(parameters, kept, strict=True):
                owner._parameters[name] = parameter

    module.forward = opened
