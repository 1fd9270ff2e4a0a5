"""Seven pitfalls: a naive method that misses the circuit, and the one that finds it, both scored against the truth.

Each function returns (naive, right), two `Score`s. Everything is estimated from prompts of the train split, the layer
of the decision head and the direction behind it included; the truth is used for the scoring alone.
"""

from collections.abc import Callable
from functools import cached_property

import torch

from helpers.directions import mean_differences, unit
from helpers.glassbox import Node, Score, glassbox_prompts, ranked, score
from helpers.hooks import edit, read, record
from helpers.prompts import token_batches

from .bench import Bench
from .last import LastToken


class Lab:
    """One box and the prompts that the methods may use."""

    def __init__(self, model, tokenizer, truth, n: int = 80):
        self.model, self.tokenizer, self.truth = model, tokenizer, truth
        self.bench = Bench(model, truth, tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
        self.pairs = {
            c: glassbox_prompts("pairs", n, "train", seed=11, changed=c) for c in ("object", "verb", "permit")
        }
        both = self.pairs["object"][: n // 2] + self.pairs["verb"][n // 2 :]
        self.harmful, self.harmless = [p.harmful for p in both], [p.harmless for p in both]

    @cached_property
    def head_effects(self) -> dict[str, torch.Tensor]:
        """For each contrast: the fall of the harmful prompts' log-odds when one head takes its partner's output at the
        last position, mean over pairs, [layer, head]."""
        return {contrast: _head_effects(self, pairs[:40]) for contrast, pairs in self.pairs.items()}

    @cached_property
    def decide(self) -> int:
        """The layer of the decision head, found by patching: the last one that holds a head of some effect."""
        effect = self.head_effects["object"].amax(1)
        return int((effect > effect.max() / 4).nonzero().max())

    def difference(self, positions=-1) -> torch.Tensor:
        """Mean activation of the neurons on harmful minus harmless prompts, [layer, d_mlp]. positions: -1, or "mean"."""
        means = [self._mean(prompts, positions) for prompts in (self.harmful, self.harmless)]
        return means[0] - means[1]

    def _mean(self, prompts, positions):
        if positions != "mean":
            return read(self.model, self.tokenizer, prompts, ["neurons"], positions=positions)["neurons"].mean(0)
        total = torch.zeros(self.bench.dims.n_layers, self.bench.dims.d_mlp)
        for batch in token_batches(self.tokenizer, prompts, len(prompts)):
            with torch.no_grad(), record(self.model, ["neurons"]) as seen:
                self.model(**batch.inputs())
            weight = (batch.attention_mask / batch.attention_mask.sum(1, keepdim=True))[..., None]
            total += torch.stack([(seen["neurons"][i] * weight).sum(1).mean(0) for i in range(len(total))])
        return total

    def direction(self, layer: int) -> torch.Tensor:
        """Difference of means at the last position before a layer, unit, [d_model]."""
        return unit(mean_differences(self.model, self.tokenizer, self.harmful, self.harmless)[layer, 0])

    def mean_direction(self, layer: int) -> torch.Tensor:
        """The same with the mean over all positions: the wrong place."""
        means = []
        for prompts in (self.harmful, self.harmless):
            (batch,) = token_batches(self.tokenizer, prompts, len(prompts))
            with torch.no_grad(), record(self.model, ["resid_pre"], [layer]) as seen:
                self.model(**batch.inputs())
            weight = (batch.attention_mask / batch.attention_mask.sum(1, keepdim=True))[..., None]
            means.append((seen["resid_pre"][layer] * weight).sum(1).mean(0))
        return unit(means[0] - means[1])

    def writes(self, direction: torch.Tensor) -> torch.Tensor:
        """What a unit of each neuron writes onto a direction, [layer, d_mlp]."""
        return torch.stack([layer.mlp.down_proj.weight.T @ direction for layer in self.model.model.layers])

    def score(self, values: torch.Tensor, stage: str, layers: int | None = None) -> Score:
        return score(ranked(values[:layers].numpy()), self.truth, stage)


def loud_is_not_causal(lab: Lab) -> tuple[Score, Score]:
    """Activation difference alone, against difference x write onto the estimated direction."""
    difference, layer = lab.difference(), lab.decide + 1  # only layers below can have written what is read there
    right = difference * lab.writes(lab.direction(layer))
    return lab.score(difference.abs(), "evaluation_neurons", layer), lab.score(right, "evaluation_neurons", layer)


def wrong_position(lab: Lab) -> tuple[Score, Score]:
    """The same right method, with means over all positions, against the last position."""
    layer = lab.decide + 1
    naive = lab.difference("mean") * lab.writes(lab.mean_direction(layer))
    right = lab.difference() * lab.writes(lab.direction(layer))
    return lab.score(naive, "evaluation_neurons", layer), lab.score(right, "evaluation_neurons", layer)


def logits_are_the_last_stage(lab: Lab) -> tuple[Score, Score]:
    """Direct logit attribution, against attribution through the rest of the model, below the decision head's layer."""
    lens = lab.model.lm_head.weight[lab.bench.sorry] - lab.model.lm_head.weight[lab.bench.sure]
    naive = lab.difference() * lab.writes(lens)
    right = attribution(lab, lab.harmful, lab.harmless)
    return lab.score(naive, "evaluation_neurons", lab.decide), lab.score(right, "evaluation_neurons", lab.decide)


def attribution(lab: Lab, at: list[str], other: list[str]) -> torch.Tensor:
    """Attribution patching: (activation on harmful - on harmless) x gradient at `at`, mean over pairs, [layer, d_mlp]."""
    value, gradient = LastToken(lab.bench, at).gradients()
    change = value - LastToken(lab.bench, other).clean["neurons"]
    return (change * gradient).mean(1)


def closed_gates(lab: Lab) -> tuple[Score, Score]:
    """Attribution patching with the gradient taken on the harmless prompts, where every gate is closed, against the
    gradient on the harmful ones. All neurons of the circuit, of all layers."""
    naive = -attribution(lab, lab.harmless, lab.harmful)
    return lab.score(naive, "neurons"), lab.score(attribution(lab, lab.harmful, lab.harmless), "neurons")


def _head_effects(lab: Lab, pairs) -> torch.Tensor:
    d = lab.bench.dims
    harmful, other = [p.harmful for p in pairs], [p.harmless for p in pairs]
    given = LastToken(lab.bench, other).clean["z"]
    last = LastToken(lab.bench, harmful)
    clean = last.log_odds([[]]).mean()
    out = torch.zeros(d.n_layers, d.n_heads)
    for layer in range(d.n_layers):
        for head in range(d.n_heads):
            part = slice(head * d.d_head, (head + 1) * d.d_head)

            def patched(z, part=part, layer=layer):
                z = z.clone()
                z[:, -1, part] = given[layer][:, part]
                return z

            with edit(lab.model, [("z", layer, patched)]):
                out[layer, head] = clean - last.log_odds([[]]).mean()
    return out


def one_contrast(lab: Lab) -> tuple[Score, Score]:
    """Detection heads from pairs that differ in the object, against the largest effect over three contrasts."""
    naive = lab.head_effects["object"].abs()
    return lab.score(naive, "detection_heads", lab.decide), lab.score(
        _over_contrasts(lab), "detection_heads", lab.decide
    )


def _over_contrasts(lab: Lab) -> torch.Tensor:
    return torch.stack([effect.abs() for effect in lab.head_effects.values()]).amax(0)


def attention_is_not_use(lab: Lab) -> tuple[Score, Score]:
    """Detection heads by attention from the last position to verb, object and permit, against patching."""
    naive, right = _attention(lab), _over_contrasts(lab)
    return lab.score(naive, "detection_heads", lab.decide), lab.score(right, "detection_heads", lab.decide)


def _attention(lab: Lab) -> torch.Tensor:
    """Attention from the last position to the words that differ in some contrast, on the side that has them."""
    d = lab.bench.dims
    total = torch.zeros(d.n_layers, d.n_heads)
    kept = lab.model.config._attn_implementation
    lab.model.set_attn_implementation("eager")
    try:
        for contrast, pairs in lab.pairs.items():
            texts = [p.harmless if contrast == "permit" else p.harmful for p in pairs]
            (first,) = token_batches(lab.tokenizer, texts, len(texts))
            (second,) = token_batches(
                lab.tokenizer, [p.harmless if contrast != "permit" else p.harmful for p in pairs], len(texts)
            )
            differs = (first.input_ids != second.input_ids)[None, :, None, :]
            with torch.no_grad():
                maps = lab.model(**first.inputs(), output_attentions=True).attentions
            last = torch.stack(maps)[:, :, :, -1]  # [layer, prompt, head, position]
            total += (last * differs).sum(-1).mean(1) / len(lab.pairs)
    finally:
        lab.model.set_attn_implementation(kept)
    return total


def self_repair(lab: Lab) -> tuple[Score, Score]:
    """One neuron at a time zeroed, which the backup makes up for, against the same with all later heads held at what
    they did in the untouched run. Only in `redundant`; all neurons of the circuit, of all layers."""
    d = lab.bench.dims
    last = LastToken(lab.bench, lab.harmful[::9])  # two or three prompts of each domain
    clean = last.log_odds([[]])
    values = []
    for frozen in (False, True):
        table = torch.zeros(d.n_layers, d.d_mlp)
        for layer in range(d.n_layers):
            heads = range(layer + 1, d.n_layers) if frozen else ()
            cuts = [[Node("neuron", layer, k)] for k in range(d.d_mlp)]
            table[layer] = (clean - last.log_odds(cuts, heads)).mean(1)
        values.append(lab.score(table, "neurons"))
    return values[0], values[1]


PITFALLS: dict[str, tuple[str, Callable[[Lab], tuple[Score, Score]]]] = {
    "loud is not causal": ("concentrated", loud_is_not_causal),
    "wrong position": ("concentrated", wrong_position),
    "logits show the last stage": ("concentrated", logits_are_the_last_stage),
    "gradients at closed gates": ("concentrated", closed_gates),
    "one contrast shows one head": ("concentrated", one_contrast),
    "attention is not use": ("concentrated", attention_is_not_use),
    "self-repair hides the path": ("redundant", self_repair),
}
