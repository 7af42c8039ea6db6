"""The loss of every token of a split, in nats: losses.npy float32 [C, m], NaN where a chunk has no token.

Measured under a condition (`retro.evaluation.conditions`), which says what is shown as neighbours.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from retro import errors
from retro.arguments import given
from retro.artifacts import growing_array, read_manifest, write_manifest
from retro.database.tables import LISTED
from retro.device import best_device
from retro.errors import UserError
from retro.evaluation.bits import bits_per_byte
from retro.evaluation.conditions import Condition
from retro.evaluation.scoring import score
from retro.evaluation.settings import EvaluationSettings
from retro.evaluation.shown import Shown
from retro.evaluation.windows import plan
from retro.recorded import Dataset
from retro.training.load import load_model
from retro.training.settings import TrainSettings

STAGE = "retro.evaluation.losses"


def neighbours(path: Path | None, dataset: Dataset, condition: Condition) -> np.ndarray | None:
    """Ids of the neighbours at `path`; None: the stored ones. Raises `UserError` if they are not of this
    database.
    """
    if condition.named and path is None:
        raise UserError(
            f"condition {condition.name!r}: {condition.source!r} is no condition of its own; name the manifest of its "
            f"neighbours with --neighbours."
        )
    if path is None:
        return None
    manifest = read_manifest(path, "neighbours")
    ids = manifest.array("ids.npy")
    if ids.size and int(ids.max()) >= len(dataset.database):
        raise UserError(
            f"{path}: names database chunk {int(ids.max())}, {dataset.path} has {len(dataset.database)}. They are of "
            f"another database: name its config.json with --database."
        )
    return ids


def retrieved_chunks(settings: EvaluationSettings, train: TrainSettings, model: Path) -> int:
    """Chunks that each neighbour brings. Raises `UserError` for more than the model has places for."""
    trained, wanted = train.retrieved_chunks, settings.retrieved_chunks
    if wanted is not None and wanted > trained:
        raise UserError(
            f"evaluate.retrieved_chunks is {wanted}; {model} was trained with {trained} and has no places for more. "
            f"Lower it, or train with train.retrieved_chunks: {wanted}."
        )
    return wanted or trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the recorded config, D/config.json")
    parser.add_argument("--model", required=True, type=Path, help="model.json of the run")
    parser.add_argument("--settings", required=True, type=given, help="the evaluate section, as JSON")
    parser.add_argument("--split", required=True, choices=LISTED, help="split to measure")
    parser.add_argument("--mode", required=True, type=Condition.parse, help="condition, e.g. none, on, on+k5")
    parser.add_argument("--neighbours", nargs="?", type=Path, help="manifest of other neighbours of the split")
    parser.add_argument("--database", nargs="?", type=Path, help="config.json of a dataset to read the database of")
    parser.add_argument("--output", required=True, type=Path, help="manifest.json to write, losses.npy beside it")
    options = parser.parse_args()
    settings = EvaluationSettings(**options.settings)
    dataset = Dataset.open(options.config)
    rows = dataset.rows(options.split)
    if not len(rows):
        raise UserError(
            f"{options.config}: the {options.split} split is empty. Add documents, give it a larger share "
            f"(dataset.split), or remove it from evaluate.splits."
        )
    device = best_device()
    model, run = load_model(options.model, dataset, device)
    condition = options.mode.of(run.architecture, run.name)
    book = Dataset.open(options.database) if options.database else dataset
    train = run.train
    torch.set_num_threads(train.threads)
    used = train.neighbours_used if settings.neighbours_used is None else settings.neighbours_used
    used = 0 if condition.empty else used if condition.k is None else condition.k
    brought = retrieved_chunks(settings, train, options.model)
    batcher = Shown(
        dataset,
        options.split,
        condition,
        used=used,
        retrieved_chunks=brought,
        ids=neighbours(options.neighbours, book, condition),
        book=book,
    )
    shape, length = (len(rows), dataset.chunk_length), dataset.seq_length
    path = options.output.parent / "losses.npy"
    what = f"{run.name} {options.split} {condition.name}"
    half = torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bf16")
    with growing_array(path, shape, np.float32) as losses, half:
        score(model, batcher, losses, length, settings.stride, settings.batch_size, what)
        nats = float(np.nansum(losses, dtype=np.float64))
        tokens = int(np.isfinite(losses).sum())
    records = dataset.store.chunks(rows)
    if tokens != int(records["length"].sum(dtype=np.int64)):
        raise UserError(f"{options.model}: gave losses that are not numbers; the training diverged. Lower train.lr.")
    size = int(records["bytes"].sum(dtype=np.int64))
    counts = {"tokens": tokens, "bytes": size, "nats": nats, "bits_per_byte": bits_per_byte(nats, size)}
    write_manifest(
        options.output,
        kind="losses",
        stage=STAGE,
        files=[path],
        inputs=[options.config, options.model, *filter(None, [options.neighbours, options.database])],
        settings={
            "run": run.name,
            "architecture": run.architecture,
            "mode": condition.name,
            "split": options.split,
            "neighbours_used": used,
            "retrieved_chunks": brought,
            "seq_length": length,
            "stride": plan(len(rows), dataset.chunk_length, length, settings.stride).fresh * dataset.chunk_length,
            "batch_size": settings.batch_size,
            "precision": train.precision,
        },
        counts=counts,
        seed=dataset.facts["seed"],
        threads=torch.get_num_threads(),
    )
    print(f"{what}: {counts['bits_per_byte']:.4f} bits per byte, {tokens:,} tokens → {path}", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
