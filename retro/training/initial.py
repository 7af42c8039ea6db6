"""Begin with trained weights: continued training, and retro-fitting a GPT with an encoder and cross-attention."""

from pathlib import Path

import torch

from retro.artifacts import Manifest, read_json, read_manifest
from retro.errors import UserError
from retro.model.language_model import LanguageModel
from retro.recorded import Dataset
from retro.training.run import ImportedModel, Recorded, Run, TrainedRun, described
from retro.training.say import say
from retro.training.weights import read_tensors, weights

# What the decoder computes, as settings give it: equal, or the weights mean something else.
DECODER: tuple[str, ...] = ("layers", "width", "heads", "kv_head_count", "ffn_dim", "positions", "rope_fraction")
DECODER += ("rope_base", "norm", "norm_eps", "activation", "bias", "tied", "final_norm")
RETRIEVAL: tuple[str, ...] = ("chunk_alignment", "mask_padding", "cca_at", "cca", "cca_head_count", "cca_kv_head_count")
RETRIEVAL += ("cca_positions", "cca_null", "cca_gate", "match_length", "encoder_layers", "encoder_dim")
RETRIEVAL += ("encoder_head_count", "encoder_ffn_dim", "encoder_positions", "encoder_cross_attention")
RETRIEVAL += ("encoder_residual", "encoder_final_norm", "shared_embeddings")


def retrieves(name: str) -> bool:
    """Whether a parameter belongs to the encoder or to chunked cross-attention, not to the GPT."""
    return name.startswith("encoder.") or ".cca." in name


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
