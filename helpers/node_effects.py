"""What one component does to the answer: patched for true, and estimated from a gradient. Taught in lesson 04.

The question is the same in both: on the harmful request, put in what this head (or neuron, or MLP) does on the
harmless twin. How much of the refusal log-odds is lost?

    patching      one forward a component: exact
    attribution   (harmful - harmless) * gradient, for all components from two forwards and one backward (Nanda 2023)
    integrated    the same with the gradient averaged on the way from the harmless to the harmful embeddings (Sundararajan
                  et al. 2017; Hanna et al. 2024): a saturated part has no slope where it stands, but had one on the way
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .glassbox_truth import Node
from .hooks import edit
from .models import Dims, dims_of
from .twins import SIDES, Twins

STEPS = 5  # of the integral; Hanna et al. 2024 find no gain beyond this
SITES = ("z", "mlp_out", "neurons")  # where heads, MLPs and neurons act


@dataclass(frozen=True)
class NodeEffects:
    """Refusal log-odds lost when a component does what it does on the twin (gained, into harmless requests), pair by pair.

    heads: [pair, layer, head]; mlps: [pair, layer]; neurons: [pair, layer, d_mlp]. Positive: it speaks for refusal.
    heads_at: the heads' effects by position, [pair, layer, head, position].
    """

    heads: torch.Tensor
    mlps: torch.Tensor
    neurons: torch.Tensor
    heads_at: torch.Tensor

    def of(self, node: Node) -> torch.Tensor:
        """One component's effect, [pair]."""
        if node.kind == "mlp":
            return self.mlps[:, node.layer]
        return (self.heads if node.kind == "head" else self.neurons)[:, node.layer, node.index]

    def mean(self, kind: str) -> torch.Tensor:
        """The mean over pairs: of "head" and "neuron" [layer, index], of "mlp" [layer]."""
        return {"head": self.heads, "mlp": self.mlps, "neuron": self.neurons}[kind].mean(0)


def attribute_nodes(twins: Twins, steps: int = STEPS, into: str = "harmful") -> NodeEffects:
    """The estimate for every head, MLP and neuron, from `steps` forwards and backwards, and one forward of the other side.

    steps: 1 for the plain gradient at the request that is patched into; else the integral along the embeddings, from its
    twin to itself. into: as in `patch_nodes`. Raises ValueError for steps below 1, or another side.
    """
    giver = giver_of(into)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is how many gradients are averaged, at least 1; {steps!r} is not such a number.")
    dims = dims_of(twins.model)
    layers = range(dims.n_layers)
    other = twins.read(giver, [*SITES, "resid_pre"])
    places = [(site, layer) for site in SITES for layer in layers]
    here, slopes = run_with_slopes(twins, into, places)  # the way's end, and so its last step
    start, goal = other["resid_pre"][0], here["resid_pre", 0]
    for step in range(1, steps):
        _, more = run_with_slopes(twins, into, places, start + step / steps * (goal - start))
        slopes = {place: slope.float() + more[place].float() for place, slope in slopes.items()}
    sign = 1 if into == "harmful" else -1
    change = {
        s: [here[s, i].float() - other[s][i].float() for i in layers] for s in SITES
    }  # a sum of products in 16 bits has ties
    lost = {s: [(sign / steps * change[s][i] * slopes[s, i]).cpu() for i in layers] for s in SITES}
    heads_at = torch.stack([x.unflatten(-1, (dims.n_heads, dims.d_head)).sum(-1).transpose(1, 2) for x in lost["z"]], 1)
    return NodeEffects(
        heads_at.sum(-1),
        torch.stack([x.sum((1, 2)) for x in lost["mlp_out"]], 1),
        torch.stack([x.sum(1) for x in lost["neurons"]], 1),
        heads_at,
    )


def run_with_slopes(
    twins: Twins, side: str, places: Iterable[tuple[str, int]], start: torch.Tensor | None = None
) -> tuple[dict, dict]:
    """Activations of a side at places, {(site, layer): [pair, position, width]}, the embedding as ("resid_pre", 0), and the
    gradients of the summed log-odds at them. start: what the run begins with instead of its own embedding."""
    held: dict[tuple[str, int], torch.Tensor] = {}
    entry = ("resid_pre", 0)

    def begin(x: torch.Tensor) -> torch.Tensor:
        held[entry] = (x if start is None else start).detach().requires_grad_(True)
        return held[entry]

    def keep(place: tuple[str, int]):
        def function(x: torch.Tensor) -> None:
            held[place] = x

        return function

    edits = [(*entry, begin), *((*place, keep(place)) for place in places if place != entry)]
    with torch.enable_grad():
        slopes = torch.autograd.grad(twins.odds_of(twins.logits(side, edits)).sum(), list(held.values()))
    return {place: x.detach() for place, x in held.items()}, dict(zip(held, slopes, strict=True))


def giver_of(into: str) -> str:
    """The other side: whose activations are put in. Raises ValueError for a side that is not there."""
    if into not in SIDES:
        raise ValueError(f"There is no side {into!r}: patch into harmful or harmless requests.")
    return SIDES[1 - SIDES.index(into)]


def channels_of(dims: Dims, node: Node) -> tuple[str, slice]:
    """(site, channels) of a component of a model of these sizes: its part of z, or of the neurons; an MLP is all neurons of its layer."""
    sizes = {"head": dims.n_heads, "neuron": dims.d_mlp, "mlp": 1}
    if node.kind not in sizes:
        raise ValueError(f"A component is a head, a neuron or an mlp; {tuple(node)} is none of them.")
    if not (0 <= node.layer < dims.n_layers and 0 <= node.index < sizes[node.kind]):
        raise ValueError(f"There is no {node.kind} {node.index} in layer {node.layer} of this model.")
    if node.kind == "head":
        return "z", slice(node.index * dims.d_head, (node.index + 1) * dims.d_head)
    return "neurons", slice(None) if node.kind == "mlp" else slice(node.index, node.index + 1)


def held(model, nodes: Iterable[Node], values: dict[str, list[torch.Tensor]]) -> list[tuple]:
    """Edits (of `hooks.edit`) that hold these components at values, {site: list over layers of [pair, position, width]}."""
    parts: dict[tuple[str, int], list[slice]] = {}
    dims = dims_of(model)
    for node in nodes:
        site, part = channels_of(dims, node)
        parts.setdefault((site, node.layer), []).append(part)

    def put(site: str, layer: int):
        def function(x: torch.Tensor) -> torch.Tensor:
            new = x.clone()
            for part in parts[site, layer]:
                new[..., part] = values[site][layer][..., part]
            return new

        return function

    return [(site, layer, put(site, layer)) for site, layer in parts]


@torch.no_grad()
def patch_nodes(
    twins: Twins,
    nodes: Iterable[Node],
    into: str = "harmful",
    at_once: int = 8,
    each: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The true effect of each component, [node, pair], when it takes its twin's values at all positions.

    into="harmful": log-odds lost there (is it needed?); into="harmless": log-odds gained there (is it enough?). Only the layers from
    the component's on are run, `at_once` components of a layer in one batch. each: called with (done, all). Raises ValueError for a
    component that is not there, or another side.
    """
    nodes, giver = list(nodes), giver_of(into)
    dims = dims_of(twins.model)
    places = [channels_of(dims, node) for node in nodes]
    before, clean = twins.odds_and_read(into, ["resid_pre"])
    donor = twins.read(giver, ["z", "neurons"])
    moved, done = np.zeros((len(nodes), len(twins))), 0
    for layer in sorted({node.layer for node in nodes}):
        here = [i for i, node in enumerate(nodes) if node.layer == layer]
        for start in range(0, len(here), at_once):
            part = here[start : start + at_once]
            x = clean["resid_pre"][layer].repeat(len(part), 1, 1)
            edits = [(site, layer, _each_its_own(places, part, site, donor[site][layer])) for site in ("z", "neurons")]
            with edit(twins.model, edits):
                x = twins.block(layer, x)
            odds = twins.odds_of(twins.resume(layer + 1, x)).view(len(part), -1)
            moved[part] = odds.cpu().numpy() - before
            done += len(part)
            if each:
                each(done, len(nodes))
    return moved if into == "harmless" else -moved


def _each_its_own(places: Sequence[tuple[str, slice]], part: Sequence[int], site: str, donor: torch.Tensor):
    """An edit that gives copy k of the batch the twin's values in component k's channels."""

    def function(x: torch.Tensor) -> torch.Tensor:
        copies = x.clone().view(len(part), *donor.shape)
        for k, i in enumerate(part):
            if places[i][0] == site:
                copies[k, ..., places[i][1]] = donor[..., places[i][1]]
        return copies.view(x.shape)

    return function
