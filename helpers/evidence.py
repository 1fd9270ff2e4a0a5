"""What it takes to be called a member of a circuit: an effect, its interval, a test, and a control. Taught in lesson 04.

Candidates are many, so some look good by luck. An effect is believed if it survives a correction for their number, if
its interval lies above zero, and if it is larger than that of every one of the random components beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .statistics import mean_interval

SIGNS = 4096


def sign_flip_p(effects: np.ndarray, seed: int = 0) -> np.ndarray:
    """One-sided p-values that mean effects [candidate, pair] are above zero, [candidate].

    If a component did nothing, each pair's effect might as well have the other sign: all flips for up to 12 pairs, else 4,096
    random ones (Fisher 1935). The smallest p-value is about 1 / 4,096, or 1 / 2^pairs.
    """
    effects = np.atleast_2d(np.asarray(effects, dtype=float))
    n = effects.shape[1]
    if n <= 12:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        draws = np.random.default_rng(seed).integers(0, 2, (SIGNS - 1, n))
        signs = np.concatenate([np.ones((1, n), int), 1 - 2 * draws])
    flipped = effects @ signs.T  # the first row of signs leaves all as it is
    return (flipped >= flipped[:, :1] - 1e-12).mean(-1)


def discoveries(p_values: np.ndarray, rate: float = 0.05) -> np.ndarray:
    """Which p-values stand if at most this share of what stands may be false, [candidate] of booleans.

    Benjamini and Hochberg 1995. An empty list gives an empty one.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    fine = np.flatnonzero(p[order] <= rate * np.arange(1, len(p) + 1) / max(len(p), 1))
    out = np.zeros(len(p), bool)
    if len(fine):
        out[order[: fine[-1] + 1]] = True
    return out


@dataclass(frozen=True)
class Verdict:
    """effect: mean log-odds lost, with its 95% interval over pairs; p: of the sign-flip test; control: the largest mean effect of
    the random components beside it; member: whether all of it speaks for the candidate."""

    effect: float
    low: float
    high: float
    p: float
    control: float
    member: bool


def verdicts(effects: np.ndarray, controls: Sequence[float], rate: float = 0.05) -> list[Verdict]:
    """A verdict for each candidate. effects: [candidate, pair]; controls: for each the largest mean effect of random components of
    its kind. Raises ValueError if the two are not equally many."""
    if len(controls) != len(effects):
        raise ValueError(f"There are {len(effects)} candidates but {len(controls)} controls: give one for each.")
    p = sign_flip_p(effects) if len(effects) else np.zeros(0)
    out = []
    for row, control, value, stands in zip(effects, controls, p, discoveries(p, rate), strict=True):
        low, high = mean_interval(row)
        member = bool(stands and low > 0 and row.mean() > control)
        out.append(Verdict(float(row.mean()), low, high, float(value), float(control), member))
    return out
