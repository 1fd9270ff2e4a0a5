"""A model taken apart into components and the edges between them, so that single edges can be cut. Taught in lesson 04.

The residual stream is a sum: each head and each MLP reads what all earlier ones (and the embedding) have written. So
the value that passes along one *edge* can be exchanged: B reads A's write of the harmless twin, while everyone
else goes on reading A as it is (path patching, Wang et al. 2023; ACDC, Conmy et al. 2023). Each head reads a
stream of its own here. Where the graph is pruned, all other components are held: as on the twin (is the graph enough?), or
as on the harmful request (which of its edges are needed, the rest being as it is?).

Not for families with a norm behind attention or MLP (Gemma 2 and 3, OLMo 2): there, writes are no sum over heads.
"""

from collections.abc import Collection, Iterable
from contextlib import contextmanager

import torch

from .glassbox_truth import INPUT, OUTPUT, Node
from .hooks import edit
from .models import UnknownArchitecture, attention_write_of, dims_of, layers_of, out_projection_of, weight_of
from .models import attention_of as _attention_of
from .models import mlp_of as _mlp_of
from .models import mlp_write_of as _mlp_write_of
from .twins import SIDES, Twins

Edge = tuple[Node, Node]


def all_nodes(model) -> list[Node]:
    """Every head, and every MLP as Node("mlp", layer, 0), in the order in which they act."""
    dims = dims_of(model)
    return sorted(
        [Node("head", layer, h) for layer in range(dims.n_layers) for h in range(dims.n_heads)]
        + [Node("mlp", layer, 0) for layer in range(dims.n_layers)],
        key=acts_at,
    )


def acts_at(node: Node) -> tuple[int, int]:
    """When a component acts: heads of a layer before its MLP; the input before all, the output after all."""
    if node == OUTPUT:
        return (10**6, 0)
    return (2 * node.layer + (node.kind == "mlp"), max(node.index, 0))


def feeds(a: Node, b: Node) -> bool:
    """Whether b can read what a writes."""
    return a != OUTPUT and b != INPUT and acts_at(a)[0] < acts_at(b)[0]


def all_edges(nodes: Iterable[Node]) -> list[Edge]:
    """Every possible edge between these components, the input and the output."""
    nodes = [INPUT, *sorted(nodes, key=acts_at), OUTPUT]
    return [(a, b) for b in nodes for a in nodes if feeds(a, b)]


def check_sums(model) -> None:
    """Raises UnknownArchitecture for a model whose writes are not a sum over heads."""
    for layer in layers_of(model):
        if attention_write_of(layer) is not _attention_of(layer) or _mlp_write_of(layer) is not _mlp_of(layer):
            raise UnknownArchitecture(
                f"In {type(layer).__name__} a norm stands behind attention and MLP, so what a head writes depends on the others: "
                "edges cannot be cut one by one. Use nodes (helpers.node_effects), or another family."
            )


class _Enough(Exception):
    """Nothing behind this place of a block is needed."""


@contextmanager
def _until(module: torch.nn.Module, seen: list):
    """While inside, the module's input is put into `seen`, and the block ends there."""

    def stop(_, args, kwargs):
        seen.append(args[0] if args else kwargs["hidden_states"])
        raise _Enough

    handle = module.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        yield
    except _Enough:
        pass
    finally:
        handle.remove()


class Wiring:
    """The graph of these components (all for None) on a batch of twins; the rest is held as on the `rest` side.

    full[node] and spare[node]: what a component writes on the harmful request, and on its twin, [pair, position,
    d_model]; INPUT is what the embedding writes. clean, twin: the activations of both runs by site, a list over layers.
    """

    def __init__(self, twins: Twins, nodes: Collection[Node] | None = None, rest: str = "harmless"):
        check_sums(twins.model)
        if rest not in SIDES:
            raise ValueError(f"The rest is held as on harmful or harmless requests, not {rest!r}.")
        self.twins, self.model, self.rest = twins, twins.model, rest
        self.nodes = sorted(all_nodes(self.model) if nodes is None else set(nodes), key=acts_at)
        self.edges = all_edges(self.nodes)
        self.n_layers = dims_of(self.model).n_layers
        sites = ("resid_pre", "attn_out", "mlp_out", "z")
        self.clean, self.twin = (twins.read(side, sites) for side in ("harmful", "harmless"))
        self._columns = [weight_of(out_projection_of(layer)).detach() for layer in layers_of(self.model)]
        self.full, self.spare = (
            {n: self._write(run, n) for n in (INPUT, *self.nodes)} for run in (self.clean, self.twin)
        )
        at = SIDES.index(rest)
        self._base, self._held = (self.clean, self.twin)[at], (self.full, self.spare)[at]
        self.end, self._end = (sum(run[s][-1] for s in sites[:3]) for run in (self.clean, self._base))

    def _write(self, run: dict, node: Node) -> torch.Tensor:
        if node == INPUT:
            return run["resid_pre"][0]
        return run["mlp_out"][node.layer] if node.kind == "mlp" else self.of_head(node, run["z"][node.layer])

    def of_head(self, node: Node, z: torch.Tensor) -> torch.Tensor:
        """What a head writes, from the z of its layer."""
        d_head = dims_of(self.model).d_head
        part = slice(node.index * d_head, (node.index + 1) * d_head)
        return z[..., part] @ self._columns[node.layer][:, part].T

    # --- one component, from the streams that it reads ------------------------------------------------------------

    def z_of(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """All heads' outputs when attention reads the stream x [times * pair, position, d_model]."""
        seen: list[torch.Tensor] = []
        with _until(out_projection_of(layers_of(self.model)[layer]), seen):
            self.twins.block(layer, x)
        return seen[0]

    def mlp_of(self, layer: int, x: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """What the MLP writes when x enters its block and attention adds this (in a parallel block it reads x alone)."""
        seen: list[torch.Tensor] = []
        edits = [("attn_out", layer, lambda _: attention), ("mlp_out", layer, lambda out: seen.append(out))]
        with edit(self.model, edits):
            self.twins.block(layer, x)
        return seen[0]

    def value(self, node: Node, now: dict[Node, torch.Tensor], kept: Collection[Edge]) -> torch.Tensor:
        """What a component writes (OUTPUT: the logits) if the kept edges carry `now`, and all others the twin's."""
        early, late = self._extra(node, now, kept)
        if node == OUTPUT:
            return self.twins.head((self._end + early)[:, -1])
        x = self._base["resid_pre"][node.layer] + early
        if node.kind == "head":
            return self.of_head(node, self.z_of(node.layer, x))
        return self.mlp_of(node.layer, x, self._base["attn_out"][node.layer] + late)

    def _extra(self, node: Node, now: dict, kept: Collection[Edge]) -> tuple:
        """How the stream that a component reads differs from the held one: by earlier layers, and by the same layer's heads."""
        early = late = 0.0
        for source, written in now.items():
            if feeds(source, node):
                carried, usual = written if (source, node) in kept else self.spare[source], self._held[source]
                if carried is usual:
                    continue
                if source.layer == node.layer:
                    late = late + (carried - usual)
                else:
                    early = early + (carried - usual)
        return early, late

    @torch.no_grad()
    def run(self, kept: Collection[Edge]) -> torch.Tensor:
        """Logits [pair, vocabulary] of the circuit of these edges alone; every other edge of the graph carries the twin's value."""
        kept = kept if isinstance(kept, set | frozenset | dict) else set(kept)
        now, spare = {INPUT: self.full[INPUT]}, self.spare
        fed = {b for _, b in kept}
        for node in self.nodes:
            now[node] = self.value(node, now, kept) if node in fed or self.rest == "harmful" else spare[node]
        return self.value(OUTPUT, now, kept)

    @torch.no_grad()
    def odds(self, kept: Collection[Edge]):
        """Log-odds of refusal, [pair], of the circuit of these edges alone."""
        return self.twins.odds_of(self.run(kept)).cpu().numpy().astype(float)
