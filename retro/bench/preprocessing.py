"""Measure embedding and exact search against the machine's matrix product, in the same process.

`share_of_gemm` is operations per CPU-second over those of torch.mm of the same type. The product is timed before and
after: on a shared machine both are slowed alike. Beside the encoder in float32 stands the same in bfloat16, where the
processor can, with the share of the neighbours that it finds; faiss's flat index stands beside exact search.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import torch

from retro.base import command, provenance, stage
from retro.base.artifacts import read_manifest
from retro.base.log import say
from retro.base.machine import calibrate
from retro.base.stage import UserError, given, whole
from retro.corpus.mmididx import TokenStore
from retro.corpus.tokenizers import Tokenizer
from retro.database.bfloat16 import instructions
from retro.database.embed import NEAREST, recall, texts_of
from retro.database.encoders import BertEncoder, Encoder, open_encoder
from retro.database.engines import gpu_available
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


def encoders(asked: EncoderSettings, threads: int) -> dict[str, Encoder]:
    """The encoder asked for, and a BERT in bfloat16 beside it where this processor can; else a line says that not."""
    found = {"float32": open_encoder(asked.model_copy(update={"cpu_dtype": "float32"}), threads)}
    if not isinstance(found["float32"], BertEncoder) or found["float32"].config.get("model_type") != "bert":
        return found
    if instructions() is None or gpu_available():
        say("no encoder in bfloat16: this processor has neither AVX512-BF16 nor AMX, or there is a GPU")
        return found
    return found | {"bfloat16": open_encoder(asked.model_copy(update={"cpu_dtype": "bfloat16"}), threads)}


@dataclass
class Measured:
    """What an encoder took for each round, between two calibrations, and the vectors float32 [n, d] it made."""

    encoder: Encoder
    kind: torch.dtype
    calibration: list[dict[str, float]]
    cpus: list[float]
    walls: list[float]
    vectors: list[np.ndarray]

    def round(self, part: list[str], threads: int) -> None:
        """Embed some texts, and calibrate."""
        cpu_start, start = time.process_time(), time.perf_counter()
        self.vectors.append(self.encoder.encode(part))
        self.cpus.append(time.process_time() - cpu_start)
        self.walls.append(time.perf_counter() - start)
        self.calibration.append(calibrate(threads, kind=self.kind))

    def facts(self, rounds: list[list[str]]) -> dict[str, object]:
        """Chunks a second, and the share of the matrix products' rate that was reached."""
        chunks, cpu, wall = sum(map(len, rounds)), sum(self.cpus), sum(self.walls)
        facts: dict[str, object] = {
            "engine": self.encoder.engine,
            "seconds": round(wall, 2),
            "cpu_seconds": round(cpu, 2),
            "chunks_per_second": round(chunks / wall, 1),
            "chunks_per_cpu_second": round(chunks / cpu, 1),
            "calibration": self.calibration,
        }
        if isinstance(self.encoder, BertEncoder):
            encoder = self.encoder
            work = [operations(encoder.lengths(part), encoder.config) / 1e9 for part in rounds]
            gemm = [each["gflops_per_cpu_second"] for each in self.calibration]
            shares = [work[at] / self.cpus[at] / max(gemm[at : at + 2]) for at in range(len(rounds))]
            facts |= {
                "gflop_per_chunk": round(sum(work) / chunks, 3),
                "gflops_per_cpu_second": round(sum(work) / cpu, 1),
                "share_of_gemm": round(statistics.median(shares), 3),
                "shares_of_rounds": [round(share, 3) for share in shares],
            }
        return facts


def embedding_main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, help="folder of a dataset to take chunks from")
    parser.add_argument("--chunks", type=whole, default=1024, help="chunks to embed")
    parser.add_argument("--threads", type=whole, default=1)
    parser.add_argument("--encoder", type=given, default={}, help="JSON: encoder settings")
    options = parser.parse_args()
    start = time.perf_counter()
    opened = encoders(EncoderSettings(**options.encoder), options.threads)
    opening = time.perf_counter() - start
    chunks = texts(options.dataset, options.chunks)
    rounds = [part for first in range(ROUNDS) if (part := chunks[first::ROUNDS])]
    measured = {}
    for name, encoder in opened.items():
        kind = torch.bfloat16 if "bfloat16" in encoder.engine else torch.float32
        encoder.encode(chunks[: 32 * options.threads])
        measured[name] = Measured(encoder, kind, [calibrate(options.threads, kind=kind)], [], [], [])
    for part in rounds:  # in turn, so that a busy machine slows all alike
        for each in measured.values():
            each.round(part, options.threads)
    facts: dict[str, object] = {
        "encoder": options.encoder.get("type", "minilm"),
        "chunks": len(chunks),
        "threads": options.threads,
        "seconds_to_open": round(opening, 2),
        **{name: each.facts(rounds) for name, each in measured.items()},
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": provenance.versions(),
    }
    first = opened["float32"]
    if isinstance(first, BertEncoder):
        facts["word_pieces_mean"] = round(float(first.lengths(chunks).mean()), 1)
    if "bfloat16" in measured:
        pairs = zip(measured["float32"].cpus, measured["bfloat16"].cpus, strict=True)
        facts["bfloat16_chunks_to_float32"] = round(statistics.median(one / other for one, other in pairs), 2)
        made, exact = (np.concatenate(measured[name].vectors) for name in ("bfloat16", "float32"))
        facts[f"bfloat16_recall@{NEAREST}"] = round(recall(made, exact), 4)
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
