"""The planner's formulas at the scale of the literature; `tests/workflow` compares it with a real run."""

import json
import sys

import pytest

from retro.base import stage
from retro.planning import plan
from retro.planning.estimates import index_bytes
from retro.retrieval import factory


def planned(monkeypatch, capsys, *words: str) -> dict:
    monkeypatch.setattr(sys, "argv", ["retro.planning.plan", *words, "--json"])
    plan.main()
    return json.loads(capsys.readouterr().out)


def test_the_largest_preset_over_300_billion_tokens(monkeypatch, capsys):
    found = planned(monkeypatch, capsys, "--preset", "4b", "--database-tokens", "300e9", "--document-tokens", "1000")
    counts, disk, models = found["counts"], found["disk_bytes"], {each["name"]: each for each in found["models"]}
    assert counts["chunks"] == pytest.approx(300e9 / 64 + 300e6 / 2)
    assert found["counts"]["padding_share"] == pytest.approx(1 - 300e9 / (64 * counts["chunks"]))
    assert disk["embeddings"] == pytest.approx(counts["chunks"] * 384 * 4)
    # 20 neighbours; ids of 8 bytes, as there are more than 2^31 chunks, and scores of 2
    assert disk["neighbours"] == pytest.approx(counts["chunks"] * 20 * 10, rel=0.001)
    assert found["index"].startswith("OPQ64_384,IVF262144_HNSW32,PQ64")
    assert disk["index"] == pytest.approx(counts["database"] * (64 + 8), rel=0.01)
    gpt, retro = models["gpt-s1"], models["retro-s1"]
    assert 3.5e9 < gpt["parameters"] < retro["parameters"] < 5e9
    # six operations a parameter and token, and attention on top
    assert 6 * gpt["parameters"] < gpt["flops_per_token"] < 8 * gpt["parameters"]
    assert gpt["tokens"] == 166_400_000 * 2048
    wanted = sum(each["flops_per_token"] * each["tokens"] for each in models.values())
    assert found["flops"]["training"] == pytest.approx(wanted)
    assert found["hours"]["training"]["gpu"] == pytest.approx(wanted / (8 * 989e12 * 0.4) / 3600)
    assert found["memory_bytes"]["train/gpt-s1"] > 16 * gpt["parameters"]


def test_twice_the_tokens_are_twice_the_work(monkeypatch, capsys):
    small, large = (
        planned(monkeypatch, capsys, "--preset", "857m", "--database-tokens", tokens) for tokens in ("10e9", "20e9")
    )
    assert large["disk_bytes"]["embeddings"] == pytest.approx(2 * small["disk_bytes"]["embeddings"])
    assert large["flops"]["embedding"] == pytest.approx(2 * small["flops"]["embedding"])
    assert large["flops"]["training"] == small["flops"]["training"]


OPQ = pytest.param("OPQ8_32,IVF16_HNSW32,PQ8", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["Flat", "IVF16,SQ8", "IVF16_HNSW32,Flat", OPQ, "HNSW32", "PQ8"])
def test_the_size_of_an_index_is_what_faiss_writes(name):
    import faiss
    import numpy as np

    vectors = np.random.default_rng(1).normal(size=(4000, 32)).astype("float32")
    index = factory.build(name, 32)
    index.train(vectors)
    index.add(vectors)
    assert index_bytes(name, 32, len(vectors)) == pytest.approx(faiss.serialize_index(index).nbytes, rel=0.15)


def test_the_table_is_for_reading(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["retro.planning.plan", "--preset", "2b", "--database-tokens", "1e9", "--gpus", "0"]
    )
    plan.main()
    text = capsys.readouterr().out
    assert "1,000,000,000 tokens" in text
    assert max(map(len, text.splitlines())) <= 120
    assert "GPU: 0 x" in text


@pytest.mark.parametrize("words", [[], ["--preset", "4b"], ["config/tiny.yaml", "--preset", "4b"]])
def test_what_cannot_be_planned_is_told(monkeypatch, words):
    monkeypatch.setattr(sys, "argv", ["retro.planning.plan", *words])
    with pytest.raises(stage.UserError, match="preset"):
        plan.main()
