"""Encoders and searches on a device: vectors and neighbours are those of a CPU."""

import json

import faiss
import numpy as np
import pytest

from retro.database.engines import open_engine
from retro.database.settings import EncoderSettings
from retro.retrieval import factory
from retro.retrieval.exact import ExactSearch
from retro.retrieval.exclusion import Barred
from retro.retrieval.index import make
from retro.retrieval.settings import IndexSettings
from tests.retrieval.brute import Plain, units

COUNT, WIDTH, K = 3000, 32, 10


@pytest.fixture(scope="module")
def vectors():
    found = units(np.random.default_rng(0), COUNT, WIDTH)
    found[COUNT // 2 :: 7] = found[: len(found[COUNT // 2 :: 7])]  # equal vectors: ties
    return found


@pytest.fixture(scope="module")
def nearest(vectors):
    """Scores float64 [q, n] of the first queries."""
    wide = vectors.astype(np.float64)
    return wide[:200] @ wide.T


def test_exact_neighbours_are_brute_forces_but_for_ties(device, vectors, nearest):
    search = ExactSearch(Plain(vectors), np.arange(COUNT), 1)
    assert search._device == device.type
    ids, scores = search.search(vectors[:200], K, Barred([]))
    assert (np.diff(scores, axis=1) <= 0).all()
    np.testing.assert_allclose(scores, -np.sort(-nearest, axis=1)[:, :K], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(nearest, ids, 1), scores, atol=1e-6)
    tied = scores[:, 1:] == scores[:, :-1]
    assert tied.any() and (np.diff(ids, axis=1)[tied] > 0).all()  # of equals the first


@pytest.mark.parametrize("name", ["Flat", "IVF16,Flat", "IVF16,SQ8", "IVF16,PQ8"])
def test_faiss_finds_on_the_gpus_what_it_finds_on_a_cpu(device, vectors, nearest, name):
    """Trained and filled where the stage does it, then searched there and, as it is stored, on the CPU."""
    settings = IndexSettings(nprobe=16)
    stored = make(name, Plain(vectors), np.arange(COUNT), settings, seed=1)
    assert stored.ntotal == COUNT
    factory.prepare(stored, settings)
    there = factory.to_gpus(stored, settings)
    if device.type == "cuda":
        assert faiss.get_num_gpus() and there is not stored, "faiss has no GPU: install faiss-gpu (make FAISS=gpu)"
    (near, ids), (own, _) = there.search(vectors[:200], K), stored.search(vectors[:200], K)
    assert (np.diff(near, axis=1) <= 1e-6).all()
    np.testing.assert_allclose(near, own, atol=1e-3 if "Q" in name else 1e-5)
    if "Flat" in name:  # all lists are visited: exact
        np.testing.assert_allclose(np.take_along_axis(nearest, ids, 1), -np.sort(-nearest, 1)[:, :K], atol=1e-5)


def test_an_encoders_states_are_those_of_a_cpu_in_float32(device, tmp_path):
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    model = BertModel(BertConfig(vocab_size=200, **sizes)).eval()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    pieces = np.random.default_rng(0).integers(0, 200, (5, 12))
    engine = open_engine(tmp_path, config, EncoderSettings(gpu_dtype="float16"))
    assert engine.gpu == (device.type == "cuda")
    with torch.inference_mode():
        wanted = model(input_ids=torch.from_numpy(pieces)).last_hidden_state.numpy()
    np.testing.assert_allclose(engine([*pieces]), wanted, atol=2e-2 if engine.gpu else 1e-4)
