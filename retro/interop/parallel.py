"""Megatron's `torch` checkpoints: one file for each tensor- and pipeline-parallel rank, joined to one state dict.

    iter_0001000/mp_rank_00/model_optim_rng.pt          tensor-parallel rank 0, no pipeline
    iter_0001000/mp_rank_01_002/model_optim_rng.pt      tensor-parallel rank 1, pipeline stage 2

A file holds a stage's parameters under `model`, or under `model0`, `model1`, .. where a stage has several parts of the
pipeline, and the arguments of the training under `args`. Layers count from 0 in each part. Parts follow one another as
tokens pass them: first the part 0 of all stages, then their part 1.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retro.base.stage import UserError
from retro.interop.names import core_names, is_legacy
from retro.interop.states import Shape, State, bare, let_go, load_torch, move

RANK = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?")
FILES = ("model_optim_rng.pt", "model_rng.pt")
LAYER = re.compile(r"((?:language_model\.)?(?:decoder|encoder)\.layers\.)(\d+)(\..+)")
OLDEST = 2.0  # checkpoint_version since which rows of the fused projections are grouped by head


class Slices(NamedTuple):
    """What the tensor-parallel ranks hold of one parameter, and whether those are mapped from files."""

    parts: list[Tensor]
    mapped: bool


def open_ranks(folder: Path) -> State:
    """The whole state dict in a folder of `mp_rank_..`; `facts` are its arguments.

    Raises UserError for a rank that is missing, and for copies of one parameter that differ.
    """
    ranks = _ranks(folder)
    loaded = {rank: _load(path) for rank, path in ranks.items()}
    tensor_ranks, stages = (sorted({rank[i] for rank in ranks}) for i in (0, 1))
    facts = loaded[0, 0][0]["facts"]
    pieces: dict[str, Slices] = {}
    seen = 0
    depth = len(loaded[0, 0][0]["parts"])
    for part in range(depth):
        for stage in stages:
            held = [loaded[rank, stage][0]["parts"][part] for rank in tensor_ranks]
            mapped = all(loaded[rank, stage][1] for rank in tensor_ranks)
            for rank, names in zip(tensor_ranks, held, strict=True):
                if differing := set(names) ^ set(held[0]):
                    raise UserError(
                        f"{ranks[rank, stage]}: {min(differing)} is in one of the tensor-parallel ranks only; copy "
                        "them again"
                    )
            layers = 0
            for name in held[0]:
                layer = LAYER.fullmatch(name)
                layers = max(layers, int(layer[2]) + 1) if layer else layers
                whole = f"{layer[1]}{int(layer[2]) + seen}{layer[3]}" if layer else name
                pieces[whole] = Slices([names[name] for names in held], mapped)
            seen += layers
    if is_legacy(pieces):
        facts = {"encoder_residual": "raw"} | facts
        pieces = {new: pieces[old] for old, new in core_names(pieces).items()}
    pieces = {name: piece for name, piece in pieces.items() if not name.endswith("inv_freq")}
    if len(stages) * depth > 1:
        _drop_copied_head(pieces, facts.get("untie_embeddings_and_output_weights"), folder)
    joins = {name: _Join(name, pieces, folder) for name in pieces}
    shapes = {name: join.shape for name, join in joins.items()}
    return State(folder, shapes, lambda name: joins[name].read(), facts=facts, files=list(ranks.values()))


def _ranks(folder: Path) -> dict[tuple[int, int], Path]:
    """The file of each (tensor-parallel rank, pipeline stage): a whole grid."""
    found = {}
    for inner in sorted(folder.glob("mp_rank_*")):
        name = RANK.fullmatch(inner.name)
        if name is None:
            raise UserError(
                f"{inner}: is not named after a tensor-parallel rank and a pipeline stage; only models without experts "
                "are imported"
            )
        files = [inner / file for file in FILES if (inner / file).is_file()]
        if not files:
            raise UserError(f"{inner}: holds neither {' nor '.join(FILES)}; copy the checkpoint again")
        found[int(name[1]), int(name[2] or 0)] = files[0]
    tensor_ranks, stages = (1 + max(rank[i] for rank in found) for i in (0, 1))
    missing = [(t, p) for t in range(tensor_ranks) for p in range(stages) if (t, p) not in found]
    if missing:
        rank, stage = missing[0]
        raise UserError(
            f"{folder}: tensor-parallel rank {rank} of pipeline stage {stage} is missing, with {len(missing) - 1} "
            "more; copy the checkpoint again"
        )
    return found


def _load(path: Path) -> tuple[dict[str, Any], bool]:
    """The `facts` of one file and the tensors by name of its `parts`, and whether they are mapped."""
    content, mapped = load_torch(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, wanted Megatron's checkpoint")
    version = content.get("checkpoint_version", 0)
    if version < OLDEST:
        raise UserError(
            f"{path}: checkpoint_version is {version}, whose rows are in another order; wanted {OLDEST:.0f} or newer. "
            "Load and save it with a newer Megatron-LM."
        )
    numbered = sorted(int(key[5:]) for key in content if re.fullmatch(r"model\d+", key))
    keys = ["model"] if "model" in content else [f"model{number}" for number in numbered]
    if not keys:
        raise UserError(f"{path}: holds no model, only {', '.join(map(str, content))}; give Megatron's checkpoint")
    parts = []
    for key in keys:
        flat = dict(_flat(content[key]))
        names = bare(flat)
        parts.append({new: flat[old] for old, new in names.items() if isinstance(flat[old], Tensor)})
    return {"facts": plain(content.get("args")), "parts": parts}, mapped


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Values of nested mappings by their dotted names, as the legacy model nests them."""
    for name, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def plain(arguments: Any) -> dict[str, Any]:
    """Those of Megatron's arguments (a Namespace) that are numbers, text, truth values or lists of them."""
    found = {} if arguments is None else arguments if isinstance(arguments, dict) else vars(arguments)
    return {name: value for name, value in found.items() if isinstance(value, (bool, int, float, str, list, tuple))}


def _drop_copied_head(pieces: dict[str, Slices], untied: bool | None, folder: Path) -> None:
    """Take out the last stage's copy of the token table, from which a tied model computes its logits."""
    head, table = pieces.get("output_layer.weight"), pieces.get("embedding.word_embeddings.weight")
    if head is None or table is None or untied:
        return
    equal = all(torch.equal(a, b) for a, b in zip(head.parts, table.parts, strict=True))
    for part in (*head.parts, *table.parts):
        if head.mapped:
            let_go(part)
    if equal:
        del pieces["output_layer.weight"]
    elif untied is not None:
        raise UserError(
            f"{folder}: the first and the last stage hold different token tables, though the model is said to share "
            "one; take another checkpoint"
        )


class _Join:
    """One parameter, joined from the slices of the tensor-parallel ranks."""

    def __init__(self, name: str, pieces: Mapping[str, Slices], folder: Path):
        self.name, self.folder, (self.parts, self.mapped) = name, folder, pieces[name]
        self.axis = cut_along(name)
        self.gated = False
        if name.endswith(("mlp.linear_fc1.weight", "mlp.linear_fc1.bias")):
            down = pieces.get(f"{name.rpartition('.linear_fc1')[0]}.linear_fc2.weight")
            self.gated = down is not None and self.parts[0].shape[0] == 2 * down.parts[0].shape[1]
        shape = list(self.parts[0].shape)
        if self.axis is not None:
            shape[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        self.shape: Shape = tuple(shape)

    def read(self) -> Tensor:
        """The whole tensor, in memory of its own."""
        found = torch.empty(self.shape, dtype=self.parts[0].dtype)
        if self.axis is None:
            move(self.parts[0], found, self.mapped)
            for rank, part in enumerate(self.parts[1:], 1):
                if not torch.equal(part, found):
                    raise UserError(
                        f"{self.folder}: {self.name} differs between tensor-parallel ranks 0 and {rank}, which hold "
                        "copies of it; take another checkpoint"
                    )
            return found
        # With a gate, each rank holds [gate; up]: all gates come first, then all ups.
        halves = [part.chunk(2) if self.gated else (part,) for part in self.parts]
        start = 0
        for slices in zip(*halves, strict=True):
            for part in slices:
                size = part.shape[self.axis]
                move(part, found.narrow(self.axis, start, size), self.mapped)
                start += size
        return found


def cut_along(name: str) -> int | None:
    """The dimension along which tensor-parallel ranks cut a parameter (Megatron-core's name); None: all hold it."""
    where, _, part = name.rpartition(".")
    last = where.rpartition(".")[2]
    if last in ("linear_qkv", "linear_q", "linear_kv", "linear_fc1") and part in ("weight", "bias"):
        return 0
    if where in ("embedding.word_embeddings", "output_layer") and part in ("weight", "bias"):
        return 0
    return 1 if last in ("linear_proj", "linear_fc2") and part == "weight" else None
