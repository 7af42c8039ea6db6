"""Chunk tables, embeddings, indexes and neighbours again, by the stages that made them.

Chunk tables and lists come from `retro.database.chunk` and `.assemble`; embeddings from `retro.database.embed`: chunks
decoded and encoded. Vectors of an index are added by `retro.retrieval.index` to the stored index, emptied, and read
back; what was trained (centroids, rotations, codebooks) is taken as stored, and so are the links of a graph.
Neighbours come from `retro.retrieval.neighbours` and the stored index: ids; scores follow from them.
"""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np

from retro.base import log
from retro.base.artifacts import Manifest, read_manifest
from retro.base.shards import bounds
from retro.base.stage import UserError, read_section
from retro.corpus.mmididx import TokenStore
from retro.corpus.tokenizers import Tokenizer
from retro.database.assemble import LISTS, by_chunk, select
from retro.database.chunk import columns, cut, document_blocks, offsets_of
from retro.database.embed import BLOCK, texts_of
from retro.database.encoders import GivenEncoder, open_encoder, settings_of
from retro.dataset.store import Vectors
from retro.retrieval.approximate import QUERIES, read_mapped
from retro.retrieval.index import VECTORS_AT_ONCE, fill
from retro.retrieval.neighbours import Search
from retro.retrieval.settings import IndexSettings
from retro.validate.sample import Difference, Sample, compare, inputs


@dataclass
class Some:
    """Consecutive documents of a token store, for what reads its `tokens` at the `offsets` of documents."""

    tokens: np.ndarray
    offsets: np.ndarray


def chunk_differences(manifest: Manifest, sample: Sample, threads: int) -> Iterator[Difference | None]:
    """What differs of a source's chunk table, block by block; blocks are the stage's own."""
    given, length = inputs(manifest), manifest.settings["chunk_length"]
    tokens, tokenizer = read_manifest(given["tokens"][0], "tokens"), Tokenizer.load(given["tokenizer"][0])
    store, documents = TokenStore(tokens.file("tokens.bin").with_suffix("")), tokens.array("documents.npy")
    path, table, offsets = manifest.file("chunks.npy"), manifest.array("chunks.npy"), offsets_of(store, length)
    blocks = {(int(offsets[first]), int(offsets[end])): (first, end) for first, end in document_blocks(offsets)}
    for start, stop in sample.choose(list(blocks), "chunk"):
        first, end = blocks[start, stop]
        some, made = Some(store.tokens, store.offsets[first : end + 1]), np.empty(stop - start, columns(documents))
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


CHUNKS = 256  # a block, where a vector does not depend on the others of its batch; else the stage's own block


def embedding_differences(manifest: Manifest, sample: Sample, threads: int) -> Iterator[Difference | None]:
    """What differs of a source's vectors, block by block. Raises `UserError` where another encoder, or another kind
    of device, would compute them: their bits cannot be compared.
    """
    given, recorded = inputs(manifest), manifest.settings["encoder"]
    settings = settings_of(recorded)
    encoder = open_encoder(settings, threads)
    if isinstance(encoder, GivenEncoder):
        encoder.of(given["chunks"][0].parent.name)
    for name in ("identity", "engine"):
        found, wanted = getattr(encoder, name), recorded[name]
        if found != wanted:
            raise UserError(
                f"{manifest.path}: embedded by an encoder of {name} {wanted}, here it is {found}. Validate on "
                f"a machine like the one that embedded."
            )
    store = TokenStore(read_manifest(given["tokens"][0], "tokens").file("tokens.bin").with_suffix(""))
    table, tokenizer = read_manifest(given["chunks"][0]).array("chunks.npy"), Tokenizer.load(given["tokenizer"][0])
    path, stored = manifest.file("embeddings.npy"), manifest.array("embeddings.npy")
    size = CHUNKS if encoder.lasting or settings.type == "static" else BLOCK
    chosen = sample.choose(bounds(len(table), size), "chunk")
    with log.bar(sample.rows, f"validate {manifest.folder}", "chunk") as shown:
        for start, stop in chosen:
            if isinstance(encoder, GivenEncoder):
                made = encoder.rows(given["chunks"][0].parent.name, len(table), start, stop)
            else:
                made = encoder.encode(texts_of(store, table[start:stop], tokenizer), shown.update)
            yield compare(path, "vector", start, stored[start:stop], made.astype(settings.dtype))
    if len(stored) != len(table):
        yield Difference(path, "vectors", str(len(stored)), str(len(table)))


Entries = Iterator[tuple[str, np.ndarray]]


def index_differences(manifest: Manifest, sample: Sample, threads: int) -> Iterator[Difference | None]:
    """What differs of an index over the database's vectors; blocks are the stage's own."""
    faiss.omp_set_num_threads(threads)
    given, settings = inputs(manifest), read_section(IndexSettings, manifest.settings["index"], "index")
    vectors, path = Vectors(given["embeddings"]), manifest.file("index.faiss")
    database = read_manifest(given["database"][0], "database").array("database.npy")
    chosen = sample.choose(bounds(len(database), VECTORS_AT_ONCE), "vector")
    index = read_mapped(path)
    if index.ntotal != len(database):
        yield Difference(path, "vectors", str(index.ntotal), str(len(database)))
    elif manifest.settings["exact"]:
        for start, stop in log.track(chosen, len(chosen), f"validate {manifest.folder}", "block"):
            made = vectors.read(database[start:stop])
            yield compare(path, "vector", start, index.reconstruct_n(start, stop - start), made)
    else:
        again = emptied(faiss.read_index(str(path)))
        fill(again, vectors, database, chosen, settings)
        ids = np.concatenate([np.arange(start, stop) for start, stop in chosen])
        pairs = zip(entries(index, ids), entries(again, np.arange(len(ids))), strict=True)
        for (what, stored), (_, made) in pairs:
            done = 0
            for start, stop in chosen:
                here = slice(done, done + stop - start)
                yield compare(path, f"{what} of vector", start, stored[here], made[here])
                done += stop - start


def emptied(index: faiss.Index) -> faiss.Index:
    """The trained index without its vectors."""
    index.reset()
    return index


def entries(index: faiss.Index, ids: np.ndarray) -> Entries:
    """What each part of an index holds of the vectors `ids`, ascending: arrays [n, …], named."""
    layer = faiss.downcast_index(index)
    if isinstance(layer, faiss.IndexPreTransform):
        yield from entries(layer.index, ids)
    elif isinstance(layer, faiss.IndexRefine):
        yield from entries(layer.base_index, ids)
        yield from entries(layer.refine_index, ids)
    elif isinstance(layer, faiss.IndexHNSW):
        yield from entries(layer.storage, ids)
    elif isinstance(layer, faiss.IndexIVF):
        yield from _in_lists(layer, ids)
    elif isinstance(layer, faiss.IndexFlatCodes):
        codes = faiss.rev_swig_ptr(layer.codes.data(), layer.ntotal * layer.code_size)
        yield "code", codes.reshape(-1, layer.code_size)[ids]
    elif isinstance(layer, faiss.IndexFastScan):
        yield "code, decoded,", layer.reconstruct_batch(ids)
    else:
        raise UserError(
            f"an index of faiss's kind {type(layer).__name__} cannot be recomputed in part; "
            f"use python -m retro.tools.verify."
        )


def _in_lists(layer: faiss.IndexIVF, ids: np.ndarray) -> Entries:
    """The inverted list and the code of each vector; list −1 where there is none."""
    lists = layer.invlists
    packer = layer.get_CodePacker() if isinstance(layer, faiss.IndexIVFFastScan) else None
    size = packer.code_size if packer else lists.code_size
    number, codes = np.full(len(ids), -1, np.int64), np.zeros((len(ids), size), np.uint8)
    for this in range(layer.nlist):
        count = lists.list_size(this)
        if not count:
            continue
        held = faiss.rev_swig_ptr(lists.get_ids(this), count)
        at = np.minimum(np.searchsorted(ids, held), len(ids) - 1)
        hits = np.flatnonzero(ids[at] == held)
        number[at[hits]] = this
        width, blocks = (packer.block_size, -(-count // packer.nvec)) if packer else (size, count)
        stored = faiss.rev_swig_ptr(lists.get_codes(this), blocks * width).reshape(blocks, width)
        if packer:
            for hit in hits:
                codes[at[hit]] = packer.unpack_1(stored, int(hit))
        else:
            codes[at[hits]] = stored[hits]
    yield "list", number
    yield "code", codes


def neighbour_differences(manifest: Manifest, sample: Sample, threads: int) -> Iterator[Difference | None]:
    """What differs of a split's neighbour ids, block by block. A block is a batch of the stage's searches in an index,
    so that the index is asked the same again.
    """
    given = inputs(manifest)
    cut = [inputs(read_manifest(path)) for path in given["chunks"]]
    search = Search(
        Namespace(
            settings=manifest.settings,
            split=manifest.folder.name,
            database=given["database"][0],
            chunks=given["chunks"],
            embeddings=given["embeddings"],
            index=given["index"],
            tokenizer=cut[0]["tokenizer"],
            tokens=[each["tokens"][0] for each in cut],
            duplicates=given.get("duplicates", []),
            threads=threads,
        )
    )
    path, ids = manifest.file("ids.npy"), manifest.array("ids.npy")
    chosen = sample.choose(bounds(len(search.rows), QUERIES), "chunk")
    with log.bar(sample.rows, f"validate {manifest.folder}", "chunk") as shown:
        for start, stop in chosen:
            made = search.block(start, stop, shown.update)["id"][:, : search.k]
            yield compare(path, "chunk", start, ids[start:stop], made.astype(ids.dtype))
    if len(ids) != len(search.rows):
        yield Difference(path, "chunks", str(len(ids)), str(len(search.rows)))
