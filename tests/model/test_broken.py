"""The checks of the model find what they are for: each passes on the model and fails on one that is broken."""

import random
from collections.abc import Callable

import pytest
import torch

from retro.model import cca, language_model, layers
from retro.model.cca import ChunkGrid
from retro.model.layers import SelfAttention
from retro.model.settings import ModelSettings
from tests.model.reference import Reference
from tests.model.shapes import VOCAB, inputs, small_model

CHUNK, TOKENS = 4, 12


def model_of(architecture="retro"):
    settings = ModelSettings(flavour="paper", layers=3, width=16, heads=2, cca_layers=(1, 3))
    return small_model(settings, architecture=architecture, chunk=CHUNK).double()


def data(**more):
    return inputs(random.Random(1), tokens=TOKENS, chunk=CHUNK, **{"missing": False, **more})


def neighbours_are_seen_from_the_last_token_on() -> bool:
    """Neighbours of chunk u move logits from (u + 1) m - 1 on, none earlier, and that one."""
    model = model_of()
    x, neighbours, mask, _ = data()
    before = model(x, neighbours, mask)
    for u in range(TOKENS // CHUNK):
        other = neighbours.clone()
        other[:, u] = (other[:, u] + 1) % VOCAB
        moved = (model(x, other, mask) != before).any(-1).any(0).nonzero()[:, 0].tolist()
        if moved[:1] != [(u + 1) * CHUNK - 1]:
            return False
    return True


def a_token_moves_nothing_before_it() -> bool:
    """A changed token moves no logit before it."""
    model = model_of()
    x, neighbours, mask, _ = data()
    before = model(x, neighbours, mask)
    for t in range(TOKENS):
        other = x.clone()
        other[:, t] = (other[:, t] + 1) % VOCAB
        if not torch.equal(model(other, neighbours, mask)[:, :t], before[:, :t]):
            return False
    return True


def without_neighbours_it_is_the_gpt() -> bool:
    """Off, and with all neighbours masked, logits are the GPT twin's bit for bit."""
    gpt, model = model_of("gpt"), model_of()
    x, neighbours, mask, _ = data()
    off, none = model(x), model(x, neighbours, torch.zeros_like(mask))
    return torch.equal(off, gpt(x)) and torch.equal(none, gpt(x))


def the_order_of_neighbours_does_not_matter() -> bool:
    """Permuted neighbours leave the logits where they are."""
    model = model_of()
    x, neighbours, mask, _ = data(k=3)
    order = [2, 0, 1]
    moved = model(x, neighbours[:, :, order], mask[:, :, order]) - model(x, neighbours, mask)
    return bool(moved.abs().max() < 1e-5)


def padding_is_not_seen() -> bool:
    """Tokens behind the mask change nothing."""
    model = model_of()
    x, neighbours, mask, _ = data()
    mask[..., 3:] = False
    other = torch.where(mask, neighbours, (neighbours + 1) % VOCAB)
    return torch.equal(model(x, other, mask), model(x, neighbours, mask))


def it_is_the_reference() -> bool:
    """Logits are those of the token-by-token reference."""
    model = model_of()
    x, neighbours, mask, _ = data(batch=1, missing=True)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    wanted = Reference(weights, model.settings, CHUNK, 6).logits(
        x[0].tolist(), neighbours[0].tolist(), mask[0].tolist()
    )
    return bool((model(x, neighbours, mask)[0] - wanted).abs().max() < 1e-5)


CHECKS = [
    neighbours_are_seen_from_the_last_token_on,
    a_token_moves_nothing_before_it,
    without_neighbours_it_is_the_gpt,
    the_order_of_neighbours_does_not_matter,
    padding_is_not_seen,
    it_is_the_reference,
]


def no_shift(patch) -> None:
    """Chunk u's neighbours are read from its first token on: the shift by m - 1 is left out."""
    over = ChunkGrid.over.__func__
    patch.setattr(ChunkGrid, "over", classmethod(lambda c, *a: over(c, *a)._replace(first=0)))


def one_early(patch) -> None:
    """Neighbours leak by one token."""
    over = ChunkGrid.over.__func__
    patch.setattr(ChunkGrid, "over", classmethod(lambda c, *a: over(c, *a)._replace(first=a[1] - 2)))


def one_late(patch) -> None:
    """The last token of a chunk does not see its neighbours."""
    over = ChunkGrid.over.__func__
    patch.setattr(ChunkGrid, "over", classmethod(lambda c, *a: over(c, *a)._replace(first=a[1])))


def not_causal(patch) -> None:
    """Decoder self-attention sees what comes."""
    attend = SelfAttention.forward

    def forward(self, x, *, rope=None, mask=None, causal=False):
        return attend(self, x, rope=rope, mask=mask, causal=False)

    patch.setattr(SelfAttention, "forward", forward)


def next_chunk(patch) -> None:
    """The encoder is conditioned on the chunk after the retrieving one."""
    own = ChunkGrid.chunks
    patch.setattr(ChunkGrid, "chunks", lambda self, x: own(self, x.roll(-self.length, dims=1)))


def bias_when_absent(patch) -> None:
    """A chunk without neighbours still gets what cross-attention makes of nothing."""
    forward = cca.ChunkedCrossAttention.forward
    patch.setattr(
        cca.ChunkedCrossAttention, "forward", lambda self, h, e, grid: forward(self, h, e._replace(alive=None), grid)
    )


def places_across_neighbours(patch) -> None:
    """Keys are numbered across neighbours, so that the second stands further away."""
    rope = cca.ChunkedCrossAttention._rope

    def across(self, places):
        return rope(self, torch.arange(len(places)) if len(places) > 6 else places)

    patch.setattr(cca.ChunkedCrossAttention, "_rope", across)


def padding_attended(patch) -> None:
    """Padding inside neighbours is shown to the encoder and to cross-attention."""
    encode = language_model.LanguageModel.encode

    def seen(self, neighbours, mask, states, short=0):
        return encode(self, neighbours, mask.any(-1, keepdim=True).expand_as(mask), states, short)

    patch.setattr(language_model.LanguageModel, "encode", seen)


def no_encoder_norm(patch) -> None:
    """The encoder's last norm is left out."""
    forward = layers.Encoder.forward

    def without(self, *arguments):
        norm, self.norm = self.norm, None
        try:
            return forward(self, *arguments)
        finally:
            self.norm = norm

    patch.setattr(layers.Encoder, "forward", without)


BROKEN: list[tuple[Callable, Callable]] = [
    (no_shift, neighbours_are_seen_from_the_last_token_on),
    (one_early, neighbours_are_seen_from_the_last_token_on),
    (one_late, neighbours_are_seen_from_the_last_token_on),
    (not_causal, a_token_moves_nothing_before_it),
    (next_chunk, a_token_moves_nothing_before_it),
    (bias_when_absent, without_neighbours_it_is_the_gpt),
    (places_across_neighbours, the_order_of_neighbours_does_not_matter),
    (padding_attended, padding_is_not_seen),
    (no_encoder_norm, it_is_the_reference),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_the_model_passes(check):
    assert check()


@pytest.mark.parametrize(("break_", "check"), BROKEN, ids=lambda c: c.__name__)
def test_a_broken_model_is_found(break_, check, monkeypatch):
    break_(monkeypatch)
    assert not check()
