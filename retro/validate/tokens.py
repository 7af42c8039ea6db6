"""Tokens again: every document is read, those of the sampled blocks are tokenized, by `retro.corpus.tokenize`."""

import json
from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO

import numpy as np

from retro.base.artifacts import Manifest
from retro.base.shards import Bounds, bounds
from retro.corpus.documents import Table
from retro.corpus.megatron import MegatronReader, filled, open_reader
from retro.corpus.mmididx import TokenStore, token_dtype
from retro.corpus.readers import Document, Reader
from retro.corpus.tokenize import TokenizeSettings, tokenize
from retro.corpus.tokenizers import Tokenizer, use_threads
from retro.validate.sample import Difference, Sample, compare, inputs

DOCUMENTS = 64  # a block


class Sampled:
    """The documents of the chosen blocks among those of a reader that are stored, read as a reader is.

    `numbers` are those of the documents given out, `count` is how many there are in all.
    """

    def __init__(self, reader: Reader | MegatronReader, chosen: Bounds):
        self.reader, self.chosen = reader, chosen
        self.numbers: list[int] = []
        self.count = self.block = 0

    @property
    def bytes(self) -> int:
        return self.reader.bytes

    @property
    def done(self) -> int:
        return self.reader.done

    def __iter__(self) -> Iterator[Document]:
        for document in self.reader:
            if not filled(document):
                continue
            while self.block < len(self.chosen) and self.chosen[self.block][1] <= self.count:
                self.block += 1
            if self.block < len(self.chosen) and self.chosen[self.block][0] <= self.count:
                self.numbers.append(self.count)
                yield document
            self.count += 1


class Collected:
    """Takes documents as a token store's writer does."""

    def __init__(self) -> None:
        self.documents: list[np.ndarray] = []

    def add(self, ids: np.ndarray) -> None:
        self.documents.append(ids)


class Stored:
    """The files of a token store, beside what was recomputed of them."""

    def __init__(self, manifest: Manifest):
        self.manifest, self.store = manifest, TokenStore(manifest.file("tokens.bin").with_suffix(""))
        self.documents, self.lines = manifest.array("documents.npy"), manifest.file("documents.jsonl")

    def difference(self, first: int, ids: list[np.ndarray], rows: np.ndarray, lines: bytes) -> Difference | None:
        """The first of documents number `first` and following: ids of each, rows DOCUMENT, lines of documents.jsonl."""
        of, end = self.manifest.folder, first + len(ids)
        offsets = self.store.offsets[first : end + 1]
        lengths = np.array([len(each) for each in ids])
        found = compare(of / "tokens.idx", "tokens of document", first, np.diff(offsets), lengths)
        if found:
            return found
        stored, made = self.store.tokens[offsets[0] : offsets[-1]], np.concatenate(ids)
        wrong = np.flatnonzero(stored != made)
        if len(wrong):
            at = int(wrong[0])
            document = int(np.searchsorted(offsets, offsets[0] + at, side="right")) - 1
            where = f"document {first + document}, token {offsets[0] + at - offsets[document]}"
            return Difference(of / "tokens.bin", where, str(stored[at]), str(made[at]))
        with open(self.lines, "rb") as file:
            begin = self._line(file, first - 1)[1] if first else 0
            rows["offset"] += begin - rows["offset"][0]
            found = compare(of / "documents.npy", "document", first, self.documents[first:end], rows)
            if found:
                return found
            for number, line in enumerate(lines.splitlines(keepends=True), first):
                here = self._line(file, number)[0]
                if here != line:
                    return Difference(self.lines, f"document {number}", repr(here), repr(line))
        return None

    def _line(self, file: BinaryIO, number: int) -> tuple[bytes, int]:
        """A document's line of documents.jsonl, and where it ends."""
        file.seek(int(self.documents["offset"][number]))
        return file.readline(), file.tell()


def differences(manifest: Manifest, sample: Sample, threads: int) -> Iterator[Difference | None]:
    """What differs of the token store of a source, batch by batch; then skipped.jsonl and the number of documents."""
    use_threads(threads)
    settings = TokenizeSettings(**manifest.settings)
    tokenizer, stored = Tokenizer.load(inputs(manifest)["tokenizer"][0]), Stored(manifest)
    chosen = sample.choose(bounds(len(stored.store), DOCUMENTS), "document")
    remarks, lines = BytesIO(), BytesIO()

    def remark(facts: dict) -> None:
        remarks.write((json.dumps(facts, ensure_ascii=False) + "\n").encode())

    reader = Sampled(open_reader(settings.source, settings.name, settings.on_error, remark, tokenizer), chosen)
    writer, table, done = Collected(), Table(lines, settings.source.fields.date is not None), 0
    wanted = token_dtype(tokenizer.vocab_size)
    if stored.store.tokens.dtype != wanted:
        yield Difference(stored.store.index_path, "dtype", str(stored.store.tokens.dtype), str(wanted))
    for _ in tokenize(settings, tokenizer, reader, writer, table):
        first, rows = reader.numbers[done], table.array()[done:]
        done += len(rows)
        yield stored.difference(first, writer.documents, rows, lines.getvalue())
        writer.documents.clear()
        lines.seek(0)
        lines.truncate()
    skipped = manifest.file("skipped.jsonl")
    lists = [each.splitlines() + [b"nothing"] for each in (skipped.read_bytes(), remarks.getvalue())]
    if lists[0] != lists[1]:
        at = next(number for number, pair in enumerate(zip(*lists, strict=False)) if pair[0] != pair[1])
        yield Difference(skipped, f"line {at + 1}", *(each[at].decode(errors="replace") for each in lists))
    if reader.count != len(stored.store):
        yield Difference(stored.store.index_path, "documents", str(len(stored.store)), str(reader.count))
