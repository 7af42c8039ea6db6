"""Vectors of an index again: added by `retro.retrieval.index` to the stored index, emptied, and read back.

What was trained (centroids, rotations, codebooks) is taken as stored, and so are the links of a graph.
"""

from collections.abc import Iterator

import faiss
import numpy as np

from retro import progress
from retro.artifacts import Manifest, read_manifest
from retro.database.shards import bounds
from retro.errors import UserError
from retro.refusals import read_section
from retro.retrieval.approximate import read_mapped
from retro.retrieval.index import BLOCK, fill
from retro.retrieval.settings import IndexSettings
from retro.retrieval.vectors import Vectors
from retro.validate.sample import Difference, Sample, compare, inputs

Entries = Iterator[tuple[str, np.ndarray]]


def differences(manifest: Manifest, sample: Sample, threads: int) -> Iterator[Difference | None]:
    """What differs of an index over the database's vectors; blocks are the stage's own."""
    faiss.omp_set_num_threads(threads)
    given, settings = inputs(manifest), read_section(IndexSettings, manifest.settings["index"], "index")
    vectors, path = Vectors(given["embeddings"]), manifest.file("index.faiss")
    database = read_manifest(given["database"][0], "database").array("database.npy")
    chosen = sample.choose(bounds(len(database), BLOCK), "vector")
    index = read_mapped(path)
    if index.ntotal != len(database):
        yield Difference(path, "vectors", str(index.ntotal), str(len(database)))
    elif manifest.settings["exact"]:
        for start, stop in progress.track(chosen, len(chosen), f"validate {manifest.folder}", "block"):
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
            f"an index of faiss's kind {type(layer).__name__} cannot be recomputed in part; use python -m retro.verify."
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
