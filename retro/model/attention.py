"""Self-attention of decoder and encoder, and the encoder's cross-attention to the retrieving chunk."""

import torch.nn.functional as F
from torch import Tensor, nn

from retro.model.layers import Rope, rotate


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, causal: bool = False, dropout: float = 0.0
) -> Tensor:
    """Scaled dot-product attention, scale 1/sqrt(size).

    q [b, n, h, size], k and v [b, s, g, size] with g dividing h (grouped queries); mask, bool (True =
    visible) or added to the scores, broadcasts to [b, h, n, s]. Returns [b, n, h * size].
    """
    if mask is not None and mask.is_floating_point():
        mask = mask.to(q.dtype)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),  # (b, h, n, size)
        k.transpose(1, 2).to(q.dtype),  # (b, g, s, size)
        v.transpose(1, 2).to(q.dtype),  # (b, g, s, size)
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal,
        enable_gqa=q.shape[2] != k.shape[2],
    )  # (b, h, n, size)
    return out.transpose(1, 2).flatten(2)  # (b, n, h * size)


class SelfAttention(nn.Module):
    """Multi-head self-attention. Rows of `qkv`: all query heads, then key heads, then value heads."""

    def __init__(self, width: int, heads: int, kv_heads: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dropout = heads, kv_heads, dropout
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * (width // heads), bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def project(self, x: Tensor, rope: Rope | None) -> tuple[Tensor, Tensor, Tensor]:
        """[b, n, d] -> queries [b, n, h, size], keys and values [b, n, g, size], rotated by position."""
        qkv = self.qkv(x).unflatten(-1, (self.heads + 2 * self.kv_heads, -1))  # (b, n, h + 2g, size)
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        if rope is not None:
            qk = rotate(qk, rope)  # (b, n, h + g, size)
        q, k = qk.split([self.heads, self.kv_heads], dim=2)
        return q, k, v

    def forward(
        self, x: Tensor, *, rope: Rope | None = None, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """[b, n, d] -> [b, n, d]; mask as in `attend`."""
        q, k, v = self.project(x, rope)
        dropout = self.dropout if self.training else 0.0
        return self.out(attend(q, k, v, mask=mask, causal=causal, dropout=dropout))  # (b, n, d)


class CrossAttention(nn.Module):
    """Attention of `width` features to a source of `source_width`. Rows of `kv`: key heads, value heads."""

    def __init__(self, width: int, source_width: int, heads: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q = nn.Linear(width, width, bias=bias)
        self.kv = nn.Linear(source_width, 2 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        *,
        rope: tuple[Rope, Rope] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x [b, n, d'], source [b, s, d] -> [b, n, d']; rope for queries and keys, mask as in `attend`."""
        q = self.q(x).unflatten(-1, (self.heads, -1))  # (b, n, h, size)
        k, v = self.kv(source).unflatten(-1, (2 * self.heads, -1)).chunk(2, dim=2)  # (b, s, h, size)
        if rope is not None:
            q, k = rotate(q, rope[0]), rotate(k, rope[1])
        return self.out(attend(q, k, v, mask=mask, dropout=self.dropout if self.training else 0.0))
