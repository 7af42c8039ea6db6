"""State dicts as they lie on disk: names and shapes at once, values one tensor at a time.

A `State` is a mapping whose tensors are read when they are asked for, and kept by nobody. Nothing that a file contains
is run: classes that it names are stood in for by one that does nothing. `Writer` is the other end: a safetensors file
whose header is written first, then tensor after tensor.
"""

import argparse
import ctypes
import json
import mmap
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import safetensors
import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from retro.base.artifacts import read_json
from retro.base.stage import UserError

Shape = tuple[int, ...]
BLOCK = 16 << 20  # bytes that are copied or converted at a time


class State(Mapping[str, Tensor]):
    """Tensors by name, each read when it is asked for.

    `shapes` are known beforehand. `facts` are what is recorded with them (Megatron's arguments), `files` are where
    they lie.
    """

    def __init__(
        self,
        path: Path,
        shapes: Mapping[str, Shape],
        read: Callable[[str], Tensor],
        *,
        facts: Mapping[str, Any] | None = None,
        files: Sequence[Path] = (),
    ):
        self.path, self.shapes, self.read = path, dict(shapes), read
        self.facts, self.files = dict(facts or {}), list(files)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def renamed(self, names: Mapping[str, str], facts: Mapping[str, Any] | None = None) -> "State":
        """The tensors that `names` lists, new name by old name."""
        old = {new: was for was, new in names.items()}
        shapes = {new: self.shapes[was] for new, was in old.items()}
        facts = self.facts if facts is None else facts
        return State(self.path, shapes, lambda name: self.read(old[name]), facts=facts, files=self.files)


def read_state(path: Path) -> dict[str, Tensor]:
    """All tensors of a file at once; as `open_file`."""
    return dict(open_file(path))


def open_file(path: Path) -> State:
    """The state dict in a .safetensors file, in the parts that a .safetensors.index.json lists, or in a torch file.

    Wrappers around the state dict are taken off. `_extra_state` entries (Transformer Engine's fp8 scales) are left out.
    Raises UserError for what is no state dict.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; correct the path")
    if path.name.endswith(".index.json"):
        listed = read_json(path)["weight_map"]
        state = _safetensors(path, [path.parent / name for name in sorted(set(listed.values()))])
        absent = sorted(set(listed) - set(state))
        if absent:
            raise UserError(f"{path}: lists {absent[0]}, which none of its files holds; copy them again")
    elif path.suffix == ".safetensors":
        state = _safetensors(path, [path])
    else:
        state = _torch(path)
    return state.renamed(bare(state))


def open_files(files: Sequence[Path]) -> State:
    """The tensors in several .safetensors files, under the names that they have there; others are passed over."""
    return _safetensors(files[0], [path for path in files if path.suffix == ".safetensors"])


def bare(names: Sequence[str] | Mapping[str, Any]) -> dict[str, str]:
    """Each name without what is wrapped around all of them (`module.`, `model.`); `_extra_state` left out."""
    found = {name: name for name in names if not name.endswith("_extra_state")}
    while found and len(first := {new.split(".")[0] for new in found.values()}) == 1 and first <= {"module", "model"}:
        found = {name: new.split(".", 1)[1] for name, new in found.items()}
    return found


def _safetensors(path: Path, files: list[Path]) -> State:
    places: dict[str, Any] = {}
    for each in files:
        try:
            file = safetensors.safe_open(each, framework="pt")
        except FileNotFoundError:
            raise UserError(f"{each}: no such file, though {path} lists it; copy it again") from None
        except safetensors.SafetensorError as error:
            raise UserError(f"{each}: not a whole safetensors file ({error}); copy it again") from None
        places |= dict.fromkeys(file.keys(), file)
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name, file in places.items()}
    inputs = files if files == [path] else [path, *files]
    return State(path, shapes, lambda name: owned(places[name].get_tensor(name)), files=inputs)


def _torch(path: Path) -> State:
    found, mapped = load_torch(path)
    for key in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds a {type(found).__name__}, wanted a state dict")
    tensors = {name: value for name, value in found.items() if not name.endswith("_extra_state")}
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name} is a {type(value).__name__}, wanted a tensor; is this a state dict?")
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    return State(path, shapes, lambda name: owned(tensors[name], mapped), files=[path])


class Inert:
    """Stands in for a class that a file names: takes whatever it is made of, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def load_torch(path: Path) -> tuple[Any, bool]:
    """What torch.save wrote, and whether its tensors are mapped. Classes that torch does not know are `Inert`.

    Raises UserError for a file that is none, or that wants more than data.
    """
    try:
        if not zipfile.is_zipfile(path):  # the form before torch 1.6, which cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True), False
        with open(path, "rb") as file:
            foreign = get_unsafe_globals_in_checkpoint(file)
        stands: list[Any] = [argparse.Namespace, *((Inert, name) for name in foreign if name != "argparse.Namespace")]
        with safe_globals(stands):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True), True
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, ValueError, EOFError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path}: cannot be read with weights_only ({reason}); load it where you trust it and save "
            "its state dict as safetensors"
        ) from None


def owned(stored: Tensor, mapped: bool = True) -> Tensor:
    """A copy in memory of a tensor [rows, ..]; as `move`."""
    found = torch.empty(stored.shape, dtype=stored.dtype)
    move(stored, found, mapped)
    return found


def move(stored: Tensor, into: Tensor, mapped: bool = True) -> None:
    """Copy a tensor [rows, ..] into another; where it is mapped from a file, let go of its pages as they are read."""
    if stored.dim() == 0:
        into.copy_(stored)
        return
    rows = max(1, BLOCK // max(1, stored[:1].nbytes)) if len(stored) else 1
    for start in range(0, len(stored), rows):
        part = stored[start : start + rows]
        into[start : start + rows].copy_(part)
        if mapped:
            let_go(part)


def let_go(mapped: Tensor) -> None:
    """Hand back the whole pages of a mapped tensor; they are read again if it is. See retro.base.artifacts.release."""
    if not hasattr(mmap, "MADV_DONTNEED") or not mapped.is_contiguous():
        return
    page = mmap.PAGESIZE
    start = -(-mapped.data_ptr() // page) * page
    length = (mapped.data_ptr() + mapped.nbytes) // page * page - start
    if length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


class Writer:
    """A safetensors file of float32, written tensor by tensor, in any order; the same bytes as save_file's.

    Its size is known from `shapes` when it is opened. Leaving the block without having put every tensor is an error.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Shape], metadata: Mapping[str, str] | None = None):
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        self.places, end = dict[str, int](), 0
        for name in sorted(shapes):
            begin, end = end, end + 4 * torch.Size(shapes[name]).numel()
            header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [begin, end]}
            self.places[name] = begin
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self.start, self.shapes, self.path = 8 + len(text), dict(shapes), path
        self.file: BinaryIO = open(path, "wb")  # noqa: SIM115
        self.file.write(struct.pack("<Q", len(text)) + text)
        self.file.truncate(self.start + end)

    def put(self, name: str, tensor: Tensor) -> None:
        """Write a tensor [rows, ..] of any kind of number, converted piece by piece."""
        assert tuple(tensor.shape) == tuple(self.shapes[name]), name
        self.file.seek(self.start + self.places.pop(name))
        flat = tensor.reshape(-1)
        for begin in range(0, len(flat), BLOCK // 4):
            piece = flat[begin : begin + BLOCK // 4].float().contiguous()
            self.file.write(piece.numpy().astype("<f4", copy=False).data)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.file.close()
        assert kind or not self.places, f"{self.path}: lacks {min(self.places)}"
