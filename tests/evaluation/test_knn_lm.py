"""A kNN-LM is what a naive one is, written from the paper; mixtures are probabilities, and nothing excluded votes."""

import math
from dataclasses import replace

import faiss
import numpy as np
import pytest
import torch

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.dataset.dataset import Dataset
from retro.evaluation import knn_lm
from retro.evaluation.copying import FEW, fit
from retro.evaluation.knn_lm import EXACT, TEMPERATURES, Memory, best, blend, exclusion, kind_of_index, shares
from retro.evaluation.losses import plan
from retro.retrieval.exclusion import Barred, Rule
from tests.evaluation.built import LENGTH, M, make_model, stage

NOBODY = Barred([])


# By loops, from the paper


def state_before(model, window: list[int]) -> np.ndarray:
    """What enters the last block's feed-forward layer after the last token of a window, float64 [d]."""
    with torch.inference_mode():
        tokens = torch.tensor([window])
        x, rope = model.embedding(tokens), model.rope(torch.arange(len(window)))
        for layer in model.decoder.layers[:-1]:
            x, _ = layer(x, rope)
        last = model.decoder.layers[-1]
        x = x + last.attention(last.attention_norm(x), rope=rope, causal=True)
        return last.mlp_norm(x)[0, -1].double().numpy()


def read_naively(dataset, model, rows):
    """(state before, token, chunk) of each token at global `rows`, each read in the window of evaluation."""
    tokens, real = dataset.store.tokens(rows)
    stream = [dataset.store.pad_id] * M + tokens.reshape(-1).tolist()
    starts = plan(len(rows), M, LENGTH, 0).starts.tolist()
    found = []
    for place in np.flatnonzero(real.reshape(-1)).tolist():
        first = next(start for start in starts if place <= start * M + LENGTH) * M
        found.append((state_before(model, stream[first + M : place + M]), stream[place + M], place // M))
    return found


def vote_naively(state, token, row, memory, dataset, k, temperature):
    """p_kNN of a token: the k nearest entries of other documents, each with the weight of its distance."""
    keys = [(int(dataset.store.source(at)), int(dataset.store.chunks(at)["document"])) for at in dataset.database]
    own = (int(dataset.store.source(row)), int(dataset.store.chunks(row)["document"]))
    squared = np.array([((key - state) ** 2).sum() if keys[chunk] != own else np.inf for key, _, chunk in memory])
    nearest = np.argsort(squared, kind="stable")[:k]
    votes = {}
    for at in nearest:
        votes[memory[at][1]] = votes.get(memory[at][1], 0.0) + math.exp(-(squared[at] - squared.min()) / temperature)
    return votes.get(token, 0.0) / sum(votes.values())


@pytest.fixture(scope="module")
def model(dataset):
    return make_model(dataset, "gpt")


@pytest.fixture(scope="module")
def measured(dataset):
    """Losses of the untrained GPT on valid and test: split → manifest."""
    found = {}
    for split in ("valid", "test"):
        found[split] = dataset.folder / f"runs/gpt-s1/evaluation/{split}/none/manifest.json"
        given = ("--model", dataset.folder / "runs/gpt-s1/model.json", "--settings", "{}", "--split", split)
        stage("retro.evaluation.losses", "--config", dataset.path, *given, "--mode", "none", "--output", found[split])
    return found


def made(dataset, measured, mode="none+k8+knn", output=None, losses="test", fitted="valid", run="gpt-s1", **more):
    output = output or dataset.folder / f"runs/{run}/evaluation/test/{mode}/manifest.json"
    given = ("--losses", measured[losses], "--fitted", measured[fitted], "--mode", mode, "--output", output)
    model = ("--model", dataset.folder / f"runs/{run}/model.json")
    options = [part for name, value in more.items() for part in (f"--{name}", value)]
    stage("retro.evaluation.knn_lm", "--config", dataset.path, *model, *given, *options)
    return read_manifest(output, "losses")


def test_the_stage_is_a_naive_knn_lm(dataset, model, measured):
    found = made(dataset, measured)
    weight, temperature = found.counts["weight"], found.counts["temperature"]
    assert weight > 0, "there is something to mix"
    memory = read_naively(dataset, model, dataset.database)
    assert found.counts["states"] == len(memory)
    alone, mixed = (each.array("losses.npy") for each in (read_manifest(measured["test"]), found))
    assert mixed.dtype == np.float32 and np.array_equal(np.isfinite(alone), np.isfinite(mixed))
    rows, real = dataset.rows("test"), np.isfinite(alone)
    targets = read_naively(dataset, model, rows)
    assert len(targets) == real.sum()
    chosen = np.random.default_rng(0).permutation(len(targets))[:60]
    got, nats = mixed[real][chosen], alone[real][chosen].astype(float)
    voted = [
        vote_naively(*targets[at][:2], rows[targets[at][2]], memory, dataset, 8, temperature) for at in chosen.tolist()
    ]
    assert any(0 < share < 1 for share in voted)
    wanted = -np.log((1 - weight) * np.exp(-nats) + weight * np.array(voted))
    np.testing.assert_allclose(got, wanted, rtol=2e-4)


def test_states_are_those_of_the_windows_that_score(dataset, model, measured):
    settings = read_manifest(measured["test"]).settings
    states = knn_lm.read_states(model, knn_lm.unread(dataset, "test"), settings)
    real = dataset.store.tokens(dataset.rows("test"))[1]
    wanted = np.stack([state for state, *_ in read_naively(dataset, model, dataset.rows("test"))])
    np.testing.assert_allclose(states[real], wanted, atol=1e-4)


def test_the_manifest_says_what_was_done(dataset, measured):
    found, alone = made(dataset, measured, "none+knn"), read_manifest(measured["test"])
    assert found.settings == {**alone.settings, "mode": "none+knn", "nearest": 1024, "index": "Flat"}
    assert found.counts["nats"] == pytest.approx(np.nansum(found.array("losses.npy"), dtype=np.float64))
    assert found.counts["fitted_targets"] == read_manifest(measured["valid"]).counts["tokens"]
    assert {key: found.counts[key] for key in ("tokens", "bytes")} == {
        key: alone.counts[key] for key in ("tokens", "bytes")
    }


def test_the_same_bytes_each_time(dataset, measured, tmp_path):
    first = made(dataset, measured, output=tmp_path / "runs/manifest.json")
    before = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    made(dataset, measured, output=tmp_path / "runs/manifest.json")
    assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == before


# Votes and mixtures


def looked_up(count=500, k=20, seed=0):
    """Nats of a model, distances of what was looked up and what of it has the target, of random targets."""
    rng = np.random.default_rng(seed)
    distances = np.sort(rng.exponential(30, (count, k)), axis=1).astype(np.float32)
    hits = rng.random((count, k)) < np.exp(-distances / 20)
    return rng.exponential(3, count).astype(np.float32), distances, hits


def test_votes_for_all_tokens_sum_to_one_and_so_does_the_mixture():
    rng, vocabulary = np.random.default_rng(0), 5
    distances, tokens = rng.exponential(30, (1, 50)).astype(np.float32), rng.integers(0, vocabulary, (1, 50))
    chances = rng.dirichlet(np.ones(vocabulary))
    votes = [shares(distances, tokens == token, 10.0) for token in range(vocabulary)]
    mixed = [blend(np.array([-math.log(p)], np.float32), vote, 0.3) for p, vote in zip(chances, votes, strict=True)]
    assert sum(vote.item() for vote in votes) == pytest.approx(1, abs=1e-6)
    assert sum(math.exp(-nats.item()) for nats in mixed) == pytest.approx(1, abs=1e-6)


def test_far_states_vote_too_and_nobody_votes_where_nothing_was_found():
    far = np.array([[1e6, 1e6 + 10, np.inf]], np.float32)
    hits = np.array([[True, False, False]])
    assert shares(far, hits, 10.0).item() == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-5)
    assert shares(np.full((1, 3), np.inf, np.float32), hits, 10.0).item() == 0


def test_no_weight_leaves_every_bit():
    losses, distances, hits = looked_up()
    losses[0] = 0  # a model that is sure
    voted = shares(distances, hits, 5.0)
    assert blend(losses, voted, 0.0).tobytes() == losses.tobytes()
    wanted = -np.log(0.75 * np.exp(-losses.astype(float)) + 0.25 * voted)
    np.testing.assert_allclose(blend(losses, voted, 0.25), wanted, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_weight_and_temperature_are_the_best_of_those_tried(seed):
    losses, distances, hits = looked_up(seed=seed)
    weight, temperature = best(losses, distances, hits)
    nats = {
        each: blend(losses, voted := shares(distances, hits, each), fit(losses, voted)).sum() for each in TEMPERATURES
    }
    assert temperature == min(nats, key=nats.get) and 0 < weight < 1
    assert weight == pytest.approx(fit(losses, shares(distances, hits, temperature)), abs=1e-6)


def test_too_few_targets_fit_nothing():
    losses, distances, hits = looked_up(FEW - 1)
    assert best(losses, distances, hits)[0] == 0 and best(*looked_up(FEW))[0] > 0


# Looking up


def some_memory(count=3000, width=8, chunks=50, kind="Flat", seed=0):
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((count, width)).astype(np.float32)
    return Memory.of(states, rng.integers(0, 9, count), np.sort(rng.integers(0, chunks, count)), kind, 0)


def brute(memory, query, k, excluded=()):
    squared = ((memory.states.astype(float) - query) ** 2).sum(1)
    squared[np.isin(memory.chunks, list(excluded))] = np.inf
    order = np.argsort(squared, kind="stable")[:k]
    return np.where(np.isfinite(squared[order]), order, -1), squared[order]


@pytest.mark.parametrize("k", [1, 7, 100, 5000])
def test_the_nearest_are_found_nearest_first(k):
    memory, queries = some_memory(), np.random.default_rng(1).standard_normal((20, 8)).astype(np.float32)
    ids, distances = memory.nearest(queries, k, NOBODY)
    for row, query in enumerate(queries):
        wanted, squared = brute(memory, query, k)
        assert set(ids[row, : len(wanted)]) == set(wanted) and (ids[row, len(wanted) :] == -1).all()
        np.testing.assert_allclose(distances[row, : len(wanted)], squared, rtol=1e-5)
        assert np.isinf(distances[row, len(wanted) :]).all()


def test_nothing_excluded_is_found_and_others_take_its_place():
    """Also where most of the memory is excluded, so that many more have to be looked at."""
    memory, queries = some_memory(), np.random.default_rng(1).standard_normal((12, 8)).astype(np.float32)
    groups = np.minimum(np.arange(50) // 2, 20).astype(np.uint64)  # of the chunks; the last one is large
    rule, own = Rule(groups), np.array([0, 3, 20, 20, 7, 20] * 2, np.uint64)
    ids, _ = memory.nearest(queries, 30, Barred([(rule, rule.look_up(own))]))
    for row, query in enumerate(queries):
        assert ids[row].tolist() == brute(memory, query, 30, np.flatnonzero(groups == own[row]))[0].tolist()
    everything = Barred([(Rule(np.zeros(50, np.uint64)), np.zeros(12, np.int64))])
    assert (memory.nearest(queries, 30, everything)[0] == -1).all()


def test_equal_states_are_ordered_and_small_blocks_change_nothing(monkeypatch):
    states = np.repeat(np.arange(4, dtype=np.float32)[:, None], 3, axis=1)[np.arange(12) % 4]
    memory = Memory.of(states, np.arange(12), np.arange(12), "Flat", 0)
    queries = np.ones((5, 3), np.float32)
    before = memory.nearest(queries, 5, NOBODY)
    assert before[0].tolist() == [[1, 5, 9, 0, 2]] * 5
    monkeypatch.setattr(knn_lm, "CELLS", 1)
    assert all(np.array_equal(*pair) for pair in zip(memory.nearest(queries, 5, NOBODY), before, strict=True))


def test_an_approximate_index_finds_most_and_its_distances_are_exact():
    exact, memory = some_memory(20_000), some_memory(20_000, kind="IVF64,SQ8")
    assert isinstance(memory.index, faiss.IndexIVF)
    memory.index.nprobe = 16
    queries = np.random.default_rng(1).standard_normal((50, 8)).astype(np.float32)
    ids, distances = memory.nearest(queries, 20, NOBODY)
    wanted = exact.nearest(queries, 20, NOBODY)[0]
    assert np.mean([len(set(a) & set(b)) / 20 for a, b in zip(ids, wanted, strict=True)]) > 0.9
    again = ((memory.states[ids] - queries[:, None]) ** 2).sum(2)
    np.testing.assert_allclose(distances, again, rtol=1e-5)


def test_search_is_exact_while_that_is_affordable():
    assert kind_of_index(1000, 1000, 128) == kind_of_index(EXACT // 128, 1, 128) == "Flat"
    assert kind_of_index(827_323, 26_229, 128) == "IVF2048,SQ8"
    assert kind_of_index(EXACT, 1, 128).endswith("PQ64")


def test_a_stage_that_searches_lists_says_so_and_says_nearly_the_same(dataset, measured, monkeypatch, tmp_path):
    exact = made(dataset, measured)
    monkeypatch.setattr(knn_lm, "EXACT", 0)
    found = made(dataset, measured, output=tmp_path / "runs/manifest.json")
    assert (exact.settings["index"], found.settings["index"][:3]) == ("Flat", "IVF")
    assert found.counts["bits_per_byte"] == pytest.approx(exact.counts["bits_per_byte"], rel=0.01)


@pytest.mark.parametrize("rule", ["group_of_any_source", "text"])
def test_what_is_no_neighbour_of_a_chunk_does_not_vote_for_it(dataset, model, measured, rule):
    strict = replace(dataset, facts={**dataset.facts, "neighbours": {**dataset.facts["neighbours"], "exclude": [rule]}})
    tokens, real = dataset.store.tokens(dataset.database)
    states = knn_lm.read_states(model, knn_lm.unread(dataset, "database"), read_manifest(measured["test"]).settings)
    memory = Memory.of(states[real], tokens[real], np.nonzero(real)[0], "Flat", 0)
    rows = dataset.database[::3]  # chunks of the database itself: documents, groups and texts stand there
    here = np.arange(len(dataset.database))[::3]
    ids, _ = memory.nearest(states[here, 5], 40, exclusion(strict).of(rows))
    column = "group" if rule.startswith("group") else "text"
    records = dataset.store.chunks(dataset.database)
    for row, found in zip(rows, ids, strict=True):
        own, seen = dataset.store.chunks(row), records[memory.chunks[found[found >= 0]]]
        assert not (seen[column] == own[column]).any()
    assert (ids >= 0).any()


def test_what_is_later_than_a_chunk_does_not_vote_for_it(dataset, model, measured, monkeypatch):
    """Global rows serve as dates; without dates nothing votes."""
    rules = {**dataset.facts["neighbours"], "exclude": ["later"]}
    strict, m = replace(dataset, facts={**dataset.facts, "neighbours": rules}), dataset.chunk_length
    tokens, _ = dataset.store.tokens(dataset.database)
    states = np.random.default_rng(0).standard_normal((tokens.size, 4)).astype(np.float32)
    memory = Memory.of(states, tokens.reshape(-1), np.arange(tokens.size) // m, "Flat", 0)
    rows, queries = dataset.database[::3], memory.states[:: 3 * m]
    assert (memory.nearest(queries, 40, exclusion(strict).of(rows))[0] < 0).all()
    monkeypatch.setattr("retro.retrieval.exclusion.read_dates", lambda chunks: np.arange(len(dataset.store)))
    ids, _ = memory.nearest(queries, 40, exclusion(strict).of(rows))
    seen = dataset.database[memory.chunks[ids]]
    assert (seen <= rows[:, None])[ids >= 0].all() and (ids[-1] >= 0).all()


def test_clusters_of_duplicates_are_excluded_where_the_dataset_excludes_them(dataset, monkeypatch):
    given = []
    monkeypatch.setattr(knn_lm, "Exclusion", lambda rules, chunks, database, duplicates: given.append(duplicates))
    for action in ("report", "exclude"):
        exclusion(replace(dataset, facts={**dataset.facts, "duplicates": {"action": action}}))
    assert given == [None, dataset.folder / "duplicates/manifest.json"]


def test_an_empty_valid_split_fits_nothing_and_mixes_nothing(dataset, measured, monkeypatch, tmp_path):
    rows = Dataset.rows
    monkeypatch.setattr(Dataset, "rows", lambda self, split: rows(self, split)[: 0 if split == "valid" else None])
    model = ("--model", dataset.folder / "runs/gpt-s1/model.json", "--settings", "{}", "--split", "valid")
    empty = {**measured, "valid": tmp_path / "valid/manifest.json"}
    stage("retro.evaluation.losses", "--config", dataset.path, *model, "--mode", "none", "--output", empty["valid"])
    found = made(dataset, empty, output=tmp_path / "mixed/manifest.json")
    assert found.counts["weight"] == found.counts["fitted_targets"] == 0
    assert found.array("losses.npy").tobytes() == read_manifest(measured["test"]).array("losses.npy").tobytes()


# Refusals


def refused(dataset, measured, *words, **given):
    with pytest.raises(UserError) as error:
        made(dataset, measured, **given)
    assert all(word in str(error.value) for word in words), error.value


def test_what_cannot_be_is_refused(dataset, measured):
    refused(dataset, measured, "'none'", "none+knn", mode="none")
    refused(dataset, measured, "test split", "valid", fitted="test")
    refused(dataset, measured, "gpt-s1", "retro-s1", run="retro-s1", output=dataset.folder / "x/manifest.json")
    refused(dataset, measured, "MB", "experiments.baselines", memory=1)


def test_an_empty_database_has_no_states(dataset, measured, monkeypatch):
    monkeypatch.setattr(Dataset, "database", np.empty(0, np.int64))
    refused(dataset, measured, "empty", "database: true")
