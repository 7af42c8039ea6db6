"""A trained run, opened for writing: prompts in, events out. What the terminal, the page and the bench share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retro.device import best_device
from retro.errors import UserError
from retro.evaluation.books import open_book
from retro.evaluation.decoding import Decoder, Sampler
from retro.evaluation.live import GivenPassages, LiveLookup
from retro.recorded import Dataset
from retro.training.load import load_model

BROKEN = "\ufffd"


class Unfolding:
    """The text of a growing list of tokens, as it becomes certain: a character cut in two is held back."""

    def __init__(self, dataset: Dataset):
        self.decode, self.shown = dataset.tokenizer.decode, 0
        self.tokens: list[int] = []

    def add(self, tokens: list[int], last: bool = False) -> str:
        """What these tokens add to the text."""
        self.tokens += tokens
        text = self.decode(self.tokens)
        if text.endswith(BROKEN) and not last:
            return ""
        new, self.shown = text[self.shown :], len(text)
        return new


class Writer:
    """Writes with a run, D/runs/<run>, and looks things up in the dataset's database or in another.

    `neighbours` a chunk (default: as in training); `given`: a file of passages in place of retrieval. Raises
    `UserError` where the run cannot do what is wanted.
    """

    def __init__(
        self,
        run: Path,
        *,
        database: Path | None = None,
        given: Path | None = None,
        neighbours: int | None = None,
        step: int | None = None,
        threads: int = 1,
    ):
        self.dataset = Dataset.open(run.resolve().parent.parent / "config.json")
        self.model, self.run = load_model(run / "model.json", self.dataset, best_device())
        torch.set_num_threads(threads)
        self.book = open_book(database, self.dataset) if database else self.dataset
        train, m = self.run.train, self.dataset.chunk_length
        k = train.neighbours_used if neighbours is None else neighbours
        if not self.run.retro and (database or given or step):
            raise UserError(f"{run}: run {self.run.name!r} is a gpt, which retrieves nothing. Take a retro run.")
        if step is not None and not 1 <= step <= m:
            raise UserError(f"--retrieval-step {step}: wanted 1 to {m}, the chunk length.")
        self.step = step
        self.lookup: GivenPassages | LiveLookup | None = None
        if given:
            self.lookup = GivenPassages.read(given, self.dataset, m * train.retrieved_chunks)
        elif self.run.retro and k:
            self.lookup = LiveLookup(self.book, k, threads)

    def write(
        self, prompt: str, count: int, sampler: Sampler, *, retrieval: bool = True, pad: bool = True
    ) -> Iterator[dict[str, Any]]:
        """Events, in order: `text` (chunk, text, prompt: whether it is the prompt's), `lookup` (chunk, query,
        neighbours) before the text written with it, and at last `end` (tokens, ended: by an end of document).

        `pad`: pad a prompt shorter than a chunk on its left, so that it is looked up before anything is written.
        """
        m, lookup = self.dataset.chunk_length, self.lookup if retrieval else None
        tokens = self.dataset.tokenizer.encode_batch([prompt])[0].tolist()
        # After the end of a document one begins.
        start = tokens or [self.dataset.tokenizer.eod_id]
        padding = max(0, m - len(start)) if pad and lookup else 0
        decoder = Decoder(
            self.model,
            self.book.store,
            seq_length=self.dataset.seq_length,
            eod_id=self.dataset.tokenizer.eod_id,
            retrieved_chunks=self.run.train.retrieved_chunks,
            lookup=lookup,
            retrieval_step=self.step,
        )
        text, at = Unfolding(self.dataset), padding  # at: tokens so far, padding included
        while at < padding + len(start):
            high = min((at // m + 1) * m, padding + len(start))
            new = text.add(start[at - padding : high - padding], last=high == padding + len(start))
            yield {"type": "text", "chunk": at // m, "text": new, "prompt": True}
            at = high
        written, token = 0, None
        for step in decoder.write(np.array(start, np.int64), count, sampler, padding):
            for chunk, found in step.looked_up:
                end = at if self.step and chunk == (at - 1) // m else (chunk + 1) * m
                asked = text.tokens[max(0, end - m - padding) : end - padding]
                assert lookup is not None
                shown = lookup.describe(found)
                query = self.dataset.tokenizer.decode(asked)
                yield {"type": "lookup", "chunk": chunk, "query": query, "neighbours": shown}
            token, written = step.token, written + 1
            new = text.add([token], last=written == count)
            yield {"type": "text", "chunk": at // m, "text": new, "prompt": False}
            at += 1
        yield {"type": "end", "tokens": written, "ended": token == self.dataset.tokenizer.eod_id}
