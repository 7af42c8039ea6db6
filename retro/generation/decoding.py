"""Write text token by token; as each chunk fills, look up its neighbours and read on with them.

The chunk grid begins with the text, as in training. Keys and values are kept, and neighbours encoded once. When the
window is full it slides by a chunk and what stays in it is read again, so that the logits are always those of one pass
over the window: every chunk once, which costs less than the m tokens written in the meantime.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count as counting
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from retro.dataset.store import ChunkStore
from retro.model.cache import DecodingCache
from retro.model.language_model import LanguageModel


@dataclass(frozen=True)
class Found:
    """What one lookup found: global rows int64 [k] (−1: a hole) and scores float [k], best first.

    Passages that lie in no store have rows −1 and bring their `tokens` int64 [k, r] and `mask` bool [k, r].
    """

    rows: np.ndarray
    scores: np.ndarray
    tokens: np.ndarray | None = None
    mask: np.ndarray | None = None


Lookup = Callable[[np.ndarray], Found]  # the chunk's real tokens, int64 [≤ m], to its neighbours


NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen. Temperature 0: the likeliest; else by chance from the `top_k` likeliest (0: all),
    and of these from the likeliest that sum to `top_p`.

    Before that, against going round in circles: `repetition_penalty` r ≥ 1 (1: off; Keskar et al. 2019) divides the
    positive logits of the tokens of the text so far by r and multiplies the others of them by r. `no_repeat_ngram` n
    (0: off) bars every token with which n tokens in a row would stand in the text a second time, unless it would bar
    all of them.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "generator", torch.Generator().manual_seed(self.seed))

    def choose(self, logits: Tensor, text: np.ndarray = NOTHING) -> int:
        """A token from its logits [V]; of equals the first. `text`: the tokens so far, int64 [n], in order."""
        logits = self._against_repeating(logits.float().cpu(), text)
        if self.temperature == 0:
            return int(logits.argmax())
        ordered, order = torch.sort(logits / self.temperature, descending=True, stable=True)
        chances = ordered[: self.top_k or None].softmax(0)
        # A token stays if those before it do not yet hold top_p; the first always does.
        chances[chances.cumsum(0) - chances >= self.top_p] = 0
        return int(order[torch.multinomial(chances, 1, generator=self.generator)])

    def _against_repeating(self, logits: Tensor, text: np.ndarray) -> Tensor:
        """Logits [V] after the penalty and the bar; the logits themselves where both are off."""
        if self.repetition_penalty != 1:
            said = torch.from_numpy(np.unique(text))
            old = logits[said]
            new = torch.where(old > 0, old / self.repetition_penalty, old * self.repetition_penalty)
            logits = logits.index_copy(0, said, new)
        n = self.no_repeat_ngram
        if n and len(text) >= n:
            runs = np.lib.stride_tricks.sliding_window_view(text, n)
            same = (runs[:, :-1] == text[len(text) - n + 1 :]).all(1)
            left = logits.index_fill(0, torch.from_numpy(runs[same, -1].copy()), -torch.inf)
            logits = left if left.isfinite().any() else logits
        return logits


@dataclass(frozen=True)
class Step:
    """One token written, and what was looked up before it: (number of the query's last chunk, its neighbours)."""

    token: int
    looked_up: tuple[tuple[int, Found], ...] = ()


class Decoder:
    """Continues token sequences with a model of a dataset."""

    def __init__(
        self,
        model: LanguageModel,
        store: ChunkStore,
        *,
        seq_length: int,
        eod_id: int,
        retrieved_chunks: int = 1,
        lookup: Lookup | None = None,
        retrieval_step: int | None = None,
    ):
        """`store` holds what `lookup` finds; `lookup` None: retrieval off. `seq_length` is the longest window; older
        chunks are forgotten. `retrieval_step` N ≤ m: look up the last m tokens every N tokens written, not every chunk.
        """
        self.model, self.store, self.lookup = model, store, lookup
        self.length, self.chunks, self.retrieved = store.length, seq_length // store.length, retrieved_chunks
        self.eod_id, self.device, self.step = eod_id, next(model.parameters()).device, retrieval_step
        if retrieval_step is not None and not 1 <= retrieval_step <= self.length:
            raise ValueError(f"retrieval_step is {retrieval_step}; wanted 1 to the chunk length {self.length}")

    def write(self, prompt: np.ndarray, count: int, sampler: Sampler, padding: int = 0) -> Iterator[Step]:
        """Up to `count` tokens after `prompt`, int64 [n ≥ 1]; ends after an end of document.

        `padding` puts so many padding tokens before the prompt, so that a short one fills a chunk and retrieval
        begins at once. They stand where padding stands in training, between one document and the next: seen by
        attention, never by a lookup.
        """
        pads = np.full(padding, self.store.pad_id, np.int64)
        tokens = np.concatenate([pads, np.asarray(prompt, np.int64)])
        ends = self._ends(len(tokens))
        end, reading = next(ends), Reading(self)
        found: dict[int, Found] = {}
        for _ in range(count):
            new = {}
            while self.lookup and end <= len(tokens):
                new[end] = self.lookup(tokens[max(padding, end - self.length) : end])
                end = next(ends)
            found |= new
            text = tokens[padding:]
            token = sampler.choose(reading.logits(tokens, found), text[text != self.eod_id])
            tokens = np.append(tokens, token)
            yield Step(token, tuple(((at - 1) // self.length, each) for at, each in new.items()))
            if token == self.eod_id:
                return

    def _ends(self, prompt: int) -> Iterator[int]:
        """How many tokens there are at each lookup, ascending: each whole chunk; with a step, those of the prompt,
        then the prompt's end and every N tokens after it.
        """
        if self.step is None:
            yield from counting(self.length, self.length)
            return
        yield from range(self.length, prompt, self.length)
        yield from (end for end in counting(prompt, self.step) if end >= self.length)


class Reading:
    """What a decoder's model has read of a growing text: its last window, in a cache."""

    def __init__(self, decoder: Decoder):
        self.decoder, self.start = decoder, 0
        self.cache: DecodingCache | None = None

    def logits(self, tokens: np.ndarray, found: dict[int, Found]) -> Tensor:
        """Logits [V] of the token after `tokens`; each found by the m tokens before its key, keys ascending."""
        own, m = self.decoder, self.decoder.length
        start = max(0, -(-len(tokens) // m) - own.chunks) * m
        if self.cache is None or start != self.start:
            self.cache, self.start = DecodingCache(own.model, own.chunks * m), start
        cache, done = self.cache, start + self.cache.length
        seen = {end - 1: each for end, each in found.items() if end > done and end - start >= m}
        for low, high in pairwise([done, *seen, len(tokens)]):
            if low < high:  # neighbours are read from the last token of their query on
                logits = self._extend(cache, tokens[low:high], seen.get(low))
        return logits[0, -1]

    def _extend(self, cache: DecodingCache, tokens: np.ndarray, found: Found | None) -> Tensor:
        """Read tokens [n], the first of them the last of a query if something was found for it -> [1, 1, V]."""
        own = self.decoder
        given = torch.from_numpy(tokens)[None].to(own.device)  # (1, n)
        if found is None or not found.rows.size:
            return cache.extend(given, last=True)
        if found.tokens is not None and found.mask is not None:
            kept = (found.tokens, found.mask)
        else:
            kept = own.store.retrieved(found.rows, own.retrieved)
        neighbours, mask = (torch.from_numpy(each)[None, None].to(own.device) for each in kept)  # (1, 1, k, r)
        return cache.extend(given, neighbours, mask, last=True, anew=True)
