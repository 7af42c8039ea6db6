"""The planner's formulas at the scale of the literature; `tests/workflow` compares it with a real run."""

import json
import sys

import pytest

from retro.base import stage
from retro.config.schema import parse
from retro.planning import estimates, plan
from retro.planning.counts import Counts
from retro.planning.estimates import index_bytes
from retro.retrieval import factory
from retro.retrieval.settings import IndexSettings
from tests.model.families import LLAMA


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
    assert large["flops"]["training"] == pytest.approx(2 * small["flops"]["training"])  # each is read four times


def test_no_more_is_trained_on_than_the_preset_says(monkeypatch, capsys):
    first, second = (
        planned(monkeypatch, capsys, "--preset", "857m", "--database-tokens", tokens) for tokens in ("100e9", "200e9")
    )
    assert first["flops"]["training"] == second["flops"]["training"]
    assert first["models"][0]["tokens"] == 166_400_000 * 2048


LARGE = ("--preset", "2b", "--database-tokens", "300e9", "--gpus", "256")


def test_terabytes_are_not_written_in_a_minute(monkeypatch, capsys):
    """Embeddings of 300 billion tokens: seconds of arithmetic on 256 GPUs, hours of a disk."""
    found = planned(monkeypatch, capsys, *LARGE, "--disk", "1000")
    hours, moved = found["hours"]["embedding"], found["moved_bytes"]["embedding"]
    assert moved == found["disk_bytes"]["embeddings"] + found["disk_bytes"]["tokens"]
    assert hours["disk"] == pytest.approx(moved / 1e9 / 3600)
    assert hours["gpu"] < 0.1 < 2 < hours["disk"]
    assert found["binding"]["embedding"] == "disk"
    faster = planned(monkeypatch, capsys, *LARGE, "--disk", "1000000")
    assert faster["binding"]["embedding"] == "gpu" and faster["total_hours"] < found["total_hours"]


def test_tokenizing_goes_by_its_own_rate(monkeypatch, capsys):
    found = planned(monkeypatch, capsys, *LARGE, "--tokenize", "4", "--cores", "32")
    assert found["hours"]["tokenizing"]["cpu"] == pytest.approx(found["counts"]["text"] / (4e6 * 32) / 3600)
    assert set(found["hours"]["tokenizing"]) == {"cpu", "disk"}
    assert found["counts"]["text"] == pytest.approx(4.2 * 300e9)


def test_the_index_is_trained_by_k_means(monkeypatch, capsys):
    found = planned(monkeypatch, capsys, "--preset", "2b", "--database-tokens", "300e9")
    assert found["index"].startswith("OPQ64_384,IVF262144")
    sample = IndexSettings().train_vectors
    assert found["flops"]["index"] > 2 * 384 * sample * 262144 * 10  # ten times all distances
    assert estimates.index_flops("Flat", 384, 1e6, sample) == 0
    two, one = (estimates.index_flops("IVF1024,SQ8", 384, 1e6, count) for count in (2e5, 1e5))
    assert two - one == pytest.approx(2 * 384 * 1e5 * 1024 * 10)


def of_a_large_test_split(**evaluate) -> estimates.Plan:
    dataset = {"name": "d", "sources": {"a": {"path": "a"}}, "samples": {"train_samples": 1000}}
    settings = parse({"preset": "tiny", "dataset": dataset, "evaluate": evaluate})
    counted = Counts(tokens=64e6, text=270e6, database=1e5, splits={"train": 1e5, "valid": 1e5, "test": 9e5, "book": 0})
    return estimates.make(settings, counted)


def test_evaluating_a_large_split_takes_more_than_training():
    plan = of_a_large_test_split()
    assert plan.flops["evaluation"] > 2 * plan.flops["training"]
    both = of_a_large_test_split(splits=["valid", "test"])
    assert both.flops["evaluation"] == pytest.approx(10 / 9 * plan.flops["evaluation"])


def test_evaluation_counts_every_window_and_every_condition():
    overlapping = of_a_large_test_split()  # windows move by half their length: each token is read twice
    window = 2 * parse({"dataset": {"sources": {"a": {"path": "a"}}}, "preset": "tiny"}).dataset.samples.seq_length
    once = of_a_large_test_split(stride=window // 2)
    assert overlapping.flops["evaluation"] == pytest.approx(2 * once.flops["evaluation"])
    fewer = of_a_large_test_split(random_neighbours=False)
    assert 0.5 < fewer.flops["evaluation"] / overlapping.flops["evaluation"] < 0.9
    blind = of_a_large_test_split(neighbours_used=0)
    assert blind.flops["evaluation"] < overlapping.flops["evaluation"]


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


def said(monkeypatch, capsys, *words: str) -> str:
    """What the plan says before its figures."""
    monkeypatch.setattr(sys, "argv", ["retro.planning.plan", *words])
    plan.main()
    return capsys.readouterr().out.partition("\n\n")[0]


def test_the_plan_begins_with_what_to_make_of_it(monkeypatch, capsys):
    """The 857m preset over a billion tokens: how long, what binds, what fits; four epochs need no word."""
    words = ("--preset", "857m", "--database-tokens", "1e9", "--gpus", "1", "--free-disk", "40")
    first, fits, disk = said(monkeypatch, capsys, *words).splitlines()
    assert first == "17.5 hours on 1 GPU; training takes 98% of it and waits for the GPUs."
    assert fits == "The largest model fits into a GPU of 80 GB: a micro batch wants 25.2 GB."
    assert disk.endswith("more than the 40.0 GB that are free.")


@pytest.mark.parametrize(("samples", "times", "change"), [(166_400_000, "331", "lower"), (20_000, "0.04", "raise")])
def test_it_says_how_often_the_corpus_is_read(monkeypatch, capsys, tmp_path, samples, times, change):
    config = tmp_path / "mine.yaml"
    config.write_text(
        "preset: 857m\ndataset: {name: mine, sources: {mine: {path: mine}}, samples: {train_samples: "
        f"{samples}}}}}"
    )
    lines = said(monkeypatch, capsys, str(config), "--database-tokens", "1e9").splitlines()
    (epochs,) = [line for line in lines if line.startswith("Training reads its corpus")]
    assert epochs.startswith(f"Training reads its corpus {times} times: {change} dataset.samples.train_samples (")
    wanted = int(epochs.partition("(")[2].partition(" ")[0].replace(",", ""))
    assert wanted == pytest.approx((4 if change == "lower" else 1) * 16_092_750 * 64 / 2048, rel=0.001)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--preset", "4b", "--database-tokens", "300e9"), "does not fit into a GPU of 80 GB"),
        (("--preset", "4b", "--database-tokens", "300e9"), "shared by 8 it does (train.parallel.fsdp)"),
        (("--preset", "857m", "--database-tokens", "9e12"), "raise dataset.samples.train_samples"),
        (("--preset", "857m", "--database-tokens", "300e9", "--gpus", "0", "--memory", "16"), "it does not fit"),
        (("--preset", "small", "--database-tokens", "1e8", "--gpus", "0"), " on 2 cores; "),
    ],
)
def test_it_says_what_does_not_fit_and_what_to_change(monkeypatch, capsys, words, line):
    assert line in said(monkeypatch, capsys, *words)


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        (0.001, "1 min"),
        (0.5, "30 min"),
        (1.9, "114 min"),
        (2, "2 hours"),
        (40, "40 hours"),
        (59 * 24, "59 days"),
        (8766 * 16, "16 years"),
    ],
)
def test_hours_are_said_as_a_person_says_them(hours, words):
    assert plan.told(hours) == words


def test_a_model_of_hugging_face_s_is_planned_as_its_folder_says(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/small").mkdir(parents=True)
    (tmp_path / "models/small/config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    facts = {
        "dataset": {"name": "d", "sources": {"a": {"path": "a"}}, "samples": {"seq_length": 64}},
        "runs": {
            "base": {"architecture": "gpt", "from": "models/small", "freeze": "base"},
            "fitted": {"architecture": "retro", "twin": "base", "from": "models/small", "freeze": "base"},
        },
    }
    (tmp_path / "c.yaml").write_text(json.dumps(facts), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["plan", "c.yaml", "--database-tokens", "1e6", "--gpus", "0"])
    plan.main()
    text = capsys.readouterr().out
    assert "base-s1 begins with models/small/config.json: 9 layers x 24 x 3 heads (1 of keys and values)" in text
    tokens = {line.split()[0]: line.split()[3] for line in text.splitlines() if line.startswith(("  base", "  fitted"))}
    assert tokens["base-s1"] == "0" and float(tokens["fitted-s1"]) > 0
