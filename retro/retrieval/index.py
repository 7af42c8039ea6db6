"""Stage: a faiss index over the database's embeddings; a vector's id is its chunk's position in the database.

With shards, one job trains, one a shard adds, and one joins (IVF indexes; others are filled by that last job).

Training takes a seeded random sample of the database. Inverted lists want a large one: with few vectors for each list,
lists become uneven, and queries visit the long ones. Their centroids are therefore found on vectors of one byte a
dimension, a quarter of the memory; everything else (rotation, product quantizer) is trained on few vectors.

Joining does not hold the lists in memory. What faiss writes for an IVF index ends in its lists: `ilar`, the number of
lists and the bytes a code (u64 each), `full` and the length of every list, or `sprs` and pairs of number and length of
those that are not empty; then the codes and the ids (int64) of each list that is not empty. A joined list holds those
of the parts one after another, ids moved on by the vectors of the parts before: the bytes that faiss would write had
all vectors been added in one job.
"""

import argparse
import itertools
import shutil
import struct
import sys
from pathlib import Path
from typing import BinaryIO

import faiss
import numpy as np

from retro.base import log, stage
from retro.base.artifacts import read_manifest, replacing, write_manifest
from retro.base.names import LISTED
from retro.base.shards import Bounds, bounds, shard_name
from retro.base.stage import UserError, given, read_section, whole
from retro.dataset.store import Vectors
from retro.retrieval import factory
from retro.retrieval.settings import IndexSettings

FEW = 1 << 14  # vectors that all parts are trained on as they are, or
EACH = 128  # for each centroid of a part that is not inverted lists, if that is more
PIECE = 1 << 14  # vectors encoded, or decoded, at a time


def train(name: str, vectors: Vectors, database: np.ndarray, settings: IndexSettings, seed: int) -> faiss.Index:
    """An empty index of factory string `name`, trained on `settings.train_vectors` of the rows `database`.

    Raises UserError if there are too few vectors for it, or if faiss cannot train it.
    """
    factory.check_size(name, vectors.width, len(database), settings.train_vectors)
    index = factory.build(name, vectors.width)
    if index.is_trained:
        return index
    count = min(len(database), settings.train_vectors)
    wished = factory.POINTS * factory.needed(index)
    if count < wished:
        print(f"warning: {name} trains on {count} vectors; {wished} would be better", file=sys.stderr)
    chosen = database[np.random.default_rng(seed).choice(len(database), count, replace=False)]
    print(f"index: training {name} on {count} of {len(database)} vectors", file=sys.stderr)
    lists, few = factory.own_lists(index), max(FEW, EACH * factory.needed_beside_lists(index))
    try:
        if lists is None or count <= few:
            on_gpus = factory.to_gpus(index, settings)
            on_gpus.train(vectors.read(np.sort(chosen)))
            return factory.to_cpu(on_gpus, index)
        lists.quantizer.add(_centroids(index, lists, vectors, chosen, few, settings))
        index.train(vectors.read(np.sort(chosen[:few])))  # what is trained already stays
        return index
    except RuntimeError as error:
        raise UserError(
            f"dataset.index.factory {name!r}: faiss cannot train it on {count} vectors of "
            f"{vectors.width} dimensions: {' '.join(str(error).split())}. Try auto."
        ) from None


def _centroids(
    index: faiss.Index, lists: faiss.IndexIVF, vectors: Vectors, chosen: np.ndarray, few: int, settings: IndexSettings
) -> np.ndarray:
    """float32 [lists, d]: centroids of the `chosen` rows, as the index rotates them.

    Trains its rotations on the first `few` of them.
    """
    codec = faiss.IndexScalarQuantizer(lists.d, faiss.ScalarQuantizer.QT_8bit)
    transforms, sample = list(factory.transforms(index)), vectors.read(np.sort(chosen[:few]))
    for transform in transforms:
        if not transform.is_trained:
            transform.train(sample)
        sample = transform.apply(sample)
    codec.train(sample)
    del sample  # so that it and the codes are not in memory together
    chosen, codes = np.sort(chosen), np.empty((len(chosen), codec.sa_code_size()), np.uint8)
    for start in range(0, len(chosen), PIECE):
        piece = vectors.read(chosen[start : start + PIECE])
        for transform in transforms:
            piece = transform.apply(piece)
        codes[start : start + PIECE] = codec.sa_encode(piece)
    clustering = faiss.Clustering(lists.d, lists.nlist, lists.cp)
    clustering.decode_block_size = PIECE
    clustering.train_encoded(codes, codec, factory.to_gpus(faiss.IndexFlatIP(lists.d), settings))
    return faiss.vector_to_array(clustering.centroids).reshape(lists.nlist, lists.d)


EMPTY = struct.Struct("<4sQQ4sQ")  # ilar, lists, bytes a code, sprs, 0: how an index without vectors ends


class _Part:
    """The lists of one file, in which they begin at byte `start`; read in the order of their numbers."""

    def __init__(self, path: Path, start: int):
        self.file: BinaryIO = open(path, "rb")  # noqa: SIM115 (closed by `join`)
        self.file.seek(start)
        kind, lists, self.code, form, count = EMPTY.unpack(self.file.read(EMPTY.size))
        assert kind == b"ilar" and form in (b"full", b"sprs"), path
        numbers = np.fromfile(self.file, "<u8", count).astype(np.int64)
        self.sizes = numbers
        if form == b"sprs":
            self.sizes = np.zeros(lists, np.int64)
            self.sizes[numbers[::2]] = numbers[1::2]

    def read(self, number: int) -> tuple[bytes, np.ndarray]:
        """Codes and ids of the next list."""
        size = int(self.sizes[number])
        codes = self.file.read(size * self.code)
        return codes, np.fromfile(self.file, "<i8", size)


def join(trained: Path, paths: list[Path], output: Path) -> int:
    """Write the index of all vectors of the parts; how many. `trained` is the empty index that all parts began as."""
    index = faiss.read_index(str(trained))
    start = faiss.serialize_index(index).nbytes - EMPTY.size
    parts = [_Part(path, start) for path in paths]
    counts = np.array([part.sizes.sum() for part in parts], np.int64)
    first, sizes = np.cumsum(counts) - counts, sum((part.sizes for part in parts), np.zeros_like(parts[0].sizes))
    layer = index
    while True:
        layer.ntotal = int(counts.sum())
        if not isinstance(layer, faiss.IndexPreTransform):
            break
        layer = faiss.downcast_index(layer.index)
    filled = np.flatnonzero(sizes)
    with replacing(output) as temporary, open(temporary, "wb") as file:
        file.write(faiss.serialize_index(index)[:start].tobytes())
        full = len(filled) > len(sizes) // 2
        table = sizes if full else np.stack([filled, sizes[filled]], axis=1).reshape(-1)
        file.write(EMPTY.pack(b"ilar", len(sizes), parts[0].code, b"full" if full else b"sprs", len(table)))
        file.write(table.astype("<u8").tobytes())
        for number in filled.tolist():
            read = [part.read(number) for part in parts]
            file.writelines(codes for codes, _ in read)
            file.writelines((ids + moved).tobytes() for (_, ids), moved in zip(read, first, strict=True))
    for part in parts:
        part.file.close()
    return int(counts.sum())


STAGE = "retro.retrieval.index"
VECTORS_AT_ONCE = 1 << 14  # vectors added at a time
PART = 1 << 15  # vectors whose inverted lists are in memory together, or
PARTS = 64  # such a share of a database that has more


def fill(
    index: faiss.Index, vectors: Vectors, database: np.ndarray, wanted: Bounds, settings: IndexSettings
) -> faiss.Index:
    """Add the `wanted` blocks of the database's vectors, in order."""
    on_gpus = factory.to_gpus(index, settings)
    with log.bar(sum(stop - start for start, stop in wanted), "index", "vector") as shown:
        for start, stop in wanted:
            on_gpus.add(vectors.read(database[start:stop]))
            shown.update(stop - start)
    return factory.to_cpu(on_gpus, index)


def make(name: str, vectors: Vectors, database: np.ndarray, settings: IndexSettings, seed: int) -> faiss.Index:
    """Train and fill the index of factory string `name` with the `database` rows of `vectors`."""
    trained = train(name, vectors, database, settings, seed)
    return fill(trained, vectors, database, bounds(len(database), VECTORS_AT_ONCE), settings)


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
    join(empty, paths, path)
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
    parser.add_argument("--block", type=whole, default=VECTORS_AT_ONCE, help="vectors added at a time")
    parser.add_argument("--threads", type=whole, default=1, help="CPU cores to use")
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
        join(options.trained[0], options.shards, path)
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
    stage.run(main)
