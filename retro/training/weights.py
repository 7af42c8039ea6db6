"""A model's tensors by name, and back: every name once, nothing missing, nothing left over."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from retro.artifacts import replacing
from retro.errors import UserError


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by name, sorted; a shared tensor has its first name only."""
    found, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if id_of(tensor) not in seen:
            seen.add(id_of(tensor))
            found[name] = tensor
    return dict(sorted(found.items()))


def id_of(tensor: torch.Tensor) -> tuple:
    """What tells whether two names mean one tensor; tensors without storage are never shared."""
    if tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.device)


def assign(model: nn.Module, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Copy `tensors` into the model. Raises UserError unless names, shapes and dtypes are the model's own."""
    copy_into(weights(model), tensors, where)


def copy_into(wanted: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Copy `tensors` into the tensors of the same names; otherwise as `assign`."""
    for what, names in (
        ("lacks", wanted.keys() - tensors.keys()),
        ("has unknown", tensors.keys() - wanted.keys()),
    ):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise UserError(f"{where}: {what} {shown}. These weights are of another model: train it again.")
    for name, tensor in wanted.items():
        found = tensors[name]
        if found.shape != tensor.shape or found.dtype != tensor.dtype:
            raise UserError(
                f"{where}: {name} is {found.dtype} {list(found.shape)}, the model wants {tensor.dtype} "
                f"{list(tensor.shape)}. These weights are of another model: train it again."
            )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], note: str | None = None) -> None:
    """Write a safetensors file, whole or not at all; equal tensors and note give equal bytes.

    `note` is text for the header, under the key `retro`.
    """
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in sorted(tensors.items())}
    with replacing(path) as temporary:  # one header key: the order of several is not fixed
        safetensors.torch.save_file(plain, temporary, metadata={"retro": note} if note is not None else None)


def each_tensor(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a safetensors file one by one, for files that should not be in memory whole."""
    with safetensors.safe_open(path, framework="pt") as file:
        for name in sorted(file.keys()):
            yield name, file.get_tensor(name)


def read_note(path: Path) -> dict[str, Any]:
    """The JSON in a file's header, for files whose content has been checked."""
    with safetensors.safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("retro") or "{}")


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], str | None]:
    """Tensors and note of a safetensors file; a broken one is a UserError that names it."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            note = (file.metadata() or {}).get("retro")
            return {name: file.get_tensor(name) for name in file.keys()}, note  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Run snakemake to make it.") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}). Delete it and run snakemake.") from None
