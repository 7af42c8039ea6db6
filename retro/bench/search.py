"""Measure exact search against the machine's matrix product and faiss: python -m retro.bench.search

Searches for 20 neighbours of made-up clustered vectors, own document excluded, and prints a JSON object.
`share_of_gemm` is operations per CPU-second over those of torch.mm in the same process on as many threads, before and
after; faiss's flat index searches the same vectors without excluding anything.
"""

import argparse
import json
import os
import time
from collections.abc import Callable

import faiss
import numpy as np

from retro.base import provenance, stage
from retro.base.machine import calibrate
from retro.dataset.store import Vectors
from retro.retrieval.exact import ExactSearch
from retro.retrieval.exclusion import Barred, Rule

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--queries", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=1)
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


if __name__ == "__main__":
    stage.run(main)
