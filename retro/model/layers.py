"""Parts that decoder and encoder share: norms, MLP, rotary positions.

Weights are made without values: `retro.model.initialise` gives them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rope = tuple[Tensor, Tensor]  # cosines and sines, each [positions, rotated / 2] fp32


def make_norm(kind: str, width: int, eps: float) -> nn.Module:
    """RMSNorm (weight only) or LayerNorm (weight and bias) over the last axis."""
    return nn.RMSNorm(width, eps=eps) if kind == "rmsnorm" else nn.LayerNorm(width, eps=eps)


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
        else:
            y = F.gelu(y, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        return self.down(y)  # (.., d)


def rope_table(positions: Tensor, rotated: int, base: float) -> Rope:
    """Cosines and sines for integer `positions` [n]: two tensors [n, rotated / 2] fp32 (Su et al. 2021)."""
    steps = torch.arange(0, rotated, 2, device=positions.device, dtype=torch.float32)  # (rotated/2,)
    angles = positions.float()[:, None] * base ** (-steps / rotated)  # (n, rotated/2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotate the first features of each head of `x` [b, n, h, size], as two halves, by its position."""
    cos, sin = (t[:, None, :].to(x.dtype) for t in rope)  # (n, 1, rotated/2)
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]  # (b, n, h, rotated/2)
    parts = [first * cos - second * sin, second * cos + first * sin]
    if 2 * half < x.shape[-1]:
        parts.append(x[..., 2 * half :])  # (b, n, h, size - rotated)
    return torch.cat(parts, dim=-1)  # (b, n, h, size)
