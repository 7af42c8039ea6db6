"""The loss of every token of a split, in nats: losses.npy float32 [C, m], NaN where a chunk has no token.

Of an empty split it is empty, with nothing for its bits per byte: whoever wants to evaluate that split refuses it.

Measured under a condition (`retro.evaluation.conditions`), which says what is shown as neighbours. What follows is not
so for neighbours in the decoder's window: `retro.evaluation.in_context`.

A window of `l` chunks predicts the tokens that follow each of its positions, so it scores the stream's
positions `start * m + 1 .. (start + l) * m`. Windows move by a stride; a token is scored by the first
window that reaches it, which is the one that has read most before it. The stream begins one all-padding
chunk early, so that the very first token is predicted too (from padding, as after the end of a document).
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from retro.base import stage
from retro.base.artifacts import growing_array, read_manifest, write_manifest
from retro.base.log import bar
from retro.base.machine import best_device, keep_memory
from retro.base.names import LISTED
from retro.base.stage import UserError, given
from retro.dataset.dataset import Dataset
from retro.evaluation import in_context
from retro.evaluation.bits_per_byte import bits_per_byte
from retro.evaluation.conditions import Condition
from retro.evaluation.settings import EvaluationSettings
from retro.evaluation.shown import Shown
from retro.training.batches import Batch, Batcher
from retro.training.settings import TrainSettings
from retro.training.weights import load_model


@dataclass(frozen=True)
class Windows:
    """A plan over a stream of `chunks` chunks of `chunk_length` tokens.

    `starts`: first chunk of each window, int64 [w]; chunk −1 is the all-padding chunk before the stream.
    `length`: chunks a window. `fresh`: the last so many chunks' worth of targets are scored by a window that
    is not the first.
    """

    chunks: int
    chunk_length: int
    length: int
    fresh: int
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def positions(self, windows: np.ndarray) -> np.ndarray:
        """Chunk positions of `windows` [b] and of the chunk after each: int64 [b, length + 1], −1 is
        padding.
        """
        positions = self.starts[windows][:, None] + np.arange(self.length + 1)
        return np.where((positions >= 0) & (positions < self.chunks), positions, -1)

    def read_before(self, places: np.ndarray) -> np.ndarray:
        """Tokens that the window which scores a place of the stream has read before it, int64, the padding before the
        stream counted; `places` int64, of any shape.
        """
        m = self.chunk_length
        window = -(-(places - (self.length - 1) * m) // (self.fresh * m))
        return places - self.starts[np.maximum(window, 0)] * m

    def place(self, windows: np.ndarray, losses: np.ndarray, into: np.ndarray) -> None:
        """Write `losses` [b, length * m] of `windows` into `into`, float [chunks * m]: each token once.

        Loss i of a window that starts at chunk s belongs to the stream's position s * m + 1 + i. Positions
        outside the stream are dropped.
        """
        m = self.chunk_length
        for window, found in zip(windows, losses, strict=True):
            skip = 0 if window == 0 else (self.length - self.fresh) * m
            first = int(self.starts[window]) * m + 1 + skip
            low, high = max(first, 0), min(first + len(found) - skip, self.chunks * m)
            into[low:high] = found[skip + low - first : skip + high - first]


def plan(chunks: int, chunk_length: int, seq_length: int, stride: int) -> Windows:
    """Windows of `seq_length` tokens every `stride` tokens; stride 0 is half a window, at least a chunk.

    Raises `UserError` for a stride that is no multiple of the chunk length, or longer than a window.
    """
    length = seq_length // chunk_length
    if stride % chunk_length or stride > seq_length:
        raise UserError(
            f"evaluate.stride is {stride}; wanted a multiple of chunk_length {chunk_length} up to seq_length "
            f"{seq_length}, or 0 for half of seq_length."
        )
    fresh = stride // chunk_length or max(1, length // 2)
    # From chunk −1 on; the last window is the first that reaches the last chunk.
    count = 1 + max(0, -(-(chunks + 1 - length) // fresh))
    return Windows(chunks, chunk_length, length, fresh, np.arange(count, dtype=np.int64) * fresh - 1)


CPU_TOKENS = 4096  # read at once on a CPU, neighbours' included, or those of one window: more leaves its caches


def at_once(batch: Batch, device: torch.device) -> int:
    """How many windows of a batch the model is given at once; their losses do not depend on it but for rounding."""
    if device.type != "cpu":
        return len(batch)
    read = batch.tokens.numel() + (0 if batch.neighbours is None else batch.neighbours.numel())
    return max(1, CPU_TOKENS * len(batch) // read)


def score(
    model: torch.nn.Module,
    batcher: Batcher,
    losses: np.ndarray,
    seq_length: int,
    stride: int,
    batch_size: int,
    what: str = "losses",
) -> None:
    """Fill `losses`, float32 [C, m], with the nats of every token of the batcher's split; the rest stays
    NaN.
    """
    chunks, m = losses.shape
    windows = plan(chunks, m, seq_length, stride)
    device = next(model.parameters()).device
    first_token = int(batcher.store.tokens(batcher.rows[:1])[0][0, 0])
    losses[:] = np.nan
    flat = losses.reshape(-1)
    with bar(len(windows) * seq_length, what, "tok") as shown, torch.inference_mode():
        for low in range(0, len(windows), batch_size):
            numbers = np.arange(low, min(low + batch_size, len(windows)))
            batch = batcher.batch(windows.positions(numbers))
            batch.targets[numbers > 0, : (windows.length - windows.fresh) * m] = -1  # scored before
            if low == 0:  # what precedes the stream is padding, which by itself predicts nothing
                batch.targets[0, m - 1] = first_token
            found = []
            for part in batch.cut(at_once(batch, device)):
                there = part.to(device)
                nats = model(there.tokens, there.neighbours, there.mask, there.targets)
                found.append(torch.where(there.targets >= 0, nats, torch.nan).float().cpu())
            windows.place(numbers, torch.cat(found).numpy(), flat)
            shown.update(len(numbers) * seq_length)


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


def windows_of(condition: Condition, batcher: Shown, length: int, share: float) -> Callable[[int, int], Batch]:
    """Windows of `length` tokens that have neighbours in them; of a GPT's they may fill a `share`."""
    if not condition.gpt:
        return partial(in_context.first_in_retro, batcher, length=length)
    room = min(int(share * length), length - batcher.store.length)
    return partial(in_context.in_gpt, batcher, length=length, room=room)


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
    keep_memory()
    dataset = Dataset.open(options.config)
    rows = dataset.rows(options.split)
    device = best_device()
    model, run = load_model(options.model, dataset, device)
    condition = options.mode.of(run.architecture, run.name)
    if condition.mixed:
        raise UserError(
            f"condition {condition.name!r}: is mixed from losses. Measure {condition.model.name}, then mix with "
            f"python -m retro.evaluation.{'copying' if condition.copy else 'knn_lm'}."
        )
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
        if len(rows) and condition.in_window:
            real = dataset.store.tokens(rows)[1]
            windows = windows_of(condition, batcher, length, settings.in_context)
            in_context.score(model, windows, real, losses, settings.batch_size, what)
        elif len(rows):
            score(model, batcher, losses, length, settings.stride, settings.batch_size, what)
        nats = float(np.nansum(losses, dtype=np.float64))
        tokens = int(np.isfinite(losses).sum())
    records = dataset.store.chunks(rows)
    if tokens != int(records["length"].sum(dtype=np.int64)):
        raise UserError(f"{options.model}: gave losses that are not numbers; the training diverged. Lower train.lr.")
    size = int(records["bytes"].sum(dtype=np.int64))
    bpb = bits_per_byte(nats, size) if size else None
    counts = {"tokens": tokens, "bytes": size, "nats": nats, "bits_per_byte": bpb}
    m = dataset.chunk_length
    moved: dict[str, int | float] = {"stride": plan(len(rows), m, length, settings.stride).fresh * m}
    if condition.in_window:  # each chunk has a window of its own
        moved = {"stride": m} | ({"in_context": settings.in_context} if condition.gpt else {})
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
            **moved,
            "batch_size": settings.batch_size,
            "precision": train.precision,
        },
        counts=counts,
        seed=dataset.facts["seed"],
        threads=torch.get_num_threads(),
    )
    told = "the split is empty" if bpb is None else f"{bpb:.4f} bits per byte, {tokens:,} tokens"
    print(f"{what}: {told} → {path}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
