"""Intervals: how sure can one be of a figure measured on a few topics? Used in every lesson."""

from collections.abc import Callable, Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np


def mean_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean over topics, [topic]: Wilson's for a share, the percentile bootstrap for all else.

    Booleans (refused or not) have a share, and a bootstrap of ten refusals in ten would say that no other value is
    possible. Numbers are never taken for a share, even if all are 0 or 1: they may be differences between pairs.
    Raises ValueError on an empty list. Source: Wilson 1927.
    """
    values = np.asarray(values)
    if len(values) and values.ndim == 1 and values.dtype == bool:
        return wilson_interval(int(values.sum()), len(values), level)
    return bootstrap_interval(values, level=level)


def share_interval(shares: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Interval of the mean over topics of a share, each 0 to 1, [topic]: the bootstrap, or Wilson's where all topics are
    wholly right (or wrong), since a bootstrap of these would have no width. Raises ValueError on an empty list."""
    shares = np.asarray(shares)
    alike = len(shares) and (shares == shares[0]).all() and shares[0] in (0, 1)
    return mean_interval(shares == 1 if alike else shares, level)


def wilson_interval(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of the share hits / n: never of zero width, never outside 0 to 1. Source: Wilson 1927."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    middle = (hits + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * sqrt(hits * (n - hits) / n + z**2 / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    statistic: Callable[[np.ndarray], float] | None = None,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic (the mean, if none is given) over topics.

    values: one row a topic, [topic] or [topic, ...]. A pair's two members stand in one row, so that pairs are
    drawn whole. Raises ValueError on an empty list. Source: Efron and Tibshirani 1993, chapter 13.
    """
    values = np.asarray(values, dtype=float)
    if len(values) == 0:
        raise ValueError("An interval needs at least one value: the list is empty.")
    rows = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    if statistic is None:
        drawn = values[rows].mean(axis=1)
    else:
        drawn = np.array([statistic(values[row]) for row in rows])
    low, high = np.percentile(drawn, [50 - 50 * level, 50 + 50 * level], axis=0)
    return float(low), float(high)
