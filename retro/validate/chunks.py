"""Chunk tables and the lists of the database and the splits again, by `retro.database.chunk` and `.assemble`."""

from collections.abc import Iterator

import numpy as np

from retro import progress
from retro.artifacts import Manifest, read_manifest
from retro.corpus.mmididx import TokenStore
from retro.corpus.tokenizers import Tokenizer
from retro.database.assemble import LISTS, select
from retro.database.chunk import cut_documents, document_blocks, offsets_of
from retro.database.clusters import by_chunk
from retro.database.tables import CHUNK
from retro.validate.sample import Difference, Sample, compare, inputs


def differences(manifest: Manifest, sample: Sample, threads: int) -> Iterator[Difference | None]:
    """What differs of a source's chunk table, block by block; blocks are the stage's own."""
    given, length = inputs(manifest), manifest.settings["chunk_length"]
    tokens, tokenizer = read_manifest(given["tokens"][0], "tokens"), Tokenizer.load(given["tokenizer"][0])
    store, documents = TokenStore(tokens.file("tokens.bin").with_suffix("")), tokens.array("documents.npy")
    path, table, offsets = manifest.file("chunks.npy"), manifest.array("chunks.npy"), offsets_of(store, length)
    blocks = list(document_blocks(offsets))
    first_document = {int(offsets[first]): first for first, _ in blocks}
    chosen = sample.choose([(int(offsets[first]), int(offsets[end])) for first, end in blocks], "chunk")
    for start, stop in progress.track(chosen, len(chosen), f"validate {manifest.folder}", "block"):
        made = np.empty(stop - start, CHUNK)
        cut_documents(store, documents, tokenizer.token_bytes, length, offsets, first_document[start], made)
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
    for name in progress.track(LISTS, len(LISTS), f"validate {manifest.folder}", "list"):
        path, stored, done = manifest.file(f"{name}.npy"), manifest.array(f"{name}.npy"), 0
        for made in select(name, tables, uses, dropped):
            yield compare(path, "row", done, stored[done : done + len(made)], made)
            done += len(made)
        if done != len(stored):
            yield Difference(path, "rows", str(len(stored)), str(done))
