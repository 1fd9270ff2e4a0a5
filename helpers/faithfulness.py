"""Is it the circuit? Faithful, complete, minimal, and against chance (Wang et al. 2023). Taught in lesson 04.

    faithful    with everything else ablated, the circuit still does it
    complete    with the circuit ablated, the rest does not; and without any part of it, the circuit does what the whole
                model does without that part
    minimal     without any one member, something is lost

What stands in the place of what is ablated is a choice, and can decide the answer: the value of the harmless twin
(resample), the mean of all the harmless twins at that place of the template (mean), or nothing (zero).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .glassbox_truth import Node
from .models import dims_of
from .node_effects import channels_of
from .statistics import bootstrap_interval
from .twins import Twins

ABLATIONS = ("resample", "mean", "zero")
NOISE = 0.05  # of log-odds: a smaller gap between full and empty model gives no share


@dataclass(frozen=True)
class Faithfulness:
    """Refusal log-odds of four models, [pair] each: full; circuit (all else ablated); empty (everything ablated); without
    (only the circuit ablated). kind: of the ablation."""

    full: np.ndarray
    circuit: np.ndarray
    empty: np.ndarray
    without: np.ndarray
    kind: str

    @property
    def faithful(self) -> float:
        """Share of what the full model has above the empty one that the circuit has too; 1 is the whole. nan if there is no gap."""
        return _share(np.stack([self.circuit, self.empty, self.full], 1))

    @property
    def left(self) -> float:
        """Share that is left without the circuit; 0 for a complete one. nan if there is no gap."""
        return _share(np.stack([self.without, self.empty, self.full], 1))

    def interval(self, what: str = "faithful") -> tuple[float, float]:
        """95% bootstrap over pairs of `faithful` or `left`."""
        part = {"faithful": self.circuit, "left": self.without}[what]
        return bootstrap_interval(np.stack([part, self.empty, self.full], 1), _share)


def _share(rows: np.ndarray) -> float:
    part, empty, full = rows.mean(0)
    return float((part - empty) / (full - empty)) if abs(full - empty) > NOISE else float("nan")


class Ablator:
    """Ablates components of a batch of twins' harmful requests. kind: one of ABLATIONS.

    fill: what is put in, {site: list over layers of [pair, position, width]}.

    The shared beginning, position 0 (the attention sink), and the embedding are left alone. Raises ValueError for another kind.
    """

    def __init__(self, twins: Twins, kind: str = "resample"):
        if kind not in ABLATIONS:
            raise ValueError(f"There is no ablation {kind!r}: choose one of {', '.join(ABLATIONS)}.")
        self.twins, self.kind = twins, kind
        donor = twins.read("harmless", ["z", "neurons"])
        self.fill = {site: [self._filled(x) for x in layers] for site, layers in donor.items()}
        touched = twins.real.clone()
        if not twins.prefix:
            touched[torch.arange(len(touched)), touched.int().argmax(-1)] = False
        self._touched = touched[..., None]

    def _filled(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "zero":
            return torch.zeros_like(x)
        if self.kind == "resample":
            return x
        real = self.twins.real[..., None].to(x)
        return ((x * real).sum(0) / real.sum(0).clamp(min=1)).expand_as(x)

    def odds(self, nodes: Iterable[Node], outside: bool = False) -> np.ndarray:
        """Log-odds of refusal, [pair], with these components ablated; outside=True: with all the others ablated."""
        return self.twins.odds("harmful", self._edits(nodes, outside))

    def stream(self, nodes: Iterable[Node], outside: bool = False) -> torch.Tensor:
        """The stream behind the last block at the last position, [pair, d_model], of the same ablated model."""
        return self.twins.read("harmful", ["resid_post"], self._edits(nodes, outside))["resid_post"][-1][:, -1]

    def _edits(self, nodes: Iterable[Node], outside: bool) -> list[tuple]:
        dims, width = dims_of(self.twins.model), {}
        width["z"], width["neurons"] = dims.n_heads * dims.d_head, dims.d_mlp
        out = {site: torch.full((dims.n_layers, wide), outside) for site, wide in width.items()}
        for node in nodes:
            site, part = channels_of(dims, node)
            out[site][node.layer, part] = not outside
        return [
            (site, layer, self._edit(site, layer, gone))
            for site, rows in out.items()
            for layer, gone in enumerate(rows)
            if bool(gone.any())
        ]

    def _edit(self, site: str, layer: int, gone: torch.Tensor):
        def function(x: torch.Tensor) -> torch.Tensor:
            return torch.where((self._touched & gone).to(x.device), self.fill[site][layer], x)

        return function

    def judge(self, nodes: Sequence[Node]) -> Faithfulness:
        """The four models whose comparison says how faithful and how complete a set of components is."""
        full, empty = self.twins.odds(), self.odds([], outside=True)
        return Faithfulness(full, self.odds(nodes, outside=True), empty, self.odds(nodes), self.kind)

    def incompleteness(self, nodes: Sequence[Node], draws: int = 10, seed: int = 0) -> np.ndarray:
        """For random halves K of the circuit: |circuit without K - full model without K|, mean log-odds, [draw].

        Wang et al. 2023, section 4.1. Raises ValueError for a circuit of fewer than two components.
        """
        nodes = list(nodes)
        if len(nodes) < 2:
            raise ValueError("A circuit of fewer than two components has no part to take away.")
        rng, gaps = np.random.default_rng(seed), []
        for _ in range(draws):
            gone = {nodes[i] for i in rng.permutation(len(nodes))[: max(1, len(nodes) // 2)]}
            small = self.odds([n for n in nodes if n not in gone], outside=True)
            gaps.append(abs(small.mean() - self.odds(gone).mean()))
        return np.array(gaps)

    def minimality(self, nodes: Sequence[Node], each: Callable[[int, int], None] | None = None) -> np.ndarray:
        """What the circuit alone loses without each of its members, [member, pair]."""
        nodes, whole, lost = list(nodes), self.odds(nodes, outside=True), []
        for i, node in enumerate(nodes):
            lost.append(whole - self.odds([n for n in nodes if n != node], outside=True))
            if each:
                each(i + 1, len(nodes))
        return np.array(lost)


def random_nodes(model, nodes: Sequence[Node], seed: int = 0) -> list[Node]:
    """As many heads, MLPs and neurons, drawn from all of the model: a random circuit of the same size."""
    dims, rng, drawn = dims_of(model), np.random.default_rng(seed), []
    for kind, wide in (("head", dims.n_heads), ("mlp", 1), ("neuron", dims.d_mlp)):
        count = sum(n.kind == kind for n in nodes)
        picked = rng.choice(dims.n_layers * wide, count, replace=False)
        drawn += [Node(kind, int(i) // wide, int(i) % wide) for i in picked]
    return drawn
