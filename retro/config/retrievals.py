"""Alternative retrievals of a dataset: other retrievers, encoders, indexes or exclusions over the same chunks.

The config's `retrievals` names them; each is the dataset's own retrieval with some things overridden. Its
artifacts lie in D/retrievals/<name>, laid out as the dataset's own, and only what its overrides change is made:
an equal embedding or index is taken from the dataset, or from the first retrieval that has it.
"""

from typing import Annotated, Any

from pydantic import Field, ValidationError

from retro.base.names import prefix
from retro.base.stage import Overrides, Settings, reasons
from retro.database.settings import EncoderSettings
from retro.retrieval.bm25 import FILES
from retro.retrieval.settings import IndexSettings, NeighbourSettings, Retriever

BUILT = {  # the index settings an index is built with; the others say how it is searched
    "index": ("factory", "train_vectors", "gpu", "gpu_float16"),
    "bm25": ("bm25_k1", "bm25_b"),
}
SECTIONS: dict[str, type[Settings]] = {
    "encoder": EncoderSettings,
    "index": IndexSettings,
    "neighbours": NeighbourSettings,
}


class RetrievalSettings(Settings):
    """A retrieval to compare with the dataset's own, which it overrides key by key."""

    retriever: Retriever | None = Field(None, description="Another retriever; default: the dataset's.")
    encoder: Annotated[dict[str, Any], Overrides(EncoderSettings)] = Field(
        {}, description="Overrides of dataset.encoder; chunks are embedded again."
    )
    index: Annotated[dict[str, Any], Overrides(IndexSettings)] = Field({}, description="Overrides of dataset.index.")
    neighbours: Annotated[dict[str, Any], Overrides(NeighbourSettings)] = Field(
        {}, description="Overrides of dataset.neighbours."
    )


def resolve(dataset: dict[str, Any], overrides: RetrievalSettings) -> dict[str, Any]:
    """The facts of a retrieval: retriever, encoder, index, neighbours. Raises `ValueError` for a wrong key."""
    facts = {"retriever": overrides.retriever or dataset["retriever"]}
    for section, kind in SECTIONS.items():
        try:
            facts[section] = kind(**{**dataset[section], **getattr(overrides, section)}).facts()
        except ValidationError as error:
            raise ValueError(reasons(error, kind, (section,))[0]) from None
    return facts


def made_of(facts: dict[str, Any], kind: str) -> dict[str, Any]:
    """The settings that decide a retrieval's `kind` of artifact: embeddings, index or bm25."""
    encoder = {} if kind == "bm25" else {"encoder": facts["encoder"]}
    return encoder | {key: facts["index"][key] for key in BUILT.get(kind, ())}


def check(dataset: dict[str, Any], named: dict[str, RetrievalSettings]) -> None:
    """Raise `ValueError` for the first wrong key of a config's retrievals."""
    for name, overrides in named.items():
        try:
            resolve(dataset, overrides)
        except ValueError as error:
            raise ValueError(f"retrievals.{name}.{error}") from None


class Retrievals:
    """The retrievals of a config, and the folder each of their artifacts lies in."""

    def __init__(self, dataset: dict[str, Any], named: dict[str, RetrievalSettings], folder: str):
        """`dataset` are the dataset's facts, `folder` is D."""
        self.facts = {"": {key: dataset[key] for key in ("retriever", *SECTIONS)}}
        self.facts |= {name: resolve(dataset, overrides) for name, overrides in named.items()}
        self.named, self._folder = list(named), folder

    def folder(self, name: str) -> str:
        """Of a retrieval; the dataset's own is called ''."""
        return f"{self._folder}/{prefix(name)}".rstrip("/")

    def kind_of_index(self, name: str) -> str:
        """The folder name of what a retrieval searches: index or bm25."""
        return "bm25" if self.facts[name]["retriever"] == "bm25" else "index"

    def has(self, name: str, kind: str) -> bool:
        """Whether a retrieval needs that kind of artifact; the dataset always has embeddings and their index."""
        return kind == "embeddings" or kind == self.kind_of_index(name) or (name == "" and kind == "index")

    def source(self, name: str, kind: str) -> str:
        """The folder D/…/<kind> with the artifact of a retrieval: that of the first that has an equal one."""
        wanted = made_of(self.facts[name], kind)
        for other, facts in self.facts.items():
            if self.has(other, kind) and made_of(facts, kind) == wanted:
                return f"{self.folder(other)}/{kind}"
        raise KeyError(name)

    def built(self, name: str, kind: str) -> dict[str, Any]:
        """The index settings that a retrieval's index or bm25 is built with."""
        return {key: self.facts[name]["index"][key] for key in BUILT[kind]}

    def searching(self, name: str, **neighbours: Any) -> dict[str, Any]:
        """Settings of a retrieval's neighbours stage; `neighbours` override some of which neighbours are kept."""
        facts = {key: self.facts[name][key] for key in ("retriever", "neighbours", "index")}
        return facts | {"neighbours": facts["neighbours"] | neighbours}

    def searched(self, name: str = "") -> list[str]:
        """The index that a retrieval searches: its manifest, then its files."""
        kind = self.kind_of_index(name)
        files = FILES if kind == "bm25" else ["index.faiss"]
        return [f"{self.source(name, kind)}/{file}" for file in ["manifest.json", *files]]

    def words(self, sources: list[str], name: str = "") -> list[str]:
        """Manifests of the tokenizer and the tokens, which BM25 reads; nothing for other retrievers."""
        names = ["tokenizer", *(f"tokens/{source}" for source in sources)]
        return [f"{self._folder}/{n}/manifest.json" for n in names] if self.kind_of_index(name) == "bm25" else []
