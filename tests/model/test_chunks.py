"""The chunk grid: which position reads which chunk, for every length, chunk length and alignment."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from retro.model.cca import MASKED, NOTHING, ChunkGrid, before, matches, recent

lengths = given(n=st.integers(1, 40), m=st.integers(1, 9), alignment=st.sampled_from(["start", "end"]))


@lengths
def test_a_position_reads_the_last_chunk_that_it_completes_or_follows(n, m, alignment):
    grid = ChunkGrid.over(n, m, alignment)
    ends = range(m - 1, n, m) if alignment == "start" else range((n - 1) % m, n, m)
    assert grid.count == len(ends)
    if not grid.count:
        return
    chunk = torch.arange(grid.count).repeat_interleave(m).view(-1, m, 1) + 1.0  # piece u says u + 1
    read = grid.scatter(chunk, n)[0, :, 0].tolist()
    assert read == [sum(end <= t for end in ends) for t in range(n)]


@lengths
def test_scattering_what_was_queried_gives_it_back(n, m, alignment):
    grid = ChunkGrid.over(n, m, alignment)
    if grid.count:
        x = torch.arange(2.0 * n).view(2, n, 1) + 1
        back = grid.scatter(grid.queries(x), n)
        assert torch.equal(back[:, grid.first :], x[:, grid.first :])
        assert not back[:, : grid.first].any()


@lengths
def test_chunks_are_cut_where_they_are_read(n, m, alignment):
    grid = ChunkGrid.over(n, m, alignment)
    if grid.count:
        x = torch.arange(1.0, n + 1).view(1, n, 1)
        chunks = grid.chunks(x)  # (l, m, 1)
        assert chunks.shape == (grid.count, m, 1)
        last = [max(chunk.flatten().tolist()) for chunk in chunks]
        assert last == [grid.first + 1 + u * m for u in range(grid.count)]  # a chunk ends where it is first read
        assert chunks.count_nonzero() == last[-1]  # every token up to there once, the rest zeros


def test_recent_tokens_are_nearest_first():
    assert recent(torch.tensor([5, 6, 7]), 2).tolist() == [[5, NOTHING], [6, 5], [7, 6]]
    assert recent(torch.tensor([5, 6, 7]), 2, start=1).tolist() == [[NOTHING] * 2, [5, NOTHING], [6, 5]]
    assert recent(torch.tensor([5]), 3).tolist() == [[5, NOTHING, NOTHING]]


def test_matches_count_the_agreeing_tokens_and_nothing_hidden():
    places = before(torch.tensor([[[1, 2, 3, 1]]]), torch.tensor([[[True, True, False, True]]]), 2)
    assert places.tolist() == [[[MASKED, MASKED], [1, MASKED], [2, 1], [MASKED, 2]]]
    history = recent(torch.tensor([[1, 2]]), 2)  # (1, 2, 2)
    found = matches(history, places, torch.float32)  # (1, c, m', k * r)
    assert found.sum(1).tolist() == [[[0, 1, 0, 0], [0, 0, 2, 0]]]
