"""Parts that decoder and encoder share: norms, MLP, rotary positions.

Weights are made without values: `retro.model.initialise` gives them.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Rope = tuple[Tensor, Tensor]  # cosines and signed sines, each [positions, rotated] fp32


def make_norm(kind: str, width: int, eps: float) -> nn.Module:
    """RMSNorm (weight only) or LayerNorm (weight and bias) over the last axis."""
    return RMSNorm(width, eps=eps) if kind == "rmsnorm" else nn.LayerNorm(width, eps=eps)


class RMSNorm(nn.RMSNorm):
    """Root-mean-square norm. On the CPU, where torch composes it from parts, ours takes half the time."""

    def forward(self, x: Tensor) -> Tensor:
        """[.., d] -> [.., d]."""
        if x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling():
            return _FastRMSNorm.apply(x, self.weight, self.eps)
        return super().forward(x)


class _FastRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # (.., 1)
        scale = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()  # (.., 1)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)  # (.., d)

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
        else:
            y = F.gelu(y, approximate="tanh" if self.activation == "gelu_tanh" else "none")
        return self.down(y)  # (.., d)


def rope_table(positions: Tensor, rotated: int, base: float) -> Rope:
    """Cosines and signed sines for integer `positions` [n]: [n, rotated] fp32 each (Su et al. 2021).

    Feature i and i + rotated / 2 are one pair.
    """
    steps = torch.arange(0, rotated, 2, device=positions.device, dtype=torch.float32)  # (rotated/2,)
    angles = positions.float()[:, None] * base ** (-steps / rotated)  # (n, rotated/2)
    cos, sin = angles.cos(), angles.sin()  # (n, rotated/2)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)  # (n, rotated) each


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotate the first features of each head of `x` [b, n, h, size], as two halves, by its position."""
    cos, sin = (t[:, None, :].to(x.dtype) for t in rope)  # (n, 1, rotated)
    rotated = cos.shape[-1]
    if rotated < x.shape[-1]:
        turned, rest = x.split([rotated, x.shape[-1] - rotated], dim=-1)
        return torch.cat([rotate(turned, rope), rest], dim=-1)  # (b, n, h, size)
    return torch.addcmul(x * cos, x.roll(rotated // 2, dims=-1), sin)  # (b, n, h, size)
