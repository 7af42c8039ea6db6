"""Random access, by global row, to the chunks of a dataset and to their embeddings, straight from the files."""

import json
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from retro.base.artifacts import read_manifest
from retro.base.names import BOOK, CHUNK
from retro.base.stage import UserError
from retro.corpus.documents import key_hash
from retro.corpus.mmididx import TokenStore
from retro.corpus.tokenizers import Tokenizer


class ChunkStore:
    """Chunks of all sources. `rows` are global rows, an int64 array of any shape; −1 is no chunk.

    `length` is the chunk length m; `pad_id` fills what a short chunk leaves free.
    """

    def __init__(self, sources: list[str], tokens: list[Path], chunks: list[Path], length: int, pad_id: int):
        """`tokens` and `chunks` are the manifests of each source's token store and chunk table."""
        self.sources, self.length, self.pad_id = sources, length, pad_id
        self.documents = [read_manifest(path, "tokens") for path in tokens]
        self.stores = [TokenStore(m.file("tokens.bin").with_suffix("")) for m in self.documents]
        self.tables = [read_manifest(path, "chunks").array("chunks.npy") for path in chunks]
        self.offsets = np.concatenate([[0], np.cumsum([len(table) for table in self.tables])]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def source(self, rows: np.ndarray) -> np.ndarray:
        """Number of each row's source."""
        return np.searchsorted(self.offsets, rows, side="right") - 1

    def chunks(self, rows: np.ndarray) -> np.ndarray:
        """The chunk-table records of `rows` (none may be −1), same shape, dtype CHUNK."""
        rows = np.asarray(rows)
        found, source = np.empty(rows.shape, CHUNK), self.source(rows)
        for number in np.unique(source):
            here = source == number
            records = self.tables[number][rows[here] - self.offsets[number]]
            found[here] = records if records.dtype == CHUNK else records[list(CHUNK.names or ())]
        return found

    def tokens(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int64 [..., m], padded with `pad_id`, and the mask bool [..., m] of real ones."""
        rows = np.asarray(rows)
        flat = rows.reshape(-1)
        tokens = np.full((flat.size, self.length), self.pad_id, np.int64)
        mask = np.zeros((flat.size, self.length), bool)
        real = np.flatnonzero(flat >= 0)
        source = self.source(flat[real])
        step = np.arange(self.length)
        for number in np.unique(source):
            at = real[source == number]
            records = self.tables[number][flat[at] - self.offsets[number]]
            inside = step < records["length"][:, None]
            store = self.stores[number].tokens
            position = np.minimum(records["start"][:, None] + step, len(store) - 1)
            tokens[at] = np.where(inside, store[position], self.pad_id)
            mask[at] = inside
        return tokens.reshape(*rows.shape, self.length), mask.reshape(*rows.shape, self.length)

    def following(self, rows: np.ndarray) -> np.ndarray:
        """The next chunk of the same document for each row, −1 where there is none (or the row is −1)."""
        rows = np.asarray(rows)
        following = np.where(rows >= 0, rows + 1, -1)
        following[following >= len(self)] = -1
        real = following >= 0
        here, there = rows[real], following[real]
        same = (self.source(here) == self.source(there)) & (
            self.chunks(here)["document"] == self.chunks(there)["document"]
        )
        following[real] = np.where(same, there, -1)
        return following

    def retrieved(self, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Each row's chunk and its `count - 1` successors in the document: tokens and mask [..., count*m]."""
        parts = [np.asarray(rows)]
        for _ in range(count - 1):
            parts.append(self.following(parts[-1]))
        tokens, mask = self.tokens(np.stack(parts, axis=-1))
        shape = (*parts[0].shape, count * self.length)
        return tokens.reshape(shape), mask.reshape(shape)

    def document(self, row: int) -> dict:
        """Id, group, title and source of the document that a row belongs to."""
        number = int(self.source(np.asarray(row)))
        document = int(self.tables[number][row - self.offsets[number]]["document"])
        manifest = self.documents[number]
        with open(manifest.file("documents.jsonl"), "rb") as file:
            file.seek(int(manifest.array("documents.npy")[document]["offset"]))
            return {**json.loads(file.readline()), "source": self.sources[number], "number": document}


@dataclass(frozen=True)
class Page:
    """What the documents of an id are, in all sources: group of the first; splits (numbers), those of books apart."""

    group: str
    splits: frozenset[int]


def pages(store: ChunkStore, wanted: set[str]) -> dict[str, Page]:
    """The documents that have one of the ids, held-out ones included. Reads all sources' tables of documents once."""
    found: dict[str, tuple[str, set[int]]] = {}
    for manifest in store.documents if wanted else []:
        splits = manifest.array("documents.npy")["split"]
        with open(manifest.file("documents.jsonl"), encoding="utf-8") as file:
            for line, split in zip(file, splits.tolist(), strict=True):
                facts = json.loads(line)
                if facts["id"] in wanted:
                    found.setdefault(facts["id"], (facts["group"], set()))[1].add(split)
    return {name: Page(group, frozenset(splits - {BOOK})) for name, (group, splits) in found.items()}


def splits_of(store: ChunkStore, groups: set[str]) -> dict[str, frozenset[int]]:
    """The splits (numbers) that the documents of each group are in, book too; empty for a group of no document."""
    names = {key_hash(group): group for group in groups}
    keys = np.array(sorted(names), np.uint64)
    found: dict[str, set[int]] = {group: set() for group in groups}
    for manifest in store.documents if groups else []:
        table = manifest.array("documents.npy")
        for row in np.unique(table[["group", "split"]][np.isin(table["group"], keys)]).tolist():
            found[names[row[0]]].add(row[1])
    return {group: frozenset(splits) for group, splits in found.items()}


def texts(store: ChunkStore, tokenizer: Tokenizer, rows: np.ndarray) -> list[str]:
    """The text of each of the chunks at global `rows`."""
    tokens, mask = store.tokens(rows)
    return [tokenizer.decode(ids[real]) for ids, real in zip(tokens, mask, strict=True)]


def open_store(tokens: list[Path], chunks: list[Path], tokenizer: Tokenizer) -> ChunkStore:
    """The chunks of all sources, by the manifests of their tokens and chunk tables."""
    length = read_manifest(chunks[0], "chunks").settings["chunk_length"]
    return ChunkStore([path.parent.name for path in tokens], tokens, chunks, length, tokenizer.pad_id)


class Vectors:
    """`width` dimensions, `len()` chunks. Raises `UserError` if sources were embedded by different
    encoders.
    """

    def __init__(self, manifests: list[Path]):
        """`manifests` are those of the embeddings, sources in order."""
        opened = [read_manifest(path, "embeddings") for path in manifests]
        self.encoder = opened[0].settings["encoder"]
        for manifest in opened[1:]:
            found, wanted = (facts["identity"] for facts in (manifest.settings["encoder"], self.encoder))
            if found != wanted:
                raise UserError(
                    f"{manifest.path}: embedded by an encoder of sha256 {found[:16]}…, but "
                    f"{opened[0].path} by {wanted[:16]}…. Vectors of different encoders cannot be "
                    f"compared: run snakemake again."
                )
        self._files = [_File(manifest.file("embeddings.npy"), manifest.array("embeddings.npy")) for manifest in opened]
        self.width = self._files[0].shape[1]
        self._offsets = np.cumsum([0, *(file.shape[0] for file in self._files)])

    def __len__(self) -> int:
        return int(self._offsets[-1])

    def read(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, width]: vectors of global rows. Rows that follow each other are read at once."""
        rows = np.asarray(rows, np.int64)
        source = np.searchsorted(self._offsets, rows, side="right") - 1
        found = np.empty((len(rows), self.width), np.float32)
        cuts = np.flatnonzero((np.diff(rows) != 1) | (np.diff(source) != 0)) + 1
        starts = [0, *cuts.tolist(), len(rows)] if len(rows) else []
        within, files = (rows - self._offsets[source]).tolist(), source.tolist()
        for start, stop in pairwise(starts):
            self._files[files[start]].read(within[start], found[start:stop])
        return found


class _File:
    """The rows of a two-dimensional .npy file of float32 or float16."""

    def __init__(self, path: Path, array: np.ndarray):
        """`array` is the file, mapped."""
        self.path, self.shape, self._dtype = path, array.shape, array.dtype
        self._begin = getattr(array, "offset", 0)  # bytes before the first row; an array without rows is not mapped
        self._descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self._descriptor)

    def read(self, row: int, found: np.ndarray) -> None:
        """Fill `found` float32 [n, width] with the rows from `row` on.

        Raises UserError if the file has become shorter.
        """
        stored = found if self._dtype == found.dtype else np.empty(found.shape, self._dtype)
        place, done = self._begin + row * stored.strides[0], 0
        while done < stored.nbytes:
            left = memoryview(stored.data).cast("B")[done:] if done else stored.data
            count = os.preadv(self._descriptor, [left], place + done)
            if not count:
                raise UserError(f"{self.path}: shorter than when it was opened. Delete it and run snakemake again.")
            done += count
        if stored is not found:
            found[...] = stored
