"""Make a model from settings: the one door into this room."""

from typing import Literal

import torch

from retro.model.initialise import initialise
from retro.model.language_model import LanguageModel
from retro.model.settings import ModelSettings

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
