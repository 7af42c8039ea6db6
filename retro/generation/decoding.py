"""Write text token by token; as each chunk fills, look up its neighbours and read on with them.

The chunk grid begins with the text, as in training. Keys and values are kept, and neighbours encoded once. When the
window is full it slides by a chunk and what stays in it is read again, so that the logits are always those of one pass
over the window: every chunk once, which costs less than the m tokens written in the meantime.

Texts are written side by side, a token each at a time. Each has its own grid of chunks, its own window and its own
random numbers, so that it is what it would be alone; what they look up at the same time is searched for at once, and
a text that has ended makes room for the next.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count as counting
from itertools import groupby, pairwise
from typing import NamedTuple

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


NONE_FOUND = Found(np.empty(0, np.int64), np.empty(0))


def given_passages(tokens: np.ndarray, mask: np.ndarray) -> Found:
    """Passages that lie in no store as something found: tokens int64 [k, r], and which are real."""
    return Found(np.full(len(tokens), -1, np.int64), np.full(len(tokens), np.nan), tokens, mask)


class Query(NamedTuple):
    """What is looked up: a chunk's real tokens, int64 [≤ m], of the text of that number."""

    tokens: np.ndarray
    text: int = 0


Lookup = Callable[[Sequence[Query]], list[Found]]  # all that is looked up at one time, to the neighbours of each


NOTHING = np.empty(0, np.int64)
FEW = 256  # tokens that are put in order at first, where it is not known how many hold `top_p`


def _in_order(logits: Tensor, kept: Tensor) -> Tensor:
    """The tokens of `kept` [V], true or false: the highest of logits [V] first, of equals the first."""
    few = kept.nonzero()[:, 0]
    return few[torch.sort(logits[few], descending=True, stable=True).indices]


def _highest(logits: Tensor, count: int) -> Tensor:
    """The tokens of the `count` highest of logits [V], in this order."""
    count = min(count, len(logits))
    return _in_order(logits, logits >= logits.topk(count).values[-1])[:count]


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

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is chosen, whatever was said."""
        return self.temperature == 0 and self.repetition_penalty == 1 and not self.no_repeat_ngram

    def choose(self, logits: Tensor, text: np.ndarray = NOTHING) -> int:
        """A token from its logits [V]; of equals the first. `text`: the tokens so far, int64 [n], in order."""
        logits = self._against_repeating(logits.float().cpu(), text)
        if self.temperature == 0:
            return int(logits.argmax())
        logits = logits / self.temperature
        if self.top_k:
            order = _highest(logits, self.top_k)
            chances = logits[order]
            return int(order[torch.multinomial(self._nucleus(chances.softmax(0)), 1, generator=self.generator)])
        shares = logits.softmax(0)
        order = _highest(logits, FEW)
        if shares[order].sum() <= self.top_p:  # tokens below the mean of what is left out hold less than that
            order = _in_order(logits, shares > (1 - self.top_p) / 2 / len(logits))
        # As `torch.multinomial` of all tokens draws it, whether they were put in order or not.
        draws = torch.empty(len(logits)).exponential_(generator=self.generator)[: len(order)]
        return int(order[(self._nucleus(shares[order]) / draws).argmax()])

    def _nucleus(self, chances: Tensor) -> Tensor:
        """Chances [c], in order, 0 for tokens that are left out: one stays if those before it do not yet hold top_p,
        the first always.
        """
        return chances.masked_fill(chances.cumsum(0) - chances >= self.top_p, 0)

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
class Prompt:
    """A text to continue: `tokens` int64 [n ≥ 1], by up to `count` tokens, until an end of document.

    `padding` puts so many padding tokens before it, so that a short one fills a chunk and retrieval begins at once.
    They stand where padding stands in training, between one document and the next: seen by attention, never by a
    lookup. `stop` is shown what was written, after each token, and says whether the text ends there.
    """

    tokens: np.ndarray
    count: int
    sampler: Sampler
    padding: int = 0
    stop: Callable[[list[int]], bool] | None = None


@dataclass(frozen=True)
class Step:
    """One token written, and what was looked up before it: (number of the query's last chunk, its neighbours).

    `last`: the text ends with it.
    """

    token: int
    looked_up: tuple[tuple[int, Found], ...] = ()
    last: bool = False


class Growing:
    """A text as it is written: its tokens, padding first, and what was found by the m tokens before each end."""

    def __init__(self, prompt: Prompt, number: int, decoder: "Decoder"):
        self.prompt, self.number, self.decoder = prompt, number, decoder
        self.begun = self.size = prompt.padding + len(prompt.tokens)
        self.all = np.full(self.size + prompt.count, decoder.store.pad_id, np.int64)
        self.all[prompt.padding : self.size] = prompt.tokens
        self.found: dict[int, Found] = {}
        self.new: list[int] = []  # ends of what was looked up for the next token
        self.start = -1  # of the window that was read; none yet
        self.over = prompt.count == 0
        self._ends = decoder.ends(self.size)
        self._end = next(self._ends)

    @property
    def tokens(self) -> np.ndarray:
        """All so far, int64 [size]."""
        return self.all[: self.size]

    def queries(self) -> list[Query]:
        """What is to be looked up before the next token."""
        self.new = []
        while self._end <= self.size:
            self.new.append(self._end)
            self._end = next(self._ends)
        low, m = self.prompt.padding, self.decoder.length
        return [Query(self.tokens[max(low, end - m) : end], self.number) for end in self.new]

    def choose(self, logits: Tensor) -> int:
        """The next token, from its logits [V]."""
        said = self.tokens[self.prompt.padding :]
        return self.prompt.sampler.choose(logits, said[said != self.decoder.eod_id])

    def add(self, token: int) -> Step:
        """The text goes on with a token."""
        self.all[self.size] = token
        self.size += 1
        stop = self.prompt.stop
        self.over = token == self.decoder.eod_id or self.size == len(self.all)
        self.over = self.over or (stop is not None and stop(self.tokens[self.begun :].tolist()))
        looked_up = tuple(((end - 1) // self.decoder.length, self.found[end]) for end in self.new)
        return Step(token, looked_up, self.over)


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
        """Continue one text, as `Prompt` has it."""
        return (step for _, step in self.write_all([Prompt(prompt, count, sampler, padding)], 1))

    def write_all(self, prompts: Sequence[Prompt], together: int) -> Iterator[tuple[int, Step]]:
        """Continue texts, at most so many `together`: each step with its text's number. Texts begin in their order;
        prompts of one length that follow each other are read at once.
        """
        texts = [Growing(prompt, number, self) for number, prompt in enumerate(prompts)]
        waiting = deque(text for text in texts if not text.over)
        longest = max((len(text.all) for text in waiting), default=0)
        reading = Reading(self, min(together, len(waiting)), longest)
        while waiting or reading.texts:
            while waiting and len(reading.texts) < together:
                reading.texts.append(waiting.popleft())
            self._look_up(reading.texts)
            for text, token in zip(list(reading.texts), self._choose(reading), strict=True):
                yield text.number, text.add(token)
            reading.drop_ended()

    def _look_up(self, texts: list[Growing]) -> None:
        """Search for all that these texts look up before their next token, at once."""
        if self.lookup is None:
            return
        queries = [query for text in texts for query in text.queries()]
        found = iter(self.lookup(queries) if queries else [])
        for text in texts:
            text.found |= {end: next(found) for end in text.new}

    @staticmethod
    def _choose(reading: "Reading") -> list[int]:
        """The next token of each text."""
        logits, texts = reading.logits(), reading.texts  # (b, V)
        if all(text.prompt.sampler.greedy for text in texts):
            return logits.argmax(-1).tolist()
        return [text.choose(row) for text, row in zip(texts, logits.cpu(), strict=True)]

    def ends(self, prompt: int) -> Iterator[int]:
        """How many tokens there are at each lookup, ascending: each whole chunk; with a step, those of the prompt,
        then the prompt's end and every N tokens after it.
        """
        if self.step is None:
            yield from counting(self.length, self.length)
            return
        yield from range(self.length, prompt, self.length)
        yield from (end for end in counting(prompt, self.step) if end >= self.length)


class Reading:
    """What a decoder's model has read of growing texts: the last window of each, in a row of one cache."""

    def __init__(self, decoder: Decoder, rows: int, longest: int):
        """Of as many texts as `rows` at a time, of up to `longest` tokens."""
        self.decoder, self.texts = decoder, list[Growing]()
        self.cache = DecodingCache(decoder.model, min(decoder.chunks * decoder.length, longest), rows)

    def logits(self) -> Tensor:
        """Logits [b, V] of the next token of each text, with what was found for it.

        Of a text that is new, or whose window slid, all but the last token is read first; then the last of each at
        once.
        """
        fresh = []
        for row, text in enumerate(self.texts):
            start = max(0, -(-text.size // self.decoder.length) - self.decoder.chunks) * self.decoder.length
            if start != text.start:
                text.start = start
                self.cache.clear(row)
                fresh.append(row)
        alike = groupby(enumerate(fresh), lambda each: (each[1] - each[0], self._shape(self.texts[each[1]])))
        for _, group in alike:
            self._read([row for _, row in group])
        tokens = torch.tensor([text.tokens[-1] for text in self.texts])  # (b,)
        asked = {row: each for row, text in enumerate(self.texts) if (each := self._seen(text, text.size))}
        found = self._neighbours(list(asked.values())) if asked else ()
        return self.cache.step(tokens.to(self.decoder.device), list(asked), *found)

    def drop_ended(self) -> None:
        """Let the last of the texts that go on take the rows of those that ended."""
        for row in reversed(range(len(self.texts))):
            if self.texts[row].over:
                last = self.texts.pop()
                if row < len(self.texts):
                    self.texts[row] = last
                    self.cache.move(len(self.texts), row)

    def _seen(self, text: Growing, end: int) -> Found | None:
        """What the text reads from the token before `end` on: found by m tokens that its window holds."""
        found = text.found.get(end)
        return found if found is not None and found.rows.size and end - text.start >= self.decoder.length else None

    def _shape(self, text: Growing) -> tuple[int, dict[int, bool]]:
        """Texts of one shape can be read together: tokens of the window, and for each lookup within, by the number of
        tokens before it, whether it found something.
        """
        inside = [end for end in text.found if end - text.start >= self.decoder.length]
        return text.size - text.start, {end - text.start: self._seen(text, end) is not None for end in inside}

    def _read(self, rows: list[int]) -> None:
        """Read the windows of texts of one shape, in rows that follow each other, up to the last token."""
        own, texts = self.decoder, [self.texts[row] for row in rows]
        size, ends = self._shape(texts[0])
        for low, high in pairwise([0, *(end - 1 for end in ends if end < size), size - 1]):
            if low == high:
                continue
            tokens = torch.from_numpy(np.stack([text.tokens[text.start :][low:high] for text in texts]))  # (b, n)
            given: tuple = ()
            if ends.get(low + 1):  # neighbours are read from the last token of their query on
                found = [text.found[text.start + low + 1] for text in texts]
                given = tuple(each[:, None] for each in self._neighbours(found))  # (b, 1, k, r) each
            self.cache.extend(tokens.to(own.device), *given, last=True, anew=bool(given), first=rows[0])

    def _neighbours(self, found: list[Found]) -> tuple[Tensor, Tensor]:
        """Tokens and mask [b, k, r] of what was found."""
        own = self.decoder
        if found[0].tokens is None:
            tokens, mask = own.store.retrieved(np.stack([each.rows for each in found]), own.retrieved)
        else:
            tokens, mask = (np.array([getattr(each, name) for each in found]) for name in ("tokens", "mask"))
        return torch.from_numpy(tokens).to(own.device), torch.from_numpy(mask).to(own.device)
