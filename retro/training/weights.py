"""A model's tensors by name, and back: every name once, nothing missing, nothing left over.

`load_model` loads a trained model, strictly, for evaluation and generation. `start_from` begins a training with trained
weights: continued training, and retro-fitting a GPT with an encoder and cross-attention.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from retro.base.artifacts import Manifest, read_json, read_manifest, replacing
from retro.base.log import say
from retro.base.stage import UserError
from retro.dataset.dataset import Dataset
from retro.model.build import build_model
from retro.model.language_model import LanguageModel
from retro.training.settings import ImportedModel, Recorded, Run, TrainedRun, described


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


# What the decoder computes, as settings give it: equal, or the weights mean something else.
DECODER: tuple[str, ...] = ("layers", "width", "heads", "kv_head_count", "ffn_dim", "positions", "rope_fraction")
DECODER += ("rope_base", "norm", "norm_eps", "activation", "bias", "tied", "final_norm")
RETRIEVAL: tuple[str, ...] = ("chunk_alignment", "mask_padding", "cca_at", "cca", "cca_head_count", "cca_kv_head_count")
RETRIEVAL += ("cca_positions", "cca_null", "cca_gate", "match_length", "copy_output", "encoder_layers", "encoder_dim")
RETRIEVAL += ("encoder_head_count", "encoder_ffn_dim", "encoder_positions", "encoder_cross_attention")
RETRIEVAL += ("encoder_residual", "encoder_final_norm", "shared_embeddings")


def retrieves(name: str) -> bool:
    """Whether a parameter belongs to the encoder or to chunked cross-attention, not to the GPT."""
    return name.startswith(("encoder.", "copier.")) or ".cca." in name


def start_from(model: LanguageModel, run: Run, dataset: Dataset) -> str | None:
    """Give `model` the weights of the model.json that the run begins with, and freeze what it wants frozen.

    Returns the sha256 of the weights, None without one. A RETRO that begins with a GPT keeps its initial encoder
    and cross-attention. Raises UserError where settings, shapes, vocabulary, tokenizer or chunk length differ.
    """
    if run.start is None:
        return None
    manifest = read_manifest(run.start, "model")
    base = described(manifest.settings, str(manifest.path))
    fresh = model.architecture == "retro" and not base.retro
    _same_text(manifest, base.recorded, dataset)
    _same_model(manifest, base, model, fresh)
    manifest.check()
    path = manifest.file("model.safetensors")
    tensors, _ = read_tensors(path)
    wanted = {name: t for name, t in weights(model).items() if not (fresh and retrieves(name))}
    _copy(tensors, wanted, path)
    if run.freeze == "base":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(retrieves(name))
    free = sum(p.numel() for p in model.parameters() if p.requires_grad)
    say(f"from       {manifest.path}: {base.architecture}, {free:,} parameters are trained")
    return manifest.facts["files"]["model.safetensors"]["sha256"]


def tokenizer_files(dataset: Dataset) -> dict[str, str]:
    """sha256 of each file of the dataset's tokenizer."""
    files = dataset.manifest("tokenizer/manifest.json", "tokenizer").facts["files"]
    return {name: facts["sha256"] for name, facts in sorted(files.items())}


def _same_text(manifest: Manifest, recorded: Recorded, dataset: Dataset) -> None:
    """Refuse weights of another vocabulary or tokenizer."""
    if recorded.vocab_size != dataset.vocab_size:
        raise UserError(
            f"{manifest.path}: was trained with a vocabulary of {recorded.vocab_size}, {dataset.path} has "
            f"{dataset.vocab_size}. Prepare the dataset with that model's tokenizer (dataset.tokenizer)."
        )
    theirs = recorded.tokenizer
    beside = manifest.folder / "../../tokenizer/manifest.json"  # where models trained here lie
    if theirs is None and beside.exists():
        theirs = {name: facts["sha256"] for name, facts in read_json(beside)["files"].items()}
    if theirs is None:
        say(f"from       {manifest.path}: does not say which tokenizer it was trained with; not checked")
    elif theirs != tokenizer_files(dataset):
        raise UserError(
            f"{manifest.path}: was trained with another tokenizer than {dataset.path}, of the same size. Prepare the "
            f"dataset with that model's tokenizer (dataset.tokenizer)."
        )


def _same_model(manifest: Manifest, base: TrainedRun | ImportedModel, model: LanguageModel, fresh: bool) -> None:
    """Refuse weights that would mean something else in this model."""
    ours, theirs, recorded = model.settings, base.model, base.recorded
    if base.retro and model.architecture == "gpt":
        raise UserError(f"{manifest.path}: is a RETRO, and a gpt run has no place for its encoder; begin with a GPT.")
    names = DECODER if fresh or model.architecture == "gpt" else DECODER + RETRIEVAL
    for name in names:
        there, here = getattr(theirs, name), getattr(ours, name)
        rope_only = name in ("rope_fraction", "rope_base") and theirs.positions == ours.positions == "learned"
        if there != here and not rope_only:
            key = {"kv_head_count": "kv_heads", "ffn_dim": "ffn", "cca_at": "cca_layers"}.get(name, name)
            raise UserError(
                f"{manifest.path}: has {key} {there!r}, this run wants {here!r}. Give the run that value "
                f"(runs.<name>.model.{key}), or begin with another model."
            )
    if not fresh and model.architecture == "retro" and recorded.chunk_length != model.chunk_length:
        raise UserError(
            f"{manifest.path}: was trained with chunks of {recorded.chunk_length} tokens, the dataset has "
            f"{model.chunk_length}. Set dataset.chunk_length, or begin with a GPT."
        )


def _copy(tensors: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], path: Path) -> None:
    """Copy each wanted tensor; names and shapes must be equal."""
    for what, names in (("lacks", wanted.keys() - tensors.keys()), ("has unknown", tensors.keys() - wanted.keys())):
        if names:
            raise UserError(
                f"{path}: {what} {min(names)} and {len(names) - 1} more; it is of another model. Begin with one "
                "of this shape."
            )
    for name, tensor in wanted.items():
        if tensors[name].shape != tensor.shape:
            raise UserError(
                f"{path}: {name} is {list(tensors[name].shape)}, this run wants {list(tensor.shape)}. Sequence length, "
                f"retrieved_chunks and shapes must be those it was trained with."
            )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])
