"""Megatron's `torch_dist` checkpoints: PyTorch's distributed checkpoint, read without starting anything.

    iter_0001000/.metadata            which tensors there are, and where each of their pieces lies
    iter_0001000/__0_0.distcp         pieces, each as torch.save writes one
    iter_0001000/common.pt            the arguments of the training
    iter_0001000/metadata.json        that it is of this kind

Tensors are whole whatever ran in parallel. Those of layers have a name a layer (RETRO), or are stacked along a first
dimension (GPT). States of the optimizer and of random numbers are left out.
"""

import io
import pickle
import re
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from retro.base.artifacts import read_json
from retro.base.stage import UserError
from retro.interop.parallel import plain
from retro.interop.states import Inert, Shape, State, bare, load_torch

OTHERS = re.compile(r"((chained_\d+\.)?optimizer|rng_state|opt_param_scheduler|rerun_state_machine_state)\b")
STACKED = re.compile(r"((?:decoder|encoder)\.layers\.)([a-z].*)")
DATA_ONLY = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
BASIC = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("builtins", "set"),
    ("builtins", "frozenset"),
}


class _Reader(pickle.Unpickler):
    """Makes metadata's own classes and torch's types of numbers; everything else that is named is `Inert`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in BASIC:
            return super().find_class(module, name)
        if module in DATA_ONLY and isinstance(found := super().find_class(module, name), type):
            return found
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if (module, name) == ("builtins", "getattr"):
            return _member
        return Inert


def _member(kind: Any, name: str) -> Any:
    """What some versions of Python pickle the member of an enumeration as, and nothing else that getattr can."""
    return kind[name] if isinstance(kind, type) and issubclass(kind, Enum) else Inert()


class _Part(io.RawIOBase):
    """The bytes [start, start + length) of a file, as a file."""

    def __init__(self, file: BinaryIO, start: int, length: int):
        super().__init__()
        self.file, self.start, self.length, self.at = file, start, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.length}[whence]
        return self.at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self.length - self.at)]
        self.file.seek(self.start + self.at)
        count = self.file.readinto(view)  # type: ignore[attr-defined]
        self.at += count
        return count


def open_distributed(folder: Path) -> State:
    """The whole state dict in a `torch_dist` folder; `facts` are its arguments.

    Raises UserError for a folder of another kind, or one that is not whole.
    """
    described = folder / "metadata.json"
    kind = read_json(described).get("sharded_backend") if described.exists() else "torch_dist"
    if kind not in ("torch_dist", "torch_dcp"):
        raise UserError(f"{described}: sharded_backend is {kind!r}, wanted torch_dist. Convert it with Megatron-LM.")
    metadata = _metadata(folder / ".metadata")
    tensors = {
        name: facts
        for name, facts in metadata.state_dict_metadata.items()
        if isinstance(facts, TensorStorageMetadata) and not OTHERS.match(name) and "._extra_state" not in name
    }
    places: dict[str, tuple[str, int | None]] = {}  # our name: the tensor's, and which of its layers
    shapes: dict[str, Shape] = {}
    for name, new in bare(tensors).items():
        shape, stacked = tuple(tensors[name].size), STACKED.fullmatch(new)
        if stacked is None:
            places[new], shapes[new] = (name, None), shape
            continue
        for layer in range(shape[0]):
            each = f"{stacked[1]}{layer}.{stacked[2]}"
            places[each], shapes[each] = (name, layer), shape[1:]
    common = folder / "common.pt"
    facts = plain(load_torch(common)[0].get("args")) if common.is_file() else {}
    stored = {metadata.storage_data[index].relative_path for index in metadata.storage_data}
    files = [folder / ".metadata", *(path for path in (common, described) if path.is_file())]
    files += [folder / name for name in sorted(stored)]
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: no such file, though .metadata lists it; copy the checkpoint again")

    def read(name: str) -> Tensor:
        theirs, layer = places[name]
        return _read(folder, theirs, layer, tensors[theirs], metadata.storage_data)

    return State(folder, shapes, read, facts=facts, files=files)


def _metadata(path: Path) -> Metadata:
    try:
        with open(path, "rb") as file:
            found = _Reader(file).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}: {error}); copy the checkpoint again"
        ) from None
    if not isinstance(found, Metadata):
        raise UserError(f"{path}: describes no distributed checkpoint; copy the checkpoint again")
    return found


def _read(folder: Path, name: str, layer: int | None, facts: TensorStorageMetadata, stored: Any) -> Tensor:
    """A tensor, or one layer of a stacked one, put together from its pieces, each read from its file.

    A piece that is all that is wanted is returned as it was read, so that there is only one.
    """
    shape = facts.size if layer is None else facts.size[1:]
    found, filled = None, 0
    for chunk in facts.chunks:
        if layer is not None and not chunk.offsets[0] <= layer < chunk.offsets[0] + chunk.sizes[0]:
            continue
        piece = _piece(folder, stored[MetadataIndex(name, chunk.offsets)]).view(chunk.sizes)
        offsets = chunk.offsets
        if layer is not None:
            piece, offsets = piece[layer - offsets[0]], offsets[1:]
        if piece.shape == shape:
            return piece
        found = torch.empty(shape, dtype=piece.dtype) if found is None else found
        into = found
        for axis, (start, size) in enumerate(zip(offsets, piece.shape, strict=True)):
            into = into.narrow(axis, start, size)
        into.copy_(piece)
        filled += piece.numel()
        del piece
    if found is None or filled < found.numel():
        raise UserError(f"{folder}: pieces of {name} are missing; copy the checkpoint again")
    return found


def _piece(folder: Path, place: Any) -> Tensor:
    """One piece as torch.save wrote it in a part of a file."""
    if getattr(place, "transform_descriptors", None):
        how = place.transform_descriptors
        raise UserError(f"{folder}: its pieces are transformed ({how}), wanted plain ones; save it without that")
    path = folder / place.relative_path
    try:
        with open(path, "rb") as file:
            part: Any = _Part(file, place.offset, place.length)
            return torch.load(part, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: a piece cannot be read ({reason}); copy the checkpoint again") from None
