"""What passes along each edge: attributed from gradients, and patched for true. Taught in lesson 04.

Edge attribution patching (EAP, Syed et al. 2023): what A writes on the harmful request less what it writes on the twin,
times the gradient of the refusal log-odds at the stream that B reads. All edges from two forwards and one backward; with
integrated gradients (EAP-IG, Hanna et al. 2024) times the steps. Where heads read streams of their own, each needs
its own small backward through its attention.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from .glassbox_truth import INPUT, OUTPUT, Node
from .hooks import edit
from .models import dims_of
from .node_effects import STEPS, channels_of, run_with_slopes
from .wiring import Edge, Wiring, feeds


@dataclass(frozen=True)
class EdgeEffects:
    """Refusal log-odds lost when an edge carries the twin's value: values[source, target, pair], nan where there is none."""

    sources: tuple[Node, ...]
    targets: tuple[Node, ...]
    values: torch.Tensor

    def of(self, edge: Edge) -> torch.Tensor:
        """One edge's effect, [pair]."""
        return self.values[self.sources.index(edge[0]), self.targets.index(edge[1])]

    def mean(self) -> dict[Edge, float]:
        """{edge: mean over pairs}, the largest size first."""
        mean = self.values.mean(-1)
        found = {(a, b): float(mean[i, j]) for i, a in enumerate(self.sources) for j, b in enumerate(self.targets)}
        return dict(sorted(((e, v) for e, v in found.items() if v == v), key=lambda item: -abs(item[1])))


def attribute_edges(wiring: Wiring, steps: int = STEPS, each: Callable[[int, int], None] | None = None) -> EdgeEffects:
    """The estimate for every edge of the graph. steps: 1 for the plain gradient at the harmful request, else the integral
    along the embeddings. each: called with (done, all) after each layer of each step."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is how many gradients are averaged, at least 1; {steps!r} is not such a number.")
    sources, targets = (INPUT, *wiring.nodes), (*wiring.nodes, OUTPUT)
    gap = torch.stack([wiring.full[n] - wiring.spare[n] for n in sources])  # [source, pair, position, d_model]
    values = torch.full((len(sources), len(targets), len(wiring.twins)), torch.nan)
    start, goal = wiring.spare[INPUT], wiring.full[INPUT]
    places = [(site, layer) for layer in range(wiring.n_layers) for site in ("resid_pre", "z", "attn_out", "mlp_out")]
    places.append(("resid_post", wiring.n_layers - 1))
    for step in range(1, steps + 1):
        run, slopes = run_with_slopes(wiring.twins, "harmful", places, start + step / steps * (goal - start))
        for layer in range(wiring.n_layers + 1):
            for node, reads in _reads(wiring, layer, run, slopes):
                j = targets.index(node)
                fed = [i for i, source in enumerate(sources) if feeds(source, node)]
                same = [i for i in fed if sources[i].layer == node.layer and node != OUTPUT]
                for index, slope in (([i for i in fed if i not in same], reads[0]), (same, reads[-1])):
                    if index:
                        part = torch.einsum("sbtd,btd->sb", gap[index], slope).cpu() / steps
                        values[index, j] = values[index, j].nan_to_num() + part
            if each:
                each((step - 1) * (wiring.n_layers + 1) + layer + 1, steps * (wiring.n_layers + 1))
    return EdgeEffects(sources, targets, values)


def _reads(wiring: Wiring, layer: int, run: dict, slopes: dict):
    """(component, gradients at the stream that it reads) for those of a layer: one gradient, of an MLP two (what enters
    the block, and what attention adds). Behind the last layer: the output."""
    if layer == wiring.n_layers:
        yield OUTPUT, [slopes["resid_post", layer - 1]]
        return
    heads, dims = [n for n in wiring.nodes if n.layer == layer and n.kind == "head"], dims_of(wiring.model)
    x = run["resid_pre", layer]
    with torch.enable_grad():
        if heads:
            own = x.repeat(len(heads), 1, 1).requires_grad_(True)
            z = wiring.z_of(layer, own).view(len(heads), *x.shape[:2], -1)
            parts = [channels_of(dims, n)[1] for n in heads]
            total = sum((z[k, ..., p] * slopes["z", layer][..., p]).sum() for k, p in enumerate(parts))
            (found,) = torch.autograd.grad(total, own)
            yield from ((n, [g]) for n, g in zip(heads, found.view(len(heads), *x.shape), strict=True))
        for node in (n for n in wiring.nodes if n.layer == layer and n.kind == "mlp"):
            ends = [x.clone().requires_grad_(True), run["attn_out", layer].clone().requires_grad_(True)]
            total = (wiring.mlp_of(layer, *ends) * slopes["mlp_out", layer]).sum()
            found = torch.autograd.grad(total, ends, allow_unused=True)
            yield node, [torch.zeros_like(x) if g is None else g for g in found]


@torch.no_grad()
def patch_edges(
    wiring: Wiring,
    edges: Iterable[Edge] | None = None,
    at_once: int = 32,
    each: Callable[[int, int], None] | None = None,
) -> dict[Edge, np.ndarray]:
    """The true effect of each edge, {edge: [pair]}: log-odds lost when this edge alone carries the twin's value, and all
    that follows is computed anew. edges: None for all of the graph. each: called with (done, all)."""
    edges = wiring.edges if edges is None else list(edges)
    twins, clean = wiring.twins, wiring.clean
    before, lost = twins.odds(), {}
    for target in dict.fromkeys(b for _, b in edges):
        sources = [a for a, b in edges if b == target]
        for start in range(0, len(sources), at_once):
            part = sources[start : start + at_once]
            change = torch.stack([wiring.spare[a] - wiring.full[a] for a in part])
            logits = _with_read(wiring, target, change, torch.tensor([a.layer == target.layer for a in part]), clean)
            odds = twins.odds_of(logits).view(len(part), -1).cpu().numpy()
            lost |= {(a, target): before - row for a, row in zip(part, odds, strict=True)}
        if each:
            each(len(lost), len(edges))
    return {edge: lost[edge] for edge in edges}


def _with_read(wiring: Wiring, target: Node, change: torch.Tensor, same: torch.Tensor, clean: dict) -> torch.Tensor:
    """Logits when the target reads a stream changed by change[k], [copy, pair, position, d_model], in copy k."""
    twins, copies = wiring.twins, len(change)
    if target == OUTPUT:
        return twins.head((wiring.end + change)[:, :, -1]).flatten(0, 1)
    layer = target.layer
    x = clean["resid_pre"][layer].repeat(copies, 1, 1)
    if target.kind == "head":
        part = channels_of(dims_of(wiring.model), target)[1]
        z = wiring.z_of(layer, x + change.flatten(0, 1))[..., part]

        def own(activation: torch.Tensor) -> torch.Tensor:
            new = activation.clone()
            new[..., part] = z
            return new

        with edit(wiring.model, [("z", layer, own)]):
            return twins.resume(layer + 1, twins.block(layer, x))
    late = torch.where(same.to(change.device)[:, None, None, None], change, 0.0)
    attention = clean["attn_out"][layer].repeat(copies, 1, 1)
    written = wiring.mlp_of(layer, x + (change - late).flatten(0, 1), attention + late.flatten(0, 1))
    return twins.resume(layer + 1, x + attention + written)
