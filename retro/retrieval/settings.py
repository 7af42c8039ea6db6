"""Config sections of the index and the neighbours."""

from typing import Literal, Self

from pydantic import Field, model_validator

from retro.base.names import Split
from retro.base.stage import Settings

Retriever = Literal["dense", "bm25", "bm25-rerank", "hybrid", "random", "shuffled"]
TOGETHER = ("bm25-rerank", "hybrid")  # made of dense search and of BM25

CANDIDATES = 100


class IndexSettings(Settings):
    """The index over the database: faiss over its embeddings, or BM25 over its words."""

    factory: str = Field("auto", description="auto (exact while that is affordable), Flat, or a faiss factory string.")
    train_vectors: int = Field(1_000_000, gt=0, description="Seeded random sample an approximate index trains on.")
    nprobe: int = Field(64, gt=0, le=10_000_000, description="Lists visited at search (IVF).")
    ef_search: int = Field(256, gt=0, le=1_000_000, description="Candidates kept at search (HNSW).")
    mmap: bool = Field(
        True, description="Map the index file at search instead of reading it into memory, where its kind allows."
    )
    k_factor: float = Field(4.0, ge=1, description="Candidates re-ranked, as a multiple of k (RFlat).")
    gpu: Literal["replicate", "shard"] = Field(
        "replicate", description="On several GPUs: a whole index on each (faster), or a part on each (larger)."
    )
    gpu_float16: bool = Field(False, description="Vectors and tables as float16 on GPUs: half the memory.")
    bm25_k1: float = Field(1.5, ge=0, description="BM25: how slowly repeated words stop counting.")
    bm25_b: float = Field(0.75, ge=0, le=1, description="BM25: how much longer chunks are discounted.")
    candidates: int = Field(
        CANDIDATES,
        gt=0,
        le=10_000,
        exclude_if=lambda value: value == CANDIDATES,
        description="Candidates of a chunk that bm25-rerank puts in BM25's order, and that hybrid takes of each of the "
        "two.",
    )


class FilterSettings(Settings):
    """Neighbours that are not shown because they give away what is evaluated; the next ones replace them."""

    run: int | None = Field(
        None,
        ge=2,
        description="Not shown is a neighbour that has so many tokens in a row in common with the text that is "
        "compared; 13 is usual. None: runs do not matter.",
    )
    jaccard: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Not shown is a neighbour of which a chunk has at least this Jaccard similarity, of the sets of "
        "tokens, with a chunk that is compared. None: it does not matter.",
    )
    against: list[Literal["chunk", "continuation"]] = Field(
        ["continuation"],
        min_length=1,
        description="What neighbours are compared with. continuation: the chunk after theirs, which is predicted while "
        "they are read. chunk: the one that they are neighbours of, which has been read by then.",
    )
    chunks: int = Field(
        2, ge=1, le=64, description="Chunks of a neighbour that are compared: as many as a run is shown, or more."
    )
    splits: list[Split] = Field(["valid", "test"], min_length=1, description="Splits whose neighbours are filtered.")

    @property
    def off(self) -> bool:
        return self.run is None and self.jaccard is None

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.off and self.model_fields_set - {"run", "jaccard"}:
            raise ValueError("filter: names no bound; set run or jaccard, or leave filter out")
        return self


class NeighbourSettings(Settings):
    """Which database chunks are kept as a chunk's neighbours."""

    saved: int = Field(20, gt=0, le=1000, description="Neighbours stored for each chunk (K); training uses k <= K.")
    exclude: list[Literal["document", "group", "group_of_any_source", "text", "later"]] = Field(
        ["document"],
        description="A neighbour never shares these with its chunk: document, group (of the same source), "
        "group whatever the source, exact text (tokens). The document is always excluded. later: besides, a neighbour "
        "is never of a later date than its chunk; every source then names fields.date.",
    )
    filter: FilterSettings = Field(
        FilterSettings(),
        exclude_if=lambda value: value.off,
        description="Which neighbours are not shown to evaluated chunks, because they hold their text.",
    )
    recall_sample: int = Field(1000, ge=0, description="Chunks whose neighbours are compared with exact search.")
