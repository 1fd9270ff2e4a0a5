"""Intervals: against the formula for a mean, and reproducible."""

import numpy as np
import pytest

from helpers.statistics import bootstrap_interval


def test_the_interval_of_a_mean_agrees_with_the_formula():
    values = np.random.default_rng(1).normal(3, 2, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert abs(low - (values.mean() - half)) < 0.05 and abs(high - (values.mean() + half)) < 0.05


def test_any_statistic_and_the_same_seed_give_the_same_interval():
    pairs = np.random.default_rng(2).normal(size=(50, 2))
    difference = lambda rows: (rows[:, 0] - rows[:, 1]).mean()  # noqa: E731
    assert bootstrap_interval(pairs, difference) == bootstrap_interval(pairs, difference)


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval([])
