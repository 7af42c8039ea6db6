"""Parts that decoder and encoder share, and the encoder of neighbours.

Norms, MLP, rotary positions, attention, and the head's loss. The encoder is bidirectional, and conditioned on the chunk
that retrieved (Algorithm 1). Weights are made without values: `retro.model.build` gives them.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro.model.settings import ModelSettings, RopeScaling

Rope = tuple[Tensor, Tensor]  # cosines and signed sines, each [(b,) positions, rotated] fp32


def make_norm(kind: str, width: int, eps: float) -> nn.Module:
    """RMSNorm (weight only) or LayerNorm (weight and bias) over the last axis."""
    return RMSNorm(width, eps=eps) if kind == "rmsnorm" else nn.LayerNorm(width, eps=eps)


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm. On the CPU, where torch composes it from parts, ours takes half the time."""

    def forward(self, x: Tensor) -> Tensor:
        """[.., d] -> [.., d]."""
        if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling():
            if not torch.is_grad_enabled():  # a function of autograd takes longer than a token's norm
                return _normed(x, self.weight, self.eps or 0.0)[0]
            return _FastRMSNorm.apply(x, self.weight, self.eps)
        return super().forward(x)


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm [.., d] of x [.., d], and what x was multiplied by, [.., 1]."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (.., 1)
    scale = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (.., 1)
    return (x * scale).mul_(weight), scale


class _FastRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        found, scale = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        flat = (x * scale).flatten(0, -2)  # (t, d)
        grad = grad.flatten(0, -2)  # (t, d)
        to_weight = (grad * flat).sum(0)  # (d,)
        inner = grad * weight  # (t, d)
        along = torch.linalg.vecdot(inner, flat).div_(-x.shape[-1])[:, None]  # (t, 1)
        return inner.addcmul_(flat, along).mul_(scale.view(-1, 1)).view_as(x), to_weight, None


class MLP(nn.Module):
    """Position-wise feed-forward network: up, activation, down. SwiGLU's `up` holds [gate; up]."""

    def __init__(self, width: int, hidden: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.activation = activation
        self.up = nn.Linear(width, 2 * hidden if activation == "swiglu" else hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[.., d] -> [.., d]."""
        y = self.up(x)  # (.., hidden or 2 hidden)
        if self.activation == "swiglu":
            gate, y = y.chunk(2, dim=-1)  # (.., hidden) each
            y = F.silu(gate) * y  # (.., hidden)
        elif self.activation == "squared_relu":
            y = F.relu(y).square()  # (.., hidden)
        else:
            y = F.gelu(y, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        return self.down(y)  # (.., d)


def rope_table(positions: Tensor, rotated: int, base: float, scaling: RopeScaling | None = None) -> Rope:
    """Cosines and signed sines for integer `positions` [.., n]: [.., n, rotated] fp32 each (Su et al. 2021).

    Feature i and i + rotated / 2 are one pair.
    """
    angles = positions.float()[..., None] * frequencies(rotated, base, scaling, positions.device)  # (.., n, rotated/2)
    cos, sin = angles.cos(), angles.sin()  # (.., n, rotated/2)
    if scaling is not None and scaling.amplitude != 1:
        cos, sin = cos * scaling.amplitude, sin * scaling.amplitude  # (.., n, rotated/2)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)  # (.., n, rotated) each


def frequencies(rotated: int, base: float, scaling: RopeScaling | None, device: torch.device | None = None) -> Tensor:
    """The angles of one step, [rotated / 2] fp32: base^(−2i / rotated), stretched as `scaling` says."""
    steps = torch.arange(0, rotated, 2, device=device, dtype=torch.float32)  # (rotated/2,)
    found = base ** (-steps / rotated)  # (rotated/2,)
    return found if scaling is None else _stretched(found, base, scaling)


def _stretched(frequencies: Tensor, base: float, scaling: RopeScaling) -> Tensor:
    """Frequencies [f] as `scaling` has them: those that turn at least `high` times within the length it was
    trained to stay, those that turn `low` times or less are divided by the factor, and between them is a ramp.

    Llama 3's is linear in the turns, YaRN's (Peng et al. 2023, section 3.2) in the number of the pair.
    """
    if scaling.type == "linear":
        return frequencies / scaling.factor  # (f,)
    if scaling.type == "llama3":
        turns = scaling.length * frequencies / (2 * math.pi)  # (f,)
        kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)  # (f,)
    else:
        count = len(frequencies)
        ends = [
            count * math.log(scaling.length / (turns * 2 * math.pi)) / math.log(base)
            for turns in (scaling.high, scaling.low)
        ]  # numbers of the pairs that turn so often
        first, last = (math.floor(ends[0]), math.ceil(ends[1])) if scaling.whole_pairs else ends
        first, last = max(first, 0), min(last, 2 * count - 1)
        pairs = torch.arange(count, device=frequencies.device, dtype=torch.float32)  # (f,)
        kept = 1 - ((pairs - first) / max(last - first, 0.001)).clamp(0, 1)  # (f,)
    return frequencies * kept + frequencies / scaling.factor * (1 - kept)  # (f,)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotate the first features of each head of `x` [b, n, h, size], as two halves, by its position.

    Positions are those of every sequence, or [b, n, rotated] of each its own.
    """
    cos, sin = (t.unsqueeze(-2).to(x.dtype) for t in rope)  # ((b,) n, 1, rotated)
    rotated = cos.shape[-1]
    if rotated < x.shape[-1]:
        turned, rest = x.split([rotated, x.shape[-1] - rotated], dim=-1)
        return torch.cat([rotate(turned, rope), rest], dim=-1)  # (b, n, h, size)
    return torch.addcmul(x * cos, x.roll(rotated // 2, dims=-1), sin)  # (b, n, h, size)


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
    """Multi-head self-attention. Rows of `qkv`: all query heads, then key heads, then value heads.

    `size` is a head's width, where it is not width / heads; `qkv_bias`, where it is not `bias`. `normed` and `eps`:
    over how many features queries and keys are normalised (of one head, or of all of them), None: not at all.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int,
        bias: bool,
        dropout: float,
        *,
        size: int | None = None,
        qkv_bias: bool | None = None,
        normed: tuple[int, int] | None = None,
        eps: float = 0.0,
    ) -> None:
        super().__init__()
        size = size or width // heads
        self.heads, self.kv_heads, self.dropout = heads, kv_heads, dropout
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * size, bias=bias if qkv_bias is None else qkv_bias)
        self.q_norm = self.k_norm = None
        if normed is not None:
            self.q_norm, self.k_norm = (make_norm("rmsnorm", features, eps) for features in normed)
        self.out = nn.Linear(heads * size, width, bias=bias)

    def project(self, x: Tensor, rope: Rope | None) -> tuple[Tensor, Tensor, Tensor]:
        """[b, n, d] -> queries [b, n, h, size], keys and values [b, n, g, size], rotated by position."""
        qkv = self.qkv(x).unflatten(-1, (self.heads + 2 * self.kv_heads, -1))  # (b, n, h + 2g, size)
        qk, v = qkv.split([self.heads + self.kv_heads, self.kv_heads], dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split([self.heads, self.kv_heads], dim=2)
            qk = torch.cat([_normed_heads(self.q_norm, q), _normed_heads(self.k_norm, k)], dim=2)  # (b, n, h + g, size)
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


def _normed_heads(norm: nn.Module, x: Tensor) -> Tensor:
    """Heads x [b, n, h, size] -> the same, normalised one by one or all as one: as many features as the norm has."""
    features = norm.get_parameter("weight").shape[0]
    return norm(x.flatten(2).unflatten(-1, (-1, features))).view_as(x)  # (b, n, h, size)


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


def token_losses(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """States x [b, n, d], head [V, d], targets int64 [b, n] -> cross-entropies [b, n] fp32, in nats.

    Exactly 0 where the target is negative; those positions cost nothing, but in training on a GPU.
    """
    flat, wanted = x.flatten(0, 1), targets.flatten()  # (b * n, d), (b * n,)
    if x.is_cuda and torch.is_grad_enabled():  # to know how many have one, the CPU would wait for the GPU
        return losses_of_all(flat, weight, wanted).view_as(targets)
    kept = (wanted >= 0).nonzero().squeeze(1)  # (t,)
    logits = F.linear(flat[kept], weight)  # (t, V)
    losses = F.cross_entropy(logits.float(), wanted[kept], reduction="none")  # (t,)
    out = torch.zeros(wanted.shape, dtype=torch.float32, device=x.device)  # (b * n,)
    return out.index_copy(0, kept, losses).view_as(targets)  # (b, n)


def losses_of_all(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same for x [t, d] and targets [t], every position's logits computed: [t]."""
    logits = F.linear(x, weight).float()  # (t, V)
    return F.cross_entropy(logits, targets.clamp(min=-1), ignore_index=-1, reduction="none")


class EncoderLayer(nn.Module):
    """Self-attention over one neighbour, cross-attention to its chunk in some layers, MLP."""

    def __init__(self, settings: ModelSettings, crosses: bool) -> None:
        super().__init__()
        s, width, heads = settings, settings.encoder_dim, settings.encoder_head_count
        self.normed_residual = s.encoder_residual == "normed"
        self.attention_norm = make_norm(s.norm, width, s.norm_eps)
        self.attention = SelfAttention(width, heads, heads, s.bias, s.encoder_dropout)
        self.cross = None
        if crosses:
            self.cross_norm = make_norm(s.norm, width, s.norm_eps)
            self.cross = CrossAttention(width, s.width, heads, s.bias, s.attention_dropout)
        self.mlp_norm = make_norm(s.norm, width, s.norm_eps)
        self.mlp = MLP(width, s.encoder_ffn_dim, s.activation, s.bias)
        self.dropout = nn.Dropout(s.encoder_dropout)

    def forward(
        self,
        x: Tensor,
        chunks: Tensor,
        *,
        rope: Rope | None,
        cross_rope: tuple[Rope, Rope] | None,
        mask: Tensor | None,
        chunk_mask: Tensor | None,
    ) -> Tensor:
        """x [b * l * k, r, d'], chunks [b * l, m, d] -> [b * l * k, r, d'].

        mask [b * l * k, 1, 1, r] and chunk_mask [b * l, 1, 1, m] are True where visible.
        """
        x = x + self.dropout(self.attention(self.attention_norm(x), rope=rope, mask=mask))
        if self.cross is not None:
            y = self.cross_norm(x)  # (b * l * k, r, d')
            queries = y.view(chunks.shape[0], -1, y.shape[-1])  # (b * l, k * r, d')
            seen = self.cross(queries, chunks, rope=cross_rope, mask=chunk_mask)  # (b * l, k * r, d')
            x = (y if self.normed_residual else x) + self.dropout(seen).view_as(x)
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # (b * l * k, r, d')


class Encoder(nn.Module):
    """Neighbour tokens -> states for chunked cross-attention.

    Tokens come embedded by the decoder's table (`shared_embeddings`), brought to the encoder's width if that
    differs, or by a table of the encoder's own.
    """

    def __init__(self, settings: ModelSettings, vocab_size: int, retrieved_length: int) -> None:
        super().__init__()
        s, width = settings, settings.encoder_dim
        self.settings = settings
        self.embedding = self.positions = self.input = self.norm = None
        if not s.shared_embeddings:
            self.embedding = nn.Embedding(vocab_size, width)
            if s.encoder_positions == "learned":
                self.positions = nn.Embedding(retrieved_length, width)
        elif width != s.width:
            self.input = nn.Linear(s.width, width, bias=False)
        self.layers = nn.ModuleList(
            EncoderLayer(s, j in s.encoder_cross_attention) for j in range(1, s.encoder_layers + 1)
        )
        if s.encoder_final_norm:
            self.norm = make_norm(s.norm, width, s.norm_eps)
        self.dropout = nn.Dropout(s.dropout)

    def embed(self, tokens: Tensor, table: Tensor, positions: Tensor | None) -> Tensor:
        """Tokens [c, r] (c = b * l * k), the decoder's tables [V, d] and [P, d] -> [c, r, d']."""
        s = self.settings
        if self.embedding is not None:
            table = self.embedding.weight  # (V, d')
            positions = None if self.positions is None else self.positions.weight  # (r, d')
        x = F.embedding(tokens, table)  # (c, r, d or d')
        if s.encoder_positions == "learned":
            assert positions is not None
            x = x + positions[: tokens.shape[1]]  # (c, r, d or d')
        if self.input is not None:
            x = self.input(x)  # (c, r, d')
        return self.dropout(x)

    def forward(self, x: Tensor, chunks: Tensor, mask: Tensor | None, chunk_mask: Tensor | None) -> Tensor:
        """Embedded neighbours x [c, r, d'] and chunk states [b * l, m, d] -> [b * l, k * r, d'].

        mask [c, 1, 1, r] and chunk_mask [b * l, 1, 1, m] are True where visible.
        """
        s, r = self.settings, x.shape[1]
        rope = cross_rope = None
        if s.encoder_positions == "rope":
            size = s.encoder_dim // s.encoder_head_count
            rotated = 2 * (int(size * s.rope_fraction) // 2)
            rope = rope_table(torch.arange(r, device=x.device), rotated, s.rope_base)
            if s.encoder_cross_attention:
                k = x.shape[0] // chunks.shape[0]
                asks = (rope[0].repeat(k, 1), rope[1].repeat(k, 1))  # (k * r, rotated/2)
                keys = rope_table(torch.arange(chunks.shape[1], device=x.device), rotated, s.rope_base)
                cross_rope = asks, keys
        for layer in self.layers:
            x = layer(x, chunks, rope=rope, cross_rope=cross_rope, mask=mask, chunk_mask=chunk_mask)
        if self.norm is not None:
            x = self.norm(x)  # (c, r, d')
        return x.view(chunks.shape[0], -1, x.shape[-1])  # (b * l, k * r, d')
