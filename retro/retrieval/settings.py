"""Config sections of the index and the neighbours."""

from typing import Literal

from pydantic import Field

from retro.settings import Settings


class IndexSettings(Settings):
    """The faiss index over the database's embeddings."""

    factory: str = Field("auto", description="auto (exact while that is affordable), Flat, or a faiss factory string.")
    train_vectors: int = Field(1_000_000, gt=0, description="Seeded random sample an approximate index trains on.")
    nprobe: int = Field(64, gt=0, description="Lists visited at search (IVF).")
    ef_search: int = Field(256, gt=0, description="Candidates kept at search (HNSW).")
    mmap: bool = Field(
        True, description="Map the index file at search instead of reading it into memory, where its kind allows."
    )
    k_factor: float = Field(4.0, ge=1, description="Candidates re-ranked, as a multiple of k (RFlat).")


class NeighbourSettings(Settings):
    """Which database chunks are kept as a chunk's neighbours."""

    saved: int = Field(20, gt=0, le=1000, description="Neighbours stored for each chunk (K); training uses k <= K.")
    exclude: list[Literal["document", "group", "group_of_any_source", "text"]] = Field(
        ["document"],
        description="A neighbour never shares these with its chunk: document, group (of the same source), "
        "group whatever the source, exact text (tokens). The document is always excluded.",
    )
    recall_sample: int = Field(1000, ge=0, description="Chunks whose neighbours are compared with exact search.")
