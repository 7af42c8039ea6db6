"""Measure embedding and exact search against the machine's matrix product, in the same process.

`share_of_gemm` is operations per CPU-second over those of torch.mm. The product is timed before and after: on a shared
machine both are slowed alike. faiss's flat index stands beside exact search.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from retro.base import command, provenance, stage
from retro.base.artifacts import read_manifest
from retro.base.machine import calibrate
from retro.base.stage import UserError, given, whole
from retro.corpus.mmididx import TokenStore
from retro.corpus.tokenizers import Tokenizer
from retro.database.embed import texts_of
from retro.database.encoders import BertEncoder, open_encoder
from retro.database.settings import EncoderSettings
from retro.dataset.store import Vectors
from retro.retrieval.exact import ExactSearch
from retro.retrieval.exclusion import Barred, Rule

HERE = Path(__file__)
ROUNDS = 8


def operations(lengths: np.ndarray, config: dict) -> int:
    """Floating-point operations of the matrix products of texts of `lengths` word pieces."""
    width, wide = config["hidden_size"], config["intermediate_size"]
    linear = 2 * lengths * (4 * width * width + 2 * width * wide)
    attention = 4 * lengths * lengths * width
    return int(((linear + attention) * config["num_hidden_layers"]).sum())


def texts(folder: Path | None, count: int) -> list[str]:
    """Real chunks of the dataset at `folder`, or stretches of about 64 word pieces of this file."""
    if folder is None:
        words = HERE.read_text(encoding="utf-8").split()
        starts = np.random.default_rng(1).integers(0, len(words) - 40, count)
        return [" ".join(words[start : start + 28 + start % 12]) for start in starts.tolist()]
    tokenizer, found = Tokenizer.load(folder / "tokenizer/manifest.json"), []
    for path in sorted((folder / "chunks").glob("*/manifest.json")):
        table = read_manifest(path, "chunks").array("chunks.npy")
        tokens = read_manifest(folder / "tokens" / path.parent.name / "manifest.json", "tokens")
        store = TokenStore(tokens.file("tokens.bin").with_suffix(""))
        step = max(1, len(table) // count)
        found += texts_of(store, table[::step][:count], tokenizer)
    if not found:
        raise UserError(f"{folder}: has no chunks. Give the folder of a preprocessed dataset.")
    return found[:: max(1, len(found) // count)][:count]


def embedding_main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, help="folder of a dataset to take chunks from")
    parser.add_argument("--chunks", type=whole, default=1024, help="chunks to embed")
    parser.add_argument("--threads", type=whole, default=1)
    parser.add_argument("--encoder", type=given, default={}, help="JSON: encoder settings")
    options = parser.parse_args()
    start = time.perf_counter()
    encoder = open_encoder(EncoderSettings(**options.encoder), options.threads)
    opening = time.perf_counter() - start
    chunks = texts(options.dataset, options.chunks)
    encoder.encode(chunks[: 32 * options.threads])
    rounds = [part for first in range(ROUNDS) if (part := chunks[first::ROUNDS])]
    calibration, cpus, walls = [calibrate(options.threads)], [], []
    for part in rounds:
        cpu_start, start = time.process_time(), time.perf_counter()
        encoder.encode(part)
        cpus.append(time.process_time() - cpu_start)
        walls.append(time.perf_counter() - start)
        calibration.append(calibrate(options.threads))
    cpu, wall = sum(cpus), sum(walls)
    facts = {
        "encoder": options.encoder.get("type", "minilm"),
        "engine": encoder.engine,
        "chunks": len(chunks),
        "threads": options.threads,
        "seconds_to_open": round(opening, 2),
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "chunks_per_second": round(len(chunks) / wall, 1),
        "chunks_per_cpu_second": round(len(chunks) / cpu, 1),
        "calibration": calibration,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": provenance.versions(),
    }
    if isinstance(encoder, BertEncoder):
        lengths = encoder.lengths(chunks)
        work = operations(lengths, encoder.config) / 1e9
        gemm = [each["gflops_per_cpu_second"] for each in calibration]
        shares = [
            operations(encoder.lengths(part), encoder.config) / 1e9 / cpus[at] / max(gemm[at : at + 2])
            for at, part in enumerate(rounds)
        ]
        facts |= {
            "word_pieces_mean": round(float(lengths.mean()), 1),
            "gflop_per_chunk": round(work / len(chunks), 3),
            "gflops_per_cpu_second": round(work / cpu, 1),
            "share_of_gemm": round(statistics.median(shares), 3),
            "shares_of_rounds": [round(share, 3) for share in shares],
        }
    print(json.dumps(facts, indent=1))


K, CHUNKS = 20, 50  # neighbours; chunks a document


class InMemory(Vectors):
    """Vectors float32 [n, d] that are not on disk."""

    def __init__(self, array: np.ndarray):
        self.array, self.width = array, array.shape[1]

    def __len__(self) -> int:
        return len(self.array)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.array[rows]


def clustered(count: int, width: int) -> np.ndarray:
    """Unit vectors float32 [count, width] around the centres of documents."""
    random = np.random.default_rng(1)
    vectors = random.standard_normal((count, width), np.float32)
    vectors += random.standard_normal((-(-count // CHUNKS), width), np.float32).repeat(CHUNKS, axis=0)[:count]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def timed(work: Callable[[], object], operations: float) -> dict[str, float]:
    """Run `work` and say what it took."""
    cpu_start, start = time.process_time(), time.perf_counter()
    work()
    cpu, wall = time.process_time() - cpu_start, time.perf_counter() - start
    return {
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "gflops_per_cpu_second": round(operations / cpu / 1e9, 1),
    }


def search_main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=whole, default=50_000)
    parser.add_argument("--width", type=whole, default=384)
    parser.add_argument("--queries", type=whole, default=8192)
    parser.add_argument("--threads", type=whole, default=1)
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    vectors = clustered(options.vectors, options.width)
    queries = vectors[: options.queries]
    operations = 2.0 * len(queries) * len(vectors) * options.width
    documents = np.arange(len(vectors), dtype=np.uint64) // np.uint64(CHUNKS)
    rule = Rule(documents)
    search = ExactSearch(InMemory(vectors), np.arange(len(vectors)), options.threads)
    flat = faiss.IndexFlatIP(options.width)
    flat.add(vectors)
    barred = Barred([(rule, rule.look_up(documents[: len(queries)]))])
    calibration = [calibrate(options.threads)]
    ours = timed(lambda: search.search(queries, K, barred), operations)
    calibration.append(calibrate(options.threads))
    faiss.omp_set_num_threads(options.threads)
    theirs = timed(lambda: flat.search(queries, K), operations)
    calibration.append(calibrate(options.threads))
    for found, around in ((ours, calibration[:2]), (theirs, calibration[1:])):
        best = max(each["gflops_per_cpu_second"] for each in around)
        found["share_of_gemm"] = round(found["gflops_per_cpu_second"] / best, 3)
    facts = {
        "vectors": list(vectors.shape),
        "queries": len(queries),
        "threads": options.threads,
        "exact": ours,
        "faiss_flat": theirs,
        "calibration": calibration,
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": provenance.versions(),
    }
    print(json.dumps(facts, indent=1))


def main() -> None:
    stage.one_of({"embed": embedding_main, "search": search_main})


if __name__ == "__main__":
    command.run(main)
