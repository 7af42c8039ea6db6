"""Stage: which documents of a dataset are equal, or nearly, in all its sources.

Documents are compared by their tokens. A cluster is what pairs of similar documents connect. With action `drop`
one document of each cluster stays in the training split and one in the database (the first by source and number);
documents that are evaluated always stay.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from retro import artifacts, errors, progress
from retro.arguments import given
from retro.artifacts import Manifest, read_manifest
from retro.corpus import minhash
from retro.corpus.mmididx import TokenStore
from retro.corpus.settings import DuplicateSettings
from retro.database.tables import BOOK, SPLITS, TEST, TRAIN, VALID

STAGE = "retro.corpus.duplicates"
FROM_TRAIN, FROM_DATABASE = 1, 2  # bits of dropped.npy


def find(stores: list[TokenStore], settings: DuplicateSettings, seed: int, folder: Path) -> tuple[np.ndarray, int]:
    """The number of the first document of each document's cluster, int64, documents numbered through all sources,
    and how many documents equal an earlier one.
    """
    total, shape = sum(map(len, stores)), settings.permutations
    groups, whole = minhash.Groups(total), np.empty(total, np.uint64)
    with tempfile.TemporaryFile(dir=folder) as file:
        signatures = np.memmap(file, np.uint32, "w+", shape=(max(total, 1), shape))[:total]
        with progress.bar(total, "signatures", "document") as shown:
            start = 0
            for store in stores:
                part = slice(start, start + len(store))
                for done in minhash.sign(store, settings.shingle, seed, whole[part], signatures[part]):
                    shown.update(done)
                start += len(store)
        minhash.group_equal(whole, groups)
        equal = int((groups.parent != np.arange(total)).sum())
        bands = shape // minhash.rows_of(shape, settings.threshold)
        with progress.bar(bands, "comparing", "band") as shown:
            for done in minhash.group_similar(signatures, settings.threshold, groups):
                shown.update(done)
        del signatures
    return groups.find(np.arange(total)), equal


def dropped(clusters: np.ndarray, split: np.ndarray, database: np.ndarray, settings: DuplicateSettings) -> np.ndarray:
    """uint8 for each document: `FROM_TRAIN`, `FROM_DATABASE`, both or 0. `database`: whether it is in the database."""
    found = np.zeros(len(clusters), np.uint8)
    if settings.action != "drop":
        return found
    for name, bit, members in (("train", FROM_TRAIN, split == TRAIN), ("database", FROM_DATABASE, database)):
        if name in settings.drop_from:
            numbers = np.flatnonzero(members)
            _, firsts = np.unique(clusters[numbers], return_index=True)
            found[np.delete(numbers, firsts)] |= bit
    return found


def across(clusters: np.ndarray, source: np.ndarray, names: list[str]) -> dict[str, int]:
    """`a in b`: documents of source a that have a duplicate in source b; `a in a`: an earlier or later one in a."""
    found = {}
    members = [np.unique(clusters[source == number], return_counts=True) for number in range(len(names))]
    for a, name in enumerate(names):
        own = clusters[source == a]
        for b, other in enumerate(names):
            keys, counts = members[b]
            found[f"{name} in {other}"] = int(np.isin(own, keys[counts > 1] if a == b else keys).sum())
    return found


def write_clusters(path: Path, clusters: np.ndarray, manifests: list[Manifest], starts: np.ndarray) -> tuple[int, int]:
    """One JSON line for each cluster of more than one document; how many there are, and the largest."""
    _keys, counts = np.unique(clusters, return_counts=True)
    order = np.argsort(clusters, kind="stable")
    ends = np.cumsum(counts)
    lines = [open(manifest.file("documents.jsonl"), "rb") for manifest in manifests]  # noqa: SIM115
    tables = [manifest.array("documents.npy") for manifest in manifests]
    try:
        with artifacts.replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for number in np.flatnonzero(counts > 1):
                documents = []
                for document in order[ends[number] - counts[number] : ends[number]]:
                    source = int(np.searchsorted(starts, document, side="right")) - 1
                    row = tables[source][document - starts[source]]
                    lines[source].seek(int(row["offset"]))
                    facts = json.loads(lines[source].readline())
                    place = {"source": manifests[source].folder.name, "number": int(document - starts[source])}
                    documents.append({**place, "id": facts["id"], "split": SPLITS[row["split"]]})
                file.write(json.dumps({"documents": documents}, ensure_ascii=False) + "\n")
    finally:
        for file in lines:
            file.close()
    return int((counts > 1).sum()), int(counts.max(initial=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", required=True, type=given, help="JSON: duplicates, sources, seed")
    parser.add_argument("--tokens", required=True, nargs="+", type=Path, help="manifests, sources in order")
    parser.add_argument("--output", required=True, type=Path, help="manifest to write")
    options = parser.parse_args()
    settings, seed = DuplicateSettings(**options.settings["duplicates"]), options.settings["seed"]
    folder = options.output.parent
    folder.mkdir(parents=True, exist_ok=True)
    options.output.unlink(missing_ok=True)
    manifests = [read_manifest(path, "tokens") for path in options.tokens]
    names = [manifest.folder.name for manifest in manifests]
    stores = [TokenStore(manifest.file("tokens.bin").with_suffix("")) for manifest in manifests]
    clusters, equal = find(stores, settings, seed, folder)
    starts = np.cumsum([0, *map(len, stores)])
    split = np.concatenate([manifest.array("documents.npy")["split"] for manifest in manifests])
    source = np.repeat(np.arange(len(names)), np.diff(starts))
    served = np.array([options.settings["sources"][name]["database"] for name in names])
    gone = dropped(clusters, split, ((split == TRAIN) | (split == BOOK)) & served[source], settings)
    number, largest = write_clusters(folder / "clusters.jsonl", clusters, manifests, starts[:-1])
    artifacts.write_array(folder / "clusters.npy", clusters)
    artifacts.write_array(folder / "dropped.npy", gone)
    seen, held_out = np.unique(clusters[split == TRAIN]), (split == VALID) | (split == TEST)
    counts = {
        "documents": len(clusters),
        "equal": equal,
        "near": len(clusters) - len(np.unique(clusters)) - equal,
        "clusters": number,
        "largest_cluster": largest,
        "held_out_seen_in_train": int(np.isin(clusters[held_out], seen).sum()),
        "dropped_from_train": int((gone & FROM_TRAIN > 0).sum()),
        "dropped_from_database": int((gone & FROM_DATABASE > 0).sum()),
        "documents_of_source_in_source": across(clusters, source, names),
    }
    artifacts.write_manifest(
        options.output,
        kind="duplicates",
        stage=STAGE,
        files=[folder / name for name in ("clusters.npy", "clusters.jsonl", "dropped.npy")],
        inputs=options.tokens,
        settings=options.settings,
        counts=counts,
        seed=seed,
    )
    told = ", ".join(f"{value} {key.replace('_', ' ')}" for key, value in counts.items() if isinstance(value, int))
    print(f"{folder}: {told}", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
