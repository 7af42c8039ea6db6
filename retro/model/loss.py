"""The head and its cross-entropy, computed only where there is something to predict."""

import torch
import torch.nn.functional as F
from torch import Tensor


def token_losses(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """States x [b, n, d], head [V, d], targets int64 [b, n] -> cross-entropies [b, n] fp32, in nats.

    Exactly 0 where the target is negative; those positions cost nothing.
    """
    flat, wanted = x.flatten(0, 1), targets.flatten()  # (b * n, d), (b * n,)
    kept = (wanted >= 0).nonzero().squeeze(1)  # (t,)
    logits = F.linear(flat[kept], weight)  # (t, V)
    losses = F.cross_entropy(logits.float(), wanted[kept], reduction="none")  # (t,)
    out = torch.zeros(wanted.shape, dtype=torch.float32, device=x.device)  # (b * n,)
    return out.index_copy(0, kept, losses).view_as(targets)  # (b, n)
