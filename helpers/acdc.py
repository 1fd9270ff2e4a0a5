"""Automatic circuit discovery: cut every edge that is not missed (ACDC, Conmy et al. 2023). Taught in lesson 04.

From the output backwards, each edge is made to carry the harmless twin's value (resample ablation). If the measure
worsens by less than the threshold, the edge stays cut. A component of which nobody reads any more is left out, with
all that it reads. What is left is the circuit.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .glassbox_truth import INPUT, OUTPUT, Node
from .wiring import Edge, Wiring, acts_at

MEASURES = ("log_odds", "kl")


@dataclass(frozen=True)
class EdgeCircuit:
    """edges: what was kept. odds: refusal log-odds of the circuit alone, [pair]. tried: how many edges were tested."""

    edges: frozenset[Edge]
    odds: np.ndarray
    tried: int
    threshold: float

    @property
    def nodes(self) -> list[Node]:
        """The components in it, without input and output."""
        return sorted({n for edge in self.edges for n in edge} - {INPUT, OUTPUT}, key=acts_at)


@torch.no_grad()
def find_circuit(
    wiring: Wiring,
    threshold: float,
    measure: str = "log_odds",
    start: Iterable[Edge] | None = None,
    each: Callable[[int, int], None] | None = None,
) -> EdgeCircuit:
    """The circuit that is left at a threshold, in units of the measure.

    measure: "log_odds" (mean log-odds of refusal lost), or "kl" (nats from the full model's answer to the circuit's).
    start: the edges to begin with; None for all. each: called with (done, all). Raises ValueError for another measure
    and for a threshold below 0.
    """
    if measure not in MEASURES:
        raise ValueError(f"There is no measure {measure!r}: choose one of {', '.join(MEASURES)}.")
    if not threshold >= 0:
        raise ValueError(f"A threshold says how much may be lost by one cut, 0 or more; {threshold!r} does not.")
    kept = set(wiring.edges if start is None else start)
    total, tried, done = len(kept), 0, 0
    search = _Search(wiring, kept, measure)
    for node in [OUTPUT, *reversed(wiring.nodes)]:
        into = [a for a in [*reversed(wiring.nodes), INPUT] if (a, node) in search.kept]
        if node != OUTPUT and not search.read_by(node):
            search.kept -= {(a, node) for a in into}  # nobody listens
            into = []
        for source in into:
            tried += 1
            done += 1
            search.cut((source, node), threshold)
            if each:
                each(min(done, total), total)
        done = total - sum(acts_at(b) < acts_at(node) for _, b in search.kept)
    return EdgeCircuit(frozenset(search.kept), search.odds(), tried, threshold)


class _Search:
    """The kept edges, what every component writes with them, and how far that is from the full model."""

    def __init__(self, wiring: Wiring, kept: set[Edge], measure: str):
        self.wiring, self.kept, self.measure = wiring, kept, measure
        self.full = wiring.twins.logits().detach()
        self.now = {INPUT: wiring.full[INPUT]}
        self.logits = self._from(wiring.nodes, self.now, kept)
        self.loss = self._loss(self.logits)

    def read_by(self, node: Node) -> list[Node]:
        return [b for a, b in self.kept if a == node]

    def odds(self) -> np.ndarray:
        return self.wiring.twins.odds_of(self.logits).cpu().numpy().astype(float)

    def cut(self, edge: Edge, threshold: float) -> None:
        """Cut an edge for good, unless that costs more than the threshold."""
        kept = self.kept - {edge}
        now = dict(self.now)
        logits = self._from(self._behind(edge[1], kept), now, kept)
        loss = self._loss(logits)
        if loss - self.loss < threshold:
            self.kept, self.now, self.logits, self.loss = kept, now, logits, loss

    def _behind(self, node: Node, kept: Collection[Edge]) -> list[Node]:
        """The component and all that it reaches, in the order in which they act."""
        if node == OUTPUT:
            return []
        reached = {node}
        for other in self.wiring.nodes:
            if acts_at(other) > acts_at(node) and any((a, other) in kept for a in reached):
                reached.add(other)
        return sorted(reached, key=acts_at)

    def _from(self, nodes: Sequence[Node], now: dict, kept: Collection[Edge]) -> torch.Tensor:
        """Computes these components anew, into `now`, and returns the logits."""
        for node in nodes:
            now[node] = self.wiring.value(node, now, kept)
        return self.wiring.value(OUTPUT, now, kept)

    def _loss(self, logits: torch.Tensor) -> float:
        if self.measure == "kl":
            full, here = (x.log_softmax(-1) for x in (self.full, logits))
            return float((full.exp() * (full - here)).sum(-1).mean())
        return -float(self.wiring.twins.odds_of(logits).mean())


def roc_auc(scores: dict[Edge, float], true: Collection[Edge]) -> float:
    """How well scores tell true edges from the others: 1 is perfect, 0.5 is chance. Ties count half.

    Raises ValueError if all of the edges are true, or none.
    """
    right = np.array([s for e, s in scores.items() if e in true])
    wrong = np.array([s for e, s in scores.items() if e not in true])
    if not len(right) or not len(wrong):
        raise ValueError("A ROC curve needs edges that are true and edges that are not.")
    return float(((right[:, None] > wrong[None]) + 0.5 * (right[:, None] == wrong[None])).mean())


def roc_curve(scores: dict[Edge, float], true: Collection[Edge]) -> tuple[np.ndarray, np.ndarray]:
    """(false positive rate, true positive rate) as the threshold falls, both beginning at 0."""
    order = sorted(scores, key=lambda e: -scores[e])
    hits = np.array([e in true for e in order])
    if hits.all() or not hits.any():
        raise ValueError("A ROC curve needs edges that are true and edges that are not.")
    return tuple(np.concatenate([[0], np.cumsum(x) / x.sum()]) for x in (~hits, hits))


def rates(found: Collection[Edge], true: Collection[Edge], possible: Collection[Edge]) -> tuple[float, float]:
    """(false positive rate, true positive rate) of a set of edges: one point beside a ROC curve."""
    true, found = set(true) & set(possible), set(found)
    wrong = set(possible) - true
    return len(found & wrong) / len(wrong), len(found & true) / len(true)
