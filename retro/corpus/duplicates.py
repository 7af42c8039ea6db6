"""Stage: which documents of a dataset are equal, or nearly, in all its sources (MinHash, Broder 1997).

A document is the set of its shingles, runs of `shingle` tokens. The share of equal numbers in two signatures
estimates the Jaccard similarity of the sets. Candidates share a band of their signatures. Memory: some forty bytes
a document, and a block of tokens; signatures lie in a file.

A cluster is what pairs of similar documents connect. With action `drop` one document of each cluster stays in the
training split and one in the database (the first by source and number); documents that are evaluated always stay.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import rensa

from retro.base import artifacts, log, stage
from retro.base.artifacts import Manifest, read_manifest
from retro.base.hashing import mix
from retro.base.names import BOOK, SPLITS, TEST, TRAIN, VALID
from retro.base.stage import given
from retro.corpus.mmididx import TokenStore
from retro.corpus.settings import DuplicateSettings

BLOCK_TOKENS = 1 << 20
BLOCK_DOCUMENTS = 4096
LAGS = 32  # documents of one band are compared with so many before them
FOUND = 0.99  # chance, at least, that a pair just as similar as the threshold becomes a candidate


def blocks(store: TokenStore) -> Iterator[tuple[int, int]]:
    """Ranges of documents of limited size, at least one in each."""
    start = 0
    while start < len(store):
        stop = int(np.searchsorted(store.offsets, store.offsets[start] + BLOCK_TOKENS, side="right")) - 1
        stop = min(max(stop, start + 1), start + BLOCK_DOCUMENTS, len(store))
        yield start, stop
        start = stop


def hashes(tokens: np.ndarray, offsets: np.ndarray, shingle: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of documents' tokens, `offsets` int64 [d + 1]: a hash of each whole document, uint64 [d], the hashes of their
    shingles, uint64 [s], and where each document's shingles begin, int64 [d + 1].

    A document that is shorter than a shingle is one shingle. No document may be empty.
    """
    lengths, tokens = np.diff(offsets), tokens.astype(np.uint64)
    place = (np.arange(len(tokens)) - np.repeat(offsets[:-1], lengths)).astype(np.uint64)
    whole = mix(np.add.reduceat(mix((place + 1 << 32) + tokens), offsets[:-1]) + lengths.astype(np.uint64))
    windows = np.zeros(len(tokens), np.uint64)
    for step in range(shingle):
        windows[: len(tokens) - step] += mix(tokens[step:] + np.uint64(step + 1 << 32))
    windows = mix(windows)
    short = lengths < shingle
    windows[offsets[:-1][short]] = whole[short]
    kept = place.astype(np.int64) < np.repeat(np.maximum(lengths - shingle + 1, 1), lengths)
    counts = np.add.reduceat(kept.astype(np.int64), offsets[:-1])
    return whole, windows[kept], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def sign(store: TokenStore, shingle: int, seed: int, whole: np.ndarray, signatures: np.ndarray) -> Iterator[int]:
    """Fill `whole` uint64 [d] and `signatures` uint32 [d, permutations] of a store's documents, EOD left out; yields
    the number of documents done.
    """
    for start, stop in blocks(store):
        offsets = store.offsets[start : stop + 1] - store.offsets[start]
        tokens = np.asarray(store.tokens[store.offsets[start] : store.offsets[stop]])
        ends = np.zeros(len(tokens), bool)
        ends[offsets[1:] - 1] = True
        whole[start:stop], flat, at = hashes(tokens[~ends], offsets - np.arange(len(offsets)), shingle)
        found = rensa.RMinHash.digest_matrix_from_flat_token_hashes(flat, at, signatures.shape[1], seed)
        signatures[start:stop] = np.array(found.to_rows(), np.uint32)
        yield stop - start


def rows_of(permutations: int, threshold: float) -> int:
    """Numbers a band: as many as still make a pair at the threshold a candidate with a chance of `FOUND`."""
    for rows in range(permutations, 1, -1):
        if 1 - (1 - threshold**rows) ** (permutations // rows) >= FOUND:
            return rows
    return 1


class Groups:
    """Disjoint sets of documents; the smallest number stands for its set."""

    def __init__(self, count: int):
        self.parent = np.arange(count)

    def find(self, numbers: np.ndarray) -> np.ndarray:
        """The number that stands for the set of each."""
        found = self.parent[numbers]
        while not np.array_equal(above := self.parent[found], found):
            found = above
        return found

    def join(self, left: np.ndarray, right: np.ndarray) -> None:
        """Unite the sets of each pair."""
        for pair in np.stack([left, right], axis=1):
            low, high = np.sort(self.find(pair))
            self.parent[high] = low


def group_equal(whole: np.ndarray, groups: Groups) -> None:
    """Unite documents of the same hash."""
    order = np.argsort(whole, kind="stable")
    new = np.concatenate([[True], np.diff(whole[order]) != 0]) if len(order) else np.empty(0, bool)
    groups.parent[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]


def group_similar(signatures: np.ndarray, threshold: float, groups: Groups) -> Iterator[int]:
    """Unite documents whose signatures agree in a share of at least `threshold`; yields 1 for each band done."""
    rows = rows_of(signatures.shape[1], threshold)
    first = np.flatnonzero(groups.parent == np.arange(len(groups.parent)))  # one of each set of equal documents
    for band in range(signatures.shape[1] // rows):
        keys = np.empty(len(first), np.uint64)
        for start in range(0, len(first), 1 << 16):
            part = signatures[first[start : start + (1 << 16)], band * rows : (band + 1) * rows].astype(np.uint64)
            places = np.arange(1, rows + 1, dtype=np.uint64) << np.uint64(32)
            keys[start : start + len(part)] = mix(mix(part + places).sum(axis=1, dtype=np.uint64))
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        for lag in range(1, LAGS + 1):
            same = np.flatnonzero(keys[lag:] == keys[:-lag])
            if not len(same):
                break
            for start in range(0, len(same), 1 << 14):
                at = same[start : start + (1 << 14)]
                left, right = first[order[at]], first[order[at + lag]]
                apart = groups.find(left) != groups.find(right)
                left, right = left[apart], right[apart]
                alike = (signatures[left] == signatures[right]).mean(axis=1) >= threshold
                groups.join(left[alike], right[alike])
        yield 1


STAGE = "retro.corpus.duplicates"
FROM_TRAIN, FROM_DATABASE = 1, 2  # bits of dropped.npy


def find(stores: list[TokenStore], settings: DuplicateSettings, seed: int, folder: Path) -> tuple[np.ndarray, int]:
    """The number of the first document of each document's cluster, int64, documents numbered through all sources,
    and how many documents equal an earlier one.
    """
    total, shape = sum(map(len, stores)), settings.permutations
    groups, whole = Groups(total), np.empty(total, np.uint64)
    with tempfile.TemporaryFile(dir=folder) as file:
        signatures = np.memmap(file, np.uint32, "w+", shape=(max(total, 1), shape))[:total]
        with log.bar(total, "signatures", "document") as shown:
            start = 0
            for store in stores:
                part = slice(start, start + len(store))
                for done in sign(store, settings.shingle, seed, whole[part], signatures[part]):
                    shown.update(done)
                start += len(store)
        group_equal(whole, groups)
        equal = int((groups.parent != np.arange(total)).sum())
        bands = shape // rows_of(shape, settings.threshold)
        with log.bar(bands, "comparing", "band") as shown:
            for done in group_similar(signatures, settings.threshold, groups):
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
        for each in lines:
            each.close()
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
    stage.run(main)
