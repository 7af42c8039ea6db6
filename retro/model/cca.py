"""Chunked cross-attention: each position reads the neighbours of the last chunk that it has completed (section 2.4).

`ChunkGrid` knows where chunks lie in a sequence, and which positions may see which chunk's neighbours.

Copy-ready cross-attention also knows which places of a neighbour continue what was just written. To copy, a position
must find the place in a neighbour whose preceding tokens are its own last tokens, and read the token there. The paper's
form has to learn both steps; here scores are told how many tokens agree, exactly, and values carry the token's
embedding. What that is worth is learned (`match` and `out` of chunked cross-attention).
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro.model.layers import Rope, attend, make_norm, rope_table, rotate
from retro.model.settings import ModelSettings


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


class Encoded(NamedTuple):
    """Encoded neighbours of every chunk, as all chunked cross-attentions read them."""

    states: Tensor  # (b * l, k * r, d')
    scores: Tensor | None  # (b * l, 1, 1, (1 +) k * r) where scores start: -inf hides, the null slot leads
    alive: Tensor | None  # (b * l, 1, 1), 0 for a chunk without neighbours, else 1
    length: int  # r
    tokens: Tensor | None = None  # (b * l, k * r) copy-ready only; negative where hidden
    copies: Tensor | None = None  # (b * l, k * r, d) embeddings of their tokens, copy-ready only
    places: Tensor | None = None  # (b * l, k * r, c) the tokens before each of them, copy-ready only
    matches: Tensor | None = None  # (b * l, c, m, (1 +) k * r) of the positions that read: `matches`

    def facing(self, history: Tensor) -> "Encoded":
        """As read by positions whose last tokens are `history` [b * l, m, c]."""
        assert self.places is not None
        found = matches(history, self.places, self.states.dtype)  # (b * l, c, m, k * r)
        null = 0 if self.scores is None else self.scores.shape[-1] - found.shape[-1]  # 1 with a null slot
        return self._replace(matches=F.pad(found, (null, 0)))


class ChunkedCrossAttention(nn.Module):
    """Equation 4 of Borgeaud et al. 2021, with one softmax over all neighbours of a chunk.

    `relative` [h, m + r - 1] is added to the scores by distance, the neighbour being laid along the chunk
    that retrieved it. The null slot is one more key, `null` [g, size], without value; its weight starts at
    that of all keys together. Copy-ready: `match` [h, c] is what each further token of a match adds to the
    score, and values are those of the encoder plus the embedding of the neighbour's token.
    """

    def __init__(self, settings: ModelSettings, chunk_length: int, retrieved_length: int) -> None:
        super().__init__()
        width, bias = settings.width, settings.bias
        self.heads, self.kv_heads = settings.cca_head_count, settings.cca_kv_head_count
        self.settings = settings
        self.chunk_length, self.retrieved_length = chunk_length, retrieved_length
        self.size = size = width // self.heads
        self.norm = make_norm(settings.norm, width, settings.norm_eps)
        self.q = nn.Linear(width, width, bias=bias)
        self.kv = nn.Linear(settings.encoder_dim, 2 * self.kv_heads * size, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        if settings.cca == "copy-ready":
            self.match = nn.Parameter(torch.empty(self.heads, settings.match_length))
        if settings.cca_positions == "relative":
            self.relative = nn.Parameter(torch.empty(self.heads, chunk_length + retrieved_length - 1))
        if settings.cca_null:
            self.null = nn.Parameter(torch.empty(self.kv_heads, size))
        self.gate: Any  # a parameter of the layer, or what gives one of each token
        if settings.cca_gate == "layer":
            self.gate = nn.Parameter(torch.empty(1))
        elif settings.cca_gate == "token":
            self.gate = nn.Linear(width, self.heads, bias=True)
            self.gate_read = nn.Parameter(torch.empty(self.heads, size))

    def forward(self, h: Tensor, encoded: Encoded, grid: ChunkGrid) -> Tensor:
        """Normalised states h [b, n, d] -> [b, n, d] to add to the residual stream.

        Exactly zero before the end of the first chunk and for chunks without neighbours.
        """
        x = grid.queries(h)  # (b * l, m, d)
        out = self.read(x, *self.keys_values(encoded), encoded)  # (b * l, m, d)
        if encoded.alive is not None:
            out = out * encoded.alive  # (b * l, m, d)
        return grid.scatter(out, h.shape[1])  # (b, n, d)

    def keys_values(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Keys and values of encoded neighbours, the null slot first: [b', (1 +) k * r, g, size] each."""
        s, r = self.settings, encoded.length
        kv = self.kv(encoded.states).unflatten(-1, (2 * self.kv_heads, -1))  # (b', k * r, 2g, size)
        k, v = kv.chunk(2, dim=2)  # (b', k * r, g, size)
        if encoded.copies is not None:
            v = v + encoded.copies.unflatten(-1, (self.kv_heads, -1))  # (b', k * r, g, size)
        if s.cca_positions == "rope":
            places = torch.arange(r, device=k.device).repeat(k.shape[1] // r)  # (k * r,)
            k = rotate(k, self._rope(places))  # (b', k * r, g, size)
        if s.cca_null:
            null = self.null.to(k.dtype).expand(k.shape[0], 1, -1, -1)  # (b', 1, g, size)
            k = torch.cat([null, k], dim=1)  # (b', 1 + k * r, g, size)
            v = F.pad(v, (0, 0, 0, 0, 1, 0))  # (b', 1 + k * r, g, size)
        return k, v

    def read(self, x: Tensor, k: Tensor, v: Tensor, encoded: Encoded, offset: int | Tensor = 0) -> Tensor:
        """Positions x [b', m', d], offset, offset + 1, .. after the end of their chunk -> [b', m', d].

        k and v are those of `keys_values`. `offset` may be [b'], each chunk's own.
        """
        q = self.q(x).unflatten(-1, (self.heads, -1))  # (b', m', h, size)
        after = torch.arange(q.shape[1], device=q.device)  # (m',) 0 = last token of chunk
        after = after + (offset if isinstance(offset, int) else offset[:, None])  # ((b',) m')
        if self.settings.cca_positions == "rope":
            # The neighbour begins where its chunk begins, m - 1 before the first position that reads it.
            q = rotate(q, self._rope(after + self.chunk_length - 1))  # (b', m', h, size)
        dropout = self.settings.attention_dropout if self.training else 0.0
        out = attend(q, k, v, mask=self._scores(after, encoded), dropout=dropout)  # (b', m', d)
        return self._gated(out, x)  # (b', m', d)

    def _rope(self, places: Tensor) -> Rope:
        rotated = 2 * (int(self.size * self.settings.rope_fraction) // 2)
        return rope_table(places, rotated, self.settings.rope_base)

    def _scores(self, after: Tensor, encoded: Encoded) -> Tensor | None:
        """What is added to the scores of positions `after` [(b',) m']: [b' or 1, h or 1, m' or 1, (1 +) k * r]."""
        scores = encoded.scores
        if encoded.matches is not None:
            weights = self.match.to(encoded.matches.dtype)  # (h, c)
            found = weights @ encoded.matches.flatten(2)  # (b', h, m' * (1 +) k * r)
            found = found.unflatten(2, encoded.matches.shape[2:])  # (b', h, m', (1 +) k * r)
            scores = found if scores is None else found + scores
        if self.settings.cca_positions == "relative":
            ahead = torch.arange(encoded.length, device=after.device)  # (r,) places in the neighbour
            index = after[..., None] - ahead + self.retrieved_length - 1  # ((b',) m', r) in 0 .. m + r - 2
            neighbours = encoded.states.shape[1] // encoded.length
            bias = self.relative[:, index].repeat(*[1] * index.dim(), neighbours)  # (h, (b',) m', k * r)
            bias = bias.transpose(0, 1) if after.dim() > 1 else bias[None]  # (b' or 1, h, m', k * r)
            bias = F.pad(bias, (int(self.settings.cca_null), 0))  # (b' or 1, h, m', (1 +) k * r)
            scores = bias if scores is None else scores + bias  # (b', h, m', (1 +) k * r)
        return scores

    def _gated(self, out: Tensor, x: Tensor) -> Tensor:
        """Project what was read [b', m', d], through the gate if there is one."""
        if self.settings.cca_gate == "layer":
            return self.out(out) * self.gate.tanh()  # (b', m', d)
        if self.settings.cca_gate == "token":
            heads = out.unflatten(-1, (self.heads, -1))  # (b', m', h, size)
            logits = self.gate(x) + (heads * self.gate_read).sum(-1)  # (b', m', h)
            out = (heads * logits.sigmoid()[..., None]).flatten(2)  # (b', m', d)
        return self.out(out)  # (b', m', d)
