"""Initial weights: every parameter from its own generator, so that twins begin equal.

A parameter's values depend on the seed, its name and its shape alone. GPT and RETRO of one seed thus share
the decoder bit for bit, and so do models that differ elsewhere.
"""

import hashlib

import torch
from torch import Tensor, nn

from retro.model.language_model import LanguageModel

# How far a match stands out of chance in the scores of aligned chunked cross-attention, and how loud what it
# reads is in the residual stream.
MATCH_GAIN = 2.0
READ_GAIN = 0.1


def generator(seed: int, name: str) -> torch.Generator:
    """The generator of the parameter `name`."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@torch.no_grad()
def initialise(model: LanguageModel, seed: int) -> None:
    """Give every parameter of `model` its initial value.

    Matrices N(0, init_std), those that write into the residual stream divided by sqrt(2 layers); norms 1,
    biases, gates and distance biases 0; with `cca: copy-ready` what `_align` says.
    """
    s = model.settings
    for name, parameter in model.named_parameters():
        std = s.init_std
        if name.endswith((".out.weight", ".down.weight")):
            layers = s.encoder_layers if name.startswith("encoder.") else s.layers
            std /= (2 * layers) ** 0.5
        if "norm" in name and name.endswith("weight"):
            parameter.fill_(1.0)
        elif parameter.dim() < 2 or name.endswith((".relative", ".gate_read", ".gate.weight")):
            parameter.zero_()
        else:
            parameter.copy_(torch.randn(parameter.shape, generator=generator(seed, name)).mul_(std))
    if model.encoder is not None and s.cca == "copy-ready":
        _align(model, seed)


def _align(model: LanguageModel, seed: int) -> None:
    """Start chunked cross-attention as a copier.

    At its start the encoder hands out a token's embedding plus, turned by one matrix each, those of the
    tokens before. A query is the decoder's state turned likewise, so scores are high where the neighbour's
    *previous* tokens are the decoder's last ones; a value, brought back by its transpose, is the token found
    there.
    """
    s = model.settings
    d, e = s.width, s.encoder_dim
    encoder = model.encoder
    before = [  # (d', d) each
        _orthogonal((e, d), seed, f"encoder.previous.{i}") for i in range(s.copy_context)
    ]
    encoder.previous.weight.copy_(torch.cat(before, dim=1))
    own = torch.eye(d)
    if encoder.input is not None:
        own = _orthogonal((e, d), seed, "encoder.input")  # (d', d)
        encoder.input.weight.copy_(own)
    for layer in encoder.layers:
        layer.attention.out.weight.zero_()
        layer.mlp.down.weight.zero_()
        if layer.cross is not None:
            layer.cross.out.weight.zero_()
    for index in s.cca_at:
        cca = model.decoder.layers[index - 1].cca
        name = f"decoder.layers.{index - 1}.cca"
        rows = cca.kv.weight.shape[0] // 2
        groups = cca.heads // cca.kv_heads
        keys = _orthogonal((rows, e), seed, f"{name}.k")  # (g * size, d')
        values = _orthogonal((rows, e), seed, f"{name}.v")  # (g * size, d')
        cca.kv.weight.copy_(torch.cat([keys, values]))
        spread = keys.unflatten(0, (cca.kv_heads, -1)).repeat_interleave(groups, 0).flatten(0, 1)  # (d, d')
        cca.q.weight.copy_(MATCH_GAIN * torch.cat([spread @ m for m in before], dim=1))  # (d, c * d)
        spread = values.unflatten(0, (cca.kv_heads, -1)).repeat_interleave(groups, 0).flatten(0, 1)  # (d, d')
        cca.out.weight.copy_(READ_GAIN / groups * (spread @ own).T)  # (d, d)


def _orthogonal(shape: tuple[int, int], seed: int, name: str) -> Tensor:
    """A matrix with orthonormal rows or columns, whichever are fewer."""
    return nn.init.orthogonal_(torch.empty(shape), generator=generator(seed, name))
