"""Every token is scored once, by the window that has read most before it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.base.stage import UserError
from retro.evaluation.losses import plan

M = 4


@settings(deadline=None)
@given(chunks=st.integers(1, 40), length=st.integers(1, 9), stride=st.integers(0, 9))
def test_every_token_is_scored_once_with_the_longest_context(chunks, length, stride):
    stride = min(stride, length)
    windows = plan(chunks, M, length * M, stride * M)
    context = np.full(chunks * M, -1.0)
    for number in range(len(windows)):
        before = context.copy()
        windows.place(np.array([number]), np.arange(1.0, length * M + 1)[None], context)
        changed = np.flatnonzero(context != before)
        assert (before[changed] == -1).all(), "a token was scored twice"
    assert (context > 0).all(), "a token was never scored"
    for position in range(chunks * M):
        read = [position - start * M for start in windows.starts if 1 <= position - start * M <= length * M]
        assert context[position] == max(read)


def test_places_losses_where_their_targets_are():
    windows = plan(10, M, 4 * M, 2 * M)
    stream = np.full(10 * M, np.nan)
    numbers = np.arange(len(windows))
    targets = windows.starts[:, None] * M + 1 + np.arange(4 * M)
    windows.place(numbers, targets.astype(float), stream)
    assert stream.tolist() == list(range(10 * M))


def test_positions_beyond_the_stream_are_padding():
    windows = plan(3, M, 4 * M, 0)
    assert windows.positions(np.array([0])).tolist() == [[-1, 0, 1, 2, -1]]


@pytest.mark.parametrize("stride", [M + 1, 5 * M])
def test_a_stride_that_leaves_tokens_out_is_refused(stride):
    with pytest.raises(UserError, match="stride"):
        plan(3, M, 4 * M, stride)
