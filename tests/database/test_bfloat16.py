"""The encoder in bfloat16 on a CPU: a text's vector is its own, close to float32's, and never mistaken for it."""

import numpy as np
import pytest
import torch

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.database import bfloat16, embed, encoders, engines
from retro.database.bfloat16 import KINDS, instructions
from retro.database.encoders import open_encoder, open_for_queries, settings_of
from retro.database.kept import name_of
from retro.database.settings import EncoderSettings
from retro.validate.database import embedding_differences
from retro.validate.sample import Sample
from tests.database.stages import stage

LOW = EncoderSettings(cpu_dtype="bfloat16")
needs_bfloat16 = pytest.mark.skipif(instructions() is None, reason="the processor has neither AVX512-BF16 nor AMX")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Of 2 to 250 word pieces: no word, one, and stretches of what the module says of itself."""
    words = (embed.__doc__ + encoders.__doc__ + engines.__doc__).split()
    cut = [(number * 7, 3 + number * number % 61) for number in range(24)]
    return ["", "a", " ".join(words[:200]), *(" ".join(words[start : start + length]) for start, length in cut)]


@pytest.fixture(scope="module")
def low():
    return open_encoder(LOW, threads=1)


@pytest.fixture(scope="module")
def vectors(low, texts):
    return low.encode(texts)


@needs_bfloat16
@pytest.mark.parametrize(("batch_size", "threads"), [(1, 1), (3, 2), (7, 3)])
def test_a_vector_does_not_depend_on_batch_order_or_threads(texts, vectors, batch_size, threads):
    other = open_encoder(LOW.model_copy(update={"batch_size": batch_size}), threads)
    order = np.random.default_rng(batch_size).permutation(len(texts))
    assert (other.encode([texts[place] for place in order]) == vectors[order]).all()


@needs_bfloat16
def test_the_caller_keeps_its_threads(low):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    low.encode(["a"])
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@needs_bfloat16
def test_it_is_close_to_float32_and_says_what_computed(low, texts, vectors):
    exact = open_encoder(EncoderSettings(), 1)
    made = exact.encode(texts)
    assert (vectors * made).sum(axis=1).min() > 0.9997
    assert embed.recall(vectors, made) > 0.9
    assert low.engine == f"torch bfloat16 {instructions()}" != exact.engine
    assert low.identity == exact.identity and low.lasting


@needs_bfloat16
def test_auto_is_bfloat16_here_and_kept_vectors_tell_the_types_apart(low, vectors, texts):
    auto = open_encoder(EncoderSettings(cpu_dtype="auto"), 1)
    assert auto.engine == low.engine and (auto.encode(texts[:3]) == vectors[:3]).all()
    names = [name_of(each, LOW) for each in (auto, low, open_encoder(EncoderSettings(), 1))]
    assert names[0] == names[1] != names[2]


def test_recall_is_the_share_of_nearest_others():
    exact = np.eye(12, dtype=np.float32)
    assert embed.recall(exact, exact) == 1  # all tie: the first are taken
    assert embed.recall(exact[:5, :5], -exact[:5, :5]) == 1  # fewer than ten others: all of them
    exact, found = (unit(np.random.default_rng(seed).standard_normal((40, 3))) for seed in (0, 1))
    shares = []
    for row in range(40):
        near = [
            set(sorted(set(range(40)) - {row}, key=lambda other: -vectors[row] @ vectors[other])[:10])
            for vectors in (exact, found)
        ]
        shares.append(len(near[0] & near[1]) / 10)
    assert embed.recall(found, exact) == pytest.approx(np.mean(shares))


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def elsewhere(monkeypatch):
    """A processor without bfloat16."""
    for module in (encoders, engines, bfloat16):
        monkeypatch.setattr(module, "instructions", lambda: None)


def test_elsewhere_auto_is_float32_and_bfloat16_is_refused(elsewhere):
    assert open_encoder(EncoderSettings(cpu_dtype="auto"), 1).engine == "onnxruntime float32"
    with pytest.raises(UserError, match=r"cpu_dtype bfloat16: this processor has neither.*set cpu_dtype: float32"):
        open_encoder(LOW, 1)


def test_a_model_that_is_no_bert_is_refused_in_bfloat16(tmp_path):
    with pytest.raises(UserError, match=r"model_type 'distilbert'; only bert computes in bfloat16"):
        engines.open_engine(tmp_path, {"model_type": "distilbert"}, LOW)


def facts(cpu_dtype: str, engine: str) -> dict:
    return {**EncoderSettings(cpu_dtype=cpu_dtype).facts(), "identity": "…", "engine": engine}


@pytest.mark.parametrize("asked", ["auto", "bfloat16"])
def test_queries_are_computed_in_what_embedded_the_database(asked, elsewhere, capsys):
    """Where that cannot be, in float32, and the log says so."""
    made = facts(asked, f"torch bfloat16 {KINDS[1]}")
    assert settings_of(made).cpu_dtype == "bfloat16"
    assert open_for_queries(made, 1).engine == "onnxruntime float32"
    assert "queries are embedded in float32" in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["onnxruntime float32", "torch bfloat16 cuda"])
def test_auto_that_was_float32_stays_so(engine, capsys):
    assert open_for_queries(facts("auto", engine), 1).engine == "onnxruntime float32"
    assert "bfloat16" not in capsys.readouterr().err


@needs_bfloat16
def test_the_manifest_says_what_computed_and_how_many_neighbours_it_finds(corpus, tmp_path, capsys, monkeypatch):
    """In one job or in shards; and validate computes them again, or says that the machine cannot."""
    options = corpus.embed_options("main", type="minilm", cpu_dtype="auto", max_word_pieces=16)
    options |= {"blocks": tmp_path / "blocks", "output": tmp_path / "manifest.json", "block": 64}
    stage("retro.database.embed", **options)
    manifest = read_manifest(options["output"], "embeddings")
    counts = manifest.facts["counts"]
    assert manifest.settings["encoder"]["engine"] == f"torch bfloat16 {instructions()}"
    assert counts["compared"] == counts["chunks"] > 20 and 0.9 < counts["recall@10"] <= 1
    assert "of the neighbours of float32" in capsys.readouterr().err
    del options["blocks"]
    notes = [tmp_path / f"{number}.json" for number in range(2)]
    for number, note in enumerate(notes):
        stage("retro.database.embed", **{**options, "output": note}, shard=f"{number}-of-2")
    joined = {**options, "output": tmp_path / "joined" / "manifest.json"}
    stage("retro.database.embed", **joined, threads=2, shards=notes)
    again = read_manifest(joined["output"])
    assert again.facts["counts"] == counts
    assert again.file("embeddings.npy").read_bytes() == manifest.file("embeddings.npy").read_bytes()
    assert not any(embedding_differences(manifest, Sample(0.1, 1, manifest), 1))
    for module in (encoders, engines, bfloat16):
        monkeypatch.setattr(module, "instructions", lambda: None)
    with pytest.raises(UserError, match=r"this processor has neither"):
        list(embedding_differences(manifest, Sample(0.1, 1, manifest), 1))
