"""Training of an empty faiss index on a seeded random sample of the database.

Inverted lists want a large sample: with few vectors for each list, lists become uneven, and queries visit the long
ones. Their centroids are therefore found on vectors of one byte a dimension, a quarter of the memory; everything else
(rotation, product quantizer) is trained on few vectors.
"""

import sys

import faiss
import numpy as np

from retro.errors import UserError
from retro.retrieval import factory, gpu
from retro.retrieval.settings import IndexSettings
from retro.retrieval.vectors import Vectors

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
            on_gpus = gpu.to_gpus(index, settings)
            on_gpus.train(vectors.read(np.sort(chosen)))
            return gpu.to_cpu(on_gpus, index)
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
    clustering.train_encoded(codes, codec, gpu.to_gpus(faiss.IndexFlatIP(lists.d), settings))
    return faiss.vector_to_array(clustering.centroids).reshape(lists.nlist, lists.d)
