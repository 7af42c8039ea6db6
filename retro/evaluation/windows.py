"""Which windows score which tokens of a stream of chunks: every token once, with the longest context at hand.

A window of `l` chunks predicts the tokens that follow each of its positions, so it scores the stream's
positions `start * m + 1 .. (start + l) * m`. Windows move by a stride; a token is scored by the first
window that reaches it, which is the one that has read most before it. The stream begins one all-padding
chunk early, so that the very first token is predicted too (from padding, as after the end of a document).
"""

from dataclasses import dataclass

import numpy as np

from retro.errors import UserError


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
