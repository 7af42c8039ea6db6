"""Run stages in this process, as on their command line, on a small corpus made up from a seed."""

import importlib
import json
import random
import sys
from pathlib import Path
from unittest.mock import patch

from tests.base.watched import watched

TOKENIZER = {"type": "bpe", "vocab_size": 400}
SPLIT = {"by": "document", "valid": 0.15, "test": 0.15}
M = 16
STATIC = {"type": "static", "width": 64}


def stage(module: str, **options) -> None:
    """Call a stage's `main` with options: dictionaries as JSON, lists as several values.

    What runs must be what its digest covers.
    """
    arguments = [module]
    for name, value in options.items():
        arguments.append("--" + name)
        if isinstance(value, dict):
            arguments.append(json.dumps(value))
        elif isinstance(value, list):
            arguments += map(str, value)
        else:
            arguments.append(str(value))
    with patch.object(sys, "argv", arguments):
        main = importlib.import_module(module).main
        with watched(module):
            main()


def write_corpus(path: Path, documents: int, seed: int, longest: int = 120) -> None:
    """JSON lines of documents of made-up sentences; every fifth word is from a list that groups have in common."""
    rng = random.Random(seed)
    syllables = ["ka", "lo", "mi", "tu", "re", "sa", "né", "vo"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(300)]
    with open(path, "w", encoding="utf-8") as file:
        for number in range(documents):
            group = number % max(1, documents // 3)
            text = " ".join(rng.choices(words, k=rng.randint(1, longest)))
            facts = {"id": f"{path.stem}-{number}", "text": text, "group": f"g{group}", "title": f"Title {number}"}
            facts |= {"date": 2000 + number % 7} if number % 5 else {}
            file.write(json.dumps(facts, ensure_ascii=False) + "\n")


class Corpus:
    """A dataset's folder, with the sources `main`, split, and `open`, a book; made stage by stage."""

    def __init__(self, folder: Path, documents: int = 40):
        self.folder, self.names = folder, ["main", "open"]
        self.sources = {}
        for seed, name in enumerate(self.names):
            write_corpus(folder / f"{name}.jsonl", documents, seed)
            self.sources[name] = {"path": str(folder / f"{name}.jsonl"), "train": name == "main"}

    def manifest(self, kind: str, name: str = "") -> Path:
        return self.folder / "D" / kind / name / "manifest.json"

    def manifests(self, kind: str) -> list[Path]:
        return [self.manifest(kind, name) for name in self.names]

    def tokenize(self) -> "Corpus":
        common = {"split": SPLIT, "seed": 1, "on_error": "stop"}
        train = {name: source for name, source in self.sources.items() if source["train"]}
        settings = {"tokenizer": TOKENIZER, "sources": train, **common}
        stage("retro.corpus.train_tokenizer", settings=settings, output=self.manifest("tokenizer"))
        for name in self.names:
            stage(
                "retro.corpus.tokenize",
                settings={"source": self.sources[name], "name": name, **common},
                tokenizer=self.manifest("tokenizer"),
                output=self.manifest("tokens", name),
            )
        return self

    def chunk(self, length: int = M) -> "Corpus":
        for name in self.names:
            stage(
                "retro.database.chunk",
                settings={"chunk_length": length},
                tokens=self.manifest("tokens", name),
                tokenizer=self.manifest("tokenizer"),
                output=self.manifest("chunks", name),
            )
        return self

    def embed_options(self, name: str, **encoder) -> dict:
        return {
            "settings": {"encoder": encoder or STATIC, "chunk_length": M},
            "tokenizer": self.manifest("tokenizer"),
            "tokens": self.manifest("tokens", name),
            "chunks": self.manifest("chunks", name),
            "blocks": self.folder / "D" / "embeddings" / name / "blocks",
            "output": self.manifest("embeddings", name),
        }

    def embed(self, **encoder) -> "Corpus":
        for name in self.names:
            stage("retro.database.embed", **self.embed_options(name, **encoder))
        return self

    def assemble(self) -> "Corpus":
        uses = {name: {"train": source["train"], "database": True} for name, source in self.sources.items()}
        stage(
            "retro.database.assemble",
            settings={"sources": uses},
            chunks=self.manifests("chunks"),
            output=self.manifest("database"),
        )
        return self

    def index(self, **settings) -> "Corpus":
        stage(
            "retro.retrieval.index",
            settings={"index": settings, "seed": 1},
            database=self.manifest("database"),
            embeddings=self.manifests("embeddings"),
            output=self.manifest("index"),
        )
        return self

    def neighbours(
        self, split: str, output: Path | None = None, index: dict | None = None, more=(), **settings
    ) -> Path:
        output = output or self.manifest("neighbours", split)
        stage(
            "retro.retrieval.neighbours",
            settings={"retriever": "dense", "neighbours": settings, "index": index or {}, "seed": 1},
            split=split,
            database=self.manifest("database"),
            chunks=self.manifests("chunks"),
            embeddings=self.manifests("embeddings"),
            index=self.manifest("index"),
            output=output,
            **dict(more),
        )
        return output
