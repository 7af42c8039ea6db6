"""Stage: the K neighbours of each chunk of a split, from the database.

Neighbours never share a document with their chunk, nor what else the config excludes. They are ordered by
the exact score of `retro.retrieval.exact`, ties by id, so ids depend neither on threads nor on block
sizes. A missing neighbour, −1, means that there are fewer than K admissible chunks in the whole database.
Several jobs can share the work (`retro.base.shards`).
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from retro.base import log, provenance, shards, stage
from retro.base.artifacts import growing_array, open_array, read_manifest, release, sha256, write_manifest
from retro.base.names import LISTED
from retro.base.shards import Blocks
from retro.base.stage import given, read_section, whole
from retro.corpus.tokenizers import Tokenizer
from retro.dataset.store import Vectors, open_store
from retro.retrieval.exact import ExactSearch
from retro.retrieval.exclusion import Exclusion, rules_of
from retro.retrieval.filter import Filter, Filtered
from retro.retrieval.retrievers import Dense, Retriever, exactly, open_retriever
from retro.retrieval.settings import IndexSettings, NeighbourSettings

STAGE = "retro.retrieval.neighbours"
BLOCK = 1 << 14  # chunks
FOUND = [("id", "<i8"), ("score", "<f2")]
RECALL_AT = (1, 2, 10)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def firsts(width: int) -> list[int]:
    """Of how many of the first recall is told, of `width` neighbours."""
    return sorted({min(k, width) for k in (*RECALL_AT, width)})


def recall(found: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Share of the exact first k that are among the found first k, for k 1, 2, 10 and K; of [n, K] ids
    each. Nothing where there is nothing to find: no share of it is right or wrong.
    """
    shares: dict[str, float] = {}
    for k in firsts(exact.shape[1]) if (exact >= 0).any() else ():
        wanted = exact[:, :k]
        hit = (wanted[:, :, None] == found[:, None, :k]).any(axis=2) & (wanted >= 0)
        shares[str(k)] = round(float(hit.sum() / (wanted >= 0).sum()), 4)
    return shares


def quantiles(scores: np.ndarray) -> dict[str, float]:
    """Quantiles of the scores that are not holes."""
    real = scores[np.isfinite(scores)].astype(np.float64)
    if not len(real):
        return {}
    return {str(q): round(float(v), 4) for q, v in zip(QUANTILES, np.quantile(real, QUANTILES), strict=True)}


def collect(blocks: shards.Joined, folder: Path, shape: tuple[int, int], size: int) -> dict:
    """Write ids.npy and scores.npy [C, K] from the finished blocks; the counts for the manifest.

    `size` is that of the database: ids are int32 as long as they fit. Where neighbours were filtered, a last column of
    the blocks has as its id how many were caught of each chunk.
    """
    holes = incomplete = 0
    caught = {"neighbours": 0, "chunks": 0, "chunks_with_holes": 0}
    edges = np.empty((shape[0], 2), np.float16)  # first and last score of each chunk
    with (
        growing_array(folder / "ids.npy", shape, np.int32 if size < 2**31 else np.int64) as ids,
        growing_array(folder / "scores.npy", shape, np.float16) as scores,
    ):
        for start, found in blocks:
            stop = start + len(found)
            filtered, found = found[:, shape[1] :]["id"], found[:, : shape[1]]
            ids[start:stop], scores[start:stop] = found["id"], found["score"]
            edges[start:stop] = found["score"][:, [0, -1]]
            missing = found["id"] < 0
            holes, incomplete = holes + int(missing.sum()), incomplete + int(missing.any(axis=1).sum())
            caught["neighbours"] += int(filtered.sum())
            caught["chunks"] += int((filtered > 0).sum())
            caught["chunks_with_holes"] += int(((filtered > 0) & missing.any(axis=1, keepdims=True)).sum())
            release(ids, scores)
    return {
        "chunks": shape[0],
        "holes": holes,
        "chunks_with_holes": incomplete,
        "first_score_quantiles": quantiles(edges[:, 0]),
        "last_score_quantiles": quantiles(edges[:, 1]),
        **({"filtered": caught} if blocks.row_shape[0] > shape[1] else {}),
    }


def recall_counts(
    ids: np.ndarray, sample: np.ndarray, retriever: Retriever, truth: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Any]:
    """Recall of the neighbours `ids` [C, K] for the manifest; `truth` gives the exact ones of a sample of chunks."""
    if retriever.about is not None:
        known = retriever.complete and len(ids) > 0
        shares = {str(k): 1.0 for k in firsts(ids.shape[1])} if known else {}
        return {"recall": shares, "recall_of": retriever.about}
    shares = recall(ids[sample], truth(sample))
    return {"recall": shares, "recall_of": f"{len(sample)} chunks against exact search"}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", required=True, type=given, help="JSON: retriever, neighbours, index, seed")
    parser.add_argument("--split", required=True, choices=LISTED)
    parser.add_argument("--database", required=True, type=Path, help="manifest of the database")
    parser.add_argument("--chunks", required=True, nargs="+", type=Path, help="manifests, sources in order")
    parser.add_argument("--embeddings", required=True, nargs="+", type=Path, help="manifests, sources in order")
    parser.add_argument("--index", required=True, nargs="+", type=Path, help="manifests: faiss's, BM25's or both")
    parser.add_argument("--tokenizer", nargs="*", type=Path, help="manifest of the tokenizer (for BM25, filter)")
    parser.add_argument("--tokens", nargs="*", type=Path, help="manifests, sources in order (for BM25, filter)")
    parser.add_argument("--duplicates", nargs="*", default=[], type=Path, help="manifest: what to exclude, if anything")
    parser.add_argument("--output", required=True, type=Path, help="manifest to write")
    parser.add_argument("--blocks", type=Path, help="folder for finished blocks; default: beside the output")
    parser.add_argument("--block", type=whole, default=BLOCK, help="chunks a block")
    parser.add_argument("--shard", type=shards.shard_name, help="do this part only, --output is its note")
    parser.add_argument("--shards", nargs="*", type=Path, help="notes of all shards: join them, search nothing")
    parser.add_argument("--threads", type=whole, default=1, help="CPU cores to use")
    return parser.parse_args()


class Search:
    """The search of one split, opened from a stage's options."""

    def __init__(self, options: argparse.Namespace):
        self.settings = read_section(NeighbourSettings, options.settings["neighbours"], "neighbours")
        index_settings = read_section(IndexSettings, options.settings["index"], "index")
        self.k, rules = self.settings.saved, rules_of(self.settings.exclude)
        faiss.omp_set_num_threads(options.threads)
        listed = read_manifest(options.database, "database")
        indexes = [read_manifest(path, "index") for path in options.index]
        self.factory = ", ".join(each.settings["factory"] for each in indexes)
        self.database, self.rows = listed.array("database.npy"), listed.array(f"{options.split}.npy")
        self.vectors = Vectors(options.embeddings)
        self.exclusion = Exclusion(rules, options.chunks, self.database, *options.duplicates)
        self.exact = ExactSearch(self.vectors, self.database, options.threads)
        words = None
        if options.tokens:
            tokenizer = Tokenizer.load(options.tokenizer[0])
            words = open_store(options.tokens, options.chunks, tokenizer), tokenizer
        self.retriever = open_retriever(
            options.settings["retriever"],
            rows=self.rows,
            indexes=indexes,
            settings=index_settings,
            exclusion=self.exclusion,
            exact=self.exact,
            words=words,
            seed=options.settings["seed"],
            threads=options.threads,
        )
        self.judge = exactly(self.retriever, Dense(self.exact, self.vectors, self.exclusion, self.rows))
        self.filtering = not self.settings.filter.off and options.split in self.settings.filter.splits
        if self.filtering:
            assert words is not None
            caught = Filter(self.settings.filter, words[0], self.rows, self.database)
            self.retriever, self.judge = Filtered(self.retriever, caught), Filtered(self.judge, caught)
        print(
            f"neighbours of {options.split}: {len(self.rows)} chunks, {self.k} each, among {len(self.database)}, by "
            f"{self.factory}; excluded: same {', '.join(rules)}",
            file=sys.stderr,
        )

    def block(self, start: int, stop: int, advance: Callable[[int], object] | None = None) -> np.ndarray:
        """Neighbours of the chunks at positions start .. stop of the split: FOUND [stop - start, width]."""
        found, positions = np.zeros((stop - start, self.width), FOUND), np.arange(start, stop)
        ids, scores = found["id"], found["score"]
        if isinstance(self.retriever, Filtered):
            ids[:, :-1], scores[:, :-1], ids[:, -1] = self.retriever.find_and_count(positions, self.k, advance)
        else:
            ids[:], scores[:] = self.retriever.find(positions, self.k, advance)
        return found

    @property
    def width(self) -> int:
        """Columns of a block: K, and one that says how many were caught, if neighbours are filtered."""
        return self.k + self.filtering

    def truth(self, sample: np.ndarray) -> np.ndarray:
        """Exact ids [n, K] of the chunks at these positions."""
        print(f"neighbours: exact search of {len(sample)} chunks for recall", file=sys.stderr)
        return self.judge.find(sample, self.k)[0]


def finish(options: argparse.Namespace, blocks: shards.Joined, search: Search, inputs: list[Path]) -> None:
    """Write the arrays and the manifest, recall against exact search included."""
    folder, rows, seed = options.output.parent, search.rows, options.settings["seed"]
    counts = collect(blocks, folder, (len(rows), search.k), len(search.database)) | search.exclusion.counts(rows)
    size = min(search.settings.recall_sample, len(rows))
    sample = np.sort(np.random.default_rng(seed).choice(len(rows), size, replace=False))
    ids = open_array(folder / "ids.npy")
    counts |= recall_counts(ids, sample, search.retriever, search.truth)
    write_manifest(
        options.output,
        kind="neighbours",
        stage=STAGE,
        files=[folder / "ids.npy", folder / "scores.npy"],
        inputs=inputs,
        settings={**options.settings, "factory": search.factory},
        counts=counts,
        seed=seed,  # threads and shards change no id: not recorded
    )
    blocks.remove()
    told = ", ".join(f"recall@{k} {share:.3f}" for k, share in counts["recall"].items())
    print(
        f"{folder}: {len(rows)} x {search.k} neighbours, {counts['holes']} holes{told and ', '}{told}"
        if len(rows)
        else f"{folder}: no chunks",
        file=sys.stderr,
    )


def main() -> None:
    options = arguments()
    search = Search(options)
    inputs = [options.database, *options.chunks, *options.embeddings, *options.index, *options.duplicates]
    if options.shards:
        finish(options, shards.Joined(options.shards, len(search.rows)), search, inputs)
        return
    made_from = {
        "settings": options.settings,
        "split": options.split,
        "inputs": [sha256(path) for path in inputs],
        "code": provenance.digest(STAGE),
        "versions": provenance.versions(),
    }
    wanted = shards.bounds(len(search.rows), options.block, options.shard)
    folder = options.output.with_suffix("") if options.shard else options.blocks or options.output.parent / "blocks"
    with Blocks(folder, made_from, (search.width,), FOUND) as blocks:
        with log.bar(sum(b - a for a, b in wanted), f"neighbours {options.split}", "chunk") as shown:
            shards.compute(blocks, wanted, lambda start, stop: search.block(start, stop, shown.update), shown)
        if search.retriever.fallen_back:
            told = f"the index gave too few for {search.retriever.fallen_back} chunks, searched exactly"
            print(f"{folder}: {told}", file=sys.stderr)
        if options.shard:
            shards.write_note(options.output, options.shard, blocks, made_from, options.block)
        else:
            finish(options, shards.Alone(blocks, made_from, wanted), search, inputs)


if __name__ == "__main__":
    stage.run(main)
