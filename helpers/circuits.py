"""Map a model's refusal circuit in four stages, each member with its evidence. Taught in lesson 04.

    content detection   heads that, where they matter, look at the words in which the twins differ
    safety evaluation   neurons whose effect reaches the answer by way of others
    refusal decision    heads that matter without looking at those words
    refusal token       neurons that write mostly onto the refusal's first token themselves

One half of the pairs proposes candidates, by attribution (`node_effects.py`). The other half tries them: patched for true in
both directions, with an interval, a test that knows how many were tried, and random components beside them (`evidence.py`). With
the labels of a pair exchanged an effect has the opposite sign; so where labels mean nothing, nothing should be found.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch

from .circuit import RefusalCircuit
from .evidence import verdicts
from .glassbox_truth import STAGES, Node, Place, is_neuron_stage
from .hooks import edit
from .matched import matched_random_sets
from .models import dims_of, down_projection_of, layers_of, weight_of
from .node_effects import NodeEffects, attribute_nodes, held, patch_nodes
from .statistics import mean_interval
from .twins import SIDES, Twins, attention_weights

LEAST = 0.02  # of the gap between harmful and harmless: a smaller effect makes no member, however sure it is
LOOKS = 0.4  # a head is a detector if, where it matters, so much of its attention lies on the words that differ
DIRECT = 0.5  # a neuron is a producer if so much of its effect is written straight onto the answer
FEWEST = 12  # pairs: half of them to propose, half to try


def map_refusal_circuit(
    model,
    tokenizer,
    prompts: Sequence,
    *,
    heads: int = 16,
    neurons: int = 32,
    controls: int = 16,
    least: float = LEAST,
    seed: int = 0,
    effects: NodeEffects | None = None,
    each: Callable[[int, int], None] | None = None,
) -> RefusalCircuit:
    """The circuit behind the first token of a refusal, found on matched pairs (of `load_pairs`, or tuples of two texts).

    heads, neurons: how many candidates are tried. controls: how many random heads, and random neurons, stand beside them. least: the
    smallest effect that makes a member, as a share of the gap. effects: the attribution on the proposing half, prompts[::2], if
    it has been made already. each: called with (done, all) as components are patched. Raises ValueError for fewer than 12 pairs, or
    pairs of unequal length.
    """
    prompts = list(prompts)
    if len(prompts) < FEWEST:
        raise ValueError(
            f"{len(prompts)} pairs are too few to propose on one half and to try on the other: give {FEWEST} or more."
        )
    propose, judge = (Twins(model, tokenizer, prompts[i::2]) for i in (0, 1))
    with propose.remembering(), judge.remembering():
        effects = attribute_nodes(propose) if effects is None else effects
        candidates = proposed(propose, effects, heads, neurons)
        beside = random_like(propose, candidates, controls, seed)
        both = [patch_nodes(judge, [*candidates, *beside], into, each=each) for into in SIDES]
        gap = judge.odds() - judge.odds("harmless")
        evidence = _evidence(both, candidates, beside, least * gap.mean())
        evidence["looks"] = looks(propose, effects, candidates)
        evidence["direct"] = direct_share(judge, candidates, evidence.effect)
        evidence["stage"] = [stage_of(row) if row["member"] else "" for _, row in evidence.iterrows()]
        evidence = evidence.sort_values("effect", ascending=False, ignore_index=True)
        members = {s: evidence[evidence.stage == s] for s in STAGES}
        found = {s: tuple(zip(t.layer.tolist(), t["index"].tolist(), strict=True)) for s, t in members.items()}
        arrows = arrows_between(judge, found)
    return RefusalCircuit(
        **found,
        evidence=evidence,
        arrows=arrows,
        gap=(float(gap.mean()), *mean_interval(gap)),
        n_layers=dims_of(model).n_layers,
    )


def proposed(twins: Twins, effects: NodeEffects, heads: int, neurons: int) -> list[Node]:
    """The candidates: heads and neurons by attribution, and a third of the neurons by what they write straight onto the answer."""
    found = [Node("head", *p) for p in _largest(effects.mean("head"), heads)]
    straight = _largest(direct_attribution(twins), max(1, neurons // 3))
    by_effect = [p for p in _largest(effects.mean("neuron"), neurons) if p not in straight]
    return found + [Node("neuron", *p) for p in [*straight, *by_effect][:neurons]]


def _largest(values: torch.Tensor, count: int) -> list[tuple[int, int]]:
    order = values.flatten().argsort(descending=True, stable=True)[:count].tolist()
    return [divmod(i, values.shape[1]) for i in order]


def random_like(twins: Twins, candidates: Sequence[Node], count: int, seed: int = 0) -> list[Node]:
    """Random components beside the candidates: heads of any layer, and neurons of the same layers and a like activity."""
    dims, rng, taken = dims_of(twins.model), np.random.default_rng(seed), set(candidates)
    free = [Node("head", i, h) for i in range(dims.n_layers) for h in range(dims.n_heads)]
    free = [n for n in free if n not in taken]
    drawn = [free[i] for i in rng.permutation(len(free))[:count]]
    neurons = [(n.layer, n.index) for n in candidates if n.kind == "neuron"]
    read = [twins.read(side, ["neurons"])["neurons"] for side in ("harmful", "harmless")]
    activity = torch.stack(
        [sum(run[i][twins.real].abs().mean(0) for run in read) / 2 for i in range(dims.n_layers)]
    ).cpu()
    alike = matched_random_sets(neurons, activity, 1, seed=seed, spill=True)[0] if neurons else []
    return drawn + [Node("neuron", *alike[i]) for i in rng.permutation(len(alike))[:count]]


@torch.enable_grad()
def direct_attribution(twins: Twins) -> torch.Tensor:
    """What each neuron writes straight onto the refusal's first token at the last position, harmful less harmless, [layer, d_mlp].

    Direct logit attribution: its column times the gradient of the log-odds behind the last block. A first guess where a norm stands
    behind the MLP.
    """
    runs = [twins.read(side, ["neurons", "resid_post"]) for side in ("harmful", "harmless")]
    end = runs[0]["resid_post"][-1][:, -1].clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(twins.odds_of(twins.head(end)).sum(), end)
    rows = []
    for i, layer in enumerate(layers_of(twins.model)):
        change = runs[0]["neurons"][i][:, -1] - runs[1]["neurons"][i][:, -1]
        rows.append((change * (slope @ weight_of(down_projection_of(layer)).to(slope))).mean(0))
    return torch.stack(rows).detach().float().cpu()


def looks(twins: Twins, effects: NodeEffects, nodes: Sequence[Node]) -> list[float]:
    """How much of a head's attention lies on the words that differ, where the head matters; nan for neurons.

    Places and pairs count by the size of the head's attributed effect there; of the two sides the larger share is taken, since some
    words are there in one twin only. Attention at any place, whatever its effect, would say nothing of use.
    """
    changed, where = twins.changed.float(), effects.heads_at.abs()

    def on_changed(weights: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bhqk,bk->bhq", weights[..., twins.prefix :].cpu(), changed)

    shares = []
    for side in SIDES:
        seen = torch.stack(attention_weights(twins, side, on_changed), 1)  # [pair, layer, head, query]
        shares.append((seen * where).sum((0, -1)) / where.sum((0, -1)).clamp(min=1e-12))
    share = torch.maximum(*shares)
    return [float(share[n.layer, n.index]) if n.kind == "head" else np.nan for n in nodes]


@torch.no_grad()
def direct_share(twins: Twins, nodes: Sequence[Node], effects: Sequence[float]) -> list[float]:
    """The share of each neuron's effect that it writes straight onto the answer, with all later parts left as they were; nan for heads.

    effects: the whole effects, the mean of both directions. A share is nan where there is no effect to take it of.
    """
    direct = np.zeros((len(nodes), len(twins)))
    for into, giver, sign in ((*SIDES, -0.5), (*SIDES[::-1], 0.5)):
        clean, donor = twins.read(into, ["resid_pre", "resid_post"]), twins.read(giver, ["neurons"])
        before = twins.odds(into)
        for i, node in enumerate(nodes):
            if node.kind == "neuron":
                with edit(twins.model, held(twins.model, [node], donor)):
                    change = twins.block(node.layer, clean["resid_pre"][node.layer]) - clean["resid_post"][node.layer]
                after = twins.odds_of(twins.head((clean["resid_post"][-1] + change)[:, -1])).cpu().numpy()
                direct[i] += sign * (after - before)
    return [
        float(row.mean() / effect) if n.kind == "neuron" and abs(effect) > 1e-6 else np.nan
        for n, row, effect in zip(nodes, direct, effects, strict=True)
    ]


def _evidence(
    both: Sequence[np.ndarray], candidates: Sequence[Node], beside: Sequence[Node], least: float
) -> pd.DataFrame:
    """A row a candidate, from the effects of candidates and of random components in both directions, [node, pair] each."""
    effects = (both[0] + both[1]) / 2
    tried, random = effects[: len(candidates)], effects[len(candidates) :].mean(-1)
    highest = {
        k: max((x for x, n in zip(random, beside, strict=True) if n.kind == k), default=0.0) for k in ("head", "neuron")
    }
    judged = verdicts(tried, [max(highest[n.kind], least) for n in candidates])
    rows = [
        {"kind": n.kind, "layer": n.layer, "index": n.index}
        | asdict(v)
        | {"control": highest[n.kind], "lost": lost, "gained": gained}
        for n, v, lost, gained in zip(candidates, judged, both[0].mean(-1), both[1].mean(-1), strict=False)
    ]
    return pd.DataFrame(rows)


def stage_of(row) -> str:
    """The stage of a member, by what it does: a row with the columns kind, looks, direct."""
    if row["kind"] == "head":
        return "detection_heads" if row["looks"] >= LOOKS else "decision_components"
    return "production_neurons" if row["direct"] >= DIRECT else "evaluation_neurons"


def arrows_between(twins: Twins, stages: Mapping[str, Sequence[Place]]) -> pd.DataFrame:
    """How much of a stage's effect passes through another one: a row for each pair of stages that are not empty.

    Path-patched, in both directions: the source takes its twins' values; what the target then does is put into an untouched run, and
    what that moves passed through it. Columns: effect (mean of both directions) with its 95% interval over pairs, of (the source's whole
    effect), drawn (whether the interval lies above 0).
    """
    nodes = {s: [Node("neuron" if is_neuron_stage(s) else "head", *p) for p in stages[s]] for s in STAGES if stages[s]}
    pairs = [(a, b) for i, a in enumerate(nodes) for b in list(nodes)[i + 1 :]]
    passed, whole = {p: 0.0 for p in pairs}, {s: 0.0 for s in nodes}
    for into, giver, sign in ((*SIDES, -0.5), (*SIDES[::-1], 0.5)):
        donor, before = twins.read(giver, ["z", "neurons"]), twins.odds(into)
        for source in nodes:
            patched = held(twins.model, nodes[source], donor)
            odds, then = twins.odds_and_read(into, ["z", "neurons"], patched)
            whole[source] = whole[source] + sign * (odds - before)
            for target in (b for a, b in pairs if a == source):
                through = twins.odds(into, held(twins.model, nodes[target], then))
                passed[source, target] = passed[source, target] + sign * (through - before)
    rows = []
    for (source, target), effect in passed.items():
        low, high = mean_interval(effect)
        rows.append({"source": source, "target": target, "effect": effect.mean(), "low": low, "high": high,
                     "of": whole[source].mean(), "drawn": low > 0})  # fmt: skip
    return pd.DataFrame(rows, columns=["source", "target", "effect", "low", "high", "of", "drawn"])
