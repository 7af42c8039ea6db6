"""Chunks by the cluster of near-duplicates that their document belongs to."""

from pathlib import Path

import numpy as np

from retro.artifacts import Manifest, read_manifest
from retro.errors import UserError


def by_chunk(name: str, duplicates: Path, chunks: list[Path]) -> list[np.ndarray]:
    """`clusters.npy` or `dropped.npy` of a manifest of kind `duplicates`, for each chunk of each source."""
    manifest, tables = read_manifest(duplicates, "duplicates"), [read_manifest(path, "chunks") for path in chunks]
    values, sizes = manifest.array(name), [_documents(table) for table in tables]
    if sum(sizes) != len(values):
        raise UserError(f"{duplicates}: tells of {len(values)} documents, there are {sum(sizes)}. Run snakemake.")
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return [part[table.array("chunks.npy")["document"]] for part, table in zip(parts, tables, strict=True)]


def _documents(chunks: Manifest) -> int:
    """Documents of the source that a chunk table cuts: every document has at least its EOD, so at least a chunk."""
    table = chunks.array("chunks.npy")
    return int(table["document"][-1]) + 1 if len(table) else 0
