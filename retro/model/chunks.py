"""Where chunks lie in a sequence, and which positions may see which chunk's neighbours (section 2.4)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ChunkGrid(NamedTuple):
    """Chunks of `length` tokens: the neighbours of chunk u are first read at position first + u * length."""

    length: int  # m
    count: int  # type: ignore[assignment]  # hides tuple.count; l, chunks whose neighbours reach a position
    first: int  # the last token of the first chunk
    short: int  # tokens of a short first chunk, 0 if it is whole

    @classmethod
    def over(cls, tokens: int, length: int, alignment: str) -> "ChunkGrid":
        """The grid over `tokens` positions.

        "start": chunk 0 begins at position 0; a last, partial chunk reaches nothing. "end" (Megatron-core):
        the last chunk ends with the sequence; the first one may be short.
        """
        if alignment == "start":
            return cls(length, tokens // length, length - 1, 0)
        return cls(length, -(-tokens // length), (tokens - 1) % length, tokens % length)

    def queries(self, x: Tensor) -> Tensor:
        """[b, n, d] -> [b * l, m, d]: piece u holds the positions that attend to chunk u's neighbours."""
        x = x[:, self.first :]  # (b, n - first, d)
        x = F.pad(x, (0, 0, 0, self.count * self.length - x.shape[1]))  # (b, l * m, d)
        return x.reshape(-1, self.length, x.shape[-1])  # (b * l, m, d)

    def scatter(self, x: Tensor, tokens: int) -> Tensor:
        """[b * l, m, d] -> [b, n, d], the inverse of `queries`; positions before `first` get exact zeros."""
        x = x.reshape(-1, self.count * self.length, x.shape[-1])  # (b, l * m, d)
        return F.pad(x[:, : tokens - self.first], (0, 0, self.first, 0))  # (b, n, d)

    def chunks(self, x: Tensor) -> Tensor:
        """[b, n, d] -> [b * l, m, d]: the chunks themselves; a short first one is zero-padded at its end."""
        if self.short:
            head = F.pad(x[:, : self.short], (0, 0, 0, self.length - self.short))  # (b, m, d)
            x = torch.cat([head, x[:, self.short :]], dim=1)  # (b, l * m, d)
        return x[:, : self.count * self.length].reshape(-1, self.length, x.shape[-1])  # (b * l, m, d)
