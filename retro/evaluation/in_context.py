"""Neighbours in the window of the decoder, without any training.

Each chunk is scored by a window of its own, as long as the model's: first neighbours of the chunk before it, which are
those that RETRO reads for it, then as much of the text before it as still fits, then the chunk. `in_gpt` puts as many
neighbours there as fit, for a GPT that has no other way to read them (Ram et al. 2023); `first_in_retro` the first, and
leaves the others to the encoder (RETRO++, Wang et al. 2023).
"""

from collections.abc import Callable

import numpy as np
import torch

from retro.base.log import bar
from retro.base.stage import UserError
from retro.evaluation.shown import Shown
from retro.training.batches import Batch

CHUNKS = 256  # whose neighbours are gathered at a time


def beside(neighbours: np.ndarray, mask: np.ndarray, room: int) -> np.ndarray:
    """What a window of a chunk begins with, int64 [n]: its neighbours [k, r], as far as `mask` has them.

    Of these the first that fit whole into `room` tokens, the best last, so that it stands next to the text.
    """
    found: list[np.ndarray] = []
    for tokens, real in zip(neighbours, mask, strict=True):
        room -= int(real.sum())
        if room < 0:
            break
        found.insert(0, tokens[real])
    return np.concatenate([np.empty(0, np.int64), *found])


def in_gpt(batcher: Shown, low: int, high: int, length: int, room: int) -> Batch:
    """The windows of chunks low … high of a split, of `length` tokens; neighbours fill up to `room` of these.

    Targets are those of the window's own chunk, −1 elsewhere. What a window does not fill, at the beginning of a
    split, is padding after its last target. Before the split is one chunk of padding, as in `retro.evaluation.losses`.
    """
    store, rows, m = batcher.store, batcher.rows, batcher.store.length
    before = -(-length // m)  # chunks that a window may reach back
    at = np.arange(low - before, high)
    tokens, real = store.tokens(np.where(at >= 0, rows[np.maximum(at, 0)], -1))
    stream = tokens.reshape(-1)  # of which token p of chunk u is at (u − low + before) m + p
    chunks = np.arange(low, high)
    shown = batcher.batch(np.stack([chunks - 1, chunks], axis=1))
    inputs = np.full((high - low, length), store.pad_id, np.int64)
    targets = np.full((high - low, length), -1, np.int64)
    for number in range(high - low):
        near = np.empty(0, np.int64)
        if shown.neighbours is not None and shown.mask is not None:
            near = beside(shown.neighbours[number, 0].numpy(), shown.mask[number, 0].numpy(), room)
        end = (number + before + 1) * m - 1  # of the window's text: its last token is the last but one of the chunk
        begin = max(end - (length - len(near)), (before - low - 1) * m)
        used = len(near) + end - begin
        inputs[number, :used] = np.concatenate([near, stream[begin:end]])
        own = np.where(real[number + before], tokens[number + before], -1)
        targets[number, used - m : used] = own
    return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), None, None)


def first_in_retro(batcher: Shown, low: int, high: int, length: int) -> Batch:
    """The windows of chunks low … high of a split, of `length` tokens: whole chunks, which face their neighbours.

    The first neighbour of the chunk before the last takes the first r tokens, padded where it is shorter, and the
    encoder does not see it there; before a split begins there is padding. Targets are those of the last chunk, −1
    elsewhere. Raises `UserError` where that leaves no room for a chunk before the last.
    """
    store, m, brought = batcher.store, batcher.store.length, batcher.retrieved
    text = length // m - brought  # chunks
    if text < 2:
        raise UserError(
            f"condition first-in-context: a window of {length} tokens has no room for a neighbour of {brought * m} and "
            f"two chunks of {m}. Raise dataset.samples.seq_length, or lower evaluate.retrieved_chunks."
        )
    chunks = np.arange(low, high)
    positions = np.maximum(chunks[:, None] + np.arange(1 - text, 2), -1)  # the one after is for the batcher alone
    shown = batcher.batch(np.where(positions < len(batcher.rows), positions, -1))
    targets = torch.full((len(chunks), length), -1)
    tokens, real = store.tokens(batcher.rows[low:high])
    targets[:, -m - 1 : -1] = torch.from_numpy(np.where(real, tokens, -1))
    if shown.neighbours is None or shown.mask is None:
        near = torch.full((len(chunks), brought * m), store.pad_id)
        return Batch(torch.cat([near, shown.tokens], 1), targets, None, None)
    near = shown.neighbours[:, -2, 0]  # (b, r)
    empty = shown.neighbours[:, :brought]  # (b, r / m, k, r): what the window begins with has no neighbours
    mask = torch.cat([torch.zeros_like(empty, dtype=torch.bool), shown.mask], 1)  # (b, l, k, r)
    mask[:, -2, 0] = False
    return Batch(torch.cat([near, shown.tokens], 1), targets, torch.cat([empty, shown.neighbours], 1), mask)


def score(
    model: torch.nn.Module,
    windows: Callable[[int, int], Batch],
    real: np.ndarray,
    losses: np.ndarray,
    size: int,
    what: str,
) -> None:
    """Fill `losses`, float32 [C, m], with the nats of every token of a split that is `real`, bool [C, m]; else NaN.

    `windows` gives those of some chunks, first and end, in order; `size` of them a forward pass.
    """
    device, chunks = next(model.parameters()).device, len(losses)
    losses[:] = np.nan
    with bar(losses.size, what, "tok") as shown, torch.inference_mode():
        for start in range(0, chunks, CHUNKS):
            low = start
            for batch in windows(start, min(start + CHUNKS, chunks)).cut(size):
                high, there = low + len(batch), batch.to(device)
                found = model(there.tokens, there.neighbours, there.mask, there.targets).float().cpu()
                losses[low:high][real[low:high]] = found[batch.targets >= 0].numpy()
                low = high
                shown.update(len(batch) * losses.shape[1])
