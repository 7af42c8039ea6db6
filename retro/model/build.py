"""Make a model from settings, with its initial weights: the one door into this room.

A parameter's values depend on the seed, its name and its shape alone. GPT and RETRO of one seed thus share
the decoder bit for bit, and so do models that differ elsewhere.
"""

import hashlib
from typing import Literal

import torch

from retro.model.language_model import LanguageModel
from retro.model.settings import ModelSettings

# Copy-ready cross-attention: what the first, second, .. token of a match adds to a score at the start (the null
# slot weighs log(keys), about 5.5), and how loud what is read is in the residual stream.
MATCH_GAIN = (4.0, 2.0, 1.0)
READ_GAIN = 0.1
# How far the output copier trusts a match of one, two, .. tokens at the start.
COPY_GATE = [0.07, 0.26, 0.52, 0.62, 0.71, 0.71, 0.71, 0.85]


def generator(seed: int, name: str) -> torch.Generator:
    """The generator of the parameter `name`."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@torch.no_grad()
def initialise(model: LanguageModel, seed: int) -> None:
    """Give every parameter of `model` its initial value.

    Matrices N(0, init_std), those that write into the residual stream divided by sqrt(2 layers); norms 1,
    biases, gates and distance biases 0. Copy-ready cross-attention starts as a copier: scores grow with the
    length of a match, and `out` writes what is read as it is, which the tied head takes for that token.
    """
    s = model.settings
    for name, parameter in model.named_parameters():
        std = s.initial_std
        if name.endswith((".out.weight", ".down.weight")):
            layers = s.encoder_layers if name.startswith("encoder.") else s.layers
            std /= (2 * layers) ** 0.5
        if "norm" in name and name.endswith("weight"):
            parameter.fill_(1.0)
        elif name == "copier.length":
            parameter.copy_(
                torch.logit(torch.tensor(COPY_GATE[: len(parameter)] + COPY_GATE[-1:] * (len(parameter) - 8)))
            )
        elif name.endswith(".match"):
            steps = [*MATCH_GAIN, *[MATCH_GAIN[-1]] * parameter.shape[1]]
            parameter.copy_(torch.tensor(steps[: parameter.shape[1]]).expand_as(parameter))
        elif s.cca == "copy-ready" and name.endswith("cca.out.weight"):
            parameter.copy_(READ_GAIN * torch.eye(s.width))
        elif parameter.dim() < 2 or name.endswith((".relative", ".gate_read", ".gate.weight")):
            parameter.zero_()
        else:
            parameter.copy_(torch.randn(parameter.shape, generator=generator(seed, name)).mul_(std))


Architecture = Literal["gpt", "retro"]


def build_model(
    settings: ModelSettings,
    *,
    architecture: Architecture,
    vocab_size: int,
    seq_length: int,
    chunk_length: int,
    retrieved_length: int,
    seed: int | None,
) -> LanguageModel:
    """A GPT or RETRO with initial weights of `seed`, on the default device.

    For one seed the decoders of both architectures are equal bit for bit. With seed None, or on the meta
    device, weights have no values yet: load some. Raises ValueError for an unknown architecture or lengths
    below 1.
    """
    if architecture not in ("gpt", "retro"):
        raise ValueError(f"architecture {architecture!r} is unknown; choose gpt or retro")
    lengths = {"vocab_size": vocab_size, "seq_length": seq_length}
    lengths |= {"chunk_length": chunk_length, "retrieved_length": retrieved_length}
    for name, value in lengths.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    target = torch.get_default_device()
    with torch.device("meta"):
        model = LanguageModel(settings, architecture, **lengths)
    if target.type == "meta":
        return model
    model.to_empty(device=target)
    if seed is not None:
        with torch.device("cpu"):
            initialise(model, seed)
    return model
