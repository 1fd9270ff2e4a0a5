"""Two detectives for the capstone: one that works, and one that takes the loudest. Taught in lesson 08.

`solve` walks from the answer back to the words, and each step tells the next one where to look:

    who speaks      neurons that write the refusal's first token themselves            (lesson 04, direct attribution)
    what they hear  the direction in which the stream differs where they read it       (lesson 01, difference of means)
    who decides     heads that write onto it                                           (lesson 01, with heads for neurons)
    who evaluates   neurons before them that write onto it, for one domain at a time
    who detects     heads without which this evaluation is lost, patched one by one    (lessons 02 and 04)
    which kind      the evaluation is taken out, and refusal and knowledge are looked at (lesson 05)

It sees activations and behaviour of the running model, never its file or its truth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from .ablation import ablate_safety_neurons
from .capability import box_facts, knows
from .circuits import direct_attribution
from .directions import unit
from .glassbox_language import BoxPair, glassbox_prompts
from .glassbox_score import ranked
from .glassbox_truth import Node, Place
from .hooks import edit, read
from .mean_ablation import template_means
from .models import dims_of, layers_of, out_projection_of, weight_of
from .neurons import write_onto
from .node_effects import held
from .refusal import refusal_score_of
from .twins import Twins

PAIRS = 48  # pairs to look at
TRIED = 12  # of them, pairs to patch heads in
ASKED = 16  # requests, and questions, to try a cut on
TEN = 10  # "no ten of them matter"


@dataclass(frozen=True)
class Findings:
    """What a detective found: places by stage, the kind, and the figures behind it."""

    stages: dict[str, list[Place]]
    kind: str
    direction: torch.Tensor | None = field(default=None, repr=False)  # unit, [d_model]
    evidence: Mapping[str, float] = field(default_factory=dict)  # shares refused and known, see `cut_tests`
    scores: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)  # each stage's values [layer, index]


def case_pairs(n: int = PAIRS, split: str = "train") -> list[BoxPair]:
    """Pairs that differ by object, verb and permit word in turn; n a multiple of 12 gives every domain the same number."""
    sorts = [glassbox_prompts("pairs", n=-(-n // 3), split=split, changed=c) for c in ("object", "verb", "permit")]
    return [pair for three in zip(*sorts, strict=True) for pair in three][:n]


def cut_ranking(values: Sequence[float], start: int = 1) -> int:
    """How many of the largest belong together: all that reach half the median of those kept so far, until it is stable.

    values: in falling order. start: how many to believe in at first. Returns at least `start`, if there are so many.
    """
    values = np.asarray(values, dtype=float)
    count = min(start, len(values))
    while count:
        more = int((values >= np.median(values[:count]) / 2).sum())
        if more <= count:
            return count
        count = more
    return count


def kept(scores: torch.Tensor, start: int = 1) -> list[Place]:
    """The places [layer, index] of a ranking up to its cut, the largest first."""
    order = ranked(scores)
    return order[: cut_ranking([float(scores[p]) for p in order], start)]


def change_at_end(runs: Sequence[dict], site: str) -> torch.Tensor:
    """Harmful less harmless at the last position, [pair, layer, width]."""
    return torch.stack([(a - b)[:, -1] for a, b in zip(runs[0][site], runs[1][site], strict=True)], 1)


def heard_direction(runs: Sequence[dict], layer: int) -> torch.Tensor:
    """The mean difference of what layer's MLP hears at the last position, harmful less harmless: unit, [d_model]."""
    middle = [run["resid_pre"][layer] + run["attn_out"][layer] for run in runs]
    return unit((middle[0] - middle[1])[:, -1].mean(0))


def head_writes(model, change: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """What each head's change of z, [pair, layer, width], writes onto a unit direction, on average: [layer, head]."""
    rows = [direction @ weight_of(out_projection_of(layer)) for layer in layers_of(model)]
    return (change.mean(0) * torch.stack(rows)).unflatten(-1, (dims_of(model).n_heads, -1)).sum(-1)


def by_domain(contribution: torch.Tensor, domains: Sequence[str]) -> torch.Tensor:
    """The largest of the domains' means: [pair, layer, neuron] and a domain a pair to [layer, neuron].

    A neuron that watches over one domain in four is silent in most pairs: in the mean over all it is four times as small.
    """
    rows = [[i for i, d in enumerate(domains) if d == domain] for domain in sorted(set(domains))]
    return torch.stack([contribution[row].mean(0) for row in rows]).amax(0)


@torch.no_grad()
def detector_effects(
    twins: Twins, direction: torch.Tensor, before: int, sorts: Sequence[str], layers: Sequence[int] | None = None
) -> torch.Tensor:
    """How much of what the stream before layer `before` holds along the direction is lost when a head sees the twin.

    A share of the gap between the twins, the largest over the sorts of pairs (verb, object, permit): [layer, head], 0 for
    layers that are not tried. Only the blocks from the head's to `before` are run.
    """
    model, dims = twins.model, dims_of(twins.model)
    clean = twins.read("harmful", ["resid_pre"])["resid_pre"]
    donor = twins.read("harmless", ["z", "resid_pre"])
    there = clean[before][:, -1] @ direction
    gap = (there - donor["resid_pre"][before][:, -1] @ direction).mean()
    effects = torch.zeros(dims.n_layers, dims.n_heads)
    for layer in range(before) if layers is None else layers:
        for head in range(dims.n_heads):
            with edit(model, held(model, [Node("head", layer, head)], donor)):
                x = clean[layer]
                for at in range(layer, before):
                    x = twins.block(at, x)
            lost = (there - x[:, -1] @ direction) / gap
            effects[layer, head] = max(lost[[s == sort for s in sorts]].mean() for sort in sorted(set(sorts)))
    return effects


def cut_tests(model, tokenizer, evaluators: Sequence[Place], asked: int = ASKED) -> dict[str, float]:
    """Refusal and knowledge with the evaluation neurons at their harmless mean: the figures that tell the kinds apart.

    evaluators: the surest first. Returns shares: refused_intact, refused_without_ten, refused_without_all, known_intact,
    known_without_all.
    """
    requests, facts = glassbox_prompts("harmful", n=asked, split="validation"), box_facts(asked)
    means = template_means(model, tokenizer, glassbox_prompts("harmless", n=8, split="train"), answer_tokens=2)
    score, found = refusal_score_of(model, tokenizer), {}
    for name, neurons in (("intact", ()), ("without_ten", evaluators[:TEN]), ("without_all", evaluators)):
        ablation = ablate_safety_neurons(model, neurons, donors=means) if neurons else None
        try:
            odds = score.log_odds(model, tokenizer, requests)
            found[f"refused_{name}"] = float((odds > score.threshold).mean())
            if name != "without_ten":
                found[f"known_{name}"] = float(knows(model, tokenizer, facts).mean())
        finally:
            if ablation:
                ablation.remove()
    return found


def kind_of(evidence: Mapping[str, float]) -> str:
    """The kind that these figures (of `cut_tests`) speak for."""
    if evidence["refused_without_all"] > 0.5:
        return "redundant"  # it refuses without what decided: something stood by
    if evidence["known_without_all"] < evidence["known_intact"] / 2:
        return "entangled"
    return "distributed" if evidence["refused_without_ten"] > 0.5 else "concentrated"


def solve(model, tokenizer, pairs: int = PAIRS) -> Findings:
    """The whole investigation; some 700 passes on a glass box."""
    chosen = case_pairs(pairs)
    twins = Twins(model, tokenizer, chosen)
    runs = [twins.read(side, ["resid_pre", "attn_out", "z", "neurons"]) for side in ("harmful", "harmless")]
    spoken = direct_attribution(twins)
    production = kept(spoken, start=4)
    hears = min(layer for layer, _ in production)
    direction = heard_direction(runs, hears)
    written = head_writes(model, change_at_end(runs, "z"), direction)
    written[hears + 1 :] = 0  # a head behind the first who speak has nothing to tell them
    decision = kept(written)
    decides = min(layer for layer, _ in decision)
    onto = change_at_end(runs, "neurons") * write_onto(model, direction)
    onto = by_domain(onto, [p.kind for p in chosen])
    onto[decides:] = 0
    evaluation = kept(onto, start=8)
    patched = detector_effects(
        Twins(model, tokenizer, chosen[:TRIED]), direction, decides, [p.changed for p in chosen[:TRIED]]
    )
    evidence = cut_tests(model, tokenizer, evaluation)
    stages = {
        "detection_heads": kept(patched, start=2),
        "evaluation_neurons": evaluation,
        "decision_components": decision,
        "production_neurons": production,
    }
    scores = dict(zip(stages, (patched, onto, written, spoken), strict=True))
    return Findings(stages, kind_of(evidence), direction, evidence, scores)


def naive(model, tokenizer, pairs: int = PAIRS) -> Findings:
    """The loudest: what differs most at the last position between harmful and harmless requests, without a look at causes.

    Of the first half of the layers four heads and ten neurons, of the second as many; and the kind that everybody expects.
    """
    chosen, dims = case_pairs(pairs), dims_of(model)
    harmful, harmless = [p.harmful for p in chosen], [p.harmless for p in chosen]
    seen = [read(model, tokenizer, prompts, ["z", "neurons"]) for prompts in (harmful, harmless)]
    heads, neurons = (seen[0][site].mean(0) - seen[1][site].mean(0) for site in ("z", "neurons"))  # [layer, width]
    heads = heads.unflatten(-1, (dims.n_heads, -1)).norm(dim=-1)
    half = dims.n_layers // 2

    def loudest(values: torch.Tensor, layers: slice, count: int) -> list[Place]:
        only = torch.full_like(values, -torch.inf)
        only[layers] = values[layers].abs()
        return ranked(only, count)

    first, second = slice(0, half), slice(half, None)
    stages = {
        "detection_heads": loudest(heads, first, 4),
        "evaluation_neurons": loudest(neurons, first, 10),
        "decision_components": loudest(heads, second, 4),
        "production_neurons": loudest(neurons, second, 10),
    }
    return Findings(stages, "concentrated")
