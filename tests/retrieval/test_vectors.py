"""Embeddings read by global row."""

import os
import shutil

import numpy as np
import pytest

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.dataset.store import Vectors
from tests.database.stages import STATIC, stage


def test_rows_of_all_sources_in_any_order_are_read(corpus):
    manifests = corpus.manifests("embeddings")
    whole = np.concatenate([read_manifest(path, "embeddings").array("embeddings.npy") for path in manifests])
    opened = Vectors(manifests)
    assert len(opened) == len(whole)
    rows = np.random.default_rng(0).integers(0, len(whole), 37)
    assert (opened.read(rows) == whole[rows]).all()
    assert opened.read(np.arange(len(whole))).tobytes() == whole.tobytes()
    assert (opened.read(np.repeat(np.arange(9)[::-1], 2)) == whole[np.repeat(np.arange(9)[::-1], 2)]).all()
    assert opened.read(np.empty(0, np.int64)).shape == (0, opened.width)


def test_half_precision_is_read_as_float32(corpus, tmp_path):
    options = corpus.embed_options("main", **STATIC, dtype="float16")
    output = tmp_path / "main/manifest.json"
    stage("retro.database.embed", **{**options, "output": output, "blocks": tmp_path / "blocks"})
    half = read_manifest(output).array("embeddings.npy")
    assert half.dtype == np.float16
    assert Vectors([output]).read(np.array([4, 5, 1])).tobytes() == half[[4, 5, 1]].astype(np.float32).tobytes()


def test_a_file_cut_short_while_it_is_read_is_named(corpus, tmp_path):
    folder = tmp_path / "main"
    shutil.copytree(corpus.manifest("embeddings", "main").parent, folder)
    opened = Vectors([folder / "manifest.json"])
    os.truncate(folder / "embeddings.npy", 1000)
    with pytest.raises(UserError, match=r"embeddings.npy: shorter than when it was opened"):
        opened.read(np.arange(len(opened)))
