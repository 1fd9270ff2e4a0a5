# %% [markdown]
# # 04 · Circuit mapping
#
# So far you have found parts: neurons, directions, places. A **circuit** is more: which parts, *and who listens to whom*. Today you will
# map one, first by a cheap guess and then by surgery, edge by edge. Then you will ask the four questions that decide whether it deserves its name:
# is it faithful, is it complete, is it minimal, and would a random one do as well?
#
# **After this lesson you can**
#
# * estimate the effect of every head, neuron and edge from a few gradients, and say what such an estimate overlooks;
# * find a circuit by cutting edges (ACDC), and score it where the wiring is known;
# * measure faithfulness, completeness and minimality, and see how the choice of ablation decides the answer;
# * draw the four stages of refusal with the layers that were really found, and say where a stage is empty;
# * hold a map against shuffled labels and against a model that never learned to refuse.
#
# **Time:** about 110 minutes, of which the computer needs about three. **To know before:** lessons 00 to 02.
# Words that are new to you stand in the [glossary](../GLOSSARY.md).
#
# There are five exercises; in three of them you repair what a colleague left behind. As always, no exercise can stop you.

# %% [markdown]
# ## Set-up

# %%
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from helpers.checks import check, hint  # noqa: F401 (hint is for you)
from helpers.glassbox import KINDS, Node, glassbox_prompts, load_glassbox, score
from helpers.models import load_model
from helpers.plots import CONTROL, bars, lines_with_band, show
from helpers.quiz import quiz, reveal
from helpers.roles import equal_length
from helpers.twins import Twins, swapped

model, tokenizer = load_model("smollm2-135m-refusal")  # the one that says no
base, _ = load_model("smollm2-135m")  # the same model, before it learned to
box, box_tokenizer, truth = load_glassbox("concentrated")  # the one whose circuit is known


def meter(desc):
    """A progress bar for helpers that report (done, all)."""
    bar = tqdm(desc=desc)

    def each(done, total):
        bar.total, bar.n = total, done
        bar.refresh()

    return each


# %% [markdown]
# ## Predict before you run

# %%
quiz("04.p1")

# %%
quiz("04.p2")

# %%
quiz("04.p3")

# %% [markdown]
# ## 1 · Two runs, side by side
#
# Everything in this lesson compares two runs: a harmful request, and its harmless twin of *equally many tokens*. What a part does on the one
# can then be put in at the same place on the other. `Twins` holds such pairs. The measure is the log-odds that the answer's **first
# token** is one that refusals begin with: it needs one forward, and it has a gradient.


# %%
def box_pairs(n, split="train"):
    """Pairs of a box, a third of which differ in the permit word; shuffled."""
    pairs = glassbox_prompts("pairs", n=n - n // 3, split=split) + glassbox_prompts(
        "pairs", n=n // 3, split=split, changed="permit"
    )
    return [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))]


twins = Twins(box, box_tokenizer, box_pairs(24))
print("pairs, positions:", twins.shape)
print(f"log-odds of refusal: harmful {twins.odds().mean():.1f}, harmless {twins.odds('harmless').mean():.1f}")

# %% [markdown]
# **Patching** asks for the truth, one part at a time: on the harmful request, give this head what it does on the twin; how much refusal is lost?
# **Attribution patching** guesses the same for *all* parts at once (Nanda 2023). Near the harmful run, an effect is about
#
# > (what the part does there − what it does on the twin) · gradient of the log-odds.
#
# An **edge** from A to B is the part of what B reads that A wrote. Two forwards and one backward give every head, every neuron and every edge. Your colleague has programmed it, and reports that the neurons which
# speak the refusal *prevent* it.
#
# {{exercise 04.1}}
#
# `full` and `spare` are what a part writes on the harmful request and on its twin, `gradient` that of the log-odds with respect to what the edge's other end reads, all
# `[pair, position, d_model]`. Return the log-odds **lost** if the edge carries `spare` instead, to first order: `[pair]`.


# %% exercise="04.1"
def my_edge_score(full, spare, gradient):
    """Log-odds lost when an edge carries the twin's write, to first order, [pair]."""
    ### BEGIN SOLUTION
    ### STUB return ((spare - full) * gradient).mean((1, 2))
    return ((full - spare) * gradient).sum((1, 2))
    ### END SOLUTION


# %%
edge_score = check("04.1", my_edge_score)

# %% [markdown]
# The helpers do this for all edges at once. Here is your function on the edges into the output, where the gradient is that of the last stream.

# %%
from helpers.node_effects import attribute_nodes, patch_nodes
from helpers.wiring import Wiring

wiring = Wiring(twins)
end = wiring.end.clone().requires_grad_(True)  # the stream behind the last block
(gradient,) = torch.autograd.grad(twins.odds_of(twins.head(end[:, -1])).sum(), end)
decision, speaker = Node("head", *truth.decision_components[0]), Node("mlp", 5, 0)
for node in (decision, speaker):
    print(
        node,
        "straight to the output:",
        f"{float(edge_score(wiring.full[node], wiring.spare[node], gradient).mean()):+.2f}",
    )

# %% [markdown]
# The last MLP holds neurons that speak the refusal. The decision head does not speak: whatever it does reaches the answer by way of others. Straight
# edges do not show it, a head's whole effect does.
#
# So now every head and every MLP of the box: the guess against the truth.

# %%
from helpers.edge_plots import agreement, edge_graph, name_of, roc_plot
from helpers.wiring import all_nodes

nodes = all_nodes(box)
true_lost = patch_nodes(twins, nodes).mean(1)
guessed = {steps: attribute_nodes(twins, steps) for steps in (1, 5)}
estimate = {steps: np.array([float(g.of(n).mean()) for n in nodes]) for steps, g in guessed.items()}
agree = {steps: float(np.corrcoef(true_lost, e)[0, 1]) for steps, e in estimate.items()}
show(
    agreement({"one gradient": (true_lost, estimate[1])}, xlabel="patched: log-odds lost", ylabel="attributed"),
    alt=f"Scatter plot of attributed against patched effects of {len(nodes)} heads and MLPs of the box; correlation {agree[1]:.2f}.",
    caption=f"The box, {len(twins)} pairs, patched into harmful requests. Correlation {agree[1]:.2f}.",
)

# %% [markdown]
# ## 2 · What the guess overlooks
#
# It finds the parts that matter, though it gives two MLPs a third of their effect. That was one direction. Now turn the question round: on the **harmless** request, put in what a head does on the harmful twin.
# Does that suffice to make the box refuse?

# %%
detectors = [Node("head", *p) for p in truth.detection_heads]
gained = patch_nodes(twins, detectors, "harmless").mean(1)
plain = attribute_nodes(twins, 1, "harmless")
seen = [float(plain.of(n).mean()) for n in detectors]
for node, true, guess in zip(detectors, gained, seen, strict=True):
    print(f"{truth.labels[node]:8} gained when patched {true:+.2f}, by the gradient {guess:+.2f}")
verb = next(i for i, n in enumerate(detectors) if truth.labels[n] == "verb")
reveal("04.p1", abs(seen[verb] / gained[verb]))
assert gained[verb] > 1 and abs(seen[verb]) < 0.5 * gained[verb]

# %% [markdown]
# This is **attribution's false negative**. Behind the detectors stand neurons that join verb and object. On a harmless request their gate is
# shut; a *small* step does not open it, so the gradient is nearly zero. A whole step does. (The mean hides two kinds of pairs: where the twins differ in a
# detector's own word, it brings the whole refusal; elsewhere nothing.) (A softmax that is all on one token is blind in
# the same way; AtP*, Kramár et al. 2024, mends that case and others.)
#
# The remedy is to ask on the way: **integrated gradients** average the slope at several places between the two runs
# (Sundararajan et al. 2017; Hanna et al. 2024 use five).
#
# {{exercise 04.2}}
#
# `slope_at(x)` gives the gradient when the embeddings are `x`. Go from `start` (the twin's) to `goal` in `steps` equal steps, and average the
# gradient at the *end* of each. The last place is `goal` itself: one step gives the plain gradient.


# %% exercise="04.2"
def my_mean_slope(slope_at, start, goal, steps):
    """The mean gradient on the way from start to goal, of their shape."""
    ### BEGIN SOLUTION
    ### STUB return slope_at(goal)
    return sum(slope_at(start + k / steps * (goal - start)) for k in range(1, steps + 1)) / steps
    ### END SOLUTION


# %%
mean_slope = check("04.2", my_mean_slope)


# %%
def slope_at(embedded):
    """The gradient of the summed log-odds at the writes of layer 0's heads, on harmless requests that begin with these embeddings."""
    held = {}

    def keep(z):
        z.requires_grad_(True)
        z.retain_grad()
        held["z"] = z

    begin = embedded.clone().requires_grad_(True)
    with torch.enable_grad():
        twins.odds_of(twins.logits("harmless", [("resid_pre", 0, lambda _: begin), ("z", 0, keep)])).sum().backward()
    return held["z"].grad


runs = {side: twins.read(side, ["resid_pre", "z"]) for side in ("harmful", "harmless")}
z_gap = runs["harmful"]["z"][0] - runs["harmless"]["z"][0]
by_steps = {}
for steps in (1, 2, 5, 20):
    # the way begins where the donor is, and ends at the run that is patched
    slope = mean_slope(slope_at, runs["harmful"]["resid_pre"][0], runs["harmless"]["resid_pre"][0], steps)
    effect = (z_gap * slope).unflatten(-1, (8, 16)).sum((1, 3)).mean(0)
    by_steps[steps] = [float(effect[n.index]) for n in detectors]
names = [truth.labels[n] for n in detectors]
show(
    bars(
        names, {"true patching": gained} | {f"{s} gradient{'s' if s > 1 else ''}": row for s, row in by_steps.items()},
        ylabel="log-odds gained", fmt="{:.1f}",
    ),
    alt="Bars of what each detector adds on harmless requests. Patched: " + ", ".join(f"{n} {v:.1f}" for n, v in zip(names, gained, strict=True))
    + "; one gradient: " + ", ".join(f"{v:.1f}" for v in by_steps[1]) + "; twenty: " + ", ".join(f"{v:.1f}" for v in by_steps[20]) + ".",
    caption="The box, harmless requests with one head's harmful values: the truth first, then guesses from more and more places on the way.",
)  # fmt: skip

# %% [markdown]
# Better is not perfect: the way runs through embeddings that no prompt has, so a part may get more credit than patching gives it, or less: compare the guesses at the most gradients with the truth. So the cheap guess
# **proposes**, and patching **decides**. Keep that division of labour for the rest of the lesson.
#
# ## 3 · From parts to edges
#
# The residual stream is a sum. So an *edge* from A to B can be cut alone: B reads A's write of the twin, and all others read A as it is. Three ways to
# find the edges that matter:
#
# * **EAP**: guess each edge's effect by one gradient (Syed et al. 2023); **EAP-IG**: by five.
# * **Patching**: cut every edge once. True, but one edge at a time, in a model that is otherwise whole.
# * **ACDC** (Conmy et al. 2023): go backwards from the output; cut each edge; if the loss is under a threshold, *leave it cut*, and go on.
#
# The nodes are heads and MLPs. On the boxes every edge is known, so each way gets its score. **Precision** is the share of the kept edges that are
# true, **recall** the share of the true edges that are kept, **ROC AUC** the chance that a true edge scores above a wrong one.

# %%
from helpers.acdc import find_circuit, rates, roc_auc, roc_curve
from helpers.attribution import attribute_edges, patch_edges

THRESHOLDS = (0.1, 0.3, 1.0)
rows, pictures = [], {}
for kind in tqdm(KINDS, desc="boxes"):
    one, its_tokenizer, its_truth = load_glassbox(kind)
    wires = Wiring(Twins(one, its_tokenizer, box_pairs(12)))
    true = its_truth.coarse_edges()
    scores = {
        name: {e: abs(v) for e, v in attribute_edges(wires, steps).mean().items()}
        for name, steps in (("EAP", 1), ("EAP-IG", 5))
    }
    found = {t: find_circuit(wires, t) for t in THRESHOLDS}
    # an edge's score in ACDC: the highest threshold that it survives
    scores["ACDC"] = {e: max([t for t in THRESHOLDS if e in found[t].edges], default=0.0) for e in wires.edges}
    for name, values in scores.items():
        listed = found[0.3].edges if name == "ACDC" else set(sorted(values, key=values.get, reverse=True)[: len(true)])
        hits = len(listed & true)
        rows.append({"box": kind, "search": name, "edges kept": len(listed), "precision": hits / max(len(listed), 1),
                     "recall": hits / len(true), "ROC AUC": roc_auc(values, true)})  # fmt: skip
    pictures[kind] = scores, found, true, wires
edge_table = pd.DataFrame(rows).set_index(["box", "search"])
edge_table.round(2)

# %%
scores, found, true, _ = pictures["redundant"]
show(
    roc_plot(
        {name: roc_curve(scores[name], true) for name in ("EAP", "EAP-IG")},
        {"ACDC": [rates(found[t].edges, true, scores["EAP"]) for t in THRESHOLDS]},
        title="The box with a backup",
    ),
    alt="ROC curves of EAP and EAP-IG on the box redundant, with ACDC at three thresholds as points. Areas: "
    + ", ".join(f"{name} {roc_auc(scores[name], true):.2f}" for name in scores) + ".",
    caption=f"{len(true)} true edges among {len(scores['EAP'])}. The backup's edges count as true here.",
)  # fmt: skip
assert all(edge_table.loc[(kind, "EAP-IG"), "ROC AUC"] > 0.95 for kind in KINDS)

# %% [markdown]
# Read the table twice. Ranking edges is easy on the boxes; so mind *where* a search fails. For EAP and EAP-IG we gave away how many edges there are. ACDC was not told; it stops
# by itself, in the table at a threshold of 0.3. But in `redundant` it then drops one of the two paths: **as soon as an edge is not missed it is cut**, and with a backup nobody misses the first.
# (In the picture the thresholds 0.3 and 1 lie on one spot. At 0.1 nearly all of both paths is kept: each stands in for the other, but not to the last tenth.)
#
# Here is what ACDC keeps of `concentrated`. A wrong edge would be dotted; a true one that it missed is not drawn.

# %%
scores, found, true, wires = pictures["concentrated"]
weights = patch_edges(wires, sorted(found[0.3].edges))
show(
    edge_graph(found[0.3].edges, {e: float(v.mean()) for e, v in weights.items()}, true),
    alt=f"Graph of the {len(found[0.3].edges)} edges that ACDC keeps, from the input below to the output above, through "
    + ", ".join(map(name_of, found[0.3].nodes)) + f". {len(found[0.3].edges - true)} of them are wrong.",
    caption="ACDC at a threshold of 0.3 log-odds. Heads are named layer.head; the wider an edge, the more is lost without it.",
)  # fmt: skip

# %% [markdown]
# ## 4 · Where a head looks
#
# The colleague has a shortcut. Detectors look at the marked words, so: take the heads with the most attention on the words that changed. No gradient, no patching.

# %%
from helpers.twins import attention_weights

weights_of = torch.stack(attention_weights(twins), 1)[..., twins.prefix :]  # [pair, layer, head, query, key]
changed = twins.changed.float()
effect_at = guessed[5].heads_at  # [pair, layer, head, position]
stare = torch.einsum("blhqk,bk->lh", weights_of, changed) / (len(twins) * weights_of.shape[-2])
patched_heads = patch_nodes(twins, [Node("head", i, h) for i in range(6) for h in range(8)]).mean(1).reshape(6, 8)
top = [divmod(int(i), 8) for i in stare.flatten().argsort(descending=True)[:6]]
pd.DataFrame({
    "head": [name_of(Node("head", *p)) for p in top],
    "mean attention on changed words": [float(stare[p]) for p in top],
    "log-odds lost without it": [patched_heads[p] for p in top],
    "in truth": ["detector" if p in truth.detection_heads else "decoy" if p in truth.decoy_heads else "other" for p in top],
}).round(2)  # fmt: skip

# %% [markdown]
# **Attention read as importance.** A head must look somewhere at every position, also where nobody listens. So ask where it looks *when it
# matters*: let each position count by the size of the head's effect there.
#
# {{exercise 04.3}}
#
# `attention` is `[pair, head, query, key]`, `effect` `[pair, head, query]`, `changed` `[pair, key]` (1 where the twins' words differ).
# Return each head's share of attention on changed words, weighted by the size of its effect, over all pairs and positions: `[head]`.


# %% exercise="04.3"
def my_looks(attention, effect, changed):
    """Share of attention on the changed words, where the head matters, [head]."""
    ### BEGIN SOLUTION
    ### STUB return (attention * changed[:, None, None]).sum(-1).mean((0, 2))
    share, weight = (attention * changed[:, None, None]).sum(-1), effect.abs()
    return (share * weight).sum((0, 2)) / weight.sum((0, 2))
    ### END SOLUTION


# %%
looks_of = check("04.3", my_looks)

# %%
sides = []
for side in ("harmful", "harmless"):  # a word may be there in one twin only
    attention = torch.stack(attention_weights(twins, side), 1)[..., twins.prefix :]
    sides.append(torch.stack([looks_of(attention[:, i], effect_at[:, i], changed) for i in range(6)]))
looking = torch.maximum(*sides)
kinds_of_head = {
    "detector": truth.detection_heads, "decision": truth.decision_components, "decoy": truth.decoy_heads,
}  # fmt: skip
for name, places in kinds_of_head.items():
    for p in places:
        print(
            f"{name:9} {name_of(Node('head', *p))}: looks {float(looking[p]):.2f} where it matters, effect {patched_heads[p]:+.2f}"
        )

# %% [markdown]
# Looking alone still admits who looks and is not heard. The map below therefore asks for **both**: an effect, by patching; and then, to name the stage,
# where the head looks when it has one.
#
# ## 5 · Is it the circuit?
#
# Say you have a list of parts. Three tests after Wang et al. (2023), simplified, and one of our own:
#
# * **Faithful:** ablate *everything else*. Does the circuit still do it?
# * **Complete** (short form): ablate *the circuit*. Is anything left? Wang et al. ask more: without any part of it, circuit and model should still agree
#   (`Ablator.incompleteness`).
# * **Minimal** (short form): drop one member. Does the circuit miss it? Wang et al. allow others to be dropped beside it, or a backup would hide it.
# * **Against chance** (ours): does a random circuit of the same size do as well?
#
# {{exercise 04.4}}
#
# All four are log-odds by pair: of the `full` model, the `circuit` alone, the `empty` model (everything ablated), and the model `without` the circuit.
# Return two shares of what the full model has above the empty one: what the circuit alone has of it, and what is left without the circuit.


# %% exercise="04.4"
def my_criteria(full, circuit, empty, without):
    """(share the circuit alone has, share left without it)."""
    ### BEGIN SOLUTION
    ### STUB return circuit.mean() / full.mean(), without.mean() / full.mean()
    gap = full.mean() - empty.mean()
    return (circuit.mean() - empty.mean()) / gap, (without.mean() - empty.mean()) / gap
    ### END SOLUTION


# %%
criteria = check("04.4", my_criteria)

# %%
from helpers.faithfulness import ABLATIONS, Ablator, random_nodes


def members_of(its_truth, *fields):
    """Places of a truth as nodes."""
    return [
        Node("neuron" if name.endswith("neurons") else "head", *p) for name in fields for p in getattr(its_truth, name)
    ]


redundant, redundant_tokenizer, redundant_truth = load_glassbox("redundant")
test_twins = Twins(redundant, redundant_tokenizer, box_pairs(24, "test"))
ablator = Ablator(test_twins)
first_path = members_of(redundant_truth, "detection_heads", "evaluation_neurons", "decision_components")
mouth = members_of(redundant_truth, "production_neurons")  # both paths speak through these
second_path = members_of(redundant_truth, "backup_heads", "backup_neurons")
judged = ablator.judge([*first_path, *mouth])
alone, _ = criteria(judged.full, judged.circuit, judged.empty, judged.without)
cut = {
    "first path": ablator.judge(first_path),
    "second path": ablator.judge(second_path),
    "both": ablator.judge([*first_path, *second_path]),
}
left = {name: criteria(j.full, j.circuit, j.empty, j.without)[1] for name, j in cut.items()}
show(
    bars(["first path alone", *(f"without {n}" for n in left)], [alone, *left.values()], ylabel="share of the refusal log-odds"),
    alt=f"Bars for the box with a backup: first path alone {alone:.2f}; " + "; ".join(f"without {n} {v:.2f}" for n, v in left.items()) + ".",
    caption=f"`redundant`, {len(test_twins)} test pairs, all else resampled from the harmless twins.",
)  # fmt: skip
reveal("04.p2", left["first path"])
assert alone > 0.8 and left["first path"] > 0.5 and left["both"] < 0.2

# %% [markdown]
# **Faithful, and incomplete.** The first path does the work all by itself; and when it is taken out, the work is still done. Had you stopped after the first test you would have
# told everyone that you know how this model refuses.
#
# ### What stands in the place of what is gone?
#
# The colleague ablates by zero, "since zero adds nothing", and finds that many heads matter a great deal. But zero is out of distribution: parts that write
# much the same on every prompt are suddenly missing. They want means instead, and ask for your help.
#
# {{exercise 04.5}}
#
# `x` is `[pair, position, width]`, one site on the harmless twins, padded at the left; `real` is `[pair, position]`, false where a prompt is padded.
# Return what to put in: for each position the mean over the pairs, padding left out. `[position, width]`.


# %% exercise="04.5"
def my_fill(x, real):
    """The mean of the real tokens at each place, [position, width]."""
    ### BEGIN SOLUTION
    ### STUB return torch.zeros_like(x[0])
    real = real[..., None].to(x)
    return (x * real).sum(0) / real.sum(0).clamp(min=1)
    ### END SOLUTION


# %%
fill = check("04.5", my_fill)

# %% [markdown]
# Three ablations (**resample**: the twin's value at the same place; **mean**: what your function fills in; **zero**) of one and the same thing, on the box: its true circuit alone, the rest without it, and random circuits of its size. Minimal: what the
# circuit alone loses without the least of its members. For comparison, what the full model loses without all decoys together.

# %%
box_test = Twins(box, box_tokenizer, box_pairs(24, "test"))
whole = members_of(truth, "detection_heads", "evaluation_neurons", "decision_components", "production_neurons")
mine = fill(box_test.read("harmless", ["z"])["z"][0], box_test.real)
print("your fill and the helper's agree:", torch.allclose(mine, Ablator(box_test, "mean").fill["z"][0][0], atol=1e-4))
decoys = members_of(truth, "decoy_heads", "decoy_neurons")
by_kind = []
for kind in ABLATIONS:
    judge = Ablator(box_test, kind)
    j = judge.judge(whole)
    chance = [judge.judge(random_nodes(box, whole, seed)).faithful for seed in range(10)]
    by_kind.append({
        "ablation": kind, "circuit alone": j.faithful, "left without it": j.left, "random circuits": f"{min(chance):.2f} to {max(chance):.2f}",
        "its least member, log-odds": float(judge.minimality(whole).mean(1).min()), "all decoys, log-odds": float((j.full - judge.odds(decoys)).mean()),
    })  # fmt: skip
pd.DataFrame(by_kind).set_index("ablation").round(2)

# %% [markdown]
# On the box all three kinds agree about the circuit as a whole: its parts say little unless they are asked. Yet with zeros around it, one member seems not to be
# missed: minimality, too, depends on what stands in the place of the rest. A trained model is another matter still; section 7 shows it. Where the kinds
# disagree, believe the one that strays least, and say which one you used.
#
# ## 6 · The map, on the boxes
#
# Now the parts come together. `map_refusal_circuit` proposes candidates on one half of the pairs (by attribution), and tries them on the other half: patched for true in both
# directions, with an interval, a test that knows how many were tried, and random components beside. Members are sorted by what they do:
#
# | stage | a head or neuron that matters and ... |
# |---|---|
# | content detection (`detection_heads`) | a head that looks at the changed words, where it matters |
# | safety evaluation (`evaluation_neurons`) | a neuron whose effect reaches the answer by way of others |
# | refusal decision (`decision_components`) | a head that looks elsewhere |
# | refusal token (`production_neurons`) | a neuron that writes most of its effect straight onto the refusal's first token |
#
# These are *names by two simple measures*, and no findings about function. A "decision" head is any head that matters and looks elsewhere; it may only pass things on. The lines
# between the names (0.4 of the attention, half of the effect) are ours: on the boxes they can be checked, on the real model not.

# %%
from helpers.circuit_plot import circuit_graph, circuit_words
from helpers.circuits import map_refusal_circuit

rows, box_maps = [], {}
for kind in tqdm(KINDS, desc="boxes"):
    one, its_tokenizer, its_truth = load_glassbox(kind)
    box_maps[kind] = map_refusal_circuit(one, its_tokenizer, box_pairs(60), heads=12, neurons=48)
    for stage, s in score(box_maps[kind], its_truth).items():
        rows.append(
            {
                "box": kind,
                "stage": stage,
                "precision": s.precision if box_maps[kind].stages[stage] else np.nan,
                "recall": s.recall,
            }
        )
pd.DataFrame(rows).pivot(index="box", columns="stage", values=["precision", "recall"]).round(2)

# %%
assert all(s.recall == 1 for s in score(box_maps["concentrated"], truth).values())
print("empty stages:", {kind: one.empty for kind, one in box_maps.items() if one.empty})

# %%
show(
    circuit_graph(truth, box_maps["concentrated"], title="concentrated: the map against the truth"),
    alt=circuit_words(truth, box_maps["concentrated"]),
    caption="Discs: found. Rings: missed. Crosses: wrong.",
)
show(
    box_maps["redundant"].draw("redundant: as the map draws it"),
    alt=box_maps["redundant"].words(),
    caption="Arrows: log-odds that pass from one stage through the next, drawn where the interval lies above 0. Empty here: "
    + (", ".join(box_maps["redundant"].empty).replace("_", " ") or "none") + ".",
)  # fmt: skip

# %% [markdown]
# An empty stage says what *this search* could see. In `distributed` and `entangled` no single neuron is strong enough to pass; in `redundant` a single evaluation neuron that is taken out wakes the backup, so that refusal grows; a single one put in
# is too little. (Lesson 02 exchanged all of them together.)
# The other stages stand on their own evidence.
#
# ## 7 · The real model
#
# The same on the real one. Pairs must be of equal length; the method topics propose and try, and the test topics are kept for the verdict.

# %%
from helpers.prompts import load_pairs

rng = np.random.default_rng(0)


def some(split, n):
    """n pairs of equal length, drawn once."""
    pairs = equal_length(tokenizer, load_pairs(split))
    return [pairs[i] for i in rng.permutation(len(pairs))[:n]]


method, held_out = some("method", 20), some("test", 12)
real = Twins(model, tokenizer, method[::2])  # this half proposes; the other one will try
verdict = Twins(model, tokenizer, held_out)
for name, one in (("method", real), ("test", verdict)):
    print(
        f"{name}: {len(one)} pairs; log-odds of a refusal's first token {one.odds().mean():.1f}, harmless twin {one.odds('harmless').mean():.1f}"
    )

# %%
effects = attribute_nodes(real)
in_order = all_nodes(model)  # what is drawn at random is drawn from this: a ranking may differ from one machine to the next
ranked_nodes = sorted(in_order, key=lambda n: -float(effects.of(n).mean()))
tried = ranked_nodes[:10] + [in_order[i] for i in rng.permutation(len(in_order))[:10]]
patched = patch_nodes(real, tried, each=meter("patching")).mean(1)
groups = {}
for kind, name in (("head", "heads"), ("mlp", "MLPs")):
    of_kind = [i for i, n in enumerate(tried) if n.kind == kind]
    groups[name] = ([patched[i] for i in of_kind], [float(effects.of(tried[i]).mean()) for i in of_kind])
agree_real = float(np.corrcoef(patched, [float(effects.of(n).mean()) for n in tried])[0, 1])
show(
    agreement(groups, xlabel="patched: log-odds lost", ylabel="attributed, 5 steps"),
    alt=f"Scatter plot of attributed against patched effects of {len(tried)} heads and MLPs of the real model, correlation {agree_real:.2f}.",
    caption=f"Real model, {len(real)} method pairs: the ten strongest by attribution, and ten drawn at random. Correlation {agree_real:.2f}.",
)  # fmt: skip

# %% [markdown]
# ### How many parts does it take?
#
# Keep the n strongest heads and MLPs, resample all the others from the harmless twin, and see how much refusal is left. Beside it, random parts.

# %%
counts = (10, 20, 40, 80, 120, 160, 220)
judge = Ablator(verdict)
empty, full = judge.odds([], outside=True).mean(), verdict.odds().mean()


def kept_share(parts):
    """Share of the gap between empty and full model that these parts have."""
    return float((judge.odds(parts, outside=True).mean() - empty) / (full - empty))


strongest = [kept_share(ranked_nodes[:n]) for n in tqdm(counts, desc="strongest")]
enough = next((n for n, share in zip(counts, strongest, strict=True) if share >= 0.5), counts[-1])
chance = [
    kept_share([in_order[i] for i in rng.permutation(len(in_order))[:enough]]) for _ in tqdm(range(10), desc="random")
]  # fmt: skip
fig = lines_with_band(
    counts, {"the strongest": (strongest,)}, xlabel="heads and MLPs kept, of 300", ylabel="share of refusal left"
)
ax = fig.axes[0]
ax.scatter([enough] * len(chance), chance, c=CONTROL, marker="x", s=40, label=f"{len(chance)} random draws")
ax.legend()
show(
    fig,
    alt="Line of the share of refusal that the strongest parts keep: " + ", ".join(f"{n}: {s:.2f}" for n, s in zip(counts, strongest, strict=True))
    + f". Random parts, {enough} of them: {min(chance):.2f} to {max(chance):.2f}.",
    caption=f"Real model, {len(verdict)} test pairs, all others resampled. Half of the refusal takes {enough} of the strongest.",
)  # fmt: skip
reveal("04.p3", enough)
print(
    f"Without the {enough} strongest, a share of {float((judge.odds(ranked_nodes[:enough]).mean() - empty) / (full - empty)):.2f} of the refusal is left."
)

# %% [markdown]
# A share above 1 is no mistake: parts that hold refusal back come last in this ranking, so the model without them refuses more than the whole. And between two of
# the counts nothing was tried: half of the refusal takes some number between them.
#
# Two questions must be kept apart. *Who decides?* and *who is needed before anyone can decide?* Reading a sentence takes many parts, in every layer, and
# none of them knows of refusal. So a short list of deciders, run alone, may well say nothing.
#
# So for ACDC we ask the first one only. The graph has the 10 strongest heads and 6 strongest MLPs; the rest stays **as it is on the harmful request**. Which edges among these are missed? (An edge into a part
# that nobody listens to any more goes without a try. EAP-IG takes three steps here. The bars are shares of what *this graph* carries; the line above them says how
# little of the refusal that is.)

# %%
strong = [n for n in ranked_nodes if n.kind == "head"][:10] + [n for n in ranked_nodes if n.kind == "mlp"][:6]
few = Twins(model, tokenizer, method[:8])
graph = Wiring(few, strong, rest="harmful")
found = find_circuit(graph, 0.02, each=meter("ACDC"))
by_eap = attribute_edges(graph, 3).mean()
test_graph = Wiring(verdict, strong, rest="harmful")
none, all_of_it = test_graph.odds([]).mean(), test_graph.odds(graph.edges).mean()


def carried(edges):
    """Share of what the whole graph carries on test pairs."""
    return float((test_graph.odds(set(edges)).mean() - none) / (all_of_it - none))


size = len(found.edges)
random_edges = [[graph.edges[i] for i in rng.permutation(len(graph.edges))[:size]] for _ in range(20)]
shares = {
    "ACDC": carried(found.edges),
    "EAP-IG": carried(sorted(by_eap, key=by_eap.get, reverse=True)[:size]),
    "random, best of 20": max(carried(edges) for edges in tqdm(random_edges, desc="random edges")),
    "all but ACDC's": carried(set(graph.edges) - found.edges),
}
print(f"{size} of {len(graph.edges)} edges are left, {found.tried} were tried.")
print(
    f"The whole graph carries {all_of_it - none:.2f} of the {full - empty:.2f} log-odds between harmful requests and their twins."
)
show(
    bars(list(shares), list(shares.values()), ylabel="share carried, test pairs"),
    alt=f"Bars of the share that {size} edges carry: " + ", ".join(f"{n} {v:.2f}" for n, v in shares.items()) + ".",
    caption=f"{size} edges each, but for the last bar. Found on {len(few)} method pairs, judged on {len(verdict)} test pairs.",
)  # fmt: skip

# %%
if found.edges:
    drawn = sorted(found.edges, key=lambda e: -abs(by_eap[e]))[:24]
    show(
        edge_graph(drawn, {e: by_eap[e] for e in drawn}),
        alt=f"Graph of the {len(drawn)} strongest of {size} edges that ACDC keeps in the real model: "
        + ", ".join(f"{name_of(a)} to {name_of(b)}" for a, b in drawn[:8]) + ".",
        caption="Widths by attribution. a: attention head, m: MLP; dashed: holds refusal back.",
    )  # fmt: skip

# %% [markdown]
# ### The map
#
# And the four stages, single neurons included, with the layers that are really found. Hatched are *the textbook's layers*: where textbooks and blog posts draw each
# stage for a model of about 30 layers. They stand there to be tested. In the table below, `lost` and `gained` are the log-odds that patching takes from a harmful
# request and gives to a harmless one, `effect` is their mean with its interval, `control` the largest effect of a random component, `looks` the share of attention on
# changed words, and `direct` the share of a neuron's effect that it writes straight onto the answer. (How many candidates are tried, and how many random components stand beside
# them, is a matter of time here; a paper would try more.)

# %%
SEARCH = {"heads": 10, "neurons": 16, "controls": 6}
circuit = map_refusal_circuit(model, tokenizer, method, **SEARCH, effects=effects, each=meter("patching"))
show(
    circuit.draw("Refusal in the real model"),
    alt=circuit.words(),
    caption=f"{len(method)} method pairs: half proposed, half tried. Arrows: log-odds that pass, of {circuit.gap[0]:.1f} between harmful and harmless. Empty: "
    + (", ".join(circuit.empty).replace("_", " ") or "no stage") + ".",
)  # fmt: skip

# %%
columns = ["kind", "layer", "index", "stage", "effect", "low", "high", "control", "lost", "gained", "looks", "direct"]
circuit.evidence[circuit.evidence.member][columns].round(2)

# %%
beside = circuit.beside_textbook()
within, members = int(beside["in the textbook's layers"].sum()), int(beside.members.sum())
print(f"{within} of {members} members lie in the layers of the textbook's picture.")
beside

# %% [markdown]
# ### What could prove it wrong
#
# Two controls for the map itself. **Shuffled labels:** in half of the pairs harmful and harmless change places; whatever is found now is a false find. **The base
# model**, which never learned to refuse: the same request words, the same measure. Both search as the real map did: as many pairs, candidates and random components.

# %%
labels = {
    "shuffled labels": (model, swapped(method)),
    "base model": (base, method),
}
control_maps = {
    name: map_refusal_circuit(one, tokenizer, pairs, **SEARCH, each=meter(name))
    for name, (one, pairs) in labels.items()
}
rows = {"refusal model": circuit} | control_maps
overview = pd.DataFrame(
    {
        name: {s: len(p) for s, p in c.stages.items()} | {"gap": c.gap[0], "low": c.gap[1], "high": c.gap[2]}
        for name, c in rows.items()
    }
).T
found_by = {name: sum(map(len, c.stages.values())) for name, c in rows.items()}
print("members:", found_by)
print(
    "At most half as many members where there is nothing to find:"
    if all(2 * found_by[name] <= found_by["refusal model"] for name in control_maps)
    else "A control finds more than half as many members as the map: then the map shows little.",
    "; ".join(f"{name} {found_by[name]} of {SEARCH['heads'] + SEARCH['neurons']} candidates" for name in rows),
)
overview.round(2)

# %%
for name, c in control_maps.items():
    show(c.draw(name), alt=f"{name}. {c.words()}", caption=f"The same search: {name}. Empty: " + (", ".join(c.empty).replace("_", " ") or "no stage") + ".")  # fmt: skip

# %% [markdown]
# ### Zero is not nothing
#
# Before the verdict, the promised look at zeros. One MLP at a time is ablated, in three ways.

# %%
by_layer = {kind: [] for kind in ABLATIONS}
some_layers, intact = range(0, 30, 4), few.odds()
for kind in tqdm(ABLATIONS, desc="ablations"):
    judge = Ablator(few, kind)
    with few.remembering():  # each run begins at the MLP that is ablated
        by_layer[kind] = [float((intact - judge.odds([Node("mlp", i, 0)])).mean()) for i in some_layers]
show(
    lines_with_band(some_layers, {kind: (row,) for kind, row in by_layer.items()}, xlabel="layer of the MLP ablated", ylabel="log-odds lost"),
    alt="Lines of the log-odds lost without one MLP, by layer and kind of ablation. " + "; ".join(f"{k}: largest {max(row, key=abs):.1f}" for k, row in by_layer.items()) + ".",
    caption=f"Real model, {len(few)} pairs. All positions but the shared beginning.",
)  # fmt: skip
largest = {kind: max(row, key=abs) for kind, row in by_layer.items()}
print("The largest change of all:", {kind: round(value, 1) for kind, value in largest.items()})
print(
    "Zero and resample agree on which of these MLPs matters most:",
    abs(np.array(by_layer["zero"])).argmax() == abs(np.array(by_layer["resample"])).argmax(),
)

# %% [markdown]
# Leave layer 0 aside: to exchange its MLP is nearly to exchange the words (lesson 02). Then look where the dotted line leaves the other two.
#
# Resampling asks: does this MLP carry *the difference* between the twins? Zero asks: can the model do without what it says on every prompt? That is a question about
# reading and writing English, and a large answer to it is no news of refusal.
#
# ### The verdict, on test topics
#
# Last, the four questions for the members of the map.

# %%
from helpers.statistics import mean_interval

members = [
    Node("neuron" if s.endswith("neurons") else "head", *p) for s, places in circuit.stages.items() for p in places
]
rows, draws = [], 12
for kind in ABLATIONS:
    judge = Ablator(verdict, kind)
    j = judge.judge(members)
    drawn = [random_nodes(model, members, seed) for seed in range(draws if kind == "resample" else 2)]
    rest = [
        float((judge.odds(d).mean() - j.empty.mean()) / (j.full.mean() - j.empty.mean()))
        for d in tqdm(drawn, desc=kind)
    ]
    rows.append({
        "ablation": kind, "empty model, log-odds": j.empty.mean(), "alone": j.faithful, "left without": j.left, "low": j.interval("left")[0], "high": j.interval("left")[1],
        "left without random (least)": min(rest), "left without random (mean)": np.mean(rest),
    })  # fmt: skip
table = pd.DataFrame(rows).set_index("ablation")
print(f"{len(members)} members; log-odds of the full model {full:.1f}, of the harmless twins {verdict.odds('harmless').mean():.1f}. "
      f"Random sets of the same size: {draws} for resample, 2 for the others.")  # fmt: skip
table.round(2)

# %% [markdown]
# All shares are counted from the empty model. Where *that* says something no request would make the model say, a share of the gap means little, and
# "faithful" becomes an artefact of the ablation. (An interval that is nan belongs to a share
# of a gap that is nearly zero in some draws of the pairs.) Compare its log-odds with those of the harmless twins before you read the row.

# %%
found_there = circuit.evidence[circuit.evidence.member]  # the strongest in the search first
strongest_members = [
    Node(*place) for place in zip(found_there.kind, found_there.layer, found_there["index"], strict=True)
]
missed = patch_nodes(verdict, strongest_members, each=meter("members"))  # [member, pair]
spans = [mean_interval(row) for row in missed]
sure = sum(low > 0 for low, _ in spans)
first = slice(0, 12)
show(
    bars([name_of(n) for n in strongest_members[first]], missed.mean(1)[first], intervals=tuple(zip(*spans[first], strict=True)),
         ylabel="log-odds lost without it", fmt="{:.2f}"),
    alt="Bars of the log-odds lost without single members: " + ", ".join(f"{name_of(n)} {row.mean():.2f} ({low:.2f} to {high:.2f})" for n, row, (low, high) in list(zip(strongest_members, missed, spans, strict=True))[first]) + ".",
    caption=f"Real model, {len(verdict)} test pairs, resampled; 95% intervals over pairs. In the order of the search, which knew none of these topics. For {sure} of {len(members)} members the interval lies above 0.",
)  # fmt: skip
needed, enough_alone = 1 - table.loc["resample", "left without"], table.loc["resample", "alone"]
print(
    f"Needed: without the map's members, {needed:.0%} of the refusal log-odds are gone (random sets of the same size: {1 - table.loc['resample', 'left without random (mean)']:.0%})."
)
print(f"Enough: alone, with all else resampled, they keep a share of {enough_alone:.2f}.")
print(
    "So this is",
    "a circuit that could stand alone."
    if enough_alone > 0.8
    else "a list of parts that matter, not a circuit that could stand alone.",
)

# %% [markdown]
# ## What this shows, and what it does not
#
# **It shows** heads and neurons of this model that carry refusal at the first token on matched pairs (for how many of them this holds on test topics stands under
# the last picture), how the effect passes between them on the method pairs, and how far the
# list is from a circuit that could stand alone.
#
# **It does not show**
#
# * that a stage does what its name says.
# * that what is not on the list plays no part. Backups hide, spread-out stages stay under the threshold, and neurons were tried only if the guess proposed them.
# * a circuit for refusing as such. The pairs differ in a few words; what all requests share (the template, the wish to answer) is the same in both runs.
# * anything about later tokens. The measure is the first one.
# * anything about larger models. The textbook's layers are somebody's picture of another model, and ours would be one too.
#
# ## Quiz

# %%
quiz("04")

# %% [markdown]
# ## Where to read on
#
# * **Wang, Variengien, Conmy, Shlegeris, Steinhardt (2023)**, *Interpretability in the Wild*. Path patching, and the criteria of section 5 in full. *Ours differs:* refusal
#   instead of names, and shares counted from the empty model.
# * **Conmy, Mavor-Parker, Lynch, Heimersheim, Garriga-Alonso (2023)**, *Towards Automated Circuit Discovery*. *Ours differs:* heads are not split into queries, keys and values,
#   and on the real model the graph is pruned first.
# * **Syed, Rager, Conmy (2023)**, *Attribution Patching Outperforms Automated Circuit Discovery*; **Hanna, Pezzelle, Belinkov (2024)**, *Have Faith in Faithfulness*, for EAP-IG.
# * **Kramár, Lieberum, Shah, Nanda (2024)**, *AtP\**. False negatives of attribution, and how to find them.
# * **Miller, Chughtai, Saunders (2024)**, *Transformer Circuit Faithfulness Metrics Are Not Robust*. Why the ablation has to be named.
#
# **Next:** lesson 05 takes these parts out for good, and counts what else goes with them.
