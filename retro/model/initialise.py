"""Initial weights: every parameter from its own generator, so that twins begin equal.

A parameter's values depend on the seed, its name and its shape alone. GPT and RETRO of one seed thus share
the decoder bit for bit, and so do models that differ elsewhere.
"""

import hashlib

import torch

from retro.model.language_model import LanguageModel

# Copy-ready cross-attention: what the first, second, .. token of a match adds to a score at the start (the null
# slot weighs log(keys), about 5.5), and how loud what is read is in the residual stream.
MATCH_GAIN = (4.0, 2.0, 1.0)
READ_GAIN = 0.1


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
        elif name.endswith(".match"):
            steps = [*MATCH_GAIN, *[MATCH_GAIN[-1]] * parameter.shape[1]]
            parameter.copy_(torch.tensor(steps[: parameter.shape[1]]).expand_as(parameter))
        elif s.cca == "copy-ready" and name.endswith("cca.out.weight"):
            parameter.copy_(READ_GAIN * torch.eye(s.width))
        elif parameter.dim() < 2 or name.endswith((".relative", ".gate_read", ".gate.weight")):
            parameter.zero_()
        else:
            parameter.copy_(torch.randn(parameter.shape, generator=generator(seed, name)).mul_(std))
