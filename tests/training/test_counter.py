"""Random numbers by counter."""

import numpy as np

from retro.base import hashing
from retro.base.hashing import STEP, mix


def test_a_number_depends_on_its_coordinates_not_on_what_else_is_drawn():
    table = hashing.words(5, 2, np.arange(10)[:, None], np.arange(7))
    assert table.shape == (10, 7)
    assert table[3, 4] == hashing.words(5, 2, 3, 4)
    assert np.array_equal(table[[8, 1]], hashing.words(5, 2, np.array([8, 1])[:, None], np.arange(7)))


def test_seeds_purposes_and_coordinates_all_matter():
    drawn = [hashing.words(*key) for key in [(1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4), (1, 3, 2), (1, 2)]]
    assert len(set(map(int, drawn))) == len(drawn)


def test_known_numbers_so_that_no_version_changes_a_shuffle():
    # SplitMix64 itself: seeded with s, its n-th number is mix(s + n * step); Java's and Vigna's give these.
    first = [int(value) for value in mix(np.arange(3, dtype=np.uint64) * STEP)]
    assert first == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    # The keyed counter on top of it, as trained models have seen it.
    drawn = hashing.words(2**64 - 1, hashing.SHUFFLE, np.array([0, 2**63]))
    assert [int(value) for value in drawn] == [0x85D74C1255584CAB, 0x401499F6536A6020]


def test_uniform_numbers_are_uniform():
    values = hashing.uniform(9, hashing.HIDE_CHUNK, np.arange(100_000))
    assert values.min() >= 0 and values.max() < 1
    assert abs(values.mean() - 0.5) < 0.005
    counts = np.histogram(values, 20, (0, 1))[0]
    assert ((counts - 5000) ** 2 / 5000).sum() < 50  # chi-squared, 19 degrees: p about 1e-4
