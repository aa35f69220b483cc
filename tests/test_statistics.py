"""Statistics against scipy, and at their edges. User need 23."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from kn_lens.statistics import (
    benjamini_hochberg,
    compare_before_after,
    paired_difference,
    percentile_among,
    wilson_interval,
)


@pytest.mark.parametrize("seed", range(5))
def test_both_t_tests_are_scipys(seed):
    generator = np.random.default_rng(seed)
    before = generator.uniform(size=15)
    after = before + generator.normal(0.05, 0.02, size=15)
    found = compare_before_after(before, after)
    assert found.paired_p == pytest.approx(np.asarray(stats.ttest_rel(after, before))[1])
    assert found.independent_p == pytest.approx(np.asarray(stats.ttest_ind(after, before))[1])
    assert found.paired_p < found.independent_p  # the same prompts: the pairing is worth something
    assert found.n == 15


def test_the_papers_bar():
    """(mean after − mean before) / min of both: a halving is −1 and a doubling +1."""
    assert compare_before_after(np.array([0.2, 0.4]), np.array([0.1, 0.2])).relative_change == pytest.approx(-1)
    assert compare_before_after(np.array([0.1, 0.2]), np.array([0.2, 0.4])).relative_change == pytest.approx(1)
    assert compare_before_after(np.array([0.1, 0.2]), np.array([0.0, 0.0])).relative_change == -math.inf
    assert compare_before_after(np.zeros(2), np.ones(2)).relative_change == math.inf


def test_no_change_is_no_evidence():
    same = np.array([0.1, 0.2, 0.3])
    found = compare_before_after(same, same)
    assert (found.paired_p, found.relative_change) == (1.0, 0.0)
    assert found.independent_p == pytest.approx(1.0)
    constant = compare_before_after(np.full(3, 0.5), np.full(3, 0.5))
    assert (constant.paired_p, constant.independent_p) == (1.0, 1.0)


def test_the_same_shift_everywhere_is_certain():
    found = compare_before_after(np.full(3, 0.25), np.full(3, 0.5))
    assert (found.paired_p, found.independent_p) == (0.0, 0.0)


@pytest.mark.filterwarnings("error")
def test_fewer_than_two_pairs_have_no_p():
    one = compare_before_after(np.array([0.1]), np.array([0.2]))
    assert math.isnan(one.paired_p)
    assert math.isnan(one.independent_p)
    assert one.relative_change == pytest.approx(1)
    none = compare_before_after(np.array([]), np.array([]))
    assert none.n == 0
    assert math.isnan(none.paired_p)
    assert math.isnan(none.relative_change)


def test_benjamini_hochberg():
    """p · m / rank, made monotone from above; worked by hand and by scipy."""
    assert benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.5])).tolist() == pytest.approx(
        [0.04, 0.16 / 3, 0.16 / 3, 0.5]
    )
    p_values = np.random.default_rng(0).uniform(size=30) ** 2
    assert np.allclose(benjamini_hochberg(p_values), stats.false_discovery_control(p_values))


def test_benjamini_hochberg_does_not_count_what_is_not_known():
    adjusted = benjamini_hochberg(np.array([0.01, np.nan, 0.04]))
    assert adjusted[[0, 2]].tolist() == pytest.approx([0.02, 0.04])
    assert math.isnan(adjusted[1])
    assert np.isnan(benjamini_hochberg(np.array([np.nan]))).all()


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (55, 80)])
def test_wilson_intervals(successes, n):
    """The closed form: centre (p + z²/2n)/(1 + z²/n), half-width z√(p(1−p)/n + z²/4n²)/(1 + z²/n)."""
    z = stats.norm.ppf(0.975)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert wilson_interval(successes, n) == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_wilson_of_nothing():
    assert all(math.isnan(bound) for bound in wilson_interval(0, 0))


def test_percentiles_count_ties_half():
    controls = np.array([1.0, 2.0, 2.0, 3.0])
    assert [percentile_among(value, controls) for value in (0, 1, 2, 2.5, 9)] == [0, 12.5, 50, 75, 100]


def test_paired_difference_is_scipys() -> None:
    generator = np.random.default_rng(5)
    first, second = generator.normal(1.0, 2.0, 30), generator.normal(0.2, 1.0, 30)
    found = paired_difference(first, second)
    test = stats.ttest_rel(first, second)
    interval = test.confidence_interval(0.95)
    assert found.difference == pytest.approx(first.mean() - second.mean())
    assert found.p == pytest.approx(test.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_paired_difference_without_spread_or_with_one_pair() -> None:
    ones, twos = np.ones(4), np.full(4, 2.0)
    assert vars(paired_difference(ones, ones)) == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    assert vars(paired_difference(twos, ones)) == {"difference": 1.0, "low": 1.0, "high": 1.0, "p": 0.0}
    single = paired_difference(twos[:1], ones[:1])
    assert single.difference == 1.0
    assert np.isnan([single.low, single.high, single.p]).all()
