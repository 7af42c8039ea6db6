"""The interval covers what it should, and nothing depends on chance."""

import numpy as np
import pytest

from retro.evaluation import bits_per_byte
from retro.evaluation.bits_per_byte import compare


def documents(count=200, seed=0):
    return np.random.default_rng(seed).lognormal(5, 1, count)


def test_a_constant_ratio_has_an_interval_of_no_width():
    twin = documents()
    found = compare(0.9 * twin, twin, 1000, 1)
    assert (found.percent, found.low, found.high) == pytest.approx((-10, -10, -10))
    assert found.better == 1


def test_noise_without_effect_is_covered_nineteen_times_in_twenty():
    twin = documents()
    rng = np.random.default_rng(1)
    found = [compare(twin * rng.normal(1, 0.05, len(twin)), twin, 400, 1) for _ in range(200)]
    covered = sum(each.low < 0 < each.high for each in found)
    assert 180 <= covered <= 198
    assert all(each.low < each.percent < each.high for each in found)


@pytest.mark.parametrize(("count", "told"), [(9, False), (10, True)])
def test_few_documents_have_no_interval(count, told):
    twin = documents(count)
    found = compare(twin * np.linspace(0.8, 0.9, count), twin, 100, 1)
    assert found.units == count and np.isfinite([found.low, found.high]).all() == told
    pages = compare(twin, twin, 100, 1, units=np.arange(count) // 2)  # of half as many groups
    assert pages.units == (count + 1) // 2 and np.isnan([pages.low, pages.high]).all()


def test_the_interval_is_as_wide_as_theory_says():
    twin = np.full(400, 100.0)
    ours = twin * np.random.default_rng(2).normal(1, 0.1, 400)
    found = compare(ours, twin, 10_000, 1)
    error = 100 * np.std(ours / twin) / np.sqrt(400)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_same_seed_same_interval_other_seed_another():
    twin = documents()
    ours = twin * np.random.default_rng(1).normal(1, 0.05, len(twin))
    assert compare(ours, twin, 500, 1) == compare(ours, twin, 500, 1)
    assert compare(ours, twin, 500, 1) != compare(ours, twin, 500, 2)


def test_blocks_change_nothing_but_memory(monkeypatch):
    twin = documents()
    ours = twin * np.random.default_rng(1).normal(1, 0.05, len(twin))
    whole = compare(ours, twin, 500, 1)
    monkeypatch.setattr(bits_per_byte, "BLOCK", 1000)
    assert compare(ours, twin, 500, 1) == whole


def test_one_document_has_no_interval():
    found = compare(np.array([9.0]), np.array([10.0]), 100, 1)
    assert found.percent == pytest.approx(-10) and np.isnan(found.low) and np.isnan(found.high)


def test_seeds_that_disagree_widen_the_interval():
    twin = np.stack([documents()] * 3, axis=1)
    agree = compare(twin * [0.9, 0.9, 0.9], twin, 1000, 1)
    differ = compare(twin * [0.8, 0.9, 1.0], twin, 1000, 1)
    assert differ.percent == pytest.approx(agree.percent)
    assert differ.high - differ.low > 5 > agree.high - agree.low


def test_documents_of_one_group_are_drawn_together():
    """Copies of a document add nothing when they are one unit: the interval is that of the documents alone."""
    rng = np.random.default_rng(5)
    nats, twin = rng.gamma(3, 1, 30), rng.gamma(3, 1, 30)
    copies, units = np.repeat(np.arange(30), 9), np.repeat(np.arange(30), 9)
    alone = compare(nats, twin, 400, 1)
    together = compare(nats[copies], twin[copies], 400, 1, units)
    apart = compare(nats[copies], twin[copies], 400, 1)
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))
    assert apart.high - apart.low < 0.6 * (alone.high - alone.low)
