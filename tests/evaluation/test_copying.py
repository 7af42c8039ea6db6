"""The copier finds what a naive one finds, mixtures are probabilities, and weights are those that fit best."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.dataset.dataset import Dataset
from retro.evaluation import copying
from retro.evaluation.conditions import Condition
from retro.evaluation.copying import FEW, LONGEST, NOTHING, Copier, fit, fit_lengths, follow, mix, step
from retro.evaluation.losses import plan
from tests.evaluation.built import LENGTH, SAVED, M, stage


def followers(history: list[int], neighbours: list[list[int | None]]) -> tuple[int, Counter]:
    """Length of the longest suffix of a history that stands in a neighbour, and the tokens that follow it there.

    None is a place of a neighbour where there is nothing to see.
    """
    for length in range(min(LONGEST, len(history)), 0, -1):
        suffix, found = history[-length:], Counter()
        for neighbour in neighbours:
            for at in range(len(neighbour) - length):
                if neighbour[at : at + length] == suffix and neighbour[at + length] is not None:
                    found[neighbour[at + length]] += 1
        if found:
            return length, found
    return 0, Counter()


def share(found: Counter, token: int) -> float:
    return found[token] / max(1, found.total())


places = st.lists(st.one_of(st.integers(0, 2), st.none()), min_size=24, max_size=24)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=24, max_size=24), st.lists(places, min_size=0, max_size=3), st.data())
def test_what_follows_equals_a_naive_search(stream, near, data):
    m = 12
    reach = data.draw(st.lists(st.integers(0, LONGEST), min_size=m, max_size=m))
    neighbours = np.array([[token or 0 for token in each] for each in near], np.int64).reshape(1, len(near), 24)
    shown = np.array([[token is not None for token in each] for each in near], bool).reshape(1, len(near), 24)
    lengths, shares = follow(np.array([stream]), neighbours, shown, np.array([reach]))
    for to in range(m):
        history = stream[: 24 - m + to]
        length, found = followers(history[len(history) - reach[to] :], near)
        assert lengths[0, to] == length
        assert shares[0, to] == np.float32(share(found, stream[24 - m + to]))


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(3)
    tokens, near = rng.integers(0, 3, (20, 24)), rng.integers(0, 3, (20, 3, 32))
    shown, reach = rng.random(near.shape) < 0.9, rng.integers(0, LONGEST + 1, (20, 16))
    whole = follow(tokens, near, shown, reach)
    monkeypatch.setattr("retro.evaluation.copying.CELLS", 1)
    assert all(np.array_equal(*pair) for pair in zip(follow(tokens, near, shown, reach), whole, strict=True))


def test_no_token_is_padding_and_padding_is_no_token():
    near, shown = np.array([[[7, 8, 0, 0]]]), np.array([[[True, True, False, False]]])
    reach = np.full((1, 1), LONGEST)
    for stream, wanted in (([7, 8], (1, 1)), ([8, 0], (0, 0)), ([0, 0], (0, 0)), ([NOTHING, 7], (0, 0))):
        found = follow(np.array([stream]), near, shown, reach)
        assert (found[0].item(), found[1].item()) == wanted
    assert follow(np.array([[7, NOTHING]]), near, shown, reach)[0].item() == 0, "what is no target matches nothing"


def neighbours_of(dataset, split, chunk, k):
    """Neighbours and continuations of a chunk as lists of 2 M places, from the store, one by one."""
    if chunk < 0:
        return []
    found = []
    for number in dataset.neighbour_ids(split)[chunk, :k].tolist():
        if number >= 0:
            row = int(dataset.database[number])
            tokens, real = dataset.store.tokens(np.array([row, *dataset.store.following(np.array([row]))]))
            pairs = zip(tokens.reshape(-1).tolist(), real.reshape(-1).tolist(), strict=True)
            found.append([token if there else None for token, there in pairs])
    return found


def naively(dataset, split, k, seq_length=LENGTH, stride=0):
    """(length, followers, target) of each token of a split in its order, from the stream and its windows, by loops."""
    rows = dataset.rows(split)
    tokens, real = dataset.store.tokens(rows)
    windows = plan(len(rows), M, seq_length, stride)
    for place in range(len(rows) * M):
        chunk, at = divmod(place, M)
        if not real[chunk, at]:
            continue
        first = next(start for start in windows.starts.tolist() if place <= (start + windows.length) * M) * M
        history = []
        for before in range(place - 1, max(first, 0) - 1, -1):  # back to the window's beginning, or to padding
            if not real[before // M, before % M]:
                break
            history.insert(0, int(tokens[before // M, before % M]))
        near = neighbours_of(dataset, split, chunk - 1, k) if (chunk - 1) * M >= first else []
        yield *followers(history, near), int(tokens[chunk, at])


def whole(copier: Copier):
    parts = list(copier.blocks("matches"))
    return np.concatenate([lengths for _, lengths, _ in parts]), np.concatenate([shares for *_, shares in parts])


def copier(dataset, split, k, seq_length=LENGTH, stride=0):
    batcher = copying.Shown(dataset, split, Condition.parse("on"), used=k, retrieved_chunks=2)
    return Copier(batcher, plan(len(batcher.rows), M, seq_length, stride))


@pytest.mark.parametrize(
    ("split", "k", "seq_length", "stride"),
    [
        ("test", 1, LENGTH, 0),
        ("test", 2, LENGTH, 0),
        ("valid", SAVED, LENGTH, 0),
        ("test", 2, LENGTH, LENGTH),  # windows do not overlap: their first chunk sees nothing from before them
        ("test", 2, M, M),  # a window of one chunk
        ("test", 2, LENGTH, M),
    ],
)
def test_a_split_is_copied_as_by_a_naive_copier(dataset, split, k, seq_length, stride):
    lengths, shares = whole(copier(dataset, split, k, seq_length, stride))
    real = dataset.store.tokens(dataset.rows(split))[1]
    wanted = [
        (n, np.float32(share(found, token))) for n, found, token in naively(dataset, split, k, seq_length, stride)
    ]
    assert list(zip(lengths[real].tolist(), shares[real].tolist(), strict=True)) == wanted
    assert not lengths[~real].any() and not shares[~real].any()
    if seq_length > M:
        assert len(set(lengths[real].tolist())) > 3, "matches of several lengths were compared"


def test_small_blocks_of_a_split_change_nothing(dataset, monkeypatch):
    before = whole(copier(dataset, "test", 2))
    monkeypatch.setattr("retro.evaluation.copying.CELLS", 5 * 2 * 2 * M)  # five chunks, whatever their documents
    assert all(np.array_equal(*pair) for pair in zip(whole(copier(dataset, "test", 2)), before, strict=True))


def test_no_neighbours_are_no_matches(dataset):
    lengths, shares = whole(copier(dataset, "test", 0))
    assert lengths.shape == (len(dataset.rows("test")), M) and not lengths.any() and not shares.any()


@settings(max_examples=50, deadline=None)
@given(st.lists(places, min_size=1, max_size=3), st.lists(st.integers(0, 2), min_size=8, max_size=8), st.floats(0, 1))
def test_chances_of_all_tokens_sum_to_one(near, history, weight):
    """Over a vocabulary of three, of which the model says 0.5, 0.3 and 0.2."""
    neighbours = np.array([[[token or 0 for token in each] for each in near]])
    shown = np.array([[[token is not None for token in each] for each in near]])
    weights = np.array([0, *[weight] * LONGEST])
    total = 0.0
    for token, chance in enumerate((0.5, 0.3, 0.2)):
        found = follow(np.array([[*history, token]]), neighbours, shown, np.full((1, 1), LONGEST))
        total += math.exp(-mix(np.full((1, 1), -math.log(chance), np.float32), *found, weights).item())
    assert total == pytest.approx(1, abs=1e-6)


def some(count=500, seed=0):
    """Losses, lengths and shares of random targets, some of none."""
    rng = np.random.default_rng(seed)
    losses = rng.exponential(3, (count // 10, 10)).astype(np.float32)
    losses[rng.random(losses.shape) < 0.1] = np.nan
    lengths = rng.integers(0, LONGEST + 1, losses.shape).astype(np.uint8)
    shares = (rng.random(losses.shape) < 0.1 * lengths).astype(np.float32) * rng.choice([1, 0.5], losses.shape)
    return losses, lengths, np.where(lengths > 0, shares, 0).astype(np.float32)


def test_no_weight_leaves_every_bit():
    losses, lengths, shares = some()
    losses[0, 0] = 0  # a model that is sure
    mixed = mix(losses, lengths, shares, np.zeros(LONGEST + 1))
    assert mixed.dtype == np.float32 and mixed.tobytes() == losses.tobytes()
    weights = np.array([0, *[0.5] * LONGEST])
    mixed = mix(losses, lengths, shares, weights)
    unmatched = lengths == 0
    assert mixed[unmatched].tobytes() == losses[unmatched].tobytes()
    assert np.array_equal(np.isnan(mixed), np.isnan(losses))


def test_a_mixture_is_the_sum_of_chances():
    losses, lengths, shares = some()
    weights = np.linspace(0, 0.9, LONGEST + 1)
    w = weights[lengths]
    wanted = -np.log((1 - w) * np.exp(-losses.astype(float)) + w * shares)
    np.testing.assert_allclose(mix(losses, lengths, shares, weights), wanted, rtol=1e-5)


def likelihood(weight, losses, shares):
    return np.log((1 - weight) * np.exp(-losses.astype(float)) + weight * shares.astype(float)).sum()


@pytest.mark.parametrize("seed", range(5))
def test_em_never_makes_the_fitted_text_less_likely_and_ends_at_the_best_weight(seed):
    losses, lengths, shares = some(seed=seed)
    chosen = np.isfinite(losses) & (lengths == 1 + seed)
    losses, shares = losses[chosen], shares[chosen]
    weight, before = 0.5, -np.inf
    for _ in range(200):
        now = likelihood(weight, losses, shares)
        assert now >= before - 1e-9
        weight, before = step(weight, np.exp(-losses.astype(float)), shares.astype(float)), now
    tried = np.linspace(0, 1, 10_001)[:-1]
    best = tried[np.argmax([likelihood(w, losses, shares) for w in tried])]
    assert 0 < best < 0.99 and fit(losses, shares) == pytest.approx(best, abs=2e-4)


def test_a_copier_that_is_always_right_is_not_trusted_wholly_and_one_that_is_never_right_not_at_all():
    losses = np.full(99, 2, np.float32)
    assert fit(losses, np.ones(99, np.float32)) == pytest.approx(0.99)
    assert fit(losses, np.zeros(99, np.float32)) == pytest.approx(0, abs=1e-6)


def test_each_length_has_the_weight_that_fits_it():
    losses, lengths, shares = some(20_000)
    weights = fit_lengths(losses, lengths, shares)
    assert weights.shape == (LONGEST + 1,) and weights[0] == 0
    for length in range(1, LONGEST + 1):
        chosen = np.isfinite(losses) & (lengths == length)
        assert weights[length] == pytest.approx(fit(losses[chosen], shares[chosen]), abs=1e-6)
    assert (np.diff(weights) > 0).all(), "longer matches are right more often here"


def test_rare_lengths_are_fitted_together_and_too_few_not_at_all():
    losses, lengths, shares = some(20_000)
    lengths[(lengths == 5) & (np.cumsum(lengths == 5).reshape(lengths.shape) > FEW // 2)] = 0
    weights = fit_lengths(losses, lengths, shares)
    chosen = np.isfinite(losses) & np.isin(lengths, (4, 5))
    assert weights[4] == weights[5] == pytest.approx(fit(losses[chosen], shares[chosen]), abs=1e-6)
    assert len(set(weights)) == LONGEST
    few = np.flatnonzero(np.isfinite(losses).reshape(-1) & (lengths.reshape(-1) > 0))[: FEW - 1]
    assert not fit_lengths(*(x.reshape(-1)[few] for x in (losses, lengths, shares))).any()


RUNS = {"none": "gpt-s1", "off": "retro-s1", "on": "retro-s1", "on+k3": "retro-s1", "shuffled": "retro-s1"}

KNN_LM = "none+knn"


def folder(dataset, run, split, mode):
    return dataset.folder / "runs" / run / "evaluation" / split / mode / "manifest.json"


@pytest.fixture(scope="module")
def measured(dataset):
    """Losses of both untrained models on valid and test: (mode, split) → manifest."""
    found = {}
    for mode, run in RUNS.items():
        for split in ("valid", "test"):
            found[mode, split] = folder(dataset, run, split, mode)
            model = ("--model", dataset.folder / "runs" / run / "model.json", "--settings", "{}")
            where = ("--split", split, "--mode", mode, "--output", found[mode, split])
            stage("retro.evaluation.losses", "--config", dataset.path, *model, *where)
    for split in ("valid", "test"):  # a kNN-LM is measured on valid, too, where its own weight is fitted
        found[KNN_LM, split] = folder(dataset, "gpt-s1", split, KNN_LM)
        model = ("--model", dataset.folder / "runs/gpt-s1/model.json", "--mode", KNN_LM)
        parts = ("--losses", found["none", split], "--fitted", found["none", "valid"], "--output", found[KNN_LM, split])
        stage("retro.evaluation.knn_lm", "--config", dataset.path, *model, *parts)
    return found


def mixed(dataset, measured, mode, fitted="valid", split="test", output=None):
    condition = Condition.parse(mode)
    losses = measured[condition.model.name, split]
    output = output or folder(dataset, RUNS.get(condition.model.name, "gpt-s1"), split, condition.name)
    given = ("--losses", losses, "--fitted", measured[condition.model.name, fitted], "--mode", mode, "--output", output)
    stage("retro.evaluation.copying", "--config", dataset.path, *given)
    return read_manifest(output, "losses")


@pytest.mark.parametrize(
    ("mode", "k"),
    [
        ("none+k1+copy", 1),
        ("none+k4+copy", 4),
        ("on+copy", 2),
        ("on+k3+copy", 3),
        ("off+k4+copy", 4),
        ("none+k4+knn+copy", 4),
    ],
)
def test_the_stage_mixes_as_naively_as_the_formula(dataset, measured, mode, k):
    found = mixed(dataset, measured, mode)
    model = Condition.parse(mode).model.name
    losses = {split: read_manifest(measured[model, split]).array("losses.npy") for split in ("valid", "test")}
    real = {split: np.isfinite(each) for split, each in losses.items()}
    matches = {split: list(naively(dataset, split, k)) for split in losses}
    lengths = {split: np.array([n for n, *_ in each]) for split, each in matches.items()}
    shares = {split: np.array([share(f, token) for _, f, token in each], np.float32) for split, each in matches.items()}
    weights = fit_lengths(losses["valid"][real["valid"]], lengths["valid"], shares["valid"])
    assert weights.any(), "there is something to fit"
    assert found.counts["weights"] == weights[1:].tolist()
    assert found.counts["matched"] == np.bincount(lengths["test"], minlength=LONGEST + 1).tolist()
    assert found.counts["fitted_on"] == np.bincount(lengths["valid"], minlength=LONGEST + 1).tolist()
    w = weights[lengths["test"]]
    wanted = -np.log((1 - w) * np.exp(-losses["test"][real["test"]].astype(float)) + w * shares["test"])
    array = found.array("losses.npy")
    assert array.dtype == np.float32 and np.array_equal(np.isfinite(array), real["test"])
    np.testing.assert_allclose(array[real["test"]], wanted, rtol=1e-5, atol=1e-6)
    assert found.array("lengths.npy")[real["test"]].tolist() == lengths["test"].tolist()


def test_mixed_losses_say_what_they_are(dataset, measured):
    found, model = mixed(dataset, measured, "none+k3+copy"), read_manifest(measured["none", "test"])
    assert found.settings == {**model.settings, "mode": "none+k3+copy", "neighbours_used": 3}
    assert found.counts["nats"] == pytest.approx(np.nansum(found.array("losses.npy"), dtype=np.float64))
    ratio = found.counts["nats"] / model.counts["nats"]
    assert ratio == pytest.approx(found.counts["bits_per_byte"] / model.counts["bits_per_byte"])
    assert (found.counts["tokens"], found.counts["bytes"]) == (model.counts["tokens"], model.counts["bytes"])


def test_the_same_bytes_each_time(dataset, measured, tmp_path):
    first = mixed(dataset, measured, "on+copy", output=tmp_path / "runs/manifest.json")
    before = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    mixed(dataset, measured, "on+copy", output=tmp_path / "runs/manifest.json")
    assert {path.name: path.read_bytes() for path in first.folder.iterdir()} == before


def test_what_was_not_looked_up_can_be_copied_too(dataset, measured):
    """Neighbours of another chunk hold fewer of the words to come than those that were looked up."""
    found = [mixed(dataset, measured, mode) for mode in ("shuffled+copy", "on+copy")]
    counts = [manifest.counts["matched"] for manifest in found]
    assert sum(counts[0]) == sum(counts[1]) and counts[0][LONGEST] < counts[1][LONGEST]


def test_an_empty_valid_split_fits_no_weight_and_mixes_nothing(dataset, measured, monkeypatch, tmp_path):
    rows = Dataset.rows
    monkeypatch.setattr(Dataset, "rows", lambda self, split: rows(self, split)[: 0 if split == "valid" else None])
    ids = Dataset.neighbour_ids
    monkeypatch.setattr(Dataset, "neighbour_ids", lambda self, split: ids(self, split)[: len(self.rows(split))])
    model = ("--model", dataset.folder / "runs/gpt-s1/model.json", "--settings", "{}", "--split", "valid")
    empty = {**measured, ("none", "valid"): tmp_path / "valid/manifest.json"}
    given = ("--mode", "none", "--output", empty["none", "valid"])
    stage("retro.evaluation.losses", "--config", dataset.path, *model, *given)
    found = mixed(dataset, empty, "none+k2+copy", output=tmp_path / "mixed/manifest.json")
    assert found.counts["weights"] == [0] * LONGEST and found.counts["fitted_on"] == [0] * (LONGEST + 1)
    alone = read_manifest(measured["none", "test"]).array("losses.npy")
    assert found.array("losses.npy").tobytes() == alone.tobytes()


def refused(dataset, *words, **given):
    with pytest.raises(UserError) as error:
        mixed(dataset, **given)
    assert all(word in str(error.value) for word in words), error.value


def test_weights_are_not_fitted_on_what_is_scored(dataset, measured):
    refused(dataset, "test split", "valid", measured=measured, mode="on+copy", fitted="test")
    refused(dataset, "valid split", "--fitted", measured=measured, mode="on+copy", split="valid")


def test_losses_of_another_condition_are_refused(dataset, measured):
    wrong = {**measured, ("on", "test"): measured["off", "test"]}
    refused(dataset, "'off'", "'on'", "'on+copy'", measured=wrong, mode="on+copy")
    wrong = {**measured, ("on", "valid"): measured["on+k3", "valid"]}
    refused(dataset, "'on+k3'", measured=wrong, mode="on+copy")


def test_losses_measured_otherwise_are_refused(dataset, measured, tmp_path):
    facts = json.loads(measured["on", "valid"].read_text())
    facts["settings"]["run"] = "another-s1"
    (tmp_path / "manifest.json").write_text(json.dumps(facts))
    wrong = {**measured, ("on", "valid"): tmp_path / "manifest.json"}
    refused(dataset, "run", "another-s1", "retro-s1", measured=wrong, mode="on+copy")


def test_a_condition_without_a_copier_is_not_mixed(dataset, measured):
    refused(dataset, "'on'", "+copy", measured=measured, mode="on")


def test_more_neighbours_than_were_saved_are_refused(dataset, measured):
    refused(dataset, "9", "neighbours.saved", measured=measured, mode="none+k9+copy")


def test_no_model_is_run_for_a_mixture(dataset, measured, tmp_path):
    model = ("--model", dataset.folder / "runs/gpt-s1/model.json", "--settings", "{}", "--split", "test")
    with pytest.raises(UserError, match=r"retro\.evaluation\.copying"):
        output = tmp_path / "manifest.json"
        stage(
            "retro.evaluation.losses",
            "--config",
            dataset.path,
            *model,
            "--mode",
            "none+k2+copy",
            "--output",
            output,
        )
