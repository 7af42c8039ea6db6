"""Load a trained model, strictly: for evaluation and generation."""

from pathlib import Path
from typing import Any

import torch

from retro.artifacts import Manifest, read_manifest
from retro.errors import UserError
from retro.model.build import build_model
from retro.model.language_model import LanguageModel
from retro.model.settings import ModelSettings
from retro.recorded import Dataset
from retro.training.weights import assign, read_tensors


def load_model(
    path: str | Path, dataset: Dataset, device: torch.device | None = None
) -> tuple[LanguageModel, dict[str, Any]]:
    """The model that a model.json describes, in evaluation mode, and its settings.

    The settings are the run's (name, architecture, twin, seed, model, train) and `recorded`: seq_length,
    chunk_length, retrieved_length, vocab_size and what else the dataset decided. Raises UserError if the
    weights are not those of the manifest, or were trained with another vocabulary or chunk length.
    """
    manifest = read_manifest(path, "model")
    settings = manifest.settings
    _same_dataset(manifest, dataset)
    manifest.check()
    recorded = settings["recorded"]
    model = build_model(
        ModelSettings(**settings["model"]),
        architecture=settings["architecture"],
        vocab_size=recorded["vocab_size"],
        seq_length=recorded["seq_length"],
        chunk_length=recorded["chunk_length"],
        retrieved_length=recorded["retrieved_length"],
        seed=None,
    )
    weights_path = manifest.file("model.safetensors")
    tensors, _ = read_tensors(weights_path)
    assign(model, tensors, str(weights_path))
    return model.to(device or "cpu").eval(), settings


def _same_dataset(manifest: Manifest, dataset: Dataset) -> None:
    """Refuse a model whose vocabulary or grid is not the dataset's."""
    recorded = manifest.settings["recorded"]
    here = {
        "vocab_size": dataset.vocab_size,
        "seq_length": dataset.seq_length,
        "chunk_length": dataset.chunk_length,
    }
    for key, value in here.items():
        if recorded[key] != value:
            raise UserError(
                f"{manifest.path}: was trained with {key} {recorded[key]}, {dataset.path} has {value}. Run "
                f"snakemake: it trains the model again."
            )
