"""Intervals: how sure can one be of a figure measured on a few topics? Used in every lesson."""

from collections.abc import Callable, Sequence

import numpy as np


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
