"""A model with neighbours in its window scores what a naive one scores, and never sees what RETRO would not."""

import json
from functools import partial
from itertools import takewhile

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from retro.base.artifacts import read_manifest
from retro.base.stage import UserError
from retro.evaluation.conditions import Condition
from retro.evaluation.in_context import beside, first_in_retro, in_gpt, score
from retro.evaluation.shown import Shown
from tests.evaluation.built import LENGTH, SAVED, M, make_model, stage
from tests.evaluation.test_copying import neighbours_of


def shown(dataset, name="in-context", k=2, split="test"):
    return Shown(dataset, split, Condition.parse(name), used=k, retrieved_chunks=2)


def losses(dataset, model, k, share, split="test", name="in-context", size=8):
    room = min(int(share * LENGTH), LENGTH - M)
    return scored(
        dataset, model, partial(in_gpt, shown(dataset, name, k, split), length=LENGTH, room=room), split, size
    )


def scored(dataset, model, windows, split="test", size=8):
    real = dataset.store.tokens(dataset.rows(split))[1]
    found = np.empty(real.shape, np.float32)
    score(model, windows, real, found, size, "losses")
    return found


@pytest.fixture(scope="module")
def model(dataset):
    return make_model(dataset, "gpt")


def naively(dataset, model, k, room, split="test"):
    """Nats of each token, by loops: its window is what fits of the neighbours, the text before it, and its chunk."""
    rows, pad = dataset.rows(split), dataset.store.pad_id
    tokens, real = dataset.store.tokens(rows)
    stream = [pad] * M + tokens.reshape(-1).tolist()
    for chunk in range(len(rows)):
        texts = [[t for t in each if t is not None] for each in neighbours_of(dataset, split, chunk - 1, k)]
        sizes = np.cumsum([len(each) for each in texts])
        fitting = [text for text, _ in takewhile(lambda pair: pair[1] <= room, zip(texts, sizes, strict=True))]
        near = [token for text in reversed(fitting) for token in text]
        whole = stream[: (chunk + 2) * M - 1]  # to the last token but one of the chunk
        window = near + whole[max(0, len(whole) - (LENGTH - len(near))) :]
        assert len(window) <= LENGTH
        with torch.inference_mode():
            nats = -F.log_softmax(model(torch.tensor([window]))[0], -1)
        for at in np.flatnonzero(real[chunk]).tolist():
            yield nats[len(window) - M + at, tokens[chunk, at]].item()


@pytest.mark.parametrize(("k", "share"), [(0, 0.5), (1, 0.5), (2, 0.5), (SAVED, 0.75), (2, 0.0), (2, 0.99)])
def test_it_is_a_naive_one(dataset, model, k, share):
    room = min(int(share * LENGTH), LENGTH - M)
    found, real = losses(dataset, model, k, share), dataset.store.tokens(dataset.rows("test"))[1]
    assert np.array_equal(np.isfinite(found), real)
    np.testing.assert_allclose(found[real], list(naively(dataset, model, k, room)), rtol=1e-4, atol=1e-4)


def test_blocks_and_batches_change_nothing(dataset, model, monkeypatch):
    before = losses(dataset, model, 2, 0.5)
    monkeypatch.setattr("retro.evaluation.in_context.CHUNKS", 5)
    np.testing.assert_allclose(losses(dataset, model, 2, 0.5, size=3), before, rtol=1e-4, atol=1e-5)


def test_the_first_neighbours_that_fit_the_best_next_to_the_text():
    tokens = np.arange(12).reshape(3, 4)
    mask = np.array([[True, True, True, False], [True, False, False, False], [True] * 4])
    wanted = {0: [], 2: [], 3: [0, 1, 2], 4: [4, 0, 1, 2], 7: [4, 0, 1, 2], 8: [8, 9, 10, 11, 4, 0, 1, 2]}
    for room, found in wanted.items():
        assert beside(tokens, mask, room).tolist() == found
    assert beside(tokens, mask[[2, 1, 0]], 3).tolist() == [], (
        "a later one does not take the place of one that is too long"
    )


def test_a_chunk_is_scored_with_the_neighbours_of_the_chunk_before_it(dataset):
    """Other neighbours of a chunk change the window of the next one only."""
    batcher = shown(dataset)
    before = in_gpt(batcher, 0, 12, LENGTH, LENGTH // 2).tokens
    batcher.ids = batcher.ids.copy()
    batcher.ids[6] = np.roll(batcher.ids[5], 1)
    changed = (in_gpt(batcher, 0, 12, LENGTH, LENGTH // 2).tokens != before).any(1)
    assert np.flatnonzero(changed).tolist() == [7]


def test_the_first_chunk_has_no_neighbours_and_one_chunk_of_padding_before_it(dataset):
    found = in_gpt(shown(dataset), 0, 1, LENGTH, LENGTH // 2)
    inputs, targets = found.tokens.numpy(), found.targets.numpy()
    tokens, real = dataset.store.tokens(dataset.rows("test")[:1])
    pad = dataset.store.pad_id
    assert (
        inputs[0, : 2 * M - 1].tolist() == [pad] * M + tokens[0, :-1].tolist() and (inputs[0, 2 * M - 1 :] == pad).all()
    )
    wanted = np.full(LENGTH, -1)
    wanted[M - 1 : 2 * M - 1] = np.where(real, tokens, -1)
    assert targets[0].tolist() == wanted.tolist()


def test_parts_are_shown_alone(dataset, model):
    found = {
        name: losses(dataset, model, 1, 0.5, name=f"in-context{name}") for name in ("", "+neighbour", "+continuation")
    }
    assert len({each.tobytes() for each in found.values()}) == 3


def measured(dataset, mode, folder, settings, run="gpt-s1"):
    output = folder / "runs/manifest.json"
    model = ("--model", dataset.folder / f"runs/{run}/model.json", "--settings", json.dumps(settings))
    stage(
        "retro.evaluation.losses",
        "--config",
        dataset.path,
        *model,
        "--split",
        "test",
        "--mode",
        mode,
        "--output",
        output,
    )
    return read_manifest(output, "losses")


def test_the_stage_measures_it(dataset, model, tmp_path):
    found = measured(dataset, "in-context+k3", tmp_path, {"in_context": 0.75})
    assert found.array("losses.npy").tobytes() == losses(dataset, model, 3, 0.75).tobytes()
    told = {"mode": "in-context+k3", "neighbours_used": 3, "stride": M, "in_context": 0.75, "seq_length": LENGTH}
    assert told.items() <= found.settings.items()
    assert found.counts["tokens"] == np.isfinite(found.array("losses.npy")).sum()


def test_without_neighbours_it_is_the_gpt_as_long_as_windows_begin_with_the_split(dataset, tmp_path):
    """After that they begin elsewhere: each of these ends with its chunk's last token but one."""
    alone, usual = (measured(dataset, mode, tmp_path / mode, {}) for mode in ("in-context+k0", "none"))
    first = [found.array("losses.npy")[: LENGTH // M - 1] for found in (alone, usual)]
    np.testing.assert_allclose(*first, rtol=1e-4, atol=1e-5)
    assert alone.counts["bits_per_byte"] != usual.counts["bits_per_byte"]


def test_only_a_gpt_has_neighbours_in_its_window(dataset, tmp_path):
    with pytest.raises(UserError, match="in-context"):
        measured(dataset, "in-context", tmp_path, {}, run="retro-s1")


# RETRO++


@pytest.fixture(scope="module")
def retro(dataset):
    return make_model(dataset, "retro")


def naive_plus_plus(dataset, model, k, split="test"):
    """Nats of each token of RETRO++, by loops: a window of chunks, each with its neighbours, begins with the first of
    the last chunk but one, which has the others.
    """
    rows, pad = dataset.rows(split), dataset.store.pad_id
    tokens, real = dataset.store.tokens(rows)
    padding, nothing = [pad] * M, [[None] * (2 * M)] * k
    for chunk in range(len(rows)):
        first, *others = neighbours_of(dataset, split, chunk - 1, k) if chunk else nothing
        window = [pad if token is None else token for token in first]
        seen = [nothing, nothing]
        for at in range(chunk - LENGTH // M + 3, chunk + 1):
            window += tokens[at].tolist() if at >= 0 else padding
            seen.append(neighbours_of(dataset, split, at, k) if at >= 0 else nothing)
        seen[-2] = [[None] * (2 * M), *others]
        mask = torch.tensor([[[token is not None for token in each] for each in near] for near in seen])
        near = torch.tensor([[[pad if token is None else token for token in each] for each in near] for near in seen])
        with torch.inference_mode():
            logits = model(torch.tensor([window]), near[None], mask[None])[0]
        nats = -F.log_softmax(logits, -1)
        for at in np.flatnonzero(real[chunk]).tolist():
            yield nats[LENGTH - M - 1 + at, tokens[chunk, at]].item()


@pytest.mark.parametrize("k", [1, 2, SAVED])
def test_retro_plus_plus_is_a_naive_one(dataset, retro, k):
    found = scored(dataset, retro, partial(first_in_retro, shown(dataset, "first-in-context", k), length=LENGTH))
    real = dataset.store.tokens(dataset.rows("test"))[1]
    assert np.array_equal(np.isfinite(found), real)
    np.testing.assert_allclose(found[real], list(naive_plus_plus(dataset, retro, k)), rtol=1e-4, atol=1e-4)


def test_the_first_neighbour_is_read_once_and_the_others_by_the_encoder(dataset):
    batch = first_in_retro(shown(dataset, "first-in-context", 2), 5, 9, LENGTH)
    usual = shown(dataset, "on", 2).batch(np.arange(4, 8)[:, None] + np.arange(2))
    assert torch.equal(batch.tokens[:, : 2 * M], usual.neighbours[:, 0, 0])
    assert not batch.mask[:, :2].any() and not batch.mask[:, -2, 0].any()
    assert torch.equal(batch.mask[:, -2, 1], usual.mask[:, 0, 1])


def test_the_stage_measures_retro_plus_plus(dataset, retro, tmp_path):
    found = measured(dataset, "first-in-context+k1", tmp_path, {"in_context": 0.75}, run="retro-s1")
    windows = partial(first_in_retro, shown(dataset, "first-in-context", 1), length=LENGTH)
    assert found.array("losses.npy").tobytes() == scored(dataset, retro, windows).tobytes()
    assert {"mode": "first-in-context+k1", "neighbours_used": 1, "stride": M}.items() <= found.settings.items()
    assert "in_context" not in found.settings  # which is of a GPT's window


def test_only_a_retro_has_the_first_neighbour_in_its_window_and_only_where_there_is_room(dataset, tmp_path):
    with pytest.raises(UserError, match="first-in-context"):
        measured(dataset, "first-in-context", tmp_path, {})
    with pytest.raises(UserError, match=r"no room for a neighbour of .* and two chunks"):
        first_in_retro(shown(dataset, "first-in-context"), 0, 1, 3 * M)
    with pytest.raises(UserError, match="of no neighbours none is the first"):
        Condition.parse("first-in-context+k0")
