"""A small dataset preprocessed by the real stages, once a test run."""

import json

import pytest

from retro.base.artifacts import canonical
from retro.config.schema import DatasetSettings
from retro.dataset.dataset import Dataset
from tests.database.stages import SPLIT, STATIC, TOKENIZER, Corpus, M, stage

SAVED = 6


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Corpus:
    """Everything up to a flat index. Read it only; write neighbours elsewhere."""
    return Corpus(tmp_path_factory.mktemp("corpus")).tokenize().chunk().embed().assemble().index()


@pytest.fixture(scope="session")
def dataset(corpus) -> Dataset:
    """The dataset with neighbours of all splits, opened by its recorded config."""
    exclude = ["document", "group"]
    manifests = [corpus.manifest(kind) for kind in ("tokenizer", "database", "index")]
    manifests += [path for kind in ("tokens", "chunks", "embeddings") for path in corpus.manifests(kind)]
    for split in ("train", "valid", "test"):
        manifests.append(corpus.neighbours(split, saved=SAVED, exclude=exclude))
    settings = DatasetSettings(
        name="D",
        sources=corpus.sources,
        split=SPLIT,
        tokenizer=TOKENIZER,
        chunk_length=M,
        encoder=STATIC,
        neighbours={"saved": SAVED, "exclude": exclude},
        samples={"seq_length": 4 * M},
    )
    output = corpus.folder / "D" / "config.json"
    facts = json.loads(canonical(settings.facts()))
    stage("retro.dataset.dataset", settings=facts, manifests=manifests, output=output)
    return Dataset.open(output)
