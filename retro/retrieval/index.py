"""Stage: a faiss index over the database's embeddings; a vector's id is its chunk's position in the
database.

With shards, one job trains, one a shard adds, and one joins (IVF indexes; others are filled by that last job).
"""

import argparse
import itertools
import shutil
import struct
import sys
from pathlib import Path

import faiss
import numpy as np

from retro import errors, progress
from retro.arguments import given
from retro.artifacts import read_manifest, replacing, write_manifest
from retro.database.settings import read_section
from retro.database.shards import Bounds, bounds, shard_name
from retro.database.tables import LISTED
from retro.retrieval import factory, gpu, inverted
from retro.retrieval.settings import IndexSettings
from retro.retrieval.training import train
from retro.retrieval.vectors import Vectors

STAGE = "retro.retrieval.index"
BLOCK = 1 << 14  # vectors added at a time
PART = 1 << 15  # vectors whose inverted lists are in memory together, or
PARTS = 64  # such a share of a database that has more


def fill(
    index: faiss.Index, vectors: Vectors, database: np.ndarray, wanted: Bounds, settings: IndexSettings
) -> faiss.Index:
    """Add the `wanted` blocks of the database's vectors, in order."""
    on_gpus = gpu.to_gpus(index, settings)
    with progress.bar(sum(stop - start for start, stop in wanted), "index", "vector") as shown:
        for start, stop in wanted:
            on_gpus.add(vectors.read(database[start:stop]))
            shown.update(stop - start)
    return gpu.to_cpu(on_gpus, index)


def make(name: str, vectors: Vectors, database: np.ndarray, settings: IndexSettings, seed: int) -> faiss.Index:
    """Train and fill the index of factory string `name` with the `database` rows of `vectors`."""
    trained = train(name, vectors, database, settings, seed)
    return fill(trained, vectors, database, bounds(len(database), BLOCK), settings)


def write(index: faiss.Index, path: Path) -> None:
    """Write an index file, whole or not at all."""
    with replacing(path) as temporary:
        faiss.write_index(index, str(temporary))


def write_in_parts(
    trained: faiss.Index, vectors: Vectors, database: np.ndarray, wanted: Bounds, settings: IndexSettings, path: Path
) -> None:
    """Fill an index of inverted lists and write it, a limited number of vectors in memory at a time."""
    size = max(PART, len(database) // PARTS)
    parts = [list(blocks) for _, blocks in itertools.groupby(wanted, key=lambda block: block[0] // size)]
    if len(parts) <= 1:
        write(fill(trained, vectors, database, wanted, settings), path)
        return
    folder = path.with_name(f".{path.name}.parts")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    empty, paths = folder / "trained", [folder / str(number) for number in range(len(parts))]
    write(trained, empty)
    for blocks, part in zip(parts, paths, strict=True):
        write(fill(faiss.read_index(str(empty)), vectors, database, blocks, settings), part)
    inverted.join(empty, paths, path)
    shutil.rmtree(folder)


def write_flat(path: Path, vectors: Vectors, database: np.ndarray, wanted: Bounds) -> None:
    """Write the index Flat as faiss does, without holding it in memory."""
    header = struct.Struct("<4siqqqBi")  # kind, dimensions, vectors, two unused numbers, trained, metric
    with replacing(path) as temporary, open(temporary, "wb") as file:
        facts = (b"IxFI", vectors.width, len(database), 1 << 20, 1 << 20, 1, faiss.METRIC_INNER_PRODUCT)
        file.write(header.pack(*facts) + struct.pack("<Q", len(database) * vectors.width))
        for start, stop in wanted:
            file.write(vectors.read(database[start:stop]).tobytes())


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", required=True, type=given, help="JSON: index, seed")
    parser.add_argument("--database", required=True, type=Path, help="manifest of the database")
    parser.add_argument("--embeddings", required=True, nargs="+", type=Path, help="manifests, sources in order")
    parser.add_argument("--part", choices=["train", "add"], help="only train, or add a shard; --output is a faiss file")
    parser.add_argument("--trained", nargs="*", type=Path, help="the file that --part train made")
    parser.add_argument("--shard", type=shard_name, help="the shard that --part add adds")
    parser.add_argument("--shards", nargs="*", type=Path, help="the files of all shards: join them")
    parser.add_argument("--output", required=True, type=Path, help="manifest (or faiss file) to write")
    parser.add_argument("--block", type=int, default=BLOCK, help="vectors added at a time")
    parser.add_argument("--threads", type=int, default=1, help="CPU cores to use")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    settings, seed = read_section(IndexSettings, options.settings["index"], "index"), options.settings["seed"]
    faiss.omp_set_num_threads(options.threads)
    manifest, vectors = read_manifest(options.database, "database"), Vectors(options.embeddings)
    database = manifest.array("database.npy")
    name, why = settings.factory, "named in the config"
    if name == "auto":
        queries = sum(manifest.counts[split] for split in LISTED)
        name, why = factory.choose(len(database), queries, vectors.width)
    print(f"index: {name} ({why})", file=sys.stderr)
    path = options.output if options.part else options.output.parent / "index.faiss"
    wanted = bounds(len(database), options.block, options.shard)
    empty = factory.build(name, vectors.width)
    exact, joinable = factory.is_exact(empty), factory.is_joinable(empty)
    if options.shard and not joinable:
        print(f"index: {name} cannot be joined from shards, the last job adds all vectors", file=sys.stderr)
        wanted = []
    if exact and not options.part:
        write_flat(path, vectors, database, wanted)
    elif joinable and options.shards:
        inverted.join(options.trained[0], options.shards, path)
    else:
        given = options.trained and faiss.read_index(str(options.trained[0]))
        made = given or train(name, vectors, database, settings, seed)
        if options.part == "train":
            write(made, path)
        elif joinable:
            write_in_parts(made, vectors, database, wanted, settings, path)
        else:
            write(fill(made, vectors, database, wanted, settings), path)
    if options.part:
        return
    write_manifest(
        options.output,
        kind="index",
        stage=STAGE,
        files=[path],
        inputs=[options.database, *options.embeddings],
        settings={**options.settings, "factory": name, "why": why, "exact": exact},
        counts={"vectors": len(database), "width": vectors.width},
        seed=seed,
        threads=options.threads,
    )
    size = path.stat().st_size / 1e6
    print(f"{path}: {name}, {len(database)} vectors, {size:.1f} MB", file=sys.stderr)


if __name__ == "__main__":
    errors.run(main)
