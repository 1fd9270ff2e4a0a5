# %% [markdown]
# # 01 · Activation differences
#
# Which neurons make a model refuse? The obvious plan: look which ones are active on harmful requests and quiet on harmless ones.
# It is the first method that comes to mind, it takes one afternoon, and it is easily fooled. Today you will use it, be misled by it
# where the truth is known, and learn **what it takes to believe what it finds**.
#
# **After this lesson you can**
#
# * read neurons at the right place, on prompts that differ in harm and in nothing else;
# * rank them in five ways, and say what each ranking cannot see;
# * estimate a refusal direction, choose it by a rule, and use it to tell who is *heard* from who is merely *loud*;
# * ablate neurons without breaking the model, next to a control that could prove you wrong;
# * compare with what three papers report, and say what carries over to a small model.
#
# **Time:** about 110 minutes, of which the computer needs about two. **To know before:** lesson 00.
# Words that are new to you stand in the [glossary](../GLOSSARY.md).
#
# There are seven exercises; in three of them you repair what a colleague left behind. Six mistakes that this field makes come by on
# the way, in bold where you meet them. As always, no exercise can stop you.

# %% [markdown]
# ## Set-up

# %%
from functools import partial

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from helpers.checks import check, hint  # noqa: F401 (hint is for you)
from helpers.glassbox import KINDS, glassbox_prompts, load_glassbox, ranked, score
from helpers.models import dims_of, layers_of, load_model
from helpers.plots import CONTROL, HARMFUL, HARMLESS, bars, figure, heatmap, lines_with_band, show
from helpers.quiz import quiz, reveal

model, tokenizer = load_model("smollm2-135m-refusal")  # the one that says no
base, _ = load_model("smollm2-135m")  # the same model, before it learned to
box, box_tokenizer, truth = load_glassbox("concentrated")  # the one whose circuit is known

# %% [markdown]
# ## Predict before you run

# %%
quiz("01.p1")

# %%
quiz("01.p2")

# %%
quiz("01.p3")

# %% [markdown]
# ## 1 · From prompts to numbers
#
# We begin on the glass box, where every answer can be checked. In it, eight **evaluation neurons** join what the first layer has
# read, and tell a harmful request from a harmless one. They are what we are looking for. Hidden among 1,536 neurons are also 32
# **decoys**, which react to harm and cause nothing.
#
# A colleague has already begun. Their function, in the exercise below, reads the neurons of one layer.
# It runs, it returns a tensor, and it makes three mistakes that no error message will ever point out: **dimensions of the residual stream are
# taken for neurons**, **the mean runs over all tokens**, most of which are template, and **the chat template itself is missing**.
#
# {{exercise 01.1}}
#
# Repair it: return the neurons of one layer at the **last token of the template**, `[prompt, d_mlp]`, in the order of the prompts.
# `chat_text(tokenizer, prompts)` gives each prompt in its template, as a text.

# %% exercise="01.1"
from helpers.hooks import record
from helpers.prompts import chat_text, tokenize


def my_neurons(model, tokenizer, prompts, layer):
    """Activations of one layer's neurons at the template's last token, [prompt, d_mlp]."""
    ### BEGIN SOLUTION
    ### STUB out = []
    ### STUB for row in tokenize(tokenizer, prompts):
    ### STUB     with record(model, ["mlp_out"], [layer]) as seen:
    ### STUB         model(torch.tensor([row]))
    ### STUB     out.append(seen["mlp_out"][layer][0].mean(0))
    ### STUB return torch.stack(out)
    out = []
    for row in tokenize(tokenizer, chat_text(tokenizer, prompts)):
        with record(model, ["neurons"], [layer]) as seen:
            model(torch.tensor([row]))
        out.append(seen["neurons"][layer][0, -1])
    return torch.stack(out)
    ### END SOLUTION


# %%
neurons_at = check("01.1", my_neurons, model=box, tokenizer=box_tokenizer)

# %% [markdown]
# That is one forward a prompt, and one layer each time: fine for understanding, slow for work. From here on we let the course's
# `SafetyNeuronFinder` do the same for all prompts and all layers in one pass.
#
# ### Which prompts?
#
# Next the colleague chose their prompts: harmful requests on one side, and *questions* (`what is the colour of gold`) on the other.
# Then they tested what they had found on the first of the same requests. Two more mistakes: **unmatched prompts**, and **testing on
# the topics that did the choosing**.
#
# {{exercise 01.2}}
#
# Return a dictionary of four lists: `unsafe` and `safe` to choose neurons by (96 each), `test_unsafe` and `test_safe` to test them
# on (32 each). Prompt i of a safe list should be the harmless twin of prompt i of its unsafe list, and no topic may be in both halves.
# `glassbox_prompts("pairs", n=96, split="train")` gives pairs, with `.harmful` and `.harmless`; there are also the splits `"validation"` and `"test"`.

# %% exercise="01.2"


def my_experiment():
    """Four lists of prompts: unsafe and safe to choose by, test_unsafe and test_safe to test on."""
    ### BEGIN SOLUTION
    ### STUB unsafe = glassbox_prompts("harmful", n=96)
    ### STUB safe = [q.question for q in glassbox_prompts("capability", n=96)]
    ### STUB return {"unsafe": unsafe, "safe": safe, "test_unsafe": unsafe[:32], "test_safe": safe[:32]}
    choose = glassbox_prompts("pairs", n=96, split="train")
    test = glassbox_prompts("pairs", n=32, split="test")
    return {
        "unsafe": [p.harmful for p in choose],
        "safe": [p.harmless for p in choose],
        "test_unsafe": [p.harmful for p in test],
        "test_safe": [p.harmless for p in test],
    }
    ### END SOLUTION


# %%
experiment = check("01.2", my_experiment)
prompts = experiment()
for unsafe, safe in list(zip(prompts["unsafe"], prompts["safe"], strict=True))[:3]:
    print(f"{unsafe:38} | {safe}")

# %% [markdown]
# Read the pairs once more: one word differs, and with it what the box should say. What unmatched prompts would have done, we shall see
# in section 3.
#
# ## 2 · The loud ones
#
# Now with clean prompts. For each neuron: its mean on unsafe less its mean on safe requests, the largest first. `low` and `high`
# are the ends of its 95% bootstrap interval over pairs. `direction` says on which side the value is the higher one (a negative value further from
# zero is a lower one). The truth knows two sorts of neurons in the
# circuit: those that **evaluate**, and those that **speak**, which turn the decision into the first word of the answer. And the figure to read is the
# **recall at k**: which share of the k true ones is among the first k of the list.

# %%
from helpers.neurons import SafetyNeuronFinder

finder = SafetyNeuronFinder(box, box_tokenizer)
compared = finder.compare(prompts["safe"], prompts["unsafe"], paired=True)  # for several rankings, from one pass
several = len(truth.evaluation_neurons)
table = finder.find_by_activation_difference(prompts["safe"], prompts["unsafe"], top_k=several)


def part_of(place):
    """What a neuron of the box is, by its truth."""
    named = {"evaluates": truth.evaluation_neurons, "speaks": truth.neurons, "decoy": truth.decoy_neurons}
    return next((name for name, members in named.items() if place in members), "neither")


table["in truth"] = [part_of(place) for place in zip(table.layer, table.neuron, strict=True)]
table.round(2)


# %%
def told(values):
    """How many evaluation neurons and how many decoys stand at the top of a ranking, and where the former stand."""
    found = score(ranked(values), truth, "evaluation_neurons")
    places = sorted(ranked(values).index(neuron) + 1 for neuron in truth.evaluation_neurons)
    return (
        f"{found.recall_at_k:.0%} of the {found.k} among the first {found.k}, with {found.decoys} decoys; "
        f"they have the ranks {places[0]} to {places[-1]}"
    )


plain = score(ranked(compared.difference.abs()), truth, "evaluation_neurons")
print("by difference:", told(compared.difference.abs()))
reveal("01.p1", plain.recall_at_k)

# %% [markdown]
# The intervals are narrow, the effects are beyond doubt, and as a list of the neurons that *decide* it fails. Statistics is not the
# problem here: those neurons really do differ. But most of them are decoys, and the rest speak: none is one of those that decide.
#
# One thing can be mended. A neuron with a large range will differ more than one with a small range, whatever it does: **the ranking is
# led by large neurons**. Measure each difference in that neuron's own spread instead.
#
# {{exercise 01.3}}
#
# `unsafe` and `safe` are `[prompt, layer, d_mlp]`, equally many prompts in both. Return Cohen's d, `[layer, d_mlp]`: the difference of
# means over the pooled standard deviation *within* the groups. Some neurons of the box never move: keep their spread from being zero
# (`.clamp(min=1e-6)`).


# %% exercise="01.3"
def my_effect_size(unsafe, safe):
    """The difference of means in pooled standard deviations, [layer, d_mlp]."""
    ### BEGIN SOLUTION
    within = ((unsafe.var(0) + safe.var(0)) / 2).sqrt()
    return (unsafe.mean(0) - safe.mean(0)) / within.clamp(min=1e-6)
    ### END SOLUTION


# %%
effect_size = check("01.3", my_effect_size)

# %%
effects = effect_size(compared.unsafe, compared.safe)
print("by difference: ", told(compared.difference.abs()))
print("by effect size:", told(effects.abs()))

# %% [markdown]
# Another yardstick, and no help here; compare the ranks. It asks how *reliably* a neuron reacts, and the decoys react to every harmful request. An
# evaluation neuron knows one sort of harm only, and is silent on the others: reliable it is not. What makes a neuron matter is not in
# its activation. It is in **what it writes, and who reads it**.
#
# ## 3 · A direction, from the same prompts
#
# Neurons write into the residual stream. So look there: take the same two groups of prompts, and subtract the means of the
# *stream*. That gives one candidate direction for each layer and each position of the template (Arditi et al. 2024). On the box we
# know the true refusal direction: the axis on which the evaluation neurons write a part of the "no", the deciding head the rest, and which the
# speaking neurons read. So we can say how close each candidate comes.

# %%
from helpers.directions import mean_differences, reading_vector, unit
from helpers.hooks import read

ends = (-4, -3, -2, -1)
last_tokens = [
    box_tokenizer.decode(i) for i in tokenize(box_tokenizer, chat_text(box_tokenizer, prompts["unsafe"][:1]))[0][-4:]
]
candidates = mean_differences(
    box, box_tokenizer, prompts["unsafe"], prompts["safe"], positions=ends
)  # [layer, position, d_model]
closeness = torch.cosine_similarity(candidates, truth.direction, dim=-1)
show(
    heatmap(closeness.numpy(), xlabel="the prompt's last four tokens", ylabel="layer",
            colorbar="cosine", xticks=last_tokens, center=0, fmt="{:.2f}", title="How close to the true direction?"),
    alt="Heat map of the cosine between the difference of means and the true direction, by layer and position. At the last position it goes "
    + ", ".join(f"{value:.2f}" for value in closeness[:, -1].tolist()) + " over the layers.",
    caption="Difference of means before each layer of the box, against the truth. A zero means that nothing differs there yet.",
)  # fmt: skip

# %% [markdown]
# Before anything has been *evaluated* (layers 1 and 2) there is no direction to be found; from there on it grows until the decision is taken;
# and after that the difference holds more and more of other things, such as the words of the answer. Somewhere in between it is clean. But where, when you do not know the truth? (Look at the other places
# too: with the truth at hand, the last token is not always the best. We stay with it, because there the answer begins; the papers try all.)
#
# ### Another way, and a trap in it
#
# Representation engineering (RepE, Zou et al. 2023) takes the first principal component of the pairs' differences, the **reading vector**.
# PCA centres its data first, and there lies the trap: if every difference is *harmful − harmless*, what all pairs share **is the
# mean**, and centring throws it away. So the order within each pair is shuffled first: then the shared part points forwards in one half
# and backwards in the other, and becomes the widest axis.

# %%
streams = [
    read(box, box_tokenizer, prompts[group], ["resid_pre"])["resid_pre"] for group in ("unsafe", "safe")
]  # [pair, layer, d_model]


def fixed_order(unsafe, safe):
    """PCA of differences in a fixed order, centred, as PCA does."""
    difference = unsafe - safe
    return torch.linalg.svd(difference - difference.mean(0), full_matrices=False).Vh[0]


questions = [q.question for q in glassbox_prompts("capability", n=96)]  # what the colleague took for the harmless side
streams.append(read(box, box_tokenizer, questions, ["resid_pre"])["resid_pre"])
ways = {
    "reading vector": {},
    "reading vector, fixed order": {},
    "difference of means": {},
    "difference of means, unmatched": {},
}
later = range(1, len(layers_of(box)))  # before layer 0 the last token is the same in every prompt
for layer in later:
    unsafe, safe, unlike = (stream[:, layer] for stream in streams)
    found = (
        reading_vector(unsafe, safe),
        fixed_order(unsafe, safe),
        unsafe.mean(0) - safe.mean(0),
        unsafe.mean(0) - unlike.mean(0),
    )
    for name, vector in zip(ways, found, strict=True):
        ways[name][layer] = abs(float(torch.cosine_similarity(vector, truth.direction, dim=0)))
curves = {name: (list(row.values()),) for name, row in ways.items()}
fig = lines_with_band(list(later), curves, xlabel="layer", ylabel="|cosine| with the truth", ylim=(-0.02, 1.02))
fig.axes[0].set_xticks(list(later))
show(
    fig,
    alt="Lines of closeness to the true direction by layer. At layer 4: "
    + ", ".join(f"{name} {row[4]:.2f}" for name, row in ways.items()) + ".",
    caption="The box. Reading vectors from pairs in shuffled and in fixed order; the difference of means from twins, and from harmful requests "
    "against unrelated questions.",
)  # fmt: skip

# %% [markdown]
# With twins, the reading vector and the difference of means are close relatives. In a fixed order PCA finds whatever else varies. And
# compare the two differences of means: all that changed is the harmless side. What separates requests from questions is mixed into
# the second one, and nothing warns you.
#
# ### A rule for choosing
#
# Arditi et al. try each candidate in both directions, on validation prompts. To **ablate** a direction r of length 1 is to take its part out of
# everything that is written into the stream: x becomes x − (x·r) r. To **add** it is to add the whole difference of means to the
# stream at its layer.
#
# * **bypass**: refusal log-odds of *harmful* prompts when the direction is ablated, everywhere. Low is good.
# * **induce**: refusal log-odds of *harmless* prompts when the difference is added. Above 0, they are refused.
# * **KL**: how far the ablation moves the next token of *harmless* prompts, in nats (natural logarithms). Large means: the model is breaking.
#
# {{exercise 01.4}}
#
# Write their rule. `table` has the columns `layer`, `position`, `bypass`, `induce`, `kl`. Three conditions: a KL of at most 0.1;
# `induce` above 0; and a layer among the first 80% of the `n_layers` (in the later ones a direction is hardly more than the words of the answer).
# Of the candidates that meet all three, return the **label** (from `table.index`) of the one with the lowest bypass.


# %% exercise="01.4"
def my_choice(table, n_layers):
    """The label of the row that the rule selects."""
    ### BEGIN SOLUTION
    fine = table[(table.kl <= 0.1) & (table.induce > 0) & (table.layer < 0.8 * n_layers)]
    return fine.bypass.idxmin()
    ### END SOLUTION


# %%
choice = check("01.4", my_choice)

# %%
from helpers.directions import DirectionJudge, score_directions
from helpers.refusal import refusal_score_of

validation = glassbox_prompts("pairs", n=32, split="validation")
sides = [p.harmful for p in validation], [p.harmless for p in validation]
box_refusal = refusal_score_of(box, box_tokenizer)
judged = score_directions(DirectionJudge(box, box_tokenizer, box_refusal, *sides), candidates[:, -1:], layers=later)
judged["cosine with the truth"] = [float(closeness[layer, -1]) for layer in judged.layer]
print(
    f"the intact box: {box_refusal.log_odds(box, box_tokenizer, sides[0]).mean():.2f} on harmful prompts, {box_refusal.log_odds(box, box_tokenizer, sides[1]).mean():.2f} on harmless ones"
)
judged[["layer", "bypass", "induce", "kl", "cosine with the truth"]].round(2)

# %%
fine = (judged.kl <= 0.1) & (judged.induce > 0) & (judged.layer < 0.8 * len(layers_of(box)))
# Where the rule accepts nothing it would be wrong to use it: then take the lowest bypass, and say so.
best = judged.loc[choice(judged, len(layers_of(box))) if fine.any() else judged.bypass.idxmin()]
print(
    "chosen by the rule:" if fine.any() else "no candidate passes; the lowest bypass of all:",
    f"layer {int(best.layer)}",
)
direction = unit(candidates[int(best.layer), -1])
print(f"cosine with the truth: {score({'direction': direction}, truth)['direction']:.2f}")

# %% [markdown]
# The rule has never seen the truth. It only tried what each candidate does. Look what it had to go by: where several candidates take refusal
# all the way down, `bypass` hardly tells them apart, and the choice among them is good enough rather than the best. It is `induce` that
# throws out candidates whose ablation stops refusals, and which cannot bring them about: what the decision *needs*, in the layers before it, is not yet
# the decision.
#
# ## 4 · Who is heard?
#
# Now put the two together. A neuron that changes by `difference` writes `difference × its column` into the stream; the part of
# that along the refusal direction is what can be *heard* there.
#
# {{exercise 01.5}}
#
# `difference` is `[layer, d_mlp]`; `columns`, `[layer, d_mlp, d_model]`, is what each neuron writes when it is 1; `direction`,
# `[d_model]`, has length 1. Return `[layer, d_mlp]`, large for neurons that push *towards* refusal on harmful prompts.


# %% exercise="01.5"
def my_heard(difference, columns, direction):
    """What each neuron's difference writes onto the direction, [layer, d_mlp]."""
    ### BEGIN SOLUTION
    return difference * (columns @ direction)
    ### END SOLUTION


# %%
heard = check("01.5", my_heard)

# %%
from helpers.neurons import columns_of

writes = heard(compared.difference, columns_of(box), direction)
print("by difference:            ", told(compared.difference.abs()))
print("by write on the direction:", told(writes))

# %% [markdown]
# One refinement. The direction was read before a certain layer; what is written in that layer or later cannot have made it. So leave
# those neurons out:


# %%
def before(scores, layer):
    """The scores, [layer, d_mlp], with -inf from this layer on."""
    return torch.where(torch.arange(len(scores))[:, None] < layer, scores, -torch.inf)


print("the same, layers below:   ", told(before(writes, int(best.layer))))

# %% [markdown]
# Is that luck? Try all four kinds of box, each with its own direction, estimated from prompts in the same way. Their circuits are
# *concentrated* in few neurons, *distributed* over many, *redundant* (with a backup), and *entangled* with other work. One more ranking is tried:
# difference × the length of the column, that is, how much a neuron writes in *any* direction.


# %%
def rankings_of(kind):
    """Recall at k, and decoys among the first k, of each ranking on one box."""
    other, other_tokenizer, other_truth = load_glassbox(kind)
    c = SafetyNeuronFinder(other, other_tokenizer).compare(prompts["safe"], prompts["unsafe"], paired=True)
    stream = mean_differences(other, other_tokenizer, prompts["unsafe"], prompts["safe"])[int(best.layer), 0]
    columns = columns_of(other)
    scores = {"difference": c.difference.abs(), "effect size": effect_size(c.unsafe, c.safe).abs(),
              "difference × column length": c.difference.abs() * columns.norm(dim=-1),
              "difference × write": heard(c.difference, columns, unit(stream)),
        "the same, layers below": before(heard(c.difference, columns, unit(stream)), int(best.layer))}  # fmt: skip
    return {name: score(ranked(value), other_truth, "evaluation_neurons") for name, value in scores.items()}


on_boxes = {kind: rankings_of(kind) for kind in KINDS}
names = list(on_boxes["concentrated"])
recall = np.array([[on_boxes[kind][name].recall_at_k for kind in KINDS] for name in names])
decoys = {name: [on_boxes[kind][name].decoys for kind in KINDS] for name in names}
show(
    heatmap(recall[::-1], xlabel="", ylabel="", yticks=["difference", "effect size", "diff. × length", "diff. × write", "… layers below"][::-1], xticks=[k[:13] for k in KINDS], limits=(0, 1),
            colorbar="recall at k", fmt="{:.2f}", title="Evaluation neurons found"),
    alt="Heat map of recall at k by ranking and box. " + "; ".join(
        f"{name}: " + ", ".join(f"{value:.2f}" for value in row) for name, row in zip(names, recall, strict=True)) + ".",
    caption="k is the number of true ones. Decoys among the first k, in all four boxes: " + "; ".join(f"{name} {sum(row)}" for name, row in decoys.items()) + ".",
)  # fmt: skip

# %% [markdown]
# Mind what this ranking leaves out. It sees only what a neuron writes onto the direction *itself*; one that acts by way of later
# parts is invisible to it. And it still proves nothing: it is a better list of suspects.
#
# ### The proof: take them out
#
# Replace a neuron by what it does on harmless requests, and see whether the box still refuses. We do this for one neuron at a time:
# those with the largest differences, those that write most, and some at random.

# %%
from helpers.costs import CostMeter
from helpers.mean_ablation import mean_ablated, template_means

box_means = template_means(box, box_tokenizer, prompts["safe"])
box_meter = CostMeter(box, box_tokenizer, prompts["test_unsafe"][:16], prompts["test_safe"][:16], quick=True)
everyone = [(layer, neuron) for layer in range(dims_of(box).n_layers) for neuron in range(dims_of(box).d_mlp)]
at_random = [everyone[i] for i in np.random.default_rng(0).choice(len(everyone), 60, replace=False)]
tried = list(
    dict.fromkeys([*ranked(compared.difference.abs(), 40), *ranked(writes, 40), *truth.evaluation_neurons, *at_random])
)
intact = box_meter.odds().mean()
loss = {place: intact - box_meter.odds(mean_ablated(box, [place], box_means)).mean() for place in tried}

# %%
sorts = [
    (name, {place for place in tried if part_of(place) == name}, color, marker)
    for name, color, marker in (
        ("evaluates", HARMFUL, "o"),
        ("speaks", "#CC79A7", "^"),
        ("decoy", HARMLESS, "s"),
        ("neither", CONTROL, "x"),
    )
]
fig, axes = figure(1, 2, size=(10, 4.2), sharey=True)
for ax, values, label in (
    (axes[0], compared.difference.abs(), "|difference| in activation"),
    (axes[1], writes, "difference × write"),
):
    for name, members, color, marker in sorts:
        places = [place for place in tried if place in members]
        edge = {} if marker == "x" else {"edgecolors": "#222222", "linewidths": 0.7}
        ax.scatter(
            [float(values[p]) for p in places],
            [loss[p] for p in places],
            s=44,
            c=color,
            marker=marker,
            label=name,
            **edge,
        )
    ax.set(xlabel=label)
    ax.axhline(0, color="#777777", linewidth=1, linestyle="-", zorder=0)
axes[0].set(ylabel="refusal log-odds lost by ablation")
axes[0].legend()
tops = {name: np.mean([loss[p] for p in tried if p in members]) for name, members, _, _ in sorts}
show(
    fig,
    alt="Two scatter plots of single neurons, the loss of refusal by ablation against the activation difference and against the write. "
    "Mean loss: " + ", ".join(f"{name} {value:.2f}" for name, value in tops.items()) + ".",
    caption="One mark a neuron of the box. Mean loss: "
    + ", ".join(f"{name} {value:+.2f}" for name, value in tops.items())
    + ".",
)

# %% [markdown]
# The lesson in two panels. On the left, being far to the right says little: among the loud there are decoys that nobody misses, and most of the
# evaluation neurons are not loud at all. On the right, those stand out. But look for the neurons that *speak*: they matter too, if less one by one, and
# the write onto the direction hardly sees them, because they come after it and write something else, the words. **Loud is not heard, heard is not
# yet proven, and no ranking sees every sort of part.**
#
# Taken together:

# %%
groups = {"nothing": [], f"the {several} loudest": ranked(compared.difference.abs(), several), f"the {several} best heard": ranked(writes, several),
          "all decoys": truth.decoy_neurons, "the true ones": truth.evaluation_neurons}  # fmt: skip
still = {
    name: box_meter.measure(mean_ablated(box, places, box_means)).refused.mean() for name, places in groups.items()
}
show(
    bars(list(still), list(still.values()), ylabel="harmful requests refused", ylim=(0, 1.1)),
    alt="Bars of how often the box refuses with groups of neurons ablated: "
    + ", ".join(f"{n} {v:.0%}" for n, v in still.items())
    + ".",
    caption="The box, 16 harmful test requests; neurons held at their mean on harmless requests.",
)

# %% [markdown]
# ## 5 · The real model
#
# Now where nobody knows the truth. The course's prompts are split by topic: *method* to find things, *validation* to choose among them, *test* to
# report; the adapter was trained on none of these. One pass reads the neurons and the stream of both groups.

# %%
from helpers.neurons import Comparison
from helpers.prompts import load_pairs, load_paragraphs, load_plain

pairs = load_pairs("method")[::2]
test_pairs = load_pairs("test")[3:128:8]
seen = read(model, tokenizer, [p.harmless for p in pairs] + [p.harmful for p in pairs], ["neurons", "resid_pre"])
half = len(pairs)
real = Comparison(seen["neurons"][:half], seen["neurons"][half:], tuple(range(dims_of(model).n_layers)), paired=True)
stream = {"harmless": seen["resid_pre"][:half], "harmful": seen["resid_pre"][half:]}  # [pair, layer, d_model]
print(f"{half} pairs to choose by, {len(test_pairs)} to report; the topics differ")
real.table(top_k=6).drop(columns="score").round(2)

# %% [markdown]
# ### Where do the top neurons sit?
#
# The box first, then the real model; the fifty largest by difference, and the fifty that write most onto a direction. (For the real model
# that direction is still to be chosen; here it is the difference of means two thirds of the way up, and only what is written below it counts.)

# %%
depth = 2 * dims_of(model).n_layers // 3
for_now = unit((stream["harmful"] - stream["harmless"]).mean(0)[depth])
real_columns = columns_of(model)
top = 50
fig, axes = figure(1, 2, size=(10, 3.8))
count = {}
for ax, title, values, which in (
    (axes[0], "glass box", {"difference": compared.difference.abs(), "write": writes}, dims_of(box).n_layers),
    (
        axes[1],
        "real model",
        {"difference": real.difference.abs(), "write": before(heard(real.difference, real_columns, for_now), depth)},
        dims_of(model).n_layers,
    ),
):
    for shift, (name, value) in enumerate(values.items()):
        layers = [layer for layer, _ in ranked(value, top)]
        count[title, name] = np.bincount(layers, minlength=which)
        ax.bar(np.arange(which) + 0.4 * shift - 0.2, count[title, name], 0.4, color=(HARMLESS, HARMFUL)[shift], hatch=("", "//")[shift],
               edgecolor="#222222", linewidth=0.5, label=name)  # fmt: skip
    ax.set(xlabel="layer", title=title)
axes[0].set(ylabel=f"neurons among the top {top}")
axes[0].legend()
busiest = {key: int(value.argmax()) for key, value in count.items()}
show(
    fig,
    alt=f"Two bar charts of how many of the top {top} neurons sit in each layer. The fullest layer is "
    + ", ".join(f"{layer} ({title}, {name})" for (title, name), layer in busiest.items()) + ".",
    caption="The fullest layer: " + ", ".join(f"{layer} ({title}, by {name})" for (title, name), layer in busiest.items()) + ".",
)  # fmt: skip

# %% [markdown]
# In most language models activations grow with depth, and so does everything that is measured in them. A histogram like this one says as
# much about *where neurons are large* as about where refusal is.
#
# ### First story: the direction that removed refusal
#
# In the trial run for this course, with an earlier adapter (so its figures are not yours), somebody ablated the direction of layer 13 and refusal fell
# from 85% to 5%. They were delighted. So we take every second layer's difference of means, and ablate it at every *write*: in the
# embedding, and in what each attention and each MLP adds. For each we measure refusal, KL, and the **perplexity** of ordinary prose: one over the
# probability that the model gives to the right next token, averaged (geometrically) over the tokens. The lower, the better it still reads. As in the paper, the harmful
# validation prompts are ones that the model does refuse, and the harmless ones are plain everyday requests.

# %%
from helpers.directions import ablation_of, covariance_directions
from helpers.fresh_prefix import fresh
from helpers.hooks import ablate_direction, add_direction
from helpers.many_edits import costs_of_each, odds_of_each
from helpers.packed_score import packed

refusal = packed(refusal_score_of(model, tokenizer))  # the same score, all openings in one forward


def above(odds):
    """Mean refusal log-odds above the threshold: from 0 on, a request counts as refused."""
    return float(np.mean(odds)) - refusal.threshold


prose = load_paragraphs()[:2]
in_doubt = [p.harmful for p in load_pairs("validation")[2::9]]
sure = [
    prompt
    for prompt, odds in zip(in_doubt, refusal.log_odds(model, tokenizer, in_doubt), strict=True)
    if odds > refusal.threshold
]
meter = fresh(
    CostMeter(model, tokenizer, sure[:6] or in_doubt[:6], load_plain("validation")[::9][:6], prose, prose_tokens=24)
)
differences = (stream["harmful"] - stream["harmless"]).mean(0)  # [layer, d_model]
calm_meter = fresh(CostMeter(model, tokenizer, meter.harmless[:4], meter.harmless[:1]))
clean, layers = meter.measure(), range(8, dims_of(model).n_layers - 5, 2)
# Several interventions share a batch, each on a copy of the prompts: the same figures, sooner.
by_layer = costs_of_each(meter, [partial(ablate_direction, model, unit(differences[layer])) for layer in layers])
induced = odds_of_each(calm_meter, [partial(add_direction, model, differences[layer], layer) for layer in layers])
real_candidates = pd.DataFrame(
    [
        {"layer": layer, "position": -1, "bypass": above(cost.odds), "induce": above(odds), "kl": cost.kl, "perplexity": cost.perplexity}
        for layer, cost, odds in zip(layers, by_layer, induced, strict=True)
    ]
)  # fmt: skip
real_candidates.round(2)

# %%
fig, axes = figure(3, 1, size=(8, 6.6), sharex=True)
panels = (("bypass", "refusal, harmful\n(log-odds)", above(clean.odds)), ("kl", "KL on harmless\n(nats)", 0.1),
          ("perplexity", "perplexity\nof prose", clean.perplexity))  # fmt: skip
for ax, (column, label, line) in zip(axes, panels, strict=True):
    ax.plot(real_candidates.layer, real_candidates[column], marker="o", linestyle="-", color=HARMFUL)
    ax.axhline(line, color="#555555", linestyle=":", linewidth=1.6)
    ax.set(ylabel=label)
for ax in axes[1:]:
    ax.set(yscale="log")
    ax.yaxis.set_major_formatter("{x:,g}")
    ax.yaxis.set_minor_formatter("")
axes[0].set(title="One direction taken out, by the layer it came from")
axes[-1].set(xlabel="layer whose difference of means is ablated", xticks=real_candidates.layer)
lowest = real_candidates.loc[real_candidates.bypass.idxmin()]
show(
    fig,
    alt=f"Three lines by layer of the ablated direction: refusal log-odds, KL and perplexity. Refusal is lowest for layer {int(lowest.layer)}, "
    f"at a KL of {lowest.kl:.2f} and a perplexity of {lowest.perplexity:.0f} (intact {clean.perplexity:.0f}).",
    caption=f"Dotted: the intact model in the first and third panel, the limit of 0.1 in the second. The lowest refusal: layer {int(lowest.layer)}, "
    f"KL {lowest.kl:.2f}, perplexity {lowest.perplexity:.0f} against {clean.perplexity:.0f}.",
)

# %% [markdown]
# Cover the two lower panels with your hand, and choose. Now look at all three. In the trial, the winner of the upper panel had a KL of 7
# and had raised the perplexity from 25 to 151; an unrelated direction did the same. **A model that has stopped refusing may simply be broken**, and
# then it does nothing else either. Damage alone does not say which way refusal goes; so read all three. Your rule does:


# %%
def rule(candidates):
    """The row that your rule chooses; where none passes, the one with the least damage among those that take refusal away."""
    passes = (candidates.kl <= 0.1) & (candidates.induce > 0) & (candidates.layer < 0.8 * n_layers)
    print(f"{passes.sum()} of {len(candidates)} candidates pass")
    works = candidates[candidates.bypass < 0]
    return candidates.loc[
        choice(candidates, n_layers) if passes.any() else (works if len(works) else candidates).kl.idxmin()
    ]


n_layers = dims_of(model).n_layers
everywhere = rule(real_candidates)
print(
    f"layer {int(everywhere.layer)}: KL {everywhere.kl:.2f}, perplexity {everywhere.perplexity:.0f} against {clean.perplexity:.0f}"
)

# %% [markdown]
# The limit of 0.1 is the paper's. If nothing passes, is this model too small, with everything tangled up in its 576 dimensions? Or do we cut in
# the wrong place? "At every write" begins at the embedding. Yet the direction was read halfway up, and the layers below may use the same
# axis for **something else**; cutting there then does nothing but damage. So take the direction that brought refusal lowest, and cut
# it only from some layer on:

# %%
from_layer = int(lowest.layer)
starts = [0, 4, *range(8, from_layer + 1, 2)]
makers = [partial(ablation_of, model, unit(differences[from_layer]), start) for start in starts]
cuts = dict(zip(starts, costs_of_each(meter, makers), strict=True))
fig, axes = figure(2, 1, size=(8, 4.8), sharex=True)
for ax, values, label, line in (
    (axes[0], [above(c.odds) for c in cuts.values()], "refusal, harmful\n(log-odds)", above(clean.odds)),
    (axes[1], [c.kl for c in cuts.values()], "KL on harmless\n(nats)", 0.1),
):  # fmt: skip
    ax.plot(starts, values, marker="o", linestyle="-", color=HARMFUL)
    ax.axhline(line, color="#555555", linestyle=":", linewidth=1.6)
    ax.set(ylabel=label)
axes[0].set(title=f"The direction of layer {from_layer}, cut from some layer on")
axes[1].set(xlabel="ablated at the writes of the layers from here on (0: everywhere)", xticks=starts)
show(
    fig,
    alt="Two lines by the first layer whose writes are ablated. "
    + "; ".join(f"from {k}: log-odds {above(c.odds):.1f}, KL {c.kl:.2f}" for k, c in cuts.items())
    + ".",
    caption="Dotted: the intact model above, the limit of 0.1 below. Above 0 in the upper panel: refused.",
)

# %% [markdown]
# Look for a stretch where refusal is still low and the damage is gone. The axis is the same all the way; what is written on it low in the model
# and what is written high can be two things. And a cut that begins too late finds refusal decided already.
#
# So where to begin belongs to the choice. Your rule once more, for some layers' directions, each cut from four and from two layers below
# the place where it was read:

# %%
some = real_candidates[real_candidates.layer.between(12, 20)].to_dict("records")
rows = [row | {"start": int(row["layer"]) - below} for row in some for below in (4, 2)]
makers = [partial(ablation_of, model, unit(differences[int(row["layer"])]), row["start"]) for row in rows]
upper_candidates = pd.DataFrame(
    [
        row | {"bypass": above(cost.odds), "kl": cost.kl, "perplexity": cost.perplexity}
        for row, cost in zip(rows, costs_of_each(meter, makers), strict=True)
    ]
)
picked = rule(upper_candidates)
first = int(picked.start)
real_direction = unit(differences[int(picked.layer)])
print(
    f"layer {int(picked.layer)}, cut from layer {first} on: KL {picked.kl:.2f}, perplexity {picked.perplexity:.0f} against {clean.perplexity:.0f}"
)
upper_candidates[["layer", "start", "bypass", "induce", "kl", "perplexity"]].round(2)

# %% [markdown]
# **The control**: twenty random directions. They are not drawn evenly, since most of those would point where nothing ever happens: each is a
# random mixture of the ways in which harmless prompts really differ at that layer. They are tried on *test* prompts, which had no part in choosing the direction. Two limits: four prompts a group are few; and in
# the answers, below, there is only one random direction.

# %%
drawn = covariance_directions(stream["harmless"][:, int(picked.layer)], 20)
asked = [p.harmful for p in test_pairs]
small_meter = fresh(CostMeter(model, tokenizer, asked[:4], load_plain("test")[:4]))
makers = [partial(ablation_of, model, one, first) for one in (real_direction, *drawn)]
chosen_cost, *random_costs = costs_of_each(small_meter, makers)
intact_cost = small_meter.measure()

# %%
fig, ax = figure(size=(7.4, 4))
ax.scatter(
    [c.kl for c in random_costs],
    [above(c.odds) for c in random_costs],
    s=50,
    c=CONTROL,
    marker="x",
    label="random direction",
)
ax.scatter(
    [chosen_cost.kl],
    [above(chosen_cost.odds)],
    s=90,
    c=HARMFUL,
    marker="o",
    edgecolors="#222222",
    label="chosen direction",
)
ax.axhline(above(intact_cost.odds), color="#555555", linestyle=":", linewidth=1.6)
ax.axhline(0, color=HARMLESS, linestyle="--", linewidth=1.4)
ax.set(xlabel="KL on harmless prompts (nats)", ylabel="refusal of harmful requests\n(log-odds over the threshold)")
ax.legend()
as_low = np.mean([above(c.odds) <= above(chosen_cost.odds) for c in random_costs])
as_cheap = np.mean([above(c.odds) <= above(chosen_cost.odds) and c.kl <= chosen_cost.kl for c in random_costs])
show(
    fig,
    alt=f"Scatter plot of refusal against KL for 20 random directions and the chosen one. The chosen one has log-odds {above(chosen_cost.odds):.1f} "
    f"at KL {chosen_cost.kl:.2f}; {as_low:.0%} of the random ones are as low.",
    caption=f"Dotted: intact; dashed at 0: below it a request counts as answered. Of 20 random directions {as_low:.0%} bring refusal as low as the chosen one, "
    f"and {as_cheap:.0%} do so at no more damage. Four test prompts a group.",
)

# %% [markdown]
# And on the test split, by what the model says:

# %%
from helpers.many_edits import answers_of_each
from helpers.refusal import is_refusal
from helpers.statistics import mean_interval


def refused(said):
    """Which answers refuse, by their words: [answer]."""
    return np.array([is_refusal(answer) for answer in said])


situations = {
    "intact": lambda: None,
    "chosen direction": partial(ablation_of, model, real_direction, first),
    "random direction": partial(ablation_of, model, drawn[0], first),
}
said = answers_of_each(model, tokenizer, asked, list(situations.values()), max_new_tokens=12)
by_words = {name: refused(answers) for name, answers in zip(situations, said, strict=True)}
limits = tuple(zip(*(mean_interval(row) for row in by_words.values()), strict=True))
show(
    bars(
        list(by_words),
        [row.mean() for row in by_words.values()],
        intervals=limits,
        ylabel="harmful requests refused",
        ylim=(0, 1.12),
    ),
    alt="Bars of refusal by words: " + ", ".join(f"{name} {row.mean():.0%}" for name, row in by_words.items()) + ".",
    caption=f"{len(asked)} harmful test requests, one direction ablated from layer {first} on; 95% intervals over topics.",
)
reveal("01.p3", by_words["chosen direction"].mean())

# %% [markdown]
# ## 6 · A failed intervention
#
# On to the neurons. The colleague has ablated 5% of them, "with their mean on harmless prompts", and the model stopped refusing
# altogether. Here is the line that does it; `activation` is `[batch, position, neuron]` and `means[0]` the mean at the last token:
#
# ```python
# return means[0].expand_as(activation)
# ```
#
# {{exercise 01.6}}
#
# Repair it. `means` is `[place, neuron]`, counted **from the end**: `means[0]` belongs to the last position, `means[1]` to the one before
# it, and so on; there are at least as many as positions. Give every position its own mean, leave position 0 alone (the attention
# sink of lesson 00), and do not change the tensor that came in.


# %% exercise="01.6"
def my_own_mean(activation, means):
    """The activations, [batch, position, neuron], with each position's own mean in place of all but the first."""
    ### BEGIN SOLUTION
    ### STUB return means[0].expand_as(activation)
    new = activation.clone()
    new[:, 1:] = means[: activation.shape[1] - 1].flip(0)
    return new
    ### END SOLUTION


# %%
own_mean = check("01.6", my_own_mean)

# %% [markdown]
# What difference does it make? 5% of the neurons, the loudest, on a few *harmless* prompts.

# %%
from helpers.directions import kl_divergence
from helpers.hooks import edit
from helpers.mean_ablation import neurons_by_layer

means = template_means(model, tokenizer, [p.harmless for p in pairs[::3]])
five_percent = int(0.05 * real.difference.numel())
loudest = ranked(real.difference.abs(), five_percent)


def by_place(layer, neurons, length):
    """Means of these neurons by distance from the end, [place, neuron], for prompts of any length."""
    place = torch.arange(length).clamp(max=means.depth)
    return means.values[place][:, layer, neurons]


@torch.no_grad()
def next_token(prompt, write):
    """Log-probabilities of the first answer token, [vocabulary], the loudest neurons being replaced by `write`."""
    row = torch.tensor(tokenize(tokenizer, chat_text(tokenizer, [prompt])), device=model.device)

    def replace(layer, own):
        def function(activation):
            new = activation.clone()
            target = by_place(layer, own, activation.shape[1]).to(activation)
            new[..., own] = write(activation[..., own], target)
            return new

        return function

    with edit(
        model, [("neurons", layer, replace(layer, own)) for layer, own in neurons_by_layer(model, loudest).items()]
    ):
        return model(row, logits_to_keep=1).logits[0, -1].log_softmax(-1)


ways = {
    "untouched": lambda a, m: a,
    "last token's mean,\neverywhere": lambda a, m: m[0].expand_as(a),
    "each place's own mean": own_mean,
}
asked_nicely = [p.harmless for p in test_pairs[:5]]
said = {name: torch.stack([next_token(prompt, write) for prompt in asked_nicely]) for name, write in ways.items()}
damage = {
    name: float(kl_divergence(said["untouched"], row).mean()) for name, row in said.items() if name != "untouched"
}
show(
    bars(
        [name.replace("\n", " ") for name in damage],
        list(damage.values()),
        ylabel="KL on harmless prompts (nats)",
        fmt="{:.2f}",
    ),
    alt="Two bars of damage to harmless prompts: "
    + ", ".join(f"{name} {value:.2f} nats".replace("\n", " ") for name, value in damage.items())
    + ".",
    caption=f"The {five_percent:,} loudest neurons, replaced in two ways; {len(asked_nicely)} harmless prompts.",
)

# %% [markdown]
# Same neurons, same prompts, same words in the paper ("mean ablation"). Less damage is not no damage: 5% of the neurons, the loudest at that, are a lot
# to replace with anything. In the trial, the first version brought refusal to 0% at a perplexity of 362, and the second to 15%. So **name
# the kind of an ablation and its donors** (the prompts whose mean it writes), always. `mean_ablated` does what your function does, for
# prompts of any length, and while the model answers.
#
# ### Second story: the random neurons that did as well
#
# In the trial (that other adapter again), the 50 neurons with the largest difference brought refusal down to 40%, while 50 random neurons *of the same layers* left
# it at 85%: a clear result. Then somebody drew random neurons that were as *active* as the chosen ones. Those brought it to 40% as
# well, on average. The result had been about size.
#
# {{exercise 01.7}}
#
# Draw a fair control. `chosen` is a list of (layer, neuron); `activity` a numpy array `[layer, d_mlp]` of how active each neuron is; `rng`
# a numpy random generator (`rng.integers(n)` gives a number below n). Return as many other neurons: each of the same layer as its
# partner and near it in activity, none chosen, none twice, and others for another `rng`.


# %% exercise="01.7"
def my_control(chosen, activity, rng):
    """Random neurons that match the chosen ones in layer and activity: a list of (layer, neuron)."""
    ### BEGIN SOLUTION
    taken, drawn = set(chosen), []
    for layer, neuron in chosen:
        free = [n for n in range(activity.shape[1]) if (layer, n) not in taken]
        near = sorted(free, key=lambda n: abs(activity[layer, n] - activity[layer, neuron]))[:10]
        drawn.append((layer, near[rng.integers(len(near))]))
        taken.add(drawn[-1])
    return drawn
    ### END SOLUTION


# %%
control = check("01.7", my_control)

# %%
from helpers.matched import mean_activity

# Requests that the intact model does refuse, as in the paper: what it answers anyway cannot show an ablation's effect.
its_odds = refusal.log_odds(model, tokenizer, asked)
declined = [prompt for prompt, odds in zip(asked, its_odds, strict=True) if odds > refusal.threshold][:6]
test_meter = CostMeter(model, tokenizer, declined, load_plain("test")[::25][:6], prose, prose_tokens=24, quick=True)
activity = real.activity.numpy()
fifty = ranked(real.difference.abs(), 50)


def same_layers(chosen, rng):
    """Random neurons of the same layers, whatever their activity."""
    drawn = []
    for layer in sorted({layer for layer, _ in chosen}):
        own = [neuron for at, neuron in chosen if at == layer]
        free = np.setdiff1d(np.arange(activity.shape[1]), own)
        drawn += [(layer, int(n)) for n in rng.choice(free, len(own), replace=False)]
    return drawn


draws, fewer = 20, 10  # for what the claims rest on, and for what stands beside it
sets = {"same layers": [same_layers(fifty, np.random.default_rng(i)) for i in range(fewer)],
        "same layers, like activity": [control(fifty, activity, np.random.default_rng(i)) for i in range(draws)]}  # fmt: skip


def above_without(sets):
    """Refusal above the threshold without each of these sets, [set]."""
    makers = [partial(mean_ablated, model, neurons, means) for neurons in sets]
    return np.array([above(odds) for odds in odds_of_each(test_meter, makers)])


untouched = test_meter.measure()
of_fifty = test_meter.measure(mean_ablated(model, fifty, means))
by_chance = {name: above_without(several_sets) for name, several_sets in tqdm(sets.items(), desc="random sets")}

# %%
fig, ax = figure(size=(7.6, 4))
for place, values in enumerate(by_chance.values()):
    ax.scatter(place + 1 + np.linspace(-0.2, 0.2, len(values)), values, c=CONTROL, marker="x", s=44)
ax.scatter([0], [above(of_fifty.odds)], c=HARMFUL, marker="o", s=90, edgecolors="#222222")
ax.axhline(above(untouched.odds), color="#555555", linestyle=":", linewidth=1.6)
ax.axhline(0, color=HARMLESS, linestyle="--", linewidth=1.4)
size = {
    name: np.mean([mean_activity(one, real.activity) for one in several_sets]) for name, several_sets in sets.items()
}
ax.set_xticks(range(3), ["the 50 loudest", *(f"random:\n{name}" for name in sets)])
ax.set(ylabel="refusal of harmful requests\n(log-odds over the threshold)", xlim=(-0.6, 2.6))
as_low = {name: np.mean(values <= above(of_fifty.odds)) for name, values in by_chance.items()}
show(
    fig,
    alt=f"Dots of refusal log-odds after ablation: the 50 loudest neurons {above(of_fifty.odds):.1f}, intact {above(untouched.odds):.1f}; "
    + "; ".join(f"random ones of {name}: mean {values.mean():.1f}, {as_low[name]:.0%} as low" for name, values in by_chance.items()) + ".",
    caption=f"Dotted: intact; dashed at 0: answered. Mean activity: the loudest {mean_activity(fifty, real.activity):.2f}; "
    + "; ".join(f"{name} {value:.2f}" for name, value in size.items())
    + f". Each cross is one draw of 50. Called refused: intact {untouched.refused.mean():.0%}, without the loudest {of_fifty.refused.mean():.0%}.",
)  # fmt: skip
reveal("01.p2", of_fifty.refused.mean())

# %% [markdown]
# Three things to read off. Has anything come near the dashed line? Are the crosses of the second column lower than those of the first? Then
# size alone does damage. And does the orange dot lie below *all* crosses of the second column? If not, nothing has been shown; if it even lies
# above them, then any neurons of that size do as much. Look at the caption too: where the chosen ones are the largest of their layers, no equals are
# left, and even the matched control is too small. Say so.
#
# ## 7 · Which ranking matters?
#
# Two more suspects' lists, both from the literature.
#
# **Base against tuned**, called *contrast* below (SafetyNeuron, Chen et al. 2024). What did safety training *change*? Let the tuned model answer, let both
# models read its answers, and take the root mean square of each neuron's change over the answer's tokens.
#
# **Minus utility**, called *write − utility* below (Wei et al. 2024). Whatever harmless prompts need should not be on a list of *safety* neurons: drop every neuron that
# is among the top 10% for harmless prompts (mean activity × length of its column).

# %%
from helpers.neurons import contrast, utility, without_top

changed = contrast(base, model, tokenizer, [p.harmful for p in pairs[1::5]], max_new_tokens=10)
real_writes = before(heard(real.difference, real_columns, real_direction), int(picked.layer))
real_scores = {
    "difference": real.difference.abs(),
    "effect size": effect_size(real.unsafe, real.safe).abs(),
    "write": real_writes,
    "contrast": changed,
    "write − utility": without_top(real_writes, utility(model, real.safe), 0.1),
}
SIZES = (50, 400, five_percent)
keys = [(name, k) for name in real_scores for k in SIZES]
makers = [partial(mean_ablated, model, ranked(real_scores[name], k), means) for name, k in keys]
costs = dict(zip(keys, costs_of_each(test_meter, makers), strict=True))

# %%
from helpers.matched import matched_random_sets

band, band_size = (
    {50: by_chance["same layers, like activity"]},
    {50: (mean_activity(fifty, real.activity), size["same layers, like activity"])},
)
for k in SIZES[1:]:
    chosen = ranked(real.difference.abs(), k)
    alike = matched_random_sets(chosen, real.activity, draws if k == SIZES[-1] else fewer, spill=True)
    band[k] = above_without(alike)
    band_size[k] = mean_activity(chosen, real.activity), np.mean([mean_activity(one, real.activity) for one in alike])

# %% [markdown]
# First one size at a time: turn the slider and watch refusal and damage together.

# %%
from helpers.picker import pick


def one_size(k):
    """Refusal and damage of all rankings at one size, beside the random band."""
    fig, axes = figure(1, 3, size=(11.5, 3.9))
    names = list(real_scores)
    at = np.arange(len(names))
    for ax, values, label, line in (
        (
            axes[0],
            [above(costs[n, k].odds) for n in names],
            "refusal, log-odds over the threshold",
            above(untouched.odds),
        ),
        (axes[1], [costs[n, k].kl for n in names], "KL on harmless (nats)", 0.1),
        (axes[2], [costs[n, k].perplexity for n in names], "perplexity of prose", untouched.perplexity),
    ):
        ax.barh(at, values, color=HARMFUL, edgecolor="#222222")
        ax.axvline(line, color="#555555", linestyle=":", linewidth=1.6)
        ax.set(xlabel=label)
        ax.set_yticks(at, names if ax is axes[0] else [""] * len(names))
    reach = [above(c.odds) for c in costs.values()] + [above(untouched.odds), 0]
    axes[0].set(xlim=(min(reach) - 0.3, max(reach) + 0.3))
    axes[1].set(xlim=(0, 1.05 * max(c.kl for c in costs.values())))
    axes[2].set(xlim=(0, 1.05 * max(c.perplexity for c in costs.values())))
    axes[0].axvspan(band[k].min(), band[k].max(), color="#DDDDDD", zorder=0)
    axes[0].set(title=f"{k:,} neurons")
    return fig


words = {
    f"{k:,}": f"{k:,} neurons ablated. Refusal log-odds: " + ", ".join(f"{n} {above(costs[n, k].odds):.1f}" for n in real_scores)
    + f"; random from {band[k].min():.1f} to {band[k].max():.1f}; intact {above(untouched.odds):.1f}."
    for k in SIZES
}  # fmt: skip
pick({f"{k:,}": one_size(k) for k in SIZES}, "how many neurons", words)

# %%
fig, axes = figure(1, 2, size=(11, 4.2))
marks = "os^Dv"
for ax, value, label in (
    (axes[0], lambda c: above(c.odds), "refusal, log-odds over the threshold"),
    (axes[1], lambda c: c.perplexity, "perplexity of prose"),
):
    for place, name in enumerate(real_scores):
        ax.plot(SIZES, [value(costs[name, k]) for k in SIZES], label=name, marker=marks[place])
    ax.set(xscale="log", xlabel="neurons ablated", ylabel=label)
    ax.set_xticks(SIZES, [f"{k:,}" for k in SIZES])
    ax.minorticks_off()
axes[0].fill_between(SIZES, [band[k].min() for k in SIZES], [band[k].max() for k in SIZES], color="#DDDDDD", hatch="..", linewidth=0,
                     label="random, matched to “difference”", zorder=0)  # fmt: skip
axes[0].axhline(above(untouched.odds), color="#555555", linestyle=":", linewidth=1.6)
axes[1].axhline(untouched.perplexity, color="#555555", linestyle=":", linewidth=1.6)
axes[1].set(yscale="log")
axes[1].yaxis.set_major_formatter("{x:,.0f}")
axes[1].yaxis.set_minor_formatter("{x:,.0f}")
axes[1].tick_params(axis="y", which="minor", labelsize=9)
axes[1].legend(*axes[0].get_legend_handles_labels(), loc="upper left", fontsize=9)
show(
    fig,
    alt=f"Two panels over the number of ablated neurons. Refusal log-odds over the threshold at {SIZES[-1]:,}: "
    + ", ".join(f"{name} {above(costs[name, SIZES[-1]].odds):.1f}" for name in real_scores)
    + f"; random {band[SIZES[-1]].min():.1f} to {band[SIZES[-1]].max():.1f}. Perplexity there: "
    + ", ".join(f"{name} {costs[name, SIZES[-1]].perplexity:.0f}" for name in real_scores) + ".",
    caption=f"{len(test_meter.harmful)} test prompts a group; random draws: " + ", ".join(f"{len(values)} of {k:,}" for k, values in band.items()) + ". Dotted: intact. Mean activity of the loudest and of their "
    "control: " + "; ".join(f"{a:.2f} and {b:.2f} ({k:,})" for k, (a, b) in band_size.items()) + ".",
)  # fmt: skip

# %%
summary = pd.DataFrame(
    [
        {"ranking": name, "neurons": k, "refused": c.refused.mean(), "log-odds": above(c.odds), "below all random draws": above(c.odds) < band[k].min(),
         "KL": c.kl, "perplexity": c.perplexity}
        for (name, k), c in costs.items()
    ]
)  # fmt: skip
low, high = mean_interval(untouched.odds - refusal.threshold)
print(
    f"intact: log-odds {above(untouched.odds):.1f} (95% interval over topics {low:.1f} to {high:.1f}), perplexity {untouched.perplexity:.0f}"
)
summary.round(2)

# %% [markdown]
# Read it like a sceptic. A row counts as evidence only if it says *True* **and** its KL and perplexity are near those of the intact model.
# A row with low refusal and a ruined perplexity is the first story again. (Perplexity is measured on two paragraphs of 24 tokens: doubling means
# something, ten per cent does not.) The random band is matched to the ranking by difference, and not well, as the mean activities in the caption
# say: for the loud rankings *True* means little. For a quieter ranking the band is stricter than it need be.
#
# So give the best honest row a control of its own: among the rows with a KL of at most 0.1, the one that did most to refusal, against
# twenty sets matched to *it*.

# %%
honest = summary[summary.KL <= 0.1] if (summary.KL <= 0.1).any() else summary[summary.KL <= summary.KL.min()]
row = honest.loc[honest["log-odds"].idxmin()]
its_neurons = ranked(real_scores[row.ranking], int(row.neurons))
alike = matched_random_sets(its_neurons, real.activity, draws, spill=True)
its_band = above_without(alike)
print(f"{row.neurons:,} neurons by {row.ranking}: log-odds {row['log-odds']:.2f} (intact {above(untouched.odds):.2f}), KL {row.KL:.2f}, "
      f"perplexity {row.perplexity:.0f} (intact {untouched.perplexity:.0f})")  # fmt: skip
print(f"{draws} sets matched to them: {its_band.min():.2f} to {its_band.max():.2f}, mean {its_band.mean():.2f}; "
      f"{np.mean(its_band <= row['log-odds']):.0%} as low")  # fmt: skip
print(
    f"mean activity: {mean_activity(its_neurons, real.activity):.2f}, of the matched sets {np.mean([mean_activity(one, real.activity) for one in alike]):.2f}"
)
low, high = mean_interval(costs[row.ranking, int(row.neurons)].odds - untouched.odds)
print(f"change of log-odds, 95% interval over topics: {low:.2f} to {high:.2f}")

# %% [markdown]
# This row was picked for being the best of several, which makes it look a little better than it is. A last step for a paper would be to
# test it once more on prompts that had no part in the picking.
#
# ### Are they enough? Transplant them
#
# Ablation asks whether neurons are *needed*. The other question is whether they *suffice*. Chen et al. put the tuned model's neurons into the
# base model while it answers, token by token: at each, the tuned model reads the same text, and the chosen neurons of the base take
# the values that they have there. The base refuses next to nothing by itself.

# %%
from helpers.transplant import generate_with_transplants

some = asked[::2]
transplants = {"none": [[]], "top 5% by contrast": [ranked(changed, five_percent)], "top 5% by difference": [loudest],
               "random 5%": matched_random_sets(ranked(changed, five_percent), real.activity, 5, spill=True),
               "all neurons": [[(layer, n) for layer in range(n_layers) for n in range(dims_of(model).d_mlp)]]}  # fmt: skip
said = iter(generate_with_transplants(base, model, tokenizer, some, sum(transplants.values(), []), 8))
by_set = {name: np.array([refused(next(said)) for _ in its]) for name, its in transplants.items()}  # [set, prompt]
given = {name: rows.mean(0) if len(rows) > 1 else rows[0] for name, rows in by_set.items()}
limits = tuple(zip(*(mean_interval(row) for row in given.values()), strict=True))
show(
    bars(list(given), [row.mean() for row in given.values()], intervals=limits, ylabel="base model: harmful refused", ylim=(0, 1.12)),
    alt="Bars of refusals of the base model with neurons of the tuned one: " + ", ".join(f"{n} {row.mean():.0%}" for n, row in given.items()) + ".",
    caption=f"{len(some)} harmful test requests, by the words of eight tokens; random: the mean of {len(by_set['random 5%'])} sets, each matched to those by contrast, which refuse "
    + ", ".join(f"{row.mean():.0%}" for row in by_set["random 5%"]) + f". The tuned model itself refuses {by_words['intact'][::2].mean():.0%} of them.",
)  # fmt: skip

# %% [markdown]
# Read these bars with care. "All neurons" is no strict upper bound, since some neurons may work against refusal; and what is missing to the tuned model's own
# rate need not sit in attention: the adapter changed the down projection too, and the base still writes with its own. There are eight requests and five
# random sets, where twenty sets would be owed (each takes a second or two). One request more or less is a large step, and the intervals say so: with 0 of 8,
# anything up to about a third is possible.
#
# ### The same topics, or new ones?
#
# One mistake is left to be *seen*. Choose the 50 neurons with the largest effect size on six pairs, as small studies do. How large is the
# effect of those same 50 on other pairs?

# %%
handful = list(range(0, half, half // 6))[:6]
rest = [i for i in range(half) if i not in handful]
small = effect_size(real.unsafe[handful], real.safe[handful]).abs().flatten()
best_fifty = small.argsort(descending=True)[:50]
elsewhere = effect_size(real.unsafe[rest], real.safe[rest]).abs().flatten()
shrunk = {"the pairs that chose": float(small[best_fifty].mean()), "other pairs": float(elsewhere[best_fifty].mean())}
show(
    bars(list(shrunk), list(shrunk.values()), ylabel="mean effect size of the 50", fmt="{:.2f}"),
    alt="Two bars of the mean effect size of 50 chosen neurons: "
    + ", ".join(f"{name} {value:.2f}" for name, value in shrunk.items())
    + ".",
    caption="Chosen among 46,080 on six pairs; the rest is luck that does not come back.",
)

# %% [markdown]
# What is left on the other pairs is the effect; the rest came from choosing. It is the same with every figure that did the choosing itself.
#
# ## 8 · Beside the papers
#
# The rows that name a paper are from the authors' published runs and abstracts; those marked *here* are what you have just measured.

# %%
kept = summary[(summary.ranking == "contrast") & (summary.neurons == five_percent)].iloc[0]
beside = pd.DataFrame(
    [
        ("Arditi et al. 2024: Gemma 2B-it, their run files", "direction of layer 10 of 18, position −2, ablated", "refused 91% → 0% (JailbreakBench, keywords)", "KL 0.07"),
        ("here: SmolLM2-135M with our adapter", f"direction of layer {int(picked.layer)} of {n_layers}, position −1, ablated from layer {first} on",
         f"refused {by_words['intact'].mean():.0%} → {by_words['chosen direction'].mean():.0%}", f"KL {picked.kl:.2f}"),
        ("Chen et al. 2024: several open models, abstract", "about 5% of neurons patched into the base", "over 90% of the safety restored", "general ability kept"),
        ("here", f"{five_percent:,} neurons (5%) patched into the base",
         f"refused {given['none'].mean():.0%} → {given['top 5% by contrast'].mean():.0%} (random: {given['random 5%'].mean():.0%})", "not measured"),
        ("here", f"the same {five_percent:,} neurons mean-ablated in the tuned model", f"refused {untouched.refused.mean():.0%} → {kept.refused:.0%}",
         f"KL {kept.KL:.2f}, perplexity {untouched.perplexity:.0f} → {kept.perplexity:.0f}"),
    ],
    columns=["who", "what", "refusal", "cost"],
)  # fmt: skip
beside.style.hide(axis="index").set_uuid("papers").set_properties(**{"text-align": "left", "white-space": "normal"})

# %% [markdown]
# These are not the same experiment. Their models are at least ten times larger, their safety was trained at length, their prompts and judges are
# others; ours learnt to refuse from a small adapter on layers 8 to 29 of 30. What carries over is the *procedure*, and
# above all its controls. Whether the *result* carries over stands in your table.
#
# ## What this shows, and what it does not
#
# **It shows**, on the box, that the neurons which react most need not be the ones that matter, that what a neuron writes onto a
# direction found from prompts separates them, and that ablation settles it. On the real model it shows how much of an effect
# survives its controls: matched random neurons, random directions, KL, perplexity, new topics.
#
# **It does not show**
#
# * *how* refusal is computed. A list of neurons and a direction are places, not a mechanism; the next lessons trace the way between them.
# * that a ranking which fails here fails everywhere, or the reverse. This is one small model, with one adapter of ours.
# * that neurons are the right unit. Heads were not looked at, and what is spread over thousands of neurons has no short list.
# * small differences: four to sixteen prompts a group carry a wide interval, and the best of five rankings is a little lucky.
#
# ## Quiz

# %%
quiz("01")

# %% [markdown]
# ## Where to read on
#
# * **Arditi, Obeso, Syed, Paleka, Panickssery, Gurnee, Nanda (2024)**, *Refusal in Language Models Is Mediated by a Single Direction*.
#   Difference of means, the selection rule, ablation and addition, in 13 open chat models; their runs are published in the
#   repository `andyrdt/refusal_direction` (the row above: `pipeline/runs/gemma-2b-it`). *Ours differs:* matched pairs instead of two
#   data sets, fewer candidates, log-odds of longer openings, random directions as a control.
# * **Chen, Wang, Yao, Bai, Hou, Li (2024)**, *Finding Safety Neurons in Large Language Models* (later versions: *Towards
#   Understanding Safety Alignment: A Mechanistic Perspective from Safety Neurons*). Contrast on generated tokens, patching while
#   answering; about 5% of the neurons restore over 90% of the safety. *Ours differs:* one model, refusals by their words
#   instead of a trained judge, and a matched random set beside it.
# * **Wei, Huang, Huang, Xie, Qi, Xia, Mittal, Wang, Henderson (2024)**, *Assessing the Brittleness of Safety Alignment via Pruning and Low-Rank
#   Modifications*. Regions needed for safety and not for utility: about 3% of the parameters, 2.5% of the ranks. *Ours differs:* whole
#   neurons instead of single weights, and mean ablation instead of pruning.
# * **Zou et al. (2023)**, *Representation Engineering*. Reading vectors, and much else. *Ours differs:* one position, and a truth to compare with.
# * **Makelov, Lange, Nanda (2023)**, *Is This the Subspace You Are Looking For?* How an intervention can work for the wrong reason.
#
# **Next:** lesson 02 asks not *which* but *where and when*: it carries activations from one run into another, and watches the
# refusal follow.
