"""How local is refusal, and how sure can one be of that? Counts, shares and correlations with their intervals. Taught in lesson 06.

Four findings make localised safety a problem: few neurons carry it, probes read it, its circuit is compact, ablation takes it and
leaves the rest. `Findings` gathers what was measured of them, each figure with its interval, its control and a verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .circuit_weights import Circuit, parameters_in, weight_masks
from .faithfulness import Ablator
from .glassbox_truth import Node
from .node_effects import NodeEffects

FINDINGS = ("few neurons", "easily read", "a compact circuit", "cheaply removed")
BEYOND = "more than was tried"
VERDICTS = ("holds", "holds in part", "does not hold")


class Findings:
    """The table of findings, filled row by row as a notebook runs; filling a row again replaces it."""

    def __init__(self):
        self._rows: dict[tuple[str, str], dict] = {}

    def add(
        self,
        finding: str,
        model: str,
        measured: str,
        value: float | str,
        interval: tuple[float, float] | str,
        control: str,
        verdict: str,
        fmt: str = "{:.2f}",
    ) -> None:
        """One figure: what was measured, its value and 95% interval (numbers written by `fmt`, or texts), the control beside it
        and a verdict. Raises ValueError for a finding or verdict of another name, and for a figure without interval or control."""
        if finding not in FINDINGS:
            raise ValueError(f"There is no finding {finding!r}: choose one of {', '.join(FINDINGS)}.")
        if verdict not in VERDICTS:
            raise ValueError(f"A verdict is one of {', '.join(VERDICTS)}; {verdict!r} is none.")
        if not interval or not control:
            raise ValueError(f"{finding!r} of {model!r} has no interval or no control: a figure alone is no finding.")
        if not isinstance(interval, str):
            low, high = interval
            interval = BEYOND if np.isinf(low) else f"{_written(low, fmt)} to {_written(high, fmt)}"
        value = value if isinstance(value, str) else _written(value, fmt)
        row = {"measured": measured, "value": value, "95% interval": interval, "control": control, "verdict": verdict}
        self._rows[finding, model] = row

    def missing(self, models: Sequence[str]) -> list[tuple[str, str]]:
        """Which (finding, model) have no row yet."""
        return [(f, m) for f in FINDINGS for m in models if (f, m) not in self._rows]

    def table(self) -> pd.DataFrame:
        """A row for each finding and model, in the order of FINDINGS."""
        order = sorted(self._rows, key=lambda key: FINDINGS.index(key[0]))
        index = pd.MultiIndex.from_tuples(order, names=["finding", "model"])
        return pd.DataFrame([self._rows[key] for key in order], index=index)


def _written(number: float, fmt: str) -> str:
    return BEYOND if np.isinf(number) else fmt.format(number)


# --- how many? ----------------------------------------------------------------------------------------------------


def smallest_count(refused: np.ndarray, counts: Sequence[int], below: float = 0.1) -> float:
    """The smallest count without which less than `below` is refused; inf if none is enough.

    refused: [count, topic], 0 or 1 (or booleans). Raises ValueError if there is not one row a count.
    """
    refused = np.asarray(refused, dtype=float)
    if refused.ndim != 2 or len(refused) != len(counts):
        raise ValueError(f"There are {len(counts)} counts: give refused as [count, topic], not {refused.shape}.")
    enough = np.flatnonzero(refused.mean(1) < below)
    return float(counts[enough[0]]) if len(enough) else float("inf")


def count_interval(
    refused: np.ndarray,
    counts: Sequence[int],
    below: float = 0.1,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """95% bootstrap interval of `smallest_count` over topics, drawn for all counts alike.

    A draw in which no count is enough is inf and stays: dropped, it would take with it just the draws that say "more than that".
    """
    refused = np.asarray(refused, dtype=float)
    smallest_count(refused, counts, below)
    rows = np.random.default_rng(seed).integers(0, refused.shape[1], (draws, refused.shape[1]))
    shares = refused[:, rows].mean(-1)  # [count, draw]
    enough = shares < below
    found = np.where(enough.any(0), np.asarray(counts, dtype=float)[enough.argmax(0)], np.inf)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")  # never half-way to inf
    return float(low), float(high)


# --- how compact? -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compactness:
    """How much of the refusal the strongest parts keep alone, and how much goes without them.

    counts: sizes of the set; kept, gone: [count, pair], log-odds with all else ablated, and with the set ablated; full, empty: [pair],
    of the whole model and of one with everything ablated; weights: share of the model's parameters in each set.
    """

    counts: tuple[int, ...]
    kept: np.ndarray
    gone: np.ndarray
    full: np.ndarray
    empty: np.ndarray
    weights: np.ndarray

    def shares(self, what: str = "kept") -> np.ndarray:
        """Share of the gap between empty and full model, [count]: what the sets keep ("kept"), or what goes without them ("gone")."""
        return self._shares(np.arange(len(self.full)), what)

    def _shares(self, rows: np.ndarray, what: str) -> np.ndarray:
        full, empty = self.full[rows].mean(), self.empty[rows].mean()
        odds = (self.kept if what == "kept" else self.gone)[:, rows].mean(1)
        return (odds - empty if what == "kept" else full - odds) / (full - empty)

    def smallest(self, share: float = 0.9, what: str = "kept") -> float:
        """The smallest of the counts that has this share; inf if none has."""
        return self._smallest(np.arange(len(self.full)), share, what)

    def _smallest(self, rows: np.ndarray, share: float, what: str) -> float:
        enough = np.flatnonzero(self._shares(rows, what) >= share)
        return float(self.counts[enough[0]]) if len(enough) else float("inf")

    def interval(self, share: float = 0.9, what: str = "kept", draws: int = 1000, seed: int = 0) -> tuple[float, float]:
        """95% bootstrap over pairs of `smallest`; inf where no set is enough."""
        pairs = len(self.full)
        rows = np.random.default_rng(seed).integers(0, pairs, (draws, pairs))
        found = [self._smallest(row, share, what) for row in rows]
        low, high = np.quantile(found, [0.025, 0.975], method="inverted_cdf")
        return float(low), float(high)

    def weight_share(self, count: float) -> float:
        """The share of the model's parameters in the set of this count; nan for one that was not tried."""
        return float(self.weights[self.counts.index(int(count))]) if count in self.counts else float("nan")


def strongest(effects: NodeEffects, count: int | None = None) -> list[Node]:
    """Heads and neurons in one list, the largest attributed effect first."""
    found = []
    for kind in ("head", "neuron"):
        mean = effects.mean(kind)
        found += [(float(x), Node(kind, i // mean.shape[1], i % mean.shape[1])) for i, x in enumerate(mean.flatten())]
    found.sort(key=lambda item: -item[0])
    return [node for _, node in found[:count]]


def compactness(ablator: Ablator, parts: Sequence[Node], counts: Sequence[int]) -> Compactness:
    """Measures the first `count` parts of a list for each count: all else ablated, and they alone ablated.

    Raises ValueError for counts that do not rise, or that the list does not have.
    """
    counts = [int(c) for c in counts]
    if not counts or counts != sorted(set(counts)) or not 0 < counts[0] or counts[-1] > len(parts):
        raise ValueError(f"Counts rise from 1 on and end at {len(parts)}, the length of the list: {counts}.")
    kept = np.array([ablator.odds(parts[:n], outside=True) for n in counts])
    gone = np.array([ablator.odds(parts[:n]) for n in counts])
    model = ablator.twins.model
    size = sum(p.numel() for p in model.parameters())
    weights = np.array([weights_of(model, parts[:n]) / size for n in counts])
    return Compactness(tuple(counts), kept, gone, ablator.twins.odds(), ablator.odds([], outside=True), weights)


def weights_of(model, parts: Sequence[Node]) -> int:
    """How many weights these heads and neurons own, as lesson 05 counts them."""
    heads = tuple((n.layer, n.index) for n in parts if n.kind == "head")
    neurons = tuple((n.layer, n.index) for n in parts if n.kind == "neuron")
    return parameters_in(weight_masks(model, Circuit(decision_components=heads, evaluation_neurons=neurons)))


# --- does it predict? ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RankCorrelation:
    """rho: Spearman's, with a 95% bootstrap interval over the places; p: of a permutation test, two-sided; least, most: rho with any
    one place left out."""

    rho: float
    low: float
    high: float
    p: float
    least: float
    most: float
    count: int


def rank_correlation(x, y, draws: int = 2000, seed: int = 0) -> RankCorrelation:
    """Do two figures put the same places (layers, say) in the same order?

    x, y: one value a place, [place], or one a place and pair, [place, pair]: then the order is that of the means, and the interval
    draws pairs as well as places, for both figures apart. By ranks, since one layer far from all the others can make any correlation
    of values. Raises ValueError for lists of unlike length, or fewer than four places.
    """
    x, y = (v[:, None] if v.ndim == 1 else v for v in (np.asarray(x, dtype=float), np.asarray(y, dtype=float)))
    if len(x) != len(y) or x.ndim != 2 or y.ndim != 2 or len(x) < 4:
        raise ValueError(
            f"A rank correlation needs two lists of one length, four places or more: {x.shape}, {y.shape}."
        )
    a, b, rng = x.mean(1), y.mean(1), np.random.default_rng(seed)
    rho, drawn = _spearman(a, b), []
    for _ in range(draws):
        places = rng.integers(0, len(x), len(x))
        left, right = (v[places][:, rng.integers(0, v.shape[1], v.shape[1])].mean(1) for v in (x, y))
        drawn.append(_spearman(left, right))
    low, high = np.percentile(drawn, [2.5, 97.5])
    luck = np.array([_spearman(a, b[rng.permutation(len(b))]) for _ in range(draws)])
    p = (1 + (np.abs(luck) >= abs(rho) - 1e-12).sum()) / (draws + 1)
    without = [_spearman(np.delete(a, i), np.delete(b, i)) for i in range(len(a))]
    return RankCorrelation(rho, float(low), float(high), float(p), min(without), max(without), len(a))


def ranks(values: Sequence[float]) -> np.ndarray:
    """The rank of each value, from 0; equal values share the mean of their ranks."""
    values = np.asarray(values, dtype=float)
    return ((values[:, None] > values).sum(1) + ((values[:, None] == values).sum(1) - 1) / 2).astype(float)


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    """0 where all values of one list are equal: it gives no order."""
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / size) if size > 0 else 0.0
