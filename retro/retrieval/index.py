"""Stage: a faiss index over the database's embeddings; a vector's id is its chunk's position in the
database.
"""

import argparse
import json
import sys
from pathlib import Path

import faiss
import numpy as np

from retro import errors, progress
from retro.artifacts import read_manifest, replacing, write_manifest
from retro.database.settings import read_section
from retro.errors import UserError
from retro.retrieval import factory
from retro.retrieval.settings import IndexSettings
from retro.retrieval.vectors import Vectors

STAGE = "retro.retrieval.index"
BLOCK = 1 << 16  # vectors added at a time


def make(name: str, vectors: Vectors, database: np.ndarray, settings: IndexSettings, seed: int) -> faiss.Index:
    """Train and fill the index of factory string `name` with the `database` rows of `vectors`.

    An approximate index trains on a seeded random sample of the whole database.
    """
    factory.check_size(name, vectors.width, len(database), settings.train_vectors)
    index = factory.build(name, vectors.width)
    on_cpu = index
    if not index.is_trained:
        count = min(len(database), settings.train_vectors)
        wished = factory.POINTS * factory.needed(index)
        if count < wished:
            print(f"warning: {name} trains on {count} vectors; {wished} would be better", file=sys.stderr)
        chosen = np.random.default_rng(seed).choice(len(database), count, replace=False)
        print(f"index: training {name} on {count} of {len(database)} vectors", file=sys.stderr)
        index = factory.to_gpus(index)
        try:
            index.train(vectors.read(database[np.sort(chosen)]))
        except RuntimeError as error:
            raise UserError(
                f"dataset.index.factory {name!r}: faiss cannot train it on {count} vectors of "
                f"{vectors.width} dimensions: {' '.join(str(error).split())}. Try auto."
            ) from None
    with progress.bar(len(database), "index", "vector") as shown:
        for start in range(0, len(database), BLOCK):
            part = vectors.read(database[start : start + BLOCK])
            index.add(part)
            shown.update(len(part))
    return index if index is on_cpu else faiss.index_gpu_to_cpu(index)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", required=True, type=json.loads, help="JSON: index, seed")
    parser.add_argument("--database", required=True, type=Path, help="manifest of the database")
    parser.add_argument("--embeddings", required=True, nargs="+", type=Path, help="manifests, sources in order")
    parser.add_argument("--output", required=True, type=Path, help="manifest to write")
    parser.add_argument("--threads", type=int, default=1, help="CPU cores to use")
    options = parser.parse_args()
    settings, seed = read_section(IndexSettings, options.settings["index"], "index"), options.settings["seed"]
    faiss.omp_set_num_threads(options.threads)
    manifest, vectors = read_manifest(options.database, "database"), Vectors(options.embeddings)
    database = manifest.array("database.npy")
    name, why = settings.factory, "named in the config"
    if name == "auto":
        queries = sum(manifest.counts[split] for split in ("train", "valid", "test"))
        name, why = factory.choose(len(database), queries, vectors.width)
    print(f"index: {name} ({why})", file=sys.stderr)
    index = make(name, vectors, database, settings, seed)
    path = options.output.parent / "index.faiss"
    with replacing(path) as temporary:
        faiss.write_index(index, str(temporary))
    write_manifest(
        options.output,
        kind="index",
        stage=STAGE,
        files=[path],
        inputs=[options.database, *options.embeddings],
        settings={**options.settings, "factory": name, "why": why, "exact": factory.is_exact(index)},
        counts={"vectors": int(index.ntotal), "width": vectors.width},
        seed=seed,
        threads=options.threads,
    )
    size = path.stat().st_size / 1e6
    print(f"{path}: {name}, {index.ntotal} vectors, {size:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
