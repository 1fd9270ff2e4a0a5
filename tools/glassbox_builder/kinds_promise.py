"""What the kinds promise beyond the common properties: distributed, redundant; decoys in the naive ranking."""

import numpy as np
import torch

from helpers.glassbox import Node, glassbox_prompts, language, ranked
from helpers.hooks import record

from .calibrate import batch
from .last import LastToken
from .properties import HOW, Properties


def attack_distributed(p: Properties, budget: int = 10) -> dict[str, float]:
    """Refusal of one domain's prompts after the worst `budget` neurons, found in that domain, are ablated: the lowest
    over domains and ways. By greedy ablation, by attribution, by true effect of each alone."""
    bench, lowest = p.bench, dict.fromkeys(("greedy", "attribution", "true effect"), 1.0)
    for domain in language()["domains"]:
        prompts = glassbox_prompts("harmful", 40, "test", seed=7, domain=domain)
        last = LastToken(bench, prompts[:8])
        nodes = bench.nodes("evaluation_neurons", "production_neurons")
        value, gradient = last.gradients()
        credit = (value * gradient).mean(1)
        alone = last.log_odds([[n] for n in nodes]).mean(1)
        order = [nodes[i] for i in np.argsort(alone.numpy())]
        felt = alone < last.log_odds([[]]).mean() - 0.02  # the others serve other domains
        found = {
            "greedy": _greedy(last, [n for n in order if felt[nodes.index(n)]], budget),
            "attribution": sorted(nodes, key=lambda n: -float(credit[n.layer, n.index]))[:budget],
            "true effect": order[:budget],
        }
        for how in HOW:
            source = bench.donated(prompts, p.texts["harmless"], how)
            for name, cut in found.items():
                rate = float(bench.refuses(bench.logits(prompts, cut, source)).mean())
                lowest[name] = min(lowest[name], rate)
    return lowest


def _greedy(last: LastToken, candidates: list[Node], budget: int) -> list[Node]:
    """Adds, one by one, the neuron whose ablation on top of the others lowers the log-odds most."""
    chosen: list[Node] = []
    for _ in range(budget):
        left = [n for n in candidates if n not in chosen]
        chosen.append(left[int(last.log_odds([[*chosen, n] for n in left]).mean(1).argmin())])
    return chosen


def cut_paths(p: Properties) -> dict[str, float]:
    """Refusal with parts of the main path, the backup, or both cut, the lowest over ways; and what the backup head
    writes onto the direction with the main path cut, over what it writes in the untouched box (means, in absolute)."""
    b = p.bench
    main = {
        "detection": b.nodes("detection_heads"), "evaluation": b.nodes("evaluation_neurons"),
        "decision": b.nodes("decision_components"),
    }  # fmt: skip
    main["main path"] = [n for nodes in main.values() for n in nodes]
    main["backup"] = b.backup
    main["both"] = main["main path"] + b.backup
    out: dict[str, float] = {}
    for how in HOW:
        source = b.donated(p.texts["harmful"], p.texts["harmless"], how)
        for name, nodes in main.items():
            rate = float(b.refuses(b.logits(p.texts["harmful"], nodes, source)).mean())
            out[name] = (max if name == "both" else min)(out.get(name, rate), rate)
    head = Node("head", *max(b.truth.backup_heads))
    silent, awake = (backup_write(p, head, cut).abs().mean() for cut in ([], main["main path"]))
    return out | {"backup awake": float(awake), "backup silent": float(silent), "times": float(awake / silent)}


@torch.no_grad()
def backup_write(p: Properties, head: Node, cut: list[Node]) -> torch.Tensor:
    """What a head writes onto the refusal direction at the last position of harmful prompts, [prompt]."""
    ids, mask = batch(p.texts["harmful"])
    with p.bench.ablated(cut), record(p.bench.model, ["z"], [head.layer]) as seen:
        p.bench.model(ids, attention_mask=mask, logits_to_keep=1)
    width = p.bench.dims.d_head
    rows = slice(head.index * width, (head.index + 1) * width)
    weight = p.bench.model.model.layers[head.layer].self_attn.o_proj.weight[:, rows]
    return seen["z"][head.layer][:, -1, rows] @ weight.T @ p.truth.direction


def decoy_strength(p: Properties, n: int = 40) -> dict[str, float]:
    """How strongly decoys react to harm, over how strongly the true components do. A neuron's reaction is its change
    between the two requests of a pair, a head's that of what it writes (by length), each at the position where it is
    largest, mean over pairs. "neurons": median of the decoys over median of the evaluation neurons; "head": the
    strongest decoy head over the median detection head."""
    pairs = glassbox_prompts("pairs", n, "test", seed=9)
    harmful, harmless = (p.bench.activations([getattr(x, k) for x in pairs]) for k in ("harmful", "harmless"))
    change = {site: harmful[site] - harmless[site] for site in harmful}
    neurons = change["neurons"].abs().amax(2).mean(1)
    width = p.bench.dims.d_head

    def head(layer, h):
        part = slice(h * width, (h + 1) * width)
        weight = p.bench.model.model.layers[layer].self_attn.o_proj.weight[:, part]
        return float((change["z"][layer][..., part] @ weight.T).norm(dim=-1).amax(1).mean())

    def middle(places):
        return float(torch.stack([neurons[place] for place in places]).median())

    decoys, detection = ([head(*x) for x in heads] for heads in (p.truth.decoy_heads, p.truth.detection_heads))
    return {
        "neurons": middle(p.truth.decoy_neurons) / middle(p.truth.evaluation_neurons),
        "head": max(decoys) / float(np.median(detection)),
    }


def naive_decoys(p: Properties, n: int = 64) -> dict[str, int]:
    """How many decoys are among the first ten of the naive activation difference, at the last position, on pairs."""
    pairs = glassbox_prompts("pairs", n, "train", seed=9)
    harmful, harmless = (
        LastToken(p.bench, [getattr(x, k) for x in pairs]).clean["neurons"] for k in ("harmful", "harmless")
    )
    first = ranked((harmful.mean(1) - harmless.mean(1)).abs().numpy(), 10)
    return {
        "decoys": len(set(first) & set(p.truth.decoy_neurons)),
        "true": len(set(first) & set(p.truth.neurons)),
    }
