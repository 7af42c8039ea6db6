"""Index and neighbours beside retro-pytorch's, of the same chunks and embeddings: `make bench-database`.

Its encoder comes from a hub; here both are handed the dataset's chunks and the embeddings already made of them, and
what is measured is everything after: its index by autofaiss and its search, our index and exact search. Both find 2
neighbours of every chunk among all chunks, none of the same document; recall is against a float64 brute force.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import faiss
import numpy as np

from retro.base import provenance, stage
from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.bench.search import InMemory
from retro.retrieval.exact import ExactSearch
from retro.retrieval.exclusion import Barred, Rule
from retro.retrieval.factory import choose
from retro.retrieval.index import make
from retro.retrieval.settings import IndexSettings

K, CHECKED = 2, 500  # neighbours; chunks whose recall is measured


def read(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """A dataset's embeddings float32 [n, d] and the number of each chunk's document, int32 [n]."""
    vectors, documents, first = [], [], 0
    for path in sorted((folder / "embeddings").glob("*/manifest.json")):
        vectors.append(np.asarray(read_manifest(path, "embeddings").array("embeddings.npy"), np.float32))
        table = read_manifest(folder / "chunks" / path.parent.name / "manifest.json", "chunks").array("chunks.npy")
        documents.append(table["document"].astype(np.int32) + first)
        first = int(documents[-1].max()) + 1
    if not vectors:
        raise UserError(f"{folder}: has no embeddings. Give the folder of a preprocessed dataset.")
    return np.concatenate(vectors), np.concatenate(documents)


def ours(vectors: np.ndarray, documents: np.ndarray, folder: Path, threads: int) -> np.ndarray:
    """Write an index and the neighbours as our stages do; returns ids [n, K]."""
    source, everything = InMemory(vectors), np.arange(len(vectors))
    name, _ = choose(len(vectors), len(vectors), vectors.shape[1])
    faiss.write_index(make(name, source, everything, IndexSettings(), 1), str(folder / "index.faiss"))
    keys = documents.astype(np.uint64)
    rule, search, found = Rule(keys), ExactSearch(source, everything, threads), []
    for start in range(0, len(vectors), 1 << 14):
        here = slice(start, start + (1 << 14))
        found.append(search.search(vectors[here], K, Barred([(rule, rule.look_up(keys[here]))]))[0])
    ids = np.concatenate(found)
    np.save(folder / "ids.npy", ids)
    return ids


def theirs(vectors: np.ndarray, documents: np.ndarray, _folder: Path, _threads: int) -> np.ndarray:
    """Run the peer's own function on chunks whose embeddings are already there; returns ids [n, K]."""
    from retro_pytorch import retrieval

    count, width = vectors.shape
    np.memmap("chunks.dat", np.int32, "w+", shape=(count, 65)).flush()
    ids = np.memmap("documents.dat", np.int32, "w+", shape=(count,))
    ids[:] = documents
    ids.flush()

    def embeddings(*, embeddings_memmap_path: str, **_: object) -> None:
        np.memmap(embeddings_memmap_path, np.float32, "w+", shape=(count, width))[:] = vectors

    retrieval.chunks_to_embeddings_ = embeddings
    # autofaiss writes numpy 1's floats
    json.JSONEncoder.default = lambda _self, number: float(number)  # type: ignore[method-assign, assignment]
    # The function below takes a width and does not pass it on.
    retrieval.chunks_to_index_and_embed = partial(retrieval.chunks_to_index_and_embed, embed_dim=width)
    path, _ = retrieval.chunks_to_precalculated_knn_(
        num_nearest_neighbors=K,
        num_chunks=count,
        chunk_size=64,
        chunk_memmap_path="chunks.dat",
        doc_ids_memmap_path="documents.dat",
        num_extra_neighbors=100,
    )
    return np.memmap(path, np.int32, "r", shape=(count, K))


def recall(ids: np.ndarray, vectors: np.ndarray, documents: np.ndarray) -> float:
    """Share of places in the true first K that `ids` fills as well, equal scores being as good."""
    chosen, wide = (
        np.random.default_rng(1).choice(len(vectors), min(CHECKED, len(vectors)), False),
        vectors.astype("f8"),
    )
    hit = 0
    for row in chosen.tolist():
        scores = wide @ wide[row]
        scores[documents == documents[row]] = -np.inf
        worst = np.partition(scores, -K)[-K]
        real = ids[row][ids[row] >= 0]
        hit += int((scores[real] >= worst - 1e-6).sum())
    return hit / (len(chosen) * K)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default=Path("results/open-book"), help="a preprocessed dataset")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", type=Path, default=Path(".venv/peer"), help="where retro-pytorch is installed")
    options = parser.parse_args()
    if not (options.peer / "retro_pytorch").is_dir():
        raise UserError(f"{options.peer}: holds no retro_pytorch; `make bench-database` installs it")
    sys.path.append(str(options.peer.resolve()))
    import retro_pytorch.retrieval  # noqa: F401  imports do not count

    faiss.omp_set_num_threads(options.threads)
    vectors, documents = read(options.dataset)
    facts: dict = {"chunks": len(vectors), "width": vectors.shape[1], "threads": options.threads}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(sys.stderr):
        for work in (ours, theirs):
            start = time.process_time()
            ids = np.array(work(vectors, documents, Path(folder), options.threads))
            cpu = time.process_time() - start
            facts[work.__name__] = {
                "cpu_seconds": round(cpu, 2),
                "cpu_ms_per_chunk": round(1e3 * cpu / len(vectors), 3),
                "recall": round(recall(ids, vectors, documents), 4),
                "holes": int((ids < 0).sum()),
            }
    facts["times_less"] = round(facts["theirs"]["cpu_seconds"] / facts["ours"]["cpu_seconds"], 1)
    facts |= {"load_average": os.getloadavg()[0], "versions": provenance.versions()}
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    stage.run(main)
