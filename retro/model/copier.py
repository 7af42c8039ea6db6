"""The copier at the output: the head's distribution mixed with what followed the longest match in the neighbours.

At each position the longest suffix of the tokens so far, at most `match_length`, is looked for in the neighbours that
the position reads. What followed its occurrences there, each counted alike, is p_copy. A gate that sees how long the
match is, how far its occurrences agree, what the head says of it, and the state, decides how much of it to take:

    p(v) = (1 - g) p_head(v) + g p_copy(v)

It is exact, whatever the number of neighbours, so that cross-attention need not learn to copy, and what it learns is
the rest. Related: pointer networks (Vinyals et al. 2015), pointer-generators (See et al. 2017), kNN-LM (Khandelwal et
al. 2020), whose gate is one number.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retro.model.cca import Encoded
from retro.model.settings import ModelSettings


class Match(NamedTuple):
    """The longest match at positions [b', m'] in places [b', s]: its length, and the places that continue it."""

    length: Tensor  # int64 [b', m'], 0 where nothing matches
    places: Tensor  # fp32 [b', m', s], each continuing place's share; 0 everywhere where nothing matches
    first: Tensor  # int64 [b', m'], the first of them; 0 where there is none

    @classmethod
    def of(cls, encoded: Encoded) -> "Match":
        """In neighbours as their readers face them: `encoded.matches` says of every place how many tokens agree."""
        assert encoded.matches is not None and encoded.tokens is not None
        real = encoded.tokens >= 0  # (b', s)
        agreeing = encoded.matches[..., -real.shape[-1] :].sum(1) * real[:, None]  # (b', m', s), without the null slot
        length = agreeing.amax(-1)  # (b', m')
        found = (agreeing == length[..., None]) & (agreeing > 0)  # (b', m', s)
        places = found / found.sum(-1, keepdim=True).clamp(min=1)  # (b', m', s)
        order = torch.arange(found.shape[-1], 0, -1, device=found.device)  # (s,) the first place weighs most
        return cls(length.long(), places, (found * order).argmax(-1))

    def share(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        """p_copy of tokens `wanted` [b', m']; `tokens` [b', s] are those at the places. fp32 [b', m']."""
        return (self.places * (tokens[:, None] == wanted[..., None])).sum(-1)

    def distribution(self, tokens: Tensor, size: int) -> Tensor:
        """p_copy of every token: fp32 [b', m', V]."""
        index = tokens.clamp(min=0)[:, None].expand_as(self.places)  # (b', m', s); hidden places have share 0
        empty = self.places.new_zeros(*self.places.shape[:2], size)  # (b', m', V)
        return empty.scatter_add_(-1, index, self.places)


class OutputCopier(nn.Module):
    """The gate. `length` [c] is its logit for a match of 1 .. c tokens, `facts` [3] what the others add to it.

    Facts: how far the continuing places agree with the first of them, the logarithm of their number, and the head's
    log-probability of the token there. `state` [d] reads the position's state.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.length = nn.Parameter(torch.empty(settings.match_length))
        self.state = nn.Parameter(torch.empty(settings.width))
        self.facts = nn.Parameter(torch.empty(3))

    def gate(self, x: Tensor, match: Match, tokens: Tensor, head: Tensor) -> Tensor:
        """Logits of g at states x [b', m', d], fp32 [b', m']; `head` is log p_head of the first place's token."""
        candidate = tokens.gather(1, match.first)  # (b', m')
        agree = match.share(tokens, candidate)  # (b', m')
        number = (match.places > 0).sum(-1).clamp(min=1).log()  # (b', m')
        facts = torch.stack([agree - 1, number, head.clamp(min=-16) / 4 + 1], dim=-1)  # (b', m', 3)
        by_length = self.length[(match.length - 1).clamp(min=0)]  # (b', m')
        by_state = (whole(x) * self.state).sum(-1) / x.shape[-1] ** 0.5  # (b', m')
        return by_length + (facts * self.facts).sum(-1) + by_state  # (b', m')


def whole(x: Tensor) -> Tensor:
    """At least fp32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mixed(head: Tensor, gate: Tensor, copied: Tensor) -> Tensor:
    """log p of the mixture of log p_head `head`, the gate's logits and p_copy `copied`: fp32, broadcast together."""
    return torch.logaddexp(head + F.logsigmoid(-gate), F.logsigmoid(gate) + copied.log())
