"""Stage: the K neighbours of each chunk of a split, from the database.

Neighbours never share a document with their chunk, nor what else the config excludes. They are ordered by
the exact score of `retro.retrieval.scores`, ties by id, so ids depend neither on threads nor on block
sizes. A missing neighbour, −1, means that there are fewer than K admissible chunks in the whole database.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from retro import errors, progress, provenance
from retro.artifacts import growing_array, read_manifest, sha256, write_manifest
from retro.database.blocks import Blocks
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


def summarise(found: np.ndarray) -> dict[str, Any]:
    """Counts for the manifest, of ids and scores FOUND [C, K]."""
    holes = found["id"] < 0
    return {
        "chunks": len(found),
        "holes": int(holes.sum()),
        "chunks_with_holes": int(holes.any(axis=1).sum()),
        "first_score_quantiles": quantiles(found["score"][:, 0]),
        "last_score_quantiles": quantiles(found["score"][:, -1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", required=True, type=json.loads, help="JSON: neighbours, index, seed")
    parser.add_argument("--split", required=True, choices=["train", "valid", "test"])
    parser.add_argument("--database", required=True, type=Path, help="manifest of the database")
    parser.add_argument("--chunks", required=True, nargs="+", type=Path, help="manifests, sources in order")
    parser.add_argument("--embeddings", required=True, nargs="+", type=Path, help="manifests, sources in order")
    parser.add_argument("--index", required=True, type=Path, help="manifest of the index")
    parser.add_argument("--output", required=True, type=Path, help="manifest to write")
    parser.add_argument("--blocks", type=Path, help="folder for finished blocks; default: beside the output")
    parser.add_argument("--block", type=int, default=BLOCK, help="chunks a block")
    parser.add_argument("--threads", type=int, default=1, help="CPU cores to use")
    options = parser.parse_args()
    settings = NeighbourSettings(**options.settings["neighbours"])
    index_settings, k = IndexSettings(**options.settings["index"]), settings.saved
    faiss.omp_set_num_threads(options.threads)
    listed, index = read_manifest(options.database, "database"), read_manifest(options.index, "index")
    database, rows = listed.array("database.npy"), listed.array(f"{options.split}.npy")
    vectors = Vectors(options.embeddings)
    exclusion = Exclusion(rules_of(settings.exclude), options.chunks, database)
    exact = ExactSearch(vectors, database, options.threads)
    search = exact
    if not index.settings["exact"]:
        search = ApproximateSearch(open_index(index.file("index.faiss"), index_settings), exact, index_settings)
    print(
        f"neighbours of {options.split}: {len(rows)} chunks, {k} each, among {len(database)}, by "
        f"{index.settings['factory']}; excluded: same {', '.join(rules_of(settings.exclude))}",
        file=sys.stderr,
    )
    inputs = [options.database, *options.chunks, *options.embeddings, options.index]
    made_from = {
        "settings": options.settings,
        "split": options.split,
        "inputs": [sha256(path) for path in inputs],
        "code": provenance.digest(STAGE),
        "versions": provenance.versions(),
    }
    folder = options.output.parent
    starts = range(0, len(rows), options.block)
    with Blocks(options.blocks or folder / "blocks", made_from, (k,), FOUND) as blocks:
        with progress.bar(len(rows), f"neighbours {options.split}", "chunk") as shown:
            for start in starts:
                part = rows[start : start + options.block]
                if blocks.read(start, start + len(part)) is not None:
                    shown.update(len(part))
                    shown.unpause()
                    continue
                ids, scores = search.search(vectors.read(part), k, exclusion.of(part), shown.update)
                found = np.empty(ids.shape, FOUND)
                found["id"], found["score"] = ids, scores
                blocks.write(start, found)
        shape = (len(rows), k)
        found = np.empty(shape, FOUND)
        for start in starts:
            stop = min(start + options.block, len(rows))
            found[start:stop] = blocks.read(start, stop)
        counts = summarise(found)
        if index.settings["exact"]:
            counts |= {
                "recall": recall(found["id"][:1], found["id"][:1]),
                "recall_of": "exact by construction",
            }
        else:
            chosen = np.random.default_rng(options.settings["seed"])
            size = min(settings.recall_sample, len(rows))
            sample = np.sort(chosen.choice(len(rows), size, replace=False))
            print(f"neighbours of {options.split}: exact search for recall on {size} chunks", file=sys.stderr)
            truth = exact.search(vectors.read(rows[sample]), k, exclusion.of(rows[sample]))[0]
            counts |= {
                "recall": recall(found["id"][sample], truth),
                "recall_of": f"{size} chunks against exact search",
                "searched_exactly": search.fallen_back,
            }
        files = [folder / "ids.npy", folder / "scores.npy"]
        with growing_array(files[0], shape, np.int32 if len(database) < 2**31 else np.int64) as ids:
            ids[:] = found["id"]
        with growing_array(files[1], shape, np.float16) as scores:
            scores[:] = found["score"]
        write_manifest(
            options.output,
            kind="neighbours",
            stage=STAGE,
            files=files,
            inputs=inputs,
            settings={**options.settings, "factory": index.settings["factory"]},
            counts=counts,
            seed=options.settings["seed"],
            threads=options.threads,
        )
        blocks.remove()
    told = ", ".join(f"recall@{k} {share:.3f}" for k, share in counts["recall"].items())
    print(f"{folder}: {len(rows)} x {k} neighbours, {counts['holes']} holes, {told}", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
