"""Intervals: against the formula for a mean, and reproducible."""

import numpy as np
import pytest
from scipy.stats import binomtest

from helpers.statistics import bootstrap_interval, mean_interval, share_interval, wilson_interval


def test_the_interval_of_a_mean_agrees_with_the_formula():
    values = np.random.default_rng(1).normal(3, 2, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert abs(low - (values.mean() - half)) < 0.05 and abs(high - (values.mean() + half)) < 0.05


def test_any_statistic_and_the_same_seed_give_the_same_interval():
    pairs = np.random.default_rng(2).normal(size=(50, 2))
    difference = lambda rows: (rows[:, 0] - rows[:, 1]).mean()  # noqa: E731
    assert bootstrap_interval(pairs, difference) == bootstrap_interval(pairs, difference)


@pytest.mark.parametrize("hits, n", [(0, 10), (10, 10), (3, 16), (1, 1), (40, 128)])
def test_the_interval_of_a_share_is_wilsons(hits, n):
    expected = binomtest(hits, n).proportion_ci(0.9, method="wilson")
    assert wilson_interval(hits, n, 0.9) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert mean_interval([True] * hits + [False] * (n - hits), 0.9) == wilson_interval(hits, n, 0.9)


def test_of_other_values_it_is_the_bootstrap():
    values = np.random.default_rng(1).normal(3, 2, 40)
    assert mean_interval(values) == bootstrap_interval(values)


def test_a_share_without_exceptions_still_has_a_width():
    low, high = mean_interval(np.ones(16, dtype=bool))
    assert low < 0.9 and high == 1


def test_a_paired_difference_of_ones_and_noughts_is_no_share():
    lost = np.r_[np.ones(8), np.zeros(8)]
    assert mean_interval(lost) == bootstrap_interval(lost)


@pytest.mark.parametrize("interval", [bootstrap_interval, mean_interval])
def test_an_empty_list_is_refused(interval):
    with pytest.raises(ValueError, match="at least one value"):
        interval([])


def test_a_share_that_is_whole_in_every_topic_still_has_a_width():
    low, high = share_interval([1.0] * 16)
    assert low == pytest.approx(wilson_interval(16, 16)[0]) and high == 1
    mixed = [1.0, 0.5, 1.0, 0.0, 0.5]
    assert share_interval(mixed) == mean_interval(mixed)
    with pytest.raises(ValueError, match="at least one value"):
        share_interval([])
