"""Live retrieval while text is written: a chunk's tokens to the neighbours a dataset has for them.

`open_book` takes another book for a trained model: a dataset with the same tokenizer and chunks, whatever its documents
are.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retro.base.artifacts import read_text
from retro.base.names import dates_of
from retro.base.stage import UserError
from retro.dataset.dataset import Dataset
from retro.generation.decoding import Found, Query, given_passages
from retro.retrieval.exclusion import LATER
from retro.retrieval.search import Searcher


class LiveLookup:
    """Decodes, embeds and searches, all queries at once; `k` neighbours a chunk.

    `excluded`: (source, document number) pairs that are never found, of each text that asks; `until`: as for
    `Searcher.search`, of all texts or of each.
    """

    def __init__(
        self,
        dataset: Dataset,
        k: int,
        threads: int = 1,
        excluded: Sequence[Sequence[tuple[str, int]]] | None = None,
        until: int | Sequence[int | None] | None = None,
    ):
        self.dataset, self.k, self.excluded, self.until = dataset, k, excluded, until
        self.searcher = Searcher(dataset, threads)

    def __call__(self, queries: Sequence[Query]) -> list[Found]:
        found = [Found(np.full(self.k, -1, np.int64), np.full(self.k, -np.inf)) for _ in queries]
        texts = [self.dataset.tokenizer.decode(query.tokens) for query in queries]
        real = [number for number, text in enumerate(texts) if text.strip()]  # there is nothing to look up for others
        if real:
            excluded = None if self.excluded is None else [self.excluded[queries[number].text] for number in real]
            until = self.until
            if isinstance(until, Sequence):
                until = [until[queries[number].text] for number in real]
            asked = [texts[number] for number in real]
            ids, scores = self.searcher.search(asked, self.k, exclude_each=excluded, until=until)
            for number, *each in zip(real, self.dataset.neighbour_rows(ids), scores, strict=True):
                found[number] = Found(*each)
        return found

    def describe(self, found: Found) -> list[dict]:
        """What was found, best first: score, text, the text that follows it, and its document."""
        store, described = self.dataset.store, []
        for row, score in zip(found.rows.tolist(), found.scores.tolist(), strict=True):
            if row >= 0:
                following = int(store.following(np.array([row]))[0])
                described.append(
                    {
                        "row": row,
                        "score": round(score, 4),
                        "text": chunk_text(self.dataset, row),
                        "continuation": chunk_text(self.dataset, following),
                        "document": store.document(row),
                    }
                )
        return described


class GivenPassages:
    """The same passages for every chunk, in place of retrieval; each cut to the `length` tokens of a neighbour.

    `passages`: text, or {text, title}. Raises `UserError` where there is none with text.
    """

    def __init__(self, dataset: Dataset, passages: list[str | dict], length: int):
        self.dataset = dataset
        records = [{"text": each} if isinstance(each, str) else each for each in passages]
        self.titles = [each.get("title") or f"passage {number}" for number, each in enumerate(records, start=1)]
        encoded = dataset.tokenizer.encode_batch([each["text"] for each in records])
        tokens = np.full((len(encoded), length), dataset.store.pad_id, np.int64)
        mask = np.zeros(tokens.shape, bool)
        for number, each in enumerate(encoded):
            tokens[number, : len(each)] = each[:length]
            mask[number, : len(each)] = True
        self.found = given_passages(tokens, mask)

    @classmethod
    def read(cls, path: Path, dataset: Dataset, length: int) -> "GivenPassages":
        """From a file of one passage a line: text, or JSON with a `text` and perhaps a `title`."""
        return cls(dataset, read_lines(path, "text"), length)

    def __call__(self, queries: Sequence[Query]) -> list[Found]:
        return [self.found] * len(queries)

    def describe(self, found: Found) -> list[dict]:
        """As `LiveLookup.describe`; a given passage has no score and no row."""
        decode, m = self.dataset.tokenizer.decode, self.dataset.chunk_length
        assert found.tokens is not None and found.mask is not None
        return [
            {
                "row": None,
                "score": None,
                "text": decode(tokens[:m][mask[:m]]),
                "continuation": decode(tokens[m:][mask[m:]]),
                "document": {"id": title, "title": title, "source": "given"},
            }
            for tokens, mask, title in zip(found.tokens, found.mask, self.titles, strict=True)
        ]


def read_lines(path: Path, key: str) -> list[str | dict]:
    """Lines of a file as text, or as JSON where they begin with { or "; a JSON object must have text under `key`.

    Raises `UserError`, naming the line, for what is neither; empty lines are passed over, a file of nothing else
    refused.
    """
    try:
        lines = read_text(path).split("\n")
    except (OSError, UserError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}). Give a file that can.") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line) if line.lstrip()[0] in '{"' else line
        except json.JSONDecodeError:
            value = None if line.lstrip()[0] == "{" else line  # a line of prose may begin with a quotation mark
        text = value.get(key) if isinstance(value, dict) else value
        if not isinstance(text, str) or not text.strip():
            raise UserError(f'{path}: line {number}: wanted a line of text or JSON like {{"{key}": "…"}}.')
        found.append(value)
    if not found:
        raise UserError(f"{path}: no lines. Write one {key} a line.")
    return found


def chunk_text(dataset: Dataset, row: int) -> str:
    """The text of the chunk at a global row; nothing for −1."""
    tokens, mask = dataset.store.tokens(np.array(row))
    return dataset.tokenizer.decode(tokens[mask])


def excluded_documents(dataset: Dataset, row: int) -> list[tuple[str, int]]:
    """Documents that the dataset's rules keep from a held-out document, given by one of its global rows.

    The document itself is in no database; what its rules can bar is what shares its group, for instance an
    older edition of the same page.
    """
    rules = dataset.facts["neighbours"]["exclude"]
    mine = int(dataset.store.source(np.array(row)))
    group = dataset.store.chunks(np.array([row]))["group"][0]
    found = []
    for number, name in enumerate(dataset.sources):
        if "group_of_any_source" in rules or ("group" in rules and number == mine):
            table = dataset.store.tables[number]
            found += [(name, int(each)) for each in np.unique(table["document"][table["group"] == group])]
    return found


def seen_until(dataset: Dataset, row: int) -> int | None:
    """Up to what date the dataset's rules let the document of a global row see; None where they name no dates."""
    if LATER not in dataset.facts["neighbours"]["exclude"]:
        return None
    number = int(dataset.store.source(np.array(row)))
    return int(dates_of(dataset.store.tables[number][row - dataset.store.offsets[number]]))


def open_book(path: Path, trained: Dataset) -> Dataset:
    """The dataset at `path` (its config.json), to be searched by a model of the dataset `trained`.

    Raises `UserError` unless both have the same tokenizer, byte for byte, and the same chunk length. Its encoder, index
    and documents are its own: queries are embedded with the encoder that its database was embedded with.
    """
    book = Dataset.open(path)
    for what, mine, wanted in (
        ("tokenizer", _tokenizer(book), _tokenizer(trained)),
        ("chunk_length", book.chunk_length, trained.chunk_length),
    ):
        if mine != wanted:
            raise UserError(
                f"{path}: its {what} is {mine}, the model's ({trained.path}) is {wanted}. Make the dataset with "
                f"dataset.tokenizer: {{type: tokenizer.json, path: {trained.folder / 'tokenizer/tokenizer.json'}}} and "
                f"dataset.chunk_length: {trained.chunk_length}; config/swap-book.yaml is an example."
            )
    return book


def _tokenizer(dataset: Dataset) -> str:
    """What tells one tokenizer from another, as text."""
    files = dataset.manifest("tokenizer/manifest.json", "tokenizer").facts["files"]
    known = [f"{name} sha256 {facts['sha256'][:16]}…" for name, facts in sorted(files.items())]
    return ", ".join([*known, f"end {dataset.tokenizer.eod_id}", f"padding {dataset.tokenizer.pad_id}"])
