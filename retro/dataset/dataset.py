"""The recorded config: what preprocessing decided, and the only way training and evaluation get at the data.

The stage writes it, results/<dataset>/config.json, when preprocessing is complete. It holds what Megatron-LM's
preprocessing recorded (data paths, sequence length, samples, batch size, evaluation interval and iterations,
tokenizer, seed) and what that forgot: vocabulary size, EOD and pad ids, split rule, encoder, index, neighbours, and
the sha256 of every artifact's manifest. It also writes what of this a training reads (`retro.base.names.CUTS`): a
recorded config like the whole one that names fewer artifacts, and without retrieval fewer settings and sources.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from retro.base import stage
from retro.base.artifacts import Manifest, read_json, read_manifest, release, sha256, write_json
from retro.base.names import LISTED, SPLITS, TRAIN
from retro.base.stage import UserError, given, read_section
from retro.corpus.tokenizers import Tokenizer
from retro.dataset.settings import SampleSettings
from retro.dataset.store import ChunkStore

KEYS = {"chunk_length", "manifests", "samples", "source_order", "tokenizer"}  # that everything reads


@dataclass(frozen=True)
class Dataset:
    """A preprocessed dataset, opened by its config.json. Every manifest it names must be the one recorded."""

    path: Path
    facts: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "Dataset":
        """Read results/<dataset>/config.json and refuse, by name, artifacts that were remade since."""
        path = Path(path)
        facts = read_json(path)
        if not isinstance(facts, dict) or facts.get("kind") != "recorded config" or not facts.keys() >= KEYS:
            raise UserError(f"{path}: not a recorded config. Delete it and run snakemake again.")
        for name, wanted in facts["manifests"].items():
            manifest = path.parent / name
            found = sha256(manifest) if manifest.exists() else None
            if found != wanted:
                state = "is missing" if found is None else f"changed (sha256 {found[:16]}…)"
                raise UserError(
                    f"{manifest}: {state}; {path} recorded {wanted[:16]}…. Run snakemake: it makes again what is stale."
                )
        return cls(path, facts)

    @property
    def folder(self) -> Path:
        return self.path.parent

    def manifest(self, name: str, kind: str | None = None) -> Manifest:
        """A manifest of the dataset by its path below the folder, e.g. `neighbours/train/manifest.json`."""
        return read_manifest(self.folder / name, kind)

    def check(self) -> None:
        """Compare every file of every artifact with its recorded sha256."""
        for name in self.facts["manifests"]:
            self.manifest(name).check()

    @property
    def chunk_length(self) -> int:
        return self.facts["chunk_length"]

    @property
    def seq_length(self) -> int:
        return self.facts["samples"]["seq_length"]

    @property
    def vocab_size(self) -> int:
        return self.facts["tokenizer"]["vocab_size"]

    @property
    def sources(self) -> list[str]:
        """Names of the sources, in the order that numbers them."""
        return self.facts["source_order"]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer.load(self.folder / "tokenizer/manifest.json")

    @cached_property
    def store(self) -> ChunkStore:
        return ChunkStore(
            self.sources,
            [self.folder / "tokens" / name / "manifest.json" for name in self.sources],
            [self.folder / "chunks" / name / "manifest.json" for name in self.sources],
            self.chunk_length,
            self.facts["tokenizer"]["pad_id"],
        )

    @cached_property
    def database(self) -> np.ndarray:
        """Global row of each database chunk, int64 [N]; a neighbour id is a position in it."""
        return self.manifest("database/manifest.json", "database").array("database.npy")

    def rows(self, split: str) -> np.ndarray:
        """Global row of each chunk of a split, int64 [C], documents in source order."""
        if self.has_database:
            return self.manifest("database/manifest.json", "database").array(f"{split}.npy")
        return self._lists[split]

    @property
    def has_database(self) -> bool:
        """Whether the database is recorded. Without it global rows number the sources that are trained on alone."""
        return "database/manifest.json" in self.facts["manifests"]

    @cached_property
    def _lists(self) -> dict[str, np.ndarray]:
        """Of each split `rows`, from the chunk tables."""
        found: dict[str, list[np.ndarray]] = {split: [] for split in LISTED}
        for table, offset in zip(self.store.tables, self.store.offsets, strict=False):
            number = np.array(table["split"])
            release(table)
            for split, rows in found.items():
                rows.append(np.flatnonzero(number == SPLITS.index(split)) + offset)
        return {split: np.concatenate(rows) for split, rows in found.items()}

    def neighbour_ids(self, split: str) -> np.ndarray:
        """Database ids of each chunk's neighbours, int [C, K], best first, −1 where there are none left."""
        return self.manifest(f"neighbours/{split}/manifest.json", "neighbours").array("ids.npy")

    def neighbour_rows(self, ids: np.ndarray) -> np.ndarray:
        """Global rows of database ids, −1 kept."""
        ids = np.asarray(ids)
        return np.where(ids >= 0, self.database[np.maximum(ids, 0)], -1)


STAGE = "retro.dataset.dataset"


def trained_on(manifests: dict[str, Manifest]) -> int:
    """Chunks of the training split: as the database lists them, without one all that were cut."""
    database = manifests.get("database/manifest.json")
    if database is not None:
        return database.counts["train"]
    cut = [manifest for name, manifest in manifests.items() if name.startswith("chunks/")]
    return sum(manifest.counts["by_split"].get(SPLITS[TRAIN], 0) for manifest in cut)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", required=True, type=given, help="the dataset section, as JSON")
    parser.add_argument("--manifests", required=True, nargs="+", type=Path, help="manifests of every artifact")
    parser.add_argument("--output", required=True, type=Path, help="config.json to write")
    options = parser.parse_args()
    settings, folder = options.settings, options.output.parent
    manifests = {os.path.relpath(path, folder): read_manifest(path) for path in options.manifests}
    for name, manifest in manifests.items():
        for made_from, wanted in manifest.facts["inputs"].items():
            path = manifest.folder / made_from
            if path.name == "manifest.json" and sha256(path) != wanted:
                raise UserError(f"{folder / name}: was made from another {path}. Run snakemake: it makes it again.")
    tokenizer = manifests.get("tokenizer/manifest.json")
    if tokenizer is None:
        raise UserError(f"--manifests: {', '.join(manifests)}; tokenizer/manifest.json is wanted, too. Run snakemake.")
    wanted, chunks = read_section(SampleSettings, settings["samples"], "samples"), trained_on(manifests)
    samples = wanted.resolved(chunks, settings["chunk_length"])
    write_json(
        options.output,
        {
            "kind": "recorded config",
            "format": 1,
            **settings,
            "samples": samples.facts(),
            "source_order": sorted(settings["sources"]),
            "tokenizer": {**settings["tokenizer"], **tokenizer.counts},
            "counts": {name: manifest.counts for name, manifest in manifests.items()},
            "manifests": {name: sha256(folder / name) for name in manifests},
        },
    )
    for line in wanted.told(samples, chunks):
        print(f"{options.output}: {line}", file=sys.stderr)


if __name__ == "__main__":
    stage.run(main)
