"""Neighbours again, by `retro.retrieval.neighbours`, from the stored index: ids; scores follow from them."""

from argparse import Namespace
from collections.abc import Iterator

from retro import progress
from retro.artifacts import Manifest, read_manifest
from retro.database.shards import bounds
from retro.retrieval.approximate import QUERIES
from retro.retrieval.neighbours import Search
from retro.validate.sample import Difference, Sample, compare, inputs


def differences(manifest: Manifest, sample: Sample, threads: int) -> Iterator[Difference | None]:
    """What differs of a split's neighbour ids, block by block. A block is a batch of the stage's searches in an index,
    so that the index is asked the same again.
    """
    given = inputs(manifest)
    words = inputs(read_manifest(given["index"][0])) if manifest.settings.get("retriever") == "bm25" else {}
    search = Search(
        Namespace(
            settings=manifest.settings,
            split=manifest.folder.name,
            database=given["database"][0],
            chunks=given["chunks"],
            embeddings=given["embeddings"],
            index=given["index"][0],
            tokenizer=words.get("tokenizer", []),
            tokens=words.get("tokens", []),
            duplicates=given.get("duplicates", []),
            threads=threads,
        )
    )
    path, ids = manifest.file("ids.npy"), manifest.array("ids.npy")
    chosen = sample.choose(bounds(len(search.rows), QUERIES), "chunk")
    with progress.bar(sample.rows, f"validate {manifest.folder}", "chunk") as shown:
        for start, stop in chosen:
            made = search.block(start, stop, shown.update)["id"]
            yield compare(path, "chunk", start, ids[start:stop], made.astype(ids.dtype))
    if len(ids) != len(search.rows):
        yield Difference(path, "chunks", str(len(ids)), str(len(search.rows)))
