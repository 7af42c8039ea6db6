"""The loss of every token of a split, in nats: losses.npy float32 [C, m], NaN where a chunk has no token.

Modes of retrieval: `none` (a GPT), `off` (a RETRO without neighbours), `on` (with the neighbours that
retrieval stored) and `random` (with chunks drawn at random from the database: the control, which has
everything of retrieval but what was looked for).
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

from retro import errors
from retro.artifacts import growing_array, write_manifest
from retro.errors import UserError
from retro.evaluation.bits import bits_per_byte
from retro.evaluation.scoring import score
from retro.evaluation.settings import EvaluationSettings
from retro.evaluation.windows import plan
from retro.recorded import Dataset
from retro.training.batches import Batcher
from retro.training.load import load_model

STAGE = "retro.evaluation.losses"
SOURCES = {"none": "none", "off": "none", "on": "stored", "random": "random"}


def check(architecture: str, mode: str, run: str) -> None:
    """Raise `UserError` for a mode of retrieval that a model of this architecture cannot be measured in."""
    if (architecture == "gpt") != (mode == "none"):
        can = "none" if architecture == "gpt" else "on, off or random"
        raise UserError(
            f"run {run!r} is a {architecture}, which has no retrieval mode {mode!r}. Evaluate it with {can}."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the recorded config, D/config.json")
    parser.add_argument("--model", required=True, type=Path, help="model.json of the run")
    parser.add_argument("--settings", required=True, type=json.loads, help="the evaluate section, as JSON")
    parser.add_argument("--split", required=True, choices=["train", "valid", "test"], help="split to measure")
    parser.add_argument("--mode", required=True, choices=list(SOURCES), help="where neighbours come from")
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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, run = load_model(options.model, dataset, device)
    check(run["architecture"], options.mode, run["name"])
    train = run["train"]
    torch.set_num_threads(train["threads"])
    used = train["neighbours_used"] if settings.neighbours_used is None else settings.neighbours_used
    batcher = Batcher(
        dataset,
        options.split,
        neighbours_used=used,
        retrieved_chunks=train["retrieved_chunks"],
        ids=SOURCES[options.mode],
        seed=dataset.facts["seed"],
    )
    shape, length = (len(rows), dataset.chunk_length), dataset.seq_length
    path = options.output.parent / "losses.npy"
    what = f"{run['name']} {options.split} {options.mode}"
    half = torch.autocast(device.type, torch.bfloat16, enabled=train["precision"] == "bf16")
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
        inputs=[options.config, options.model],
        settings={
            "run": run["name"],
            "architecture": run["architecture"],
            "mode": options.mode,
            "split": options.split,
            "neighbours_used": used if options.mode in ("on", "random") else 0,
            "retrieved_chunks": train["retrieved_chunks"],
            "seq_length": length,
            "stride": plan(len(rows), dataset.chunk_length, length, settings.stride).fresh * dataset.chunk_length,
            "batch_size": settings.batch_size,
            "precision": train["precision"],
        },
        counts=counts,
        seed=dataset.facts["seed"],
        threads=torch.get_num_threads(),
    )
    print(f"{what}: {counts['bits_per_byte']:.4f} bits per byte, {tokens:,} tokens → {path}", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
