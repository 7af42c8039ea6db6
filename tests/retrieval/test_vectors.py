"""Embeddings read by global row."""

import numpy as np
import pytest

from retro.artifacts import read_manifest
from retro.retrieval import vectors
from retro.retrieval.vectors import Vectors


@pytest.mark.parametrize("piece", [1, 5, 512])
def test_rows_of_all_sources_in_any_order_are_read_in_pieces(corpus, piece, monkeypatch):
    monkeypatch.setattr(vectors, "PIECE", piece)
    monkeypatch.setattr(vectors, "RESIDENT", 1)
    manifests = corpus.manifests("embeddings")
    whole = np.concatenate([read_manifest(path, "embeddings").array("embeddings.npy") for path in manifests])
    opened = Vectors(manifests)
    assert len(opened) == len(whole)
    rows = np.random.default_rng(0).integers(0, len(whole), 37)
    assert (opened.read(rows) == whole[rows]).all()
    assert opened.read(np.arange(3, 20)).tobytes() == whole[3:20].tobytes()
    assert opened.read(np.empty(0, np.int64)).shape == (0, opened.width)
