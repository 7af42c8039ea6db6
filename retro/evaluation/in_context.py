"""Neighbours in the window of a GPT (Ram et al. 2023): no encoder, no cross-attention, no training.

Each chunk is scored by a window of its own, as long as the model's: first the neighbours that RETRO would read for it,
those of the chunk before it, then as much of the text before it as still fits, then the chunk.
"""

import numpy as np
import torch

from retro.base.log import bar
from retro.evaluation.shown import Shown

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


def windows(batcher: Shown, low: int, high: int, length: int, room: int) -> tuple[np.ndarray, np.ndarray]:
    """The windows of chunks low … high of a split: tokens and targets, int64 [high − low, length].

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
    return inputs, targets


def score(
    model: torch.nn.Module, batcher: Shown, losses: np.ndarray, length: int, share: float, size: int, what: str
) -> None:
    """Fill `losses`, float32 [C, m], with the nats of every token of the batcher's split; the rest stays NaN.

    Windows of `length` tokens, of which up to a `share` may be neighbours; `size` windows a forward pass.
    """
    device, (chunks, m) = next(model.parameters()).device, losses.shape
    room = min(int(share * length), length - m)
    losses[:] = np.nan
    with bar(chunks * length, what, "tok") as shown, torch.inference_mode():
        for start in range(0, chunks, CHUNKS):
            stop = min(start + CHUNKS, chunks)
            inputs, wanted = windows(batcher, start, stop, length, room)
            for low in range(0, stop - start, size):
                tokens, targets = (torch.from_numpy(each[low : low + size]).to(device) for each in (inputs, wanted))
                found = model(tokens, targets=targets).float().cpu().numpy()
                here = wanted[low : low + size] >= 0
                rows, columns = np.nonzero(batcher.store.tokens(batcher.rows[start + low : start + low + len(here)])[1])
                losses[start + low + rows, columns] = found[here]
                shown.update(len(here) * length)
