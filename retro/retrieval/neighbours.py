"""Stage: the K neighbours of each chunk of a split, from the database.

Neighbours never share a document with their chunk, nor what else the config excludes. They are ordered by
the exact score of `retro.retrieval.scores`, ties by id, so ids depend neither on threads nor on block
sizes. A missing neighbour, −1, means that there are fewer than K admissible chunks in the whole database.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from retro import errors, progress, provenance
from retro.artifacts import growing_array, open_array, read_manifest, sha256, write_manifest
from retro.database.blocks import Blocks
from retro.database.settings import read_section
from retro.retrieval.approximate import ApproximateSearch, open_index
from retro.retrieval.exact import ExactSearch
from retro.retrieval.exclusion import Exclusion, rules_of
from retro.retrieval.settings import IndexSettings, NeighbourSettings
from retro.retrieval.vectors import Vectors

STAGE = "retro.retrieval.neighbours"
BLOCK = 1 << 14  # chunks
FOUND = [("id", "<i8"), ("score", "<f2")]
RECALL_AT = (1, 2, 10)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def recall(found: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Share of the exact first k that are among the found first k, for k 1, 2, 10 and K; of [n, K] ids
    each.
    """
    shares, width = {}, exact.shape[1]
    for k in sorted({min(k, width) for k in (*RECALL_AT, width)}):
        wanted = exact[:, :k]
        hit = (wanted[:, :, None] == found[:, None, :k]).any(axis=2) & (wanted >= 0)
        shares[str(k)] = round(float(hit.sum() / max((wanted >= 0).sum(), 1)), 4)
    return shares


def quantiles(scores: np.ndarray) -> dict[str, float]:
    """Quantiles of the scores that are not holes."""
    real = scores[np.isfinite(scores)].astype(np.float64)
    if not len(real):
        return {}
    return {str(q): round(float(v), 4) for q, v in zip(QUANTILES, np.quantile(real, QUANTILES), strict=True)}


def collect(blocks: Blocks, bounds: list[tuple[int, int]], folder: Path, shape: tuple[int, int], size: int) -> dict:
    """Write ids.npy and scores.npy [C, K] from the finished blocks; the counts for the manifest.

    `size` is that of the database: ids are int32 as long as they fit.
    """
    holes = incomplete = 0
    edges = np.empty((shape[0], 2), np.float16)  # first and last score of each chunk
    with (
        growing_array(folder / "ids.npy", shape, np.int32 if size < 2**31 else np.int64) as ids,
        growing_array(folder / "scores.npy", shape, np.float16) as scores,
    ):
        for start, stop in bounds:
            found = blocks.read(start, stop)
            ids[start:stop], scores[start:stop] = found["id"], found["score"]
            edges[start:stop] = found["score"][:, [0, -1]]
            missing = found["id"] < 0
            holes, incomplete = holes + int(missing.sum()), incomplete + int(missing.any(axis=1).sum())
    return {
        "chunks": shape[0],
        "holes": holes,
        "chunks_with_holes": incomplete,
        "first_score_quantiles": quantiles(edges[:, 0]),
        "last_score_quantiles": quantiles(edges[:, 1]),
    }


def recall_counts(
    ids: np.ndarray, sample: np.ndarray, truth: Callable[[np.ndarray], np.ndarray] | None
) -> dict[str, Any]:
    """Recall of the neighbours `ids` [C, K] for the manifest; `truth` gives the exact ones of a sample of chunks."""
    if truth is None:
        shares = dict.fromkeys(recall(ids[:0], ids[:0]), 1.0)
        return {"recall": shares, "recall_of": "exact search: 1 by construction"}
    shares = recall(ids[sample], truth(sample))
    return {"recall": shares, "recall_of": f"{len(sample)} chunks against exact search"}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", required=True, type=json.loads, help="JSON: neighbours, index, seed")
    parser.add_argument("--split", required=True, choices=["train", "valid", "test"])
    parser.add_argument("--database", required=True, type=Path, help="manifest of the database")
    parser.add_argument("--chunks", required=True, nargs="+", type=Path, help="manifests, sources in order")
    parser.add_argument("--embeddings", required=True, nargs="+", type=Path, help="manifests, sources in order")
    parser.add_argument("--index", required=True, type=Path, help="manifest of the index")
    parser.add_argument("--duplicates", nargs="*", default=[], type=Path, help="manifest: what to exclude, if anything")
    parser.add_argument("--output", required=True, type=Path, help="manifest to write")
    parser.add_argument("--blocks", type=Path, help="folder for finished blocks; default: beside the output")
    parser.add_argument("--block", type=int, default=BLOCK, help="chunks a block")
    parser.add_argument("--threads", type=int, default=1, help="CPU cores to use")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    settings = read_section(NeighbourSettings, options.settings["neighbours"], "neighbours")
    index_settings = read_section(IndexSettings, options.settings["index"], "index")
    k, rules, folder = settings.saved, rules_of(settings.exclude), options.output.parent
    faiss.omp_set_num_threads(options.threads)
    listed, index = read_manifest(options.database, "database"), read_manifest(options.index, "index")
    database, rows = listed.array("database.npy"), listed.array(f"{options.split}.npy")
    vectors, exclusion = Vectors(options.embeddings), Exclusion(rules, options.chunks, database, *options.duplicates)
    search = exact = ExactSearch(vectors, database, options.threads)
    if not index.settings["exact"]:
        search = ApproximateSearch(open_index(index.file("index.faiss"), index_settings), exact, index_settings)
    print(
        f"neighbours of {options.split}: {len(rows)} chunks, {k} each, among {len(database)}, by "
        f"{index.settings['factory']}; excluded: same {', '.join(rules)}",
        file=sys.stderr,
    )
    inputs = [options.database, *options.chunks, *options.embeddings, options.index, *options.duplicates]
    made_from = {
        "settings": options.settings,
        "split": options.split,
        "inputs": [sha256(path) for path in inputs],
        "code": provenance.digest(STAGE),
        "versions": provenance.versions(),
    }
    starts = range(0, len(rows), options.block)
    bounds = [(start, min(start + options.block, len(rows))) for start in starts]
    with Blocks(options.blocks or folder / "blocks", made_from, (k,), FOUND) as blocks:
        with progress.bar(len(rows), f"neighbours {options.split}", "chunk") as shown:
            for start, stop in bounds:
                if blocks.read(start, stop) is not None:
                    shown.update(stop - start)
                    shown.unpause()  # what was already there does not count in the rate
                    continue
                here, found = rows[start:stop], np.empty((stop - start, k), FOUND)
                found["id"], found["score"] = search.search(vectors.read(here), k, exclusion.of(here), shown.update)
                blocks.write(start, found)
        counts = collect(blocks, bounds, folder, (len(rows), k), len(database))

        def truth(sample: np.ndarray) -> np.ndarray:
            print(f"neighbours of {options.split}: exact search of {len(sample)} chunks for recall", file=sys.stderr)
            return exact.search(vectors.read(rows[sample]), k, exclusion.of(rows[sample]))[0]

        chosen = np.random.default_rng(options.settings["seed"])
        sample = np.sort(chosen.choice(len(rows), min(settings.recall_sample, len(rows)), replace=False))
        ids = open_array(folder / "ids.npy")
        counts |= recall_counts(ids, sample, None if search is exact else truth)
        write_manifest(
            options.output,
            kind="neighbours",
            stage=STAGE,
            files=[folder / "ids.npy", folder / "scores.npy"],
            inputs=inputs,
            settings={**options.settings, "factory": index.settings["factory"]},
            counts=counts,
            seed=options.settings["seed"],  # threads change no id: not recorded
        )
        blocks.remove()
    told = ", ".join(f"recall@{k} {share:.3f}" for k, share in counts["recall"].items())
    print(f"{folder}: {len(rows)} x {k} neighbours, {counts['holes']} holes, {told}", file=sys.stderr)
    if search is not exact and search.fallen_back:
        print(f"{folder}: the index gave too few for {search.fallen_back} chunks, searched exactly", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
