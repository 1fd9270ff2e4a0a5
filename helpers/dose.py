"""Dose and response: how much has to be taken out before refusal goes? Taught in lesson 05."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from .mean_ablation import Place
from .statistics import mean_interval


def dose_response(
    odds_of: Callable[[list[Place]], np.ndarray],
    ranked: Sequence[Place],
    counts: Sequence[int],
    controls: Callable[[list[Place]], Sequence[list[Place]]] | None = None,
    threshold: float = 0.0,
    odds_of_sets: Callable[[Sequence[list[Place]]], np.ndarray] | None = None,
) -> pd.DataFrame:
    """A row a dose: the first `count` of the ranked places taken out, beside random sets of the same size.

    odds_of: refusal log-odds with these places out, [prompt]. controls: random sets like the given ones. odds_of_sets: log-odds of
    many sets, [set, prompt], if there is a quicker way than one after the other. Columns: count, odds with
    `low` and `high` (95% over topics), refused; with controls also the mean, lowest and highest of the sets' mean odds, and
    `as_low`, the share of sets that bring them as low; all of them stand in `table.attrs["drawn"]`, {count: [set]}.
    Raises ValueError for counts that are not in the list.
    """
    ranked = list(ranked)
    if not len(counts) or min(counts) < 0 or max(counts) > len(ranked):
        raise ValueError(f"Doses lie between 0 and {len(ranked)}, the number of places ranked: {list(counts)}.")
    rows, all_drawn = [], {}
    for count in counts:
        chosen = ranked[:count]
        odds = odds_of(chosen)
        low, high = mean_interval(odds)
        row = {"count": count, "odds": odds.mean(), "low": low, "high": high, "refused": (odds > threshold).mean()}
        if controls:
            sets = controls(chosen) if chosen else []  # nothing taken out has no random twin
            if odds_of_sets and len(sets):
                drawn = odds_of_sets(sets).mean(1)
            else:
                drawn = np.array([odds_of(one).mean() for one in sets] or [odds.mean()])
            all_drawn[count] = drawn
            row |= {
                "random": drawn.mean(),
                "random_low": drawn.min(),
                "random_high": drawn.max(),
                "as_low": (drawn <= odds.mean()).mean(),
                "draws": len(drawn),
            }
        rows.append(row)
    table = pd.DataFrame(rows)
    table.attrs["drawn"] = {count: drawn.tolist() for count, drawn in all_drawn.items()}
    return table


def smallest_set(
    refused_of: Callable[[list[Place]], float], ranked: Sequence[Place], below: float = 0.1
) -> tuple[int | None, pd.DataFrame]:
    """How many of the ranked places have to go until the refused share is under `below`: (count, what was tried).

    Doubles until it is, then halves the gap; so about 2 log2(n) measurements, and exact where more places never bring
    refusal back. None if all of them are not enough. Choose the count on validation prompts, report on test prompts.
    """
    if not 0 < below <= 1:
        raise ValueError(f"below is a share of refused prompts, above 0 and at most 1; {below!r} is not.")
    if not len(ranked):
        raise ValueError("The ranking is empty: there is no set to look for.")
    ranked, tried = list(ranked), {}

    def fine(count: int) -> bool:
        tried[count] = float(refused_of(ranked[:count]))
        return tried[count] < below

    low, high = 0, 1
    while not fine(high):
        if high == len(ranked):
            return None, _table(tried)
        low, high = high, min(2 * high, len(ranked))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fine(middle) else (middle, high)
    return high, _table(tried)


def _table(tried: dict[int, float]) -> pd.DataFrame:
    return pd.DataFrame(sorted(tried.items()), columns=["count", "refused"])
