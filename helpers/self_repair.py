"""What the rest of a model does when a part is cut: pass the loss on, or make up for it. Taught in lesson 06.

McGrath et al. 2023 ("The hydra effect") cut a layer and found that later ones write more of what went missing. So a part without
effect may yet have a role. Two measurements: what every later part writes onto the answer with the cut and without it; and what
several parts lose together, beside the sum of what each loses alone.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from .glassbox_truth import Node
from .hooks import check_direction
from .node_effects import held
from .statistics import mean_interval
from .twins import Twins

PARTS = ("attention", "mlp")


@dataclass(frozen=True)
class CutResponse:
    """Log-odds of refusal gained (negative: lost), pair by pair, when parts of one layer take their twins' values.

    direct: by what these parts no longer write onto the answer, all else as it was, [pair]; total: with everything that follows,
    [pair]; later: by the change of each later part's own write, as if it alone had changed, {(layer, part): [pair]}.
    """

    direct: np.ndarray
    total: np.ndarray
    later: dict[tuple[int, str], np.ndarray]

    def table(self) -> pd.DataFrame:
        """A row for each later part: layer, part, change with its 95% interval over pairs (low, high)."""
        rows = [
            {"layer": layer, "part": part, "change": row.mean()}
            | dict(zip(("low", "high"), mean_interval(row), strict=True))
            for (layer, part), row in self.later.items()
        ]
        return pd.DataFrame(rows, columns=["layer", "part", "change", "low", "high"])

    @property
    def passed_on(self) -> float:
        """What the later parts that write less refusal lose, added up: they had listened to what was cut."""
        return float(sum(min(row.mean(), 0.0) for row in self.later.values()))

    @property
    def repaired(self) -> float:
        """What the later parts that write more refusal gain, added up: they make up for what was cut."""
        return float(sum(max(row.mean(), 0.0) for row in self.later.values()))


@torch.no_grad()
def cut_response(twins: Twins, nodes: Sequence[Node], direction: torch.Tensor | None = None) -> CutResponse:
    """Cuts heads of one layer (or neurons of one layer) in harmful requests, and reads what all later parts write.

    direction: a unit [d_model]; then `direct` and `later` are what is written along it at the last position, not log-odds. Raises ValueError for an empty list, and for parts of several layers or kinds: what is direct could not be told from what follows.
    """
    nodes = list(nodes)
    if len({(n.layer, n.kind == "head") for n in nodes}) != 1:
        raise ValueError(
            "Cut parts of one layer and one kind, at least one: else one part's answer is the other's cut."
        )
    layer, site = nodes[0].layer, "attn_out" if nodes[0].kind == "head" else "mlp_out"
    donor, sites = twins.read("harmless", ["z", "neurons"]), ["attn_out", "mlp_out", "resid_post"]
    cut = held(twins.model, nodes, donor)
    before, clean = twins.odds_and_read("harmful", sites)
    after, now = twins.odds_and_read("harmful", sites, cut)
    end = clean["resid_post"][-1][:, -1]

    def written(at: int, where: str) -> np.ndarray:
        change = (now[where][at] - clean[where][at])[:, -1]
        if direction is not None:
            return (change @ check_direction(twins.model, direction).to(change)).cpu().numpy().astype(float)
        return twins.odds_of(twins.head(end + change)).cpu().numpy().astype(float) - before

    later = {
        (at, part): written(at, where)
        for at in range(layer, len(clean["mlp_out"]))
        for part, where in zip(PARTS, ("attn_out", "mlp_out"), strict=True)
        if at > layer or (site, where) == ("attn_out", "mlp_out")
    }
    return CutResponse(written(layer, site), after - before, later)


class Cuts:
    """What is lost when parts take their twins' values together: cuts(nodes) gives log-odds of refusal lost, [pair]; 0 for none.

    The twins are read once, and each set of parts is run once.
    """

    def __init__(self, twins: Twins):
        self.twins, self._known = twins, {}
        self._donor, self._before = twins.read("harmless", ["z", "neurons"]), twins.odds()

    def __call__(self, nodes: Iterable[Node]) -> np.ndarray:
        key = frozenset(nodes)
        if key not in self._known:
            edits = held(self.twins.model, sorted(key), self._donor)
            self._known[key] = self._before - self.twins.odds("harmful", edits) if key else 0 * self._before
        return self._known[key]


def together(cuts: Cuts, nodes: Sequence[Node]) -> pd.DataFrame:
    """A row for each two parts: what each loses alone, what both lose, and the excess over the sum with its 95% interval.

    An excess above 0: each stands in for the other. Below 0: one works by way of the other. Raises ValueError for fewer than two.
    """
    if len(nodes) < 2:
        raise ValueError("Two parts can stand in for each other; give at least two.")
    alone = {node: cuts([node]) for node in nodes}
    rows = []
    for a, b in itertools.combinations(nodes, 2):
        both = cuts([a, b])
        excess = both - alone[a] - alone[b]
        low, high = mean_interval(excess)
        rows.append({"one": a, "other": b, "one alone": alone[a].mean(), "other alone": alone[b].mean(),
                     "both": both.mean(), "excess": excess.mean(), "low": low, "high": high})  # fmt: skip
    return pd.DataFrame(rows)
