"""How a training begins with trained weights: of a model of this project, or of a folder of Hugging Face's.

Continued training, and retro-fitting a GPT with an encoder and cross-attention (Wang et al. 2024, InstructRetro).
"""

import hashlib
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from retro.base.artifacts import Manifest, canonical, read_json, read_manifest, sha256
from retro.base.log import say
from retro.base.stage import UserError
from retro.dataset.dataset import Dataset
from retro.model.exchange import BUFFERS, CUT, found_as, from_theirs
from retro.model.families import vocabulary
from retro.model.language_model import LanguageModel
from retro.model.settings import ModelSettings
from retro.training import foreign
from retro.training.settings import ImportedModel, Recorded, Run, TrainedRun, described
from retro.training.weights import read_tensors, retrieves, tokenizer_files, weights

# What the decoder computes, as settings give it: equal, or the weights mean something else.
DECODER: tuple[str, ...] = ("layers", "width", "heads", "kv_head_count", "ffn_dim", "positions", "rope_fraction")
DECODER += ("rope_base", "rope_scaling", "norm", "norm_eps", "norm_position", "parallel_residual", "qk_norm")
DECODER += ("activation", "bias", "has_qkv_bias", "head_size", "tied", "final_norm")
RETRIEVAL: tuple[str, ...] = ("chunk_alignment", "mask_padding", "cca_at", "cca", "cca_head_count", "cca_kv_head_count")
RETRIEVAL += ("cca_positions", "cca_null", "cca_gate", "match_length", "copy_output", "encoder_layers", "encoder_dim")
RETRIEVAL += ("encoder_head_count", "encoder_ffn_dim", "encoder_positions", "encoder_cross_attention")
RETRIEVAL += ("encoder_residual", "encoder_final_norm", "shared_embeddings")
KEYS = {"kv_head_count": "kv_heads", "ffn_dim": "ffn", "cca_at": "cca_layers", "head_size": "head_dim"}
KEYS |= {"has_qkv_bias": "qkv_bias"}


def start_from(model: LanguageModel, run: Run, dataset: Dataset) -> str | None:
    """Give `model` the weights that the run begins with, and freeze what it wants frozen.

    Returns the sha256 of the weights, None without any. A RETRO that begins with a GPT keeps its initial encoder
    and cross-attention. Raises UserError where settings, shapes, vocabulary, tokenizer or chunk length differ.
    """
    if run.start is None:
        return None
    theirs, digest = (_from_folder if foreign.is_foreign(run.start) else _from_ours)(model, Path(run.start), dataset)
    if run.freeze == "base":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(retrieves(name))
    free = sum(p.numel() for p in model.parameters() if p.requires_grad)
    say(f"from       {theirs}, {free:,} parameters are trained")
    return digest


def _from_ours(model: LanguageModel, start: Path, dataset: Dataset) -> tuple[str, str]:
    """The weights of a model.json; what it is, and their sha256."""
    manifest = read_manifest(start, "model")
    base = described(manifest.settings, str(manifest.path))
    fresh = model.architecture == "retro" and not base.retro
    _same_text(manifest, base.recorded, dataset)
    _same_model(manifest, base, model, fresh)
    manifest.check()
    path = manifest.file("model.safetensors")
    tensors, _ = read_tensors(path)
    wanted = {name: t for name, t in weights(model).items() if not (fresh and retrieves(name))}
    _copy(tensors, wanted, path)
    return f"{manifest.path}: {base.architecture}", manifest.facts["files"]["model.safetensors"]["sha256"]


def _from_folder(model: LanguageModel, start: Path, dataset: Dataset) -> tuple[str, str]:
    """The decoder's weights of a folder of Hugging Face's, in whatever precision they are; what it is, and a digest.

    Rows that no token of the dataset's tokenizer has, and positions beyond its sequence length, are left out.
    """
    facts, ours = foreign.facts(start), model.settings
    theirs = ModelSettings(**foreign.decoder(start, dataset.seq_length))
    if differing := [name for name in DECODER if getattr(theirs, name) != getattr(ours, name)]:
        raise UserError(
            f"{start}: decides {KEYS.get(differing[0], differing[0])} otherwise than this run was given it; run "
            "snakemake again, which reads it anew."
        )
    if (rows := vocabulary(facts)) < (tokens := dataset.vocab_size):
        raise UserError(f"{start}: vocab_size is {rows}, {dataset.path} has {tokens} tokens. {OWN_TOKENIZER}")
    _same_tokenizer(start, dataset)
    places: dict[str, Any] = {}
    files = foreign.files(start)
    for path in files[1:]:
        if path.suffix == ".safetensors":
            places |= dict.fromkeys((file := _opened(path)).keys(), file)
    used: set[str] = set()

    def read(name: str) -> Tensor:
        there = found_as(facts["model_type"], name, places)
        if there is None:
            raise UserError(f"{start.parent}: lacks {name}, which config.json asks for. Fetch the folder again.")
        used.add(there)
        found: Tensor = places[there].get_tensor(there)
        if not found.is_floating_point() or not found.isfinite().all():
            raise UserError(
                f"{start.parent}: {there} holds what is no finite number, as {found.dtype}. Begin with another model."
            )
        return found

    with torch.no_grad():
        for name, tensor in weights(model).items():
            if retrieves(name):
                continue
            try:
                found = from_theirs(facts["model_type"], name, read, ours)
                found = found[: len(tensor)] if name in CUT else found
                shape = str(list(found.shape))
            except (IndexError, RuntimeError):  # its parts do not go together
                shape = "nothing"
            if shape != str(list(tensor.shape)):
                raise UserError(
                    f"{start.parent}: {name} comes out as {shape}, config.json wants {list(tensor.shape)}. "
                    "Fetch the folder again."
                )
            tensor.copy_(found)
    left = [name for name in places.keys() - used if not BUFFERS.fullmatch(name)]
    left = [name for name in left if not (ours.tied and name in ("lm_head.weight", "embed_out.weight"))]
    if left:
        raise UserError(
            f"{start.parent}: holds {min(left)} and {len(left) - 1} more, which no {facts['model_type']} has. Begin "
            "with another model."
        )
    digest = hashlib.sha256(canonical({path.name: sha256(path) for path in files}).encode()).hexdigest()
    shape = f"{ours.layers} layers x {ours.width} x {ours.heads} heads, {dataset.vocab_size:,} of {rows:,} token rows"
    return f"{start.parent}: {facts['model_type']}, {shape}", digest


def _opened(path: Path) -> Any:
    try:
        return safetensors.safe_open(path, framework="pt")
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}). Copy or fetch it again.") from None


OWN_TOKENIZER = (
    "Prepare the dataset with that model's tokenizer (dataset.tokenizer.type: huggingface, path: its folder)."
)


SPEAKS = ("model", "normalizer", "pre_tokenizer", "added_tokens")  # what of tokenizer.json decides a text's ids


def _same_tokenizer(start: Path, dataset: Dataset) -> None:
    """Refuse a folder whose tokenizer.json gives other ids than the dataset's, as far as their texts tell."""
    ours, path = dataset.folder / "tokenizer" / foreign.TOKENIZER, start.with_name(foreign.TOKENIZER)
    if not ours.is_file() or not path.is_file():
        say(f"from       {path}: not there, or the dataset has none; the tokenizers are not compared")
    elif [foreign.facts(ours).get(key) for key in SPEAKS] != [foreign.facts(path).get(key) for key in SPEAKS]:
        raise UserError(f"{path}: is another tokenizer than that of {dataset.path}. {OWN_TOKENIZER}")


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
            key = KEYS.get(name, name)
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
