"""Are the true edges true? The direct effect of one component on another, by taking its write out of the other's input."""

import numpy as np
import torch

from helpers.glassbox import Node
from helpers.hooks import edit, record

from .calibrate import batch
from .properties import Properties


class DirectEffects:
    """Direct effects between components, at the last position, on harmful and on permitted requests."""

    def __init__(self, p: Properties, n: int = 12):
        self.p, self.model, self.d = p, p.bench.model, p.bench.dims
        self.ids, self.mask = batch(p.texts["harmful"][:n] + p.texts["permit"][:n])
        self.middle: dict[int, torch.Tensor] = {}
        handles = [
            layer.post_attention_layernorm.register_forward_pre_hook(
                lambda _, args, i=i: self.middle.__setitem__(i, args[0].detach())
            )
            for i, layer in enumerate(self.model.model.layers)
        ]
        self.seen = self._run([], ["z", "neurons"])
        for handle in handles:
            handle.remove()

    @torch.no_grad()
    def _run(self, edits, sites, layers=None):
        with edit(self.model, edits), record(self.model, sites, layers) as seen:
            self.model(self.ids, attention_mask=self.mask, logits_to_keep=1)
        return seen

    def written(self, node: Node) -> torch.Tensor:
        """What a component adds to the stream, [prompt, position, d_model]."""
        layer = self.model.model.layers[node.layer]
        if node.kind == "neuron":
            column = layer.mlp.down_proj.weight[:, node.index]
            return (self.seen["neurons"][node.layer][..., node.index, None] * column).detach()
        part = slice(node.index * self.d.d_head, (node.index + 1) * self.d.d_head)
        return (self.seen["z"][node.layer][..., part] @ layer.self_attn.o_proj.weight[:, part].T).detach()

    def of(self, a: Node, targets: list[Node]) -> dict[Node, float]:
        """How much each later target's activation changes when a's write is missing from its input: mean absolute
        change, as a share of the target's own mean size on harmful prompts."""
        gone, out = self.written(a), {}
        for layer in sorted({t.layer for t in targets}):
            here = [t for t in targets if t.layer == layer]
            neurons = [t.index for t in here if t.kind == "neuron"]
            if neurons:
                new = self._neurons(layer, self.middle[layer][:, -1] - gone[:, -1], neurons)
                old = self.seen["neurons"][layer][:, -1, neurons]
                scale = old[: len(old) // 2].abs().mean(0).clamp(min=0.02)
                change = (new - old).abs().mean(0) / scale
                out |= {Node("neuron", layer, k): float(c) for k, c in zip(neurons, change, strict=True)}
            heads = [t for t in here if t.kind == "head"]
            if heads:
                z = self._run([("resid_pre", layer, lambda x: x - gone)], ["z"], [layer])["z"][layer][:, -1]
                for t in heads:
                    part = slice(t.index * self.d.d_head, (t.index + 1) * self.d.d_head)
                    old = self.seen["z"][layer][:, -1, part]
                    scale = old[: len(old) // 2].norm(dim=-1).mean()
                    out[t] = float((z[:, part] - old).norm(dim=-1).mean() / scale)
        return out

    @torch.no_grad()
    def _neurons(self, layer: int, stream: torch.Tensor, which: list[int]) -> torch.Tensor:
        block = self.model.model.layers[layer]
        x = block.post_attention_layernorm(stream)
        gate, up = (w.weight[which] for w in (block.mlp.gate_proj, block.mlp.up_proj))
        return torch.nn.functional.silu(x @ gate.T) * (x @ up.T)


def time_of(node: Node) -> int:
    """When a component acts: attention before the MLP of its layer."""
    return 2 * node.layer + (node.kind == "neuron")


def edge_auc(p: Properties) -> tuple[float, int, int]:
    """How well measured direct effects tell the true edges from all other pairs of circuit components (ROC AUC), and
    how many of each there are. The backup of `redundant` is left out: it is asleep."""
    effects, nodes, true = DirectEffects(p), p.bench.stages, set(p.truth.edges)
    right, wrong = [], []
    for a in nodes:
        for b, effect in effects.of(a, [n for n in nodes if time_of(n) > time_of(a)]).items():
            (right if (a, b) in true else wrong).append(effect)
    ranks = np.argsort(np.argsort(np.array(right + wrong)))[: len(right)]
    auc = (ranks.sum() - len(right) * (len(right) - 1) / 2) / (len(right) * len(wrong))
    return float(auc), len(right), len(wrong)
