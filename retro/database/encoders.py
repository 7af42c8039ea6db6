"""Encoders: chunk text to a vector of unit length. `open_encoder` finds the one that the config names."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from retro.database.settings import EncoderSettings


class Encoder(Protocol):
    """What every encoder offers.

    - `width`: dimensions of a vector
    - `identity`: sha256 of the weights; equal identities mean equal vectors up to rounding
    - `engine`: what computes, e.g. `onnxruntime float32`; part of what makes vectors equal bit for bit
    """

    width: int
    identity: str
    engine: str

    def encode(self, texts: list[str], advance: Callable[[int], object] | None = None) -> np.ndarray:
        """float32 [n, width], each row of unit length, in the order of `texts`.

        A row is a function of its text alone, bit for bit on a CPU: neither the other texts, nor the batch
        size, nor the number of threads matter. `advance` is called with the number of texts just done.
        """
        ...


def open_encoder(settings: EncoderSettings, threads: int) -> Encoder:
    """The encoder of the config, on a GPU if there is one, else on `threads` CPU cores.

    Raises `UserError` if its files are missing, are not the pinned ones, or are of a kind not supported.
    """
    if settings.type == "static":
        from retro.database.static import StaticEncoder

        return StaticEncoder(settings.width)
    from retro.database.bert import open_bert, open_minilm

    return open_minilm(settings, threads) if settings.type == "minilm" else open_bert(settings, threads)
