"""Chunk tables and the lists of the database and the splits again, by `retro.database.chunk` and `.assemble`."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from retro.artifacts import Manifest, read_manifest
from retro.corpus.mmididx import TokenStore
from retro.corpus.tokenizers import Tokenizer
from retro.database.assemble import LISTS, select
from retro.database.chunk import cut, document_blocks, offsets_of
from retro.database.clusters import by_chunk
from retro.database.tables import CHUNK
from retro.validate.sample import Difference, Sample, compare, inputs


@dataclass
class Some:
    """Consecutive documents of a token store, for what reads its `tokens` at the `offsets` of documents."""

    tokens: np.ndarray
    offsets: np.ndarray


def differences(manifest: Manifest, sample: Sample, threads: int) -> Iterator[Difference | None]:
    """What differs of a source's chunk table, block by block; blocks are the stage's own."""
    given, length = inputs(manifest), manifest.settings["chunk_length"]
    tokens, tokenizer = read_manifest(given["tokens"][0], "tokens"), Tokenizer.load(given["tokenizer"][0])
    store, documents = TokenStore(tokens.file("tokens.bin").with_suffix("")), tokens.array("documents.npy")
    path, table, offsets = manifest.file("chunks.npy"), manifest.array("chunks.npy"), offsets_of(store, length)
    blocks = {(int(offsets[first]), int(offsets[end])): (first, end) for first, end in document_blocks(offsets)}
    for start, stop in sample.choose(list(blocks), "chunk"):
        first, end = blocks[start, stop]
        some, made = Some(store.tokens, store.offsets[first : end + 1]), np.empty(stop - start, CHUNK)
        cut(some, documents[first:end], tokenizer.token_bytes, length, made)
        made["document"] += first
        yield compare(path, "chunk", start, table[start:stop], made)
    if len(table) != offsets[-1]:
        yield Difference(path, "chunks", str(len(table)), str(offsets[-1]))


def lists(manifest: Manifest, sample: Sample, threads: int) -> Iterator[Difference | None]:
    """What differs of the lists of chunks. They are made again as a whole: that takes no longer than to read them."""
    given = inputs(manifest)
    uses = [use for _, use in sorted(manifest.settings["sources"].items())]
    tables = [read_manifest(path, "chunks").array("chunks.npy") for path in given["chunks"]]
    duplicates = given.get("duplicates")
    dropped = by_chunk("dropped.npy", duplicates[0], given["chunks"]) if duplicates else None
    sample.all(sum(map(len, tables)), "chunk")
    stored, done = {name: manifest.array(f"{name}.npy") for name in LISTS}, dict.fromkeys(LISTS, 0)
    for part in select(tables, uses, dropped):
        for name, rows in part.items():
            begin, done[name] = done[name], done[name] + len(rows)
            yield compare(manifest.file(f"{name}.npy"), "row", begin, stored[name][begin : done[name]], rows)
    for name, count in done.items():
        if count != len(stored[name]):
            yield Difference(manifest.file(f"{name}.npy"), "rows", str(len(stored[name])), str(count))
