"""Log-likelihoods of texts with live retrieval: each chunk is looked up as it fills, as when the model writes.

A text lies on the grid of chunks that training and evaluation use. One without context begins after a chunk of padding,
as in `retro.evaluation.losses`; one with context is padded on its left, so that the context ends with a chunk, whose
neighbours are then read from its last token on (Wang et al. 2023). Windows are evaluation's too.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from retro.corpus.records import plain
from retro.dataset.dataset import Dataset
from retro.generation.decoding import Found, Query
from retro.qa.questions import Example, QuestionLookup, question_of
from retro.qa.settings import QuestionSettings
from retro.retrieval.search import Searcher
from retro.training.settings import TrainedRun

SEARCHED = 256  # texts a search


@dataclass(frozen=True)
class Text:
    """Tokens to read, int64 [n], of which the first `padding` are none; those from `first` ≥ 1 on are scored."""

    tokens: np.ndarray
    padding: int
    first: int

    @classmethod
    def after(cls, context: list[int], continuation: list[int], dataset: Dataset) -> "Text":
        """`continuation`, to be scored, after `context`; without one it begins as a document does."""
        m = dataset.chunk_length
        padding = -len(context) % m if context else m
        pads = [dataset.tokenizer.pad_id] * padding
        return cls(np.array([*pads, *context, *continuation], np.int64), padding, padding + len(context))


@dataclass(frozen=True)
class Window:
    """A pass of the model over a text from chunk `start` on, which scores its tokens `low` to `high`."""

    text: Text
    start: int
    low: int
    high: int

    def chunks(self, length: int) -> int:
        """Chunks of `length` tokens that are read."""
        return -(-(self.high - 1) // length) - self.start


def windows(text: Text, length: int, chunks: int) -> Iterator[Window]:
    """Each token once: in one window of `chunks` chunks, with all the context that fits, where that can be; else in
    windows that move by half, as in evaluation.
    """
    count, total = len(text.tokens), -(-(len(text.tokens) - 1) // length)
    start, low = min(max(0, total - chunks), (text.first - 1) // length), text.first
    while low < count:
        high = min(count, (start + chunks) * length + 1)
        if high > low:
            yield Window(text, start, low, high)
            low = high
        start += max(1, chunks // 2)


class Lookups:
    """Neighbours of chunks, each text searched once; a `Lookup` of `retro.generation.decoding`.

    A run fine-tuned to answer finds them as in its fine-tuning (`whole`): with the titles of pages, and for a context
    as a whole, whatever chunk is read. Others look up each chunk, as in generation. `asking`: what is known of whoever
    asks a context, so that the page it was made from is left out, as in fine-tuning.
    """

    def __init__(self, dataset: Dataset, run: TrainedRun, threads: int = 1):
        self.dataset, self.whole = dataset, run.qa is not None
        self.known: dict[str, np.ndarray] = {}
        self.asking: dict[str, Example] = {}
        if run.qa is not None:
            qa = QuestionSettings(**run.qa)
            lookup = QuestionLookup(dataset, qa.neighbours_used, qa.candidates, qa.title_weight, threads)
            self.k, self.find = (
                lookup.k,
                lambda texts: lookup([question_of(text) for text in texts], [self.asking.get(text) for text in texts]),
            )
        else:
            searcher, self.k = Searcher(dataset, threads), run.train.neighbours_used
            self.find = lambda texts: dataset.neighbour_rows(searcher.search(texts, self.k)[0])

    def ask(self, context: list[int], record: object) -> None:
        """Take note of the record of a task that a context is of: its `doc_id` and `group`, as questions have them."""
        if not isinstance(record, dict):
            return
        document, group = plain(record.get("doc_id")), plain(record.get("group"))
        if self.whole and (document or group):
            text = self.dataset.tokenizer.decode(np.array(context, np.int64))
            self.asking.setdefault(text, Example("", text, (), "", group or "", document or None, ()))

    def query(self, text: Text, chunk: int) -> np.ndarray:
        """The tokens that are looked up when a chunk of a text is full."""
        m = self.dataset.chunk_length
        if self.whole and text.first > text.padding:
            return text.tokens[text.padding : text.first]
        return text.tokens[max(text.padding, chunk * m) : (chunk + 1) * m]

    def ahead(self, chunks: list[np.ndarray]) -> None:
        """Search for chunks that will be asked for, many at a time."""
        texts = dict.fromkeys(self.dataset.tokenizer.decode(tokens) for tokens in chunks)
        new = [text for text in texts if text.strip() and text not in self.known]
        for low in range(0, len(new), SEARCHED):
            part = new[low : low + SEARCHED]
            self.known |= dict(zip(part, self.find(part), strict=True))

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        """Global rows int64 [k] of the neighbours of a chunk's tokens; holes where there is no text."""
        self.ahead([tokens])
        return self.known.get(self.dataset.tokenizer.decode(tokens), np.full(self.k, -1, np.int64))

    def __call__(self, queries: Sequence[Query]) -> list[Found]:
        self.ahead([query.tokens for query in queries])
        return [Found(self.rows(query.tokens), np.zeros(self.k)) for query in queries]


class Reader:
    """Scores texts with a run of a dataset; `lookups` None: retrieval off. `batch_size` windows a forward pass."""

    def __init__(
        self,
        model: torch.nn.Module,
        run: TrainedRun,
        dataset: Dataset,
        lookups: Lookups | None,
        batch_size: int = 8,
    ):
        self.model, self.dataset, self.lookups, self.batch_size = model, dataset, lookups, batch_size
        self.retrieved, self.half = run.train.retrieved_chunks, run.train.precision == "bf16"
        self.device = next(model.parameters()).device

    def read(
        self, texts: list[Text], shown: Callable[[int], object] = lambda count: None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each text's scored tokens: nats float64 [s], and whether each was the likeliest, bool [s].

        `shown` is told of every window that was read.
        """
        m, chunks = self.dataset.chunk_length, self.dataset.seq_length // self.dataset.chunk_length
        sizes = [len(text.tokens) - text.first for text in texts]
        found = [(np.zeros(size), np.zeros(size, bool)) for size in sizes]
        todo = [(i, window) for i, text in enumerate(texts) for window in windows(text, m, chunks)]
        todo.sort(key=lambda each: each[1].chunks(m))
        for low in range(0, len(todo), self.batch_size):
            part = todo[low : low + self.batch_size]
            scores = self._scores([window for _, window in part])
            for (i, window), (nats, likeliest) in zip(part, scores, strict=True):
                here = slice(window.low - window.text.first, window.high - window.text.first)
                found[i][0][here], found[i][1][here] = nats, likeliest
            shown(len(part))
        return found

    @torch.inference_mode()
    def _scores(self, batch: list[Window]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        m = self.dataset.chunk_length
        chunks = max(window.chunks(m) for window in batch)
        tokens = np.full((len(batch), chunks * m), self.dataset.tokenizer.pad_id, np.int64)
        for row, each in zip(tokens, batch, strict=True):
            inputs = each.text.tokens[each.start * m : each.high - 1]
            row[: len(inputs)] = inputs
        given = (torch.from_numpy(tokens), *self._neighbours(batch, chunks))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            logits = self.model(*(None if x is None else x.to(self.device) for x in given))  # (b, n, V)
        for row, each in zip(logits, batch, strict=True):
            wanted = torch.from_numpy(each.text.tokens[each.low : each.high]).to(self.device)  # (s)
            own = row[each.low - 1 - each.start * m : each.high - 1 - each.start * m].float()  # (s, V)
            nats = -own.log_softmax(-1).gather(-1, wanted[:, None])[:, 0]  # (s)
            yield nats.double().cpu().numpy(), (own.argmax(-1) == wanted).cpu().numpy()

    def _neighbours(self, batch: list[Window], chunks: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Neighbours and mask [b, l, k, r] of the chunks that are full before a window's last scored token."""
        if self.lookups is None:
            return None, None
        m, full = self.dataset.chunk_length, {}
        for i, each in enumerate(batch):
            for chunk in range(each.start, (each.high - 1) // m):
                full[i, chunk - each.start] = self.lookups.query(each.text, chunk)
        self.lookups.ahead(list(full.values()))
        rows = np.full((len(batch), chunks, self.lookups.k), -1, np.int64)
        for place, tokens in full.items():
            rows[place] = self.lookups.rows(tokens)
        neighbours, mask = self.dataset.store.retrieved(rows, self.retrieved)  # [b, l, k, r]
        return torch.from_numpy(neighbours), torch.from_numpy(mask)
