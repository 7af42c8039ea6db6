"""A model's tensors by name, and back: every name once, nothing missing, nothing left over.

`load_model` loads a trained model, strictly, for evaluation and generation. How a training begins with trained weights:
`retro.training.initial`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from retro.base.artifacts import Manifest, read_manifest, replacing
from retro.base.stage import UserError
from retro.dataset.dataset import Dataset
from retro.model.build import build_model
from retro.model.language_model import LanguageModel
from retro.training.settings import Recorded, TrainedRun, described


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


def load_model(
    path: str | Path, dataset: Dataset, device: torch.device | None = None
) -> tuple[LanguageModel, TrainedRun]:
    """The model that a model.json describes, in evaluation mode, and its run.

    Raises UserError if the weights are not those of the manifest, were trained with another vocabulary or chunk
    length, or by others.
    """
    manifest = read_manifest(path, "model")
    run = trained_run(manifest)
    _same_dataset(manifest, run.recorded, dataset)
    manifest.check()
    model = build_model(run.model, architecture=run.architecture, seed=None, **run.recorded.lengths)
    weights_path = manifest.file("model.safetensors")
    tensors, _ = read_tensors(weights_path)
    assign(model, tensors, str(weights_path))
    return model.to(device or "cpu").eval(), run


def trained_run(manifest: Manifest) -> TrainedRun:
    """The run that a model.json is of; raises UserError for one that was not trained here."""
    run = described(manifest.settings, str(manifest.path))
    if not isinstance(run, TrainedRun):
        raise UserError(
            f"{manifest.path}: holds imported weights, wanted a run that was trained here. Begin a run with them "
            f"(runs.<name>.from)."
        )
    return run


def _same_dataset(manifest: Manifest, recorded: Recorded, dataset: Dataset) -> None:
    """Refuse a model whose vocabulary or grid is not the dataset's."""
    here = {
        "vocab_size": dataset.vocab_size,
        "seq_length": dataset.seq_length,
        "chunk_length": dataset.chunk_length,
    }
    for key, value in here.items():
        there = getattr(recorded, key)
        if there != value:
            raise UserError(
                f"{manifest.path}: was trained with {key} {there}, {dataset.path} has {value}. Run "
                f"snakemake: it trains the model again."
            )


def retrieves(name: str) -> bool:
    """Whether a parameter belongs to the encoder or to chunked cross-attention, not to the GPT."""
    return name.startswith(("encoder.", "copier.")) or ".cca." in name


def tokenizer_files(dataset: Dataset) -> dict[str, str]:
    """sha256 of each file of the dataset's tokenizer."""
    files = dataset.manifest("tokenizer/manifest.json", "tokenizer").facts["files"]
    return {name: facts["sha256"] for name, facts in sorted(files.items())}
