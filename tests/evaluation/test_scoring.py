"""Per-token losses of a real, tiny model on a real, tiny dataset."""

import numpy as np
import pytest
import torch

from retro.evaluation.bits_per_byte import bits_per_byte, group_documents
from retro.evaluation.losses import CPU_TOKENS, at_once, score
from retro.training.batches import Batcher
from tests.evaluation.built import LENGTH, M, make_model, texts_of

pytestmark = pytest.mark.slow


def losses(dataset, architecture="retro", ids="stored", used=2, stride=0, batch_size=3, batcher=None):
    batcher = batcher or Batcher(dataset, "test", neighbours_used=used, retrieved_chunks=2, ids=ids, seed=5)
    found = np.empty((len(dataset.rows("test")), M), np.float32)
    score(make_model(dataset, architecture), batcher, found, LENGTH, stride, batch_size)
    return found


def naive(dataset, architecture, ids):
    """Each token's loss from logits of a window of its own: one window at a time, one token at a time."""
    made, rows = make_model(dataset, architecture), dataset.rows("test")
    tokens, real = dataset.store.tokens(rows)
    pad = np.zeros((1, M), np.int64)
    stream, real = np.concatenate([pad, tokens]).reshape(-1), np.concatenate([pad > 0, real]).reshape(-1)
    batcher = Batcher(dataset, "test", neighbours_used=2, retrieved_chunks=2, ids=ids, seed=5)
    found = np.full(len(stream), np.nan)
    for at in range(M, len(stream)):
        start = 0  # the first window, every half window, that reaches this token
        while at > start * M + LENGTH:
            start += LENGTH // M // 2
        window = np.zeros(LENGTH, np.int64)
        piece = stream[start * M : start * M + LENGTH]
        window[: len(piece)] = piece
        positions = np.arange(start - 1, start - 1 + LENGTH // M + 1)
        batch = batcher.batch(np.where(positions < len(rows), positions, -1)[None])
        with torch.no_grad():
            logits = made(torch.from_numpy(window)[None], batch.neighbours, batch.mask)[0]
        if real[at]:
            found[at] = -torch.log_softmax(logits[at - start * M - 1].double(), 0)[stream[at]]
    return found[M:].reshape(-1, M)


@pytest.mark.parametrize(
    ("architecture", "ids"),
    [("gpt", "none"), ("retro", "stored"), pytest.param("retro", "random", marks=pytest.mark.slow)],
)
def test_losses_equal_a_naive_recomputation(dataset, architecture, ids):
    fast, slow = losses(dataset, architecture, ids), naive(dataset, architecture, ids)
    assert (np.isnan(fast) == np.isnan(slow)).all()
    np.testing.assert_allclose(fast, slow, rtol=2e-5, atol=2e-5)
    size = dataset.store.chunks(dataset.rows("test"))["bytes"].sum()
    ours = bits_per_byte(np.nansum(fast, dtype=np.float64), size)
    assert ours == pytest.approx(bits_per_byte(np.nansum(slow), size), abs=1e-6 * ours)


def test_every_token_has_a_loss_and_padding_has_none(dataset):
    records = dataset.store.chunks(dataset.rows("test"))
    found = np.isfinite(losses(dataset))
    assert (found.sum(1) == records["length"]).all()
    assert (found == (np.arange(M) < records["length"][:, None])).all()


def test_bytes_of_documents_sum_to_their_texts(dataset):
    rows = dataset.rows("test")
    documents = group_documents(rows, dataset.store.source(rows), dataset.store.chunks(rows))
    wanted = [len(text.encode()) for text in texts_of(dataset)]
    assert documents.bytes.tolist() == wanted


def test_the_batch_size_changes_nothing(dataset):
    np.testing.assert_allclose(losses(dataset, batch_size=1), losses(dataset, batch_size=64), atol=1e-5)


def test_nor_does_how_much_a_cpu_reads_at_once(dataset, monkeypatch):
    whole = losses(dataset)
    monkeypatch.setattr("retro.evaluation.losses.CPU_TOKENS", 1)
    np.testing.assert_allclose(losses(dataset), whole, rtol=1e-6, atol=1e-6)


def test_windows_at_once_on_a_cpu_follow_what_they_read(dataset):
    cpu, windows = torch.device("cpu"), np.arange(6).reshape(2, 3)
    few, many = (
        Batcher(dataset, "test", neighbours_used=used, retrieved_chunks=2).batch(np.tile(windows, (200, 1)))
        for used in (0, 2)
    )
    read = (few.tokens.numel() + many.neighbours.numel()) // len(few)  # tokens of a window, neighbours' included
    assert at_once(few, cpu) == CPU_TOKENS // few.tokens.shape[1] > at_once(many, cpu) == CPU_TOKENS // read
    assert at_once(many, torch.device("cuda")) == len(many)


def test_more_context_changes_losses(dataset):
    assert not np.allclose(losses(dataset, stride=M), losses(dataset, stride=LENGTH), equal_nan=True)


def test_retrieval_changes_losses_and_random_differently(dataset):
    on, off, random = (losses(dataset, ids=ids) for ids in ("stored", "none", "random"))
    assert not np.allclose(on, off, equal_nan=True) and not np.allclose(on, random, equal_nan=True)


def test_without_neighbours_on_equals_off_equals_gpt(dataset):
    """All-masked neighbours, retrieval off and the twin of the same weights give the same bits."""
    batcher = Batcher(dataset, "test", neighbours_used=2, retrieved_chunks=2)
    batcher.ids = np.full_like(batcher.ids, -1)
    masked = losses(dataset, batcher=batcher)
    assert np.array_equal(masked, losses(dataset, ids="none"), equal_nan=True)
    assert np.array_equal(masked, losses(dataset, "gpt", "none"), equal_nan=True)
