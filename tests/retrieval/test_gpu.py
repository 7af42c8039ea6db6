"""GPU paths as far as a CPU goes: which options faiss is given, and what happens without a device."""

from types import SimpleNamespace

import faiss
import numpy as np
import pytest

from retro.retrieval import factory
from retro.retrieval import index as training
from retro.retrieval.index import make
from retro.retrieval.settings import IndexSettings
from tests.retrieval.brute import Plain, units


@pytest.fixture
def two_gpus(monkeypatch):
    """A faiss that reports two GPUs and whose copies to them are the index itself; the calls made."""
    calls = []

    def to_all(index, co):
        calls.append(co)
        return faiss.clone_index(index)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", to_all, raising=False)
    monkeypatch.setattr(faiss, "index_gpu_to_cpu", lambda index: index, raising=False)
    return calls


def test_without_a_device_the_index_stays_as_it_is():
    index = faiss.IndexFlatIP(4)
    assert factory.to_gpus(index, IndexSettings()) is index and factory.to_cpu(index, index) is index


@pytest.mark.parametrize("how", ["replicate", "shard"])
def test_an_index_is_trained_and_filled_on_the_gpus_as_the_config_says(two_gpus, how):
    vectors = units(np.random.default_rng(0), 500, 16)
    settings = IndexSettings(gpu=how, gpu_float16=True)
    index = make("IVF4,Flat", Plain(vectors), np.arange(500), settings, seed=1)
    assert index.ntotal == 500
    assert len(two_gpus) == 2  # to train, and to fill
    for options in two_gpus:
        assert options.shard == (how == "shard") and options.common_ivf_quantizer == options.shard
        assert options.useFloat16 and not options.useFloat16CoarseQuantizer and options.allowCpuCoarseQuantizer


def test_the_centroids_of_a_large_sample_are_found_on_the_gpus(two_gpus, monkeypatch):
    monkeypatch.setattr(training, "FEW", 100)
    vectors = units(np.random.default_rng(0), 500, 16)
    index = make("IVF4_HNSW4,SQ8", Plain(vectors), np.arange(500), IndexSettings(), seed=1)
    assert index.ntotal == 500
    assert len(two_gpus) == 2  # to find centroids, and to fill


def test_a_kind_that_gpus_cannot_hold_stays_on_the_cpu(two_gpus, monkeypatch, capsys):
    def refuse(index, co):
        raise RuntimeError("Error in ToGpuCloner: 'false' failed: not a kind for GPUs")

    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", refuse, raising=False)
    index = faiss.IndexHNSWFlat(4, 8, faiss.METRIC_INNER_PRODUCT)
    assert factory.to_gpus(index, IndexSettings()) is index
    assert "index stays on the CPU: not a kind for GPUs" in capsys.readouterr().err
