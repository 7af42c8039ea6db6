"""What copy-ready cross-attention knows of the text itself: which places continue what was just written.

To copy, a position must find the place in a neighbour whose preceding tokens are its own last tokens, and read the
token there. The paper's form has to learn both steps; here scores are told how many tokens agree, exactly, and values
carry the token's embedding. What that is worth is learned (`match` and `out` of chunked cross-attention).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NOTHING, MASKED = -1, -2  # stand for tokens before the beginning and behind a mask; equal to no token


def recent(tokens: Tensor, count: int, start: int = 0) -> Tensor:
    """[.., n] -> [.., n, c]: the tokens `start`, `start` + 1, .. places before each, NOTHING before the first."""
    n = tokens.shape[-1]
    steps = [min(n, start + back) for back in range(count)]
    moved = [F.pad(tokens[..., : n - step], (step, 0), value=NOTHING) for step in steps]  # (.., n) each
    return torch.stack(moved, dim=-1)  # (.., n, c)


def before(neighbours: Tensor, mask: Tensor | None, count: int) -> Tensor:
    """Neighbours [b', k, r] and their mask -> [b', k * r, c]: the tokens before each place, nearest first."""
    if mask is not None:
        neighbours = neighbours.masked_fill(~mask, MASKED)  # (b', k, r)
    found = recent(neighbours, count, start=1)  # (b', k, r, c)
    return found.masked_fill(found == NOTHING, MASKED).flatten(1, 2)  # (b', k * r, c)


def matches(history: Tensor, places: Tensor, dtype: torch.dtype) -> Tensor:
    """Last tokens [b', m', c] and tokens before places [b', k * r, c] -> [b', c, m', k * r].

    Entry j is 1 where the last j + 1 tokens are those before the place, else 0.
    """
    same = [
        history[:, :, None, j] == places[:, None, :, j]  # (b', m', k * r)
        for j in range(history.shape[-1])
    ]
    for j in range(1, len(same)):
        same[j] = same[j] & same[j - 1]  # (b', m', k * r)
    return torch.stack(same, dim=1).to(dtype)  # (b', c, m', k * r)


def copies(neighbours: Tensor, table: Tensor) -> Tensor:
    """Neighbours [b', k, r] and the token table [V, d] -> their embeddings, of unit mean square, [b', k * r, d]."""
    return F.rms_norm(F.embedding(neighbours.flatten(1), table), table.shape[1:], eps=1e-6)  # (b', k * r, d)
