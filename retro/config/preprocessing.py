"""What a config asks of preprocessing: its artifacts, and what its rules read where the config decides it."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from retro.base.names import (
    BM25,
    CHUNKS,
    CUTS,
    DATABASE,
    DUPLICATES,
    EMBEDDINGS,
    INDEX,
    LISTED,
    NEIGHBOURS,
    RECORDED,
    SPLITS,
    TEST,
    TOKENIZER,
    TOKENS,
    prefix,
)
from retro.base.stage import UserError, explain
from retro.config.layers import Retrievals, filtered
from retro.config.schema import Config, DatasetSettings
from retro.corpus import files
from retro.dataset.packed import LEFT_OUT, LIST, opened


def different(facts: dict[str, Any], made: dict[str, Any]) -> tuple[str, ...]:
    """The first key in which a dataset section differs from what a dataset was made with; () if none does.

    Where corpora and tokenizer lie does not count, nor how many shards there are.
    """
    return _different(_regardless(facts), _regardless(made)) or ()


def _regardless(facts: dict[str, Any]) -> dict[str, Any]:
    sources = {name: {**source, "path": ""} for name, source in facts["sources"].items()}
    return {**facts, "sources": sources, "tokenizer": {**facts["tokenizer"], "path": "", "merges": ""}, "shards": 1}


def _different(here: Any, there: Any) -> tuple[str, ...] | None:
    """The key, of two values that are equal None."""
    if not isinstance(here, dict) or not isinstance(there, dict):
        return None if here == there else ()
    below = ((key, _different(here.get(key), there.get(key))) for key in sorted({*here, *there}))
    return next(((key, *found) for key, found in below if found is not None), None)


def _at(facts: dict[str, Any], keys: tuple[str, ...]) -> Any:
    """The value of a key."""
    for key in keys:
        facts = facts.get(key) if isinstance(facts, dict) else None  # type: ignore[assignment]
    return facts


class Preprocessing:
    """What a config asks of preprocessing. Methods that raise `UserError` say what the config lacks."""

    def __init__(self, config: Config):
        self.config, self.dataset = config, config.dataset
        self.facts = config.dataset.facts()
        self.folder = f"{config.results}/{config.dataset.name}"
        self.sources = sorted(config.dataset.sources)
        self.splits = config.evaluate.splits  # those evaluated
        self.retrievals = Retrievals(self.facts, config.retrievals, self.folder)
        dense = [name for name in config.retrievals if self.retrievals.facts[name]["retriever"] == "dense"]
        own = self.retrievals.facts[""]["encoder"]
        self.dense = [name for name in dense if self.retrievals.facts[name]["encoder"] == own]
        self.embedded_otherwise = [name for name in dense if name not in self.dense]
        count = self.dataset.shards
        self.shards = [f"{number}-of-{count}" for number in range(count)] if count > 1 else []
        self.packed = opened(self.folder)  # its list, if it was opened from a pack: then nothing of it is made here
        if self.packed:
            self._refuse_others(self.packed.dataset)

    def _refuse_others(self, recorded: dict[str, Any]) -> None:
        """Refuse settings that an opened dataset was not made with."""
        try:
            made = DatasetSettings(**recorded).facts()
        except ValidationError as error:
            raise UserError(explain(error, DatasetSettings, f"{self.folder}/{LIST}", ("dataset",))) from None
        if key := different(self.facts, made):
            raise UserError(
                f"dataset.{'.'.join(key)}: found {_at(self.facts, key)!r}, but {self.folder} was made with "
                f"{_at(made, key)!r}. It was opened from a pack, and its sources are not here to make it again: take "
                f"that value, or another dataset.name and sources of your own."
            )

    def path(self, pattern: str, **names: str) -> str:
        """A file below the dataset's folder, by a pattern of `retro.base.names`."""
        return f"{self.folder}/{pattern.format(**names)}"

    def manifest(self, pattern: str, **names: str) -> str:
        """The manifest of an artifact."""
        return f"{self.path(pattern, **names)}/manifest.json"

    def read(self) -> dict[str, dict[str, Any]]:
        """What is read of each source; `weight` and `database` only say what is done with it."""
        unread = ("weight", "database")
        return {
            name: {key: value for key, value in source.items() if key not in unread}
            for name, source in self.facts["sources"].items()
        }

    def settings(self, *keys: str) -> dict[str, Any]:
        """Some of the dataset's facts."""
        return {key: self.facts[key] for key in keys}

    def uses(self, *keys: str) -> dict[str, dict[str, bool]]:
        """What is done with each source: `train`, `database` or both."""
        return {name: {key: source[key] for key in keys} for name, source in self.facts["sources"].items()}

    def learned_from(self) -> dict[str, dict[str, Any]]:
        """Sources that the tokenizer is trained on: none where it is given, so that a new one changes no other."""
        learned = self.dataset.tokenizer.type == "bpe"
        return {name: each for name, each in self.read().items() if each["train"] and learned}

    def duplicates(self, *actions: str) -> list[str]:
        """The manifest of duplicate documents, if the config's action is one of these."""
        return [self.manifest(DUPLICATES)] if self.dataset.duplicates.action in actions else []

    def embeddings(self, retrieval: str, file: str) -> list[str]:
        """A file of the embeddings of every source that a retrieval searches."""
        folder = self.retrievals.source(retrieval, "embeddings")
        if self.lacks_vectors and folder == f"{self.folder}/embeddings" and file != "manifest.json":
            raise UserError(
                f"{folder}: the dataset was packed without embeddings, which this needs. Open a pack that has them, or "
                f"ask for what does without: train_all."
            )
        return [f"{folder}/{source}/{file}" for source in self.sources]

    def neighbours(self, retrieval: str, split: str) -> str:
        """The manifest of a retrieval's neighbours."""
        return self.manifest(NEIGHBOURS, retrieval=prefix(retrieval), split=split)

    def retrieved(self) -> list[str]:
        """Neighbours of the evaluated splits by every retrieval of the config."""
        return [self.neighbours(name, split) for name in self.retrievals.named for split in self.splits]

    def drawn(self) -> list[str]:
        """Names of the retrievals whose indexes are drawn: those over the dataset's own embeddings."""
        if not self.dense:
            others = ", ".join(self.embedded_otherwise)
            but = f", but {others}, whose encoders are others" if others else ""
            raise UserError(
                f"retrievals: the config names none with an index over the dataset's own embeddings{but}. Take "
                f"config/indexes.yaml, or name some."
            )
        return self.dense

    def preprocessed(self) -> list[str]:
        """Every durable artifact of preprocessing, arrays and manifests."""
        tokens = ("tokens.bin", "tokens.idx", "documents.npy", "documents.jsonl", "skipped.jsonl")
        per_source = [f"{CHUNKS}/chunks.npy", *([] if self.lacks_vectors else [f"{EMBEDDINGS}/embeddings.npy"])]
        per_source += [f"{TOKENS}/{file}" for file in tokens]
        per_split = [f"{NEIGHBOURS}/{file}" for file in ("ids.npy", "scores.npy")]
        files = [self.path(pattern, source=name, retrieval="") for name in self.sources for pattern in per_source]
        files += [self.path(pattern, split=split, retrieval="") for split in LISTED for pattern in per_split]
        files += [self.path(f"{DATABASE}/{name}.npy") for name in ("database", *LISTED)]
        recorded = [self.path(RECORDED, cut=cut) for cut in CUTS]
        return [*recorded, self.path(f"{INDEX}/index.faiss", retrieval=""), *files, *self.manifests()]

    @property
    def lacks_vectors(self) -> bool:
        """Whether the dataset was opened from a pack without embeddings."""
        return self.packed is not None and LEFT_OUT in self.packed.without

    @property
    def dropping(self) -> bool:
        """Whether what is trained on of a source depends on the others, and stands in the database's lists alone."""
        return self.dataset.duplicates.action == "drop"

    @property
    def texts(self) -> list[str]:
        """The sources that are read without retrieval: those trained on."""
        return [name for name in self.sources if self.dropping or self.facts["sources"][name]["train"]]

    def manifests(self, cut: str = "") -> list[str]:
        """Manifests of every artifact of preprocessing, of which the recorded config names the sha256; or of those that
        a cut of it names.
        """
        if cut == "-gpt":
            own = [TOKENIZER, *([DATABASE] if self.dropping else [])]
            own += [each.format(source=name) for each in (TOKENS, CHUNKS) for name in self.texts]
            return [self.manifest(name) for name in own]
        own = [TOKENIZER, DATABASE, INDEX]
        own += [BM25] if "bm25" in self.retrievals.indexes("") else []
        found = [self.manifest(pattern, retrieval="") for pattern in own]
        per_source = (TOKENS, CHUNKS, EMBEDDINGS)
        found += [self.manifest(each, source=name, retrieval="") for each in per_source for name in self.sources]
        found += [self.neighbours("", split) for split in LISTED if not cut or split != SPLITS[TEST]]
        return found + self.duplicates("report", "exclude", "drop")

    def recorded_facts(self, cut: str) -> dict[str, Any]:
        """What is recorded of the dataset section: all, what is read of it without retrieval, or without test."""
        if cut == "-retro":
            return {**self.facts, "neighbours": filtered(self.facts["neighbours"], *LISTED[:TEST])}
        if cut != "-gpt":
            return self.facts
        read = ("train", "weight")
        sources = {name: self.facts["sources"][name] for name in self.texts}
        kept = {name: {key: source[key] for key in read if key in source} for name, source in sources.items()}
        return {**self.settings("chunk_length", "samples", "seed", "tokenizer"), "sources": kept}

    def stored(self, stage: str) -> list[str]:
        """Manifests of the dataset that a stage made, and of those of its retrievals that were made so far."""
        own = [path for path in self.manifests() if path.startswith(f"{self.folder}/{stage}/")]
        folders = [Path(self.retrievals.folder(name), stage) for name in self.retrievals.named]
        return own + [path.as_posix() for folder in folders for path in sorted(folder.glob("**/manifest.json"))]

    def validated(self) -> dict[str, int]:
        """Stages that `snakemake validate` recomputes, each with its number of threads."""
        threads = self.config.resources
        found = {"tokens": threads.tokenize_threads, "chunks": 1, "database": 1, "embeddings": threads.embed_threads}
        found |= dict.fromkeys(("index", "neighbours"), threads.search_threads)
        gone = {"tokens"} if self.packed else set()
        gone |= {"embeddings", "index", "neighbours"} if self.lacks_vectors else set()
        return {stage: count for stage, count in found.items() if stage not in gone}

    def encoder_files(self, retrieval: str, source: str) -> list[str]:
        """What an encoder reads of the folders that the config names: settings, word pieces, weights; of vectors that
        are given, those of the source.
        """
        facts, read = self.retrievals.facts[retrieval]["encoder"], (".json", ".txt", ".safetensors")
        given = [f"{facts['path']}/{source}.npy"] if facts["type"] == "given" else []
        folders = [facts[key] for key in ("query_path" if given else "path", "query_path") if facts[key] is not None]
        places = [path for folder in dict.fromkeys(folders) for path, _ in files.walk(Path(folder))]
        found = [str(path) for path in places if path.suffix in read]
        return [*given, *found]
