"""Chunked cross-attention: each position reads the neighbours of the last chunk that it has completed."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro.model.attention import attend
from retro.model.chunks import ChunkGrid
from retro.model.layers import make_norm, rope_table, rotate, shift
from retro.model.settings import ModelSettings


class Encoded(NamedTuple):
    """Encoded neighbours of every chunk, as all chunked cross-attentions read them."""

    states: Tensor  # (b * l, k * r, d')
    mask: Tensor | None  # (b * l, k * r) bool, True = visible; chunks without neighbours are all True
    alive: Tensor | None  # (b * l, 1, 1), 0 for a chunk without neighbours, else 1
    length: int  # r


class ChunkedCrossAttention(nn.Module):
    """Equation 4 of Borgeaud et al. 2021, with one softmax over all neighbours of a chunk.

    `relative` [h, m + r - 1] is added to the scores by distance, the neighbour being laid along the chunk
    that retrieved it. The null slot is one more key, `null` [g, size], without value; its weight starts at
    that of all keys together.
    """

    def __init__(self, settings: ModelSettings, chunk_length: int, retrieved_length: int) -> None:
        super().__init__()
        width, bias = settings.width, settings.bias
        self.heads, self.kv_heads = settings.cca_head_count, settings.cca_kv_head_count
        self.settings = settings
        self.chunk_length, self.retrieved_length = chunk_length, retrieved_length
        size = width // self.heads
        self.norm = make_norm(settings.norm, width, settings.norm_eps)
        self.q = nn.Linear(settings.copy_context * width, width, bias=bias)
        self.kv = nn.Linear(settings.encoder_dim, 2 * self.kv_heads * size, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        if settings.cca_positions == "relative":
            self.relative = nn.Parameter(torch.empty(self.heads, chunk_length + retrieved_length - 1))
        if settings.cca_null:
            self.null = nn.Parameter(torch.empty(self.kv_heads, size))
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
        out = self.read(x, self._with_context(h, x, grid), encoded)  # (b * l, m, d)
        if encoded.alive is not None:
            out = out * encoded.alive  # (b * l, m, d)
        return grid.scatter(out, h.shape[1])  # (b, n, d)

    def _with_context(self, h: Tensor, x: Tensor, grid: ChunkGrid) -> Tensor:
        """The queries [b * l, m, d] beside those of the positions before: [b * l, m, c * d]."""
        if self.settings.copy_context == 1:
            return x
        before = [grid.queries(shift(h, back)) for back in range(1, self.settings.copy_context)]
        return torch.cat([x, *before], dim=-1)  # (b * l, m, c * d)

    def read(self, x: Tensor, context: Tensor, encoded: Encoded, offset: int = 0) -> Tensor:
        """Positions x [b', m', d], offset, offset + 1, .. after the end of their chunk -> [b', m', d].

        `context` [b', m', c * d] is x beside the states of the c - 1 positions before.
        """
        q = self.q(context).unflatten(-1, (self.heads, -1))  # (b', m', h, size)
        kv = self.kv(encoded.states).unflatten(-1, (2 * self.kv_heads, -1))  # (b', k * r, 2g, size)
        k, v = kv.chunk(2, dim=2)  # (b', k * r, g, size)
        places = torch.arange(offset, offset + q.shape[1], device=q.device)  # (m',) 0 = last token of chunk
        q, k, bias = self._positions(q, k, places, encoded.length)
        mask = self._mask(bias, encoded)
        if self.settings.cca_null:
            null = self.null.to(k.dtype).expand(k.shape[0], 1, -1, -1)  # (b', 1, g, size)
            k = torch.cat([null, k], dim=1)  # (b', 1 + k * r, g, size)
            v = F.pad(v, (0, 0, 0, 0, 1, 0))  # (b', 1 + k * r, g, size)
        dropout = self.settings.attention_dropout if self.training else 0.0
        out = attend(q, k, v, mask=mask, dropout=dropout)  # (b', m', d)
        return self._gated(self.out, out, x)  # (b', m', d)

    def _positions(self, q: Tensor, k: Tensor, places: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Bring distances in: rotated q and k, or a bias [1, h, m', k * r] for the scores."""
        s, neighbours = self.settings, k.shape[1] // r
        ahead = torch.arange(r, device=q.device)  # (r,) places in the neighbour
        if s.cca_positions == "rope":
            # The neighbour begins where its chunk begins, m - 1 before the first position that reads it.
            rotated = 2 * (int(q.shape[-1] * s.rope_fraction) // 2)
            q = rotate(q, rope_table(places + self.chunk_length - 1, rotated, s.rope_base))
            k = rotate(k, rope_table(ahead.repeat(neighbours), rotated, s.rope_base))
        if s.cca_positions != "relative":
            return q, k, None
        index = places[:, None] - ahead[None, :] + self.retrieved_length - 1  # (m', r) in 0 .. m + r - 2
        bias = self.relative[:, index].repeat(1, 1, neighbours)  # (h, m', k * r)
        return q, k, bias[None].to(q.dtype)

    def _mask(self, bias: Tensor | None, encoded: Encoded) -> Tensor | None:
        """What `attend` takes as mask: padding, distances and the weight of the null slot in one."""
        mask = None if encoded.mask is None else encoded.mask[:, None, None, :]  # (b', 1, 1, k * r)
        if not self.settings.cca_null:
            if bias is None or mask is None:
                return mask if bias is None else bias
            return torch.where(mask, bias, float("-inf"))  # (b', h, m', k * r)
        like = encoded.states if bias is None else bias
        if bias is None:
            bias = like.new_zeros(1, 1, 1, encoded.states.shape[1])  # (1, 1, 1, k * r)
        if mask is None:
            level = like.new_full((1, 1, 1, 1), encoded.states.shape[1]).log()  # (1, 1, 1, 1)
        else:
            bias = torch.where(mask, bias, float("-inf"))  # (b', h or 1, m' or 1, k * r)
            level = mask.sum(-1, keepdim=True).to(like.dtype).log()  # (b', 1, 1, 1)
        return torch.cat([level.expand(*bias.shape[:3], 1), bias], dim=-1)  # (.., 1 + k * r)

    def _gated(self, project: nn.Linear, out: Tensor, x: Tensor) -> Tensor:
        """Project what was read [b', m', d], through the gate if there is one."""
        if self.settings.cca_gate == "layer":
            return project(out) * self.gate.tanh()  # (b', m', d)
        if self.settings.cca_gate == "token":
            heads = out.unflatten(-1, (self.heads, -1))  # (b', m', h, size)
            logits = self.gate(x) + (heads * self.gate_read).sum(-1)  # (b', m', h)
            out = (heads * logits.sigmoid()[..., None]).flatten(2)  # (b', m', d)
        return project(out)  # (b', m', d)
