"""Write text token by token; as each chunk fills, look up its neighbours and read on with them.

The chunk grid begins with the text, as in training. Decoding is uncached: each token is one pass over the
window, padded to whole chunks (nothing sees what follows it, so padding changes nothing).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from retro.database.store import ChunkStore


@dataclass(frozen=True)
class Found:
    """What one lookup found: global rows int64 [k] (−1: a hole) and scores float [k], best first."""

    rows: np.ndarray
    scores: np.ndarray


Lookup = Callable[[np.ndarray], Found]  # the chunk's real tokens, int64 [≤ m], to its neighbours


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen. Temperature 0: the likeliest; else by chance from the likeliest
    `top_p`.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "generator", torch.Generator().manual_seed(self.seed))

    def choose(self, logits: Tensor) -> int:
        """A token from its logits [V]."""
        logits = logits.float().cpu()
        if self.temperature == 0:
            return int(logits.argmax())
        chances, order = torch.sort((logits / self.temperature).softmax(0), descending=True, stable=True)
        # A token stays if those before it do not yet hold top_p; the first always does.
        chances[chances.cumsum(0) - chances >= self.top_p] = 0
        return int(order[torch.multinomial(chances, 1, generator=self.generator)])


@dataclass(frozen=True)
class Step:
    """One token written, and what was looked up before it: (number of the chunk, its neighbours)."""

    token: int
    looked_up: tuple[tuple[int, Found], ...] = ()


class Decoder:
    """Continues token sequences with a model of a dataset."""

    def __init__(
        self,
        model: nn.Module,
        store: ChunkStore,
        *,
        seq_length: int,
        eod_id: int,
        retrieved_chunks: int = 1,
        lookup: Lookup | None = None,
    ):
        """`lookup` None: retrieval off. `seq_length` is the longest window; older chunks are forgotten."""
        self.model, self.store, self.lookup = model, store, lookup
        self.length, self.chunks, self.retrieved = store.length, seq_length // store.length, retrieved_chunks
        self.eod_id, self.device = eod_id, next(model.parameters()).device

    def write(self, prompt: np.ndarray, count: int, sampler: Sampler, padding: int = 0) -> Iterator[Step]:
        """Up to `count` tokens after `prompt`, int64 [n ≥ 1]; ends after an end of document.

        `padding` puts so many padding tokens before the prompt, so that a short one fills a chunk and
        retrieval begins at once.
        """
        pads = np.full(padding, self.store.pad_id, np.int64)
        tokens = np.concatenate([pads, np.asarray(prompt, np.int64)])
        found: list[Found] = []
        for _ in range(count):
            before = len(found)
            while self.lookup and len(found) < len(tokens) // self.length:
                number = len(found)
                chunk = tokens[max(padding, number * self.length) : (number + 1) * self.length]
                found.append(self.lookup(chunk))
            token = sampler.choose(self._logits(tokens, found))
            tokens = np.append(tokens, token)
            yield Step(token, tuple(enumerate(found))[before:])
            if token == self.eod_id:
                return

    def _logits(self, tokens: np.ndarray, found: list[Found]) -> Tensor:
        """Logits [V] of the token after `tokens`, the window's last chunks only."""
        filled = -(-len(tokens) // self.length)
        first = max(0, filled - self.chunks)
        window = np.full((filled - first) * self.length, self.store.pad_id, np.int64)
        seen = tokens[first * self.length :]
        window[: len(seen)] = seen
        neighbours = mask = None
        if found and found[0].rows.size:
            rows = np.full((1, filled - first, len(found[0].rows)), -1, np.int64)
            for number, each in enumerate(found[first:]):
                rows[0, number] = each.rows
            retrieved = self.store.retrieved(rows, self.retrieved)
            neighbours, mask = (torch.from_numpy(array).to(self.device) for array in retrieved)
        with torch.inference_mode():
            logits = self.model(torch.from_numpy(window)[None].to(self.device), neighbours, mask)
        return logits[0, len(seen) - 1]
