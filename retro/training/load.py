"""Load a trained model, strictly: for evaluation and generation."""

from pathlib import Path

import torch

from retro.artifacts import Manifest, read_manifest
from retro.errors import UserError
from retro.model.build import build_model
from retro.model.language_model import LanguageModel
from retro.recorded import Dataset
from retro.training.run import Recorded, TrainedRun, described
from retro.training.weights import assign, read_tensors


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
