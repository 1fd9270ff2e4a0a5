# %% [markdown]
# # 03 · Probing
#
# Can harm be *read* from inside a model, and where? A probe is a small classifier on activations. It takes a second to fit and nearly always
# finds something. That is its trouble: **what can be read need not be used**. Today you will build probes that can fail, and see what
# a success is worth.
#
# **After this lesson you can**
#
# * fit probes at every layer, judged on topics they have never seen, with intervals;
# * set controls beside them: a control task, a permutation test, the words alone, the untuned model;
# * erase what a probe reads, and see whether the model misses it;
# * tell reading from writing, in neurons, heads and directions;
# * recognise an intervention that works for the wrong reason.
#
# **Time:** about 100 minutes, of which the computer needs about two. **To know before:** lessons 00 and 01.
# Words that are new to you stand in the [glossary](../GLOSSARY.md).
#
# There are five exercises; in three of them you repair what a colleague left behind. As always, no exercise can stop you.

# %% [markdown]
# ## Set-up

# %%
from functools import partial

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from helpers.checks import check, hint  # noqa: F401 (hint is for you)
from helpers.glassbox import glassbox_prompts, load_glassbox
from helpers.models import dims_of, layers_of, load_model
from helpers.plots import CONTROL, HARMFUL, HARMLESS, bars, figure, heatmap, lines_with_band, show, token_strip
from helpers.quiz import quiz, reveal

model, tokenizer = load_model("smollm2-135m-refusal")  # the one that says no
base, _ = load_model("smollm2-135m")  # the same model, before it learned to
box, box_tokenizer, truth = load_glassbox("concentrated")  # the one whose circuit is known

# %% [markdown]
# ## Predict before you run

# %%
quiz("03.p1")

# %%
quiz("03.p2")

# %%
quiz("03.p3")

# %% [markdown]
# ## 1 · A probe that can fail
#
# We begin on the glass box. A probe is judged on prompts that it was not fitted on, in *folds*: each fold is held out once. A
# colleague has dealt the prompts out like cards: **twins land in different folds**, and so the same topic is in training and in the test.
#
# {{exercise 03.1}}
#
# `topics` names the topic of each prompt. Return a fold for each prompt, 0 to `count - 1`, so that no topic is in two folds and the folds
# are of like size.


# %% exercise="03.1"
def my_folds(topics, count):
    """The fold of each prompt, as a list."""
    ### BEGIN SOLUTION
    ### STUB return [i % count for i in range(len(topics))]
    names = list(dict.fromkeys(topics))
    return [names.index(topic) % count for topic in topics]
    ### END SOLUTION


# %%
folds_of = check("03.1", my_folds)

# %% [markdown]
# ### What could a probe learn by heart?
#
# High accuracy may mean that the model knows of harm, or that the probe is strong enough to find anything. A **control task** tells the
# two apart (Hewitt and Liang 2019): give each *surface type*, here the sentence's frame, a random label, and see how well the same probe learns
# *that*. Accuracy less control accuracy is its **selectivity**.
#
# The colleague gave each prompt a coin of its own. Their control sat at chance, and everything looked selective.
#
# {{exercise 03.2}}
#
# `types` names the type of each prompt; `rng` is a NumPy generator. Return a label, 0 or 1, for each prompt: half of the types, drawn at random, get 1, the others 0. (A coin for each type
# will not do: the box has five frames, and five coins soon fall alike.)


# %% exercise="03.2"
def my_control(types, rng):
    """A random label for each type, written out for each prompt."""
    ### BEGIN SOLUTION
    ### STUB return rng.integers(0, 2, len(types)).tolist()
    names = sorted(set(types))
    ones = {names[i] for i in rng.permutation(len(names))[: len(names) // 2]}
    return [int(kind in ones) for kind in types]
    ### END SOLUTION


# %%
control_of = check("03.2", my_control)

# %% [markdown]
# ### And by luck?
#
# A permutation test asks how well the probe does when labels mean nothing. But which labels may be exchanged? Twins share their
# frame and nearly all their words, so only the two *within a pair* can change places.
#
# {{exercise 03.3}}
#
# `labels` are 0 or 1, one for each prompt. Toss a coin for each topic: heads, and all of its labels are turned round (0 to 1, 1 to 0); tails,
# and they stay. Return a new list.


# %% exercise="03.3"
def my_swap(labels, topics, rng):
    """Labels with those of some topics turned round."""
    ### BEGIN SOLUTION
    flip = {topic: int(rng.integers(2)) for topic in dict.fromkeys(topics)}
    return [int(y) ^ flip[topic] for y, topic in zip(labels, topics, strict=True)]
    ### END SOLUTION


# %%
swap = check("03.3", my_swap)

# %% [markdown]
# Now all three together, at every layer at once. `probe_for_safety` does the same; here you see its parts.

# %%
from helpers.hooks import read
from helpers.probing import held_out_decisions

pairs = glassbox_prompts("pairs", n=96, split="train")
box_prompts = [p.harmless for p in pairs] + [p.harmful for p in pairs]
box_topics, box_types = [p.topic for p in pairs] * 2, [p.template for p in pairs] * 2
box_labels = torch.cat([torch.zeros(len(pairs)), torch.ones(len(pairs))])
box_stream = read(box, box_tokenizer, box_prompts, ["resid_pre"])["resid_pre"].transpose(
    0, 1
)  # [layer, prompt, d_model]
box_folds, rng = folds_of(box_topics, 5), np.random.default_rng(0)


def right(labels):
    """Share of right answers on held-out topics, [labelling, layer]."""
    labels = torch.as_tensor(np.array(labels)).float()
    return ((held_out_decisions(box_stream, labels, box_folds) > 0) == labels[:, None].bool()).double().mean(-1)


by_hand = pd.DataFrame({
    "accuracy": right([box_labels.tolist()])[0],
    "control": right([control_of(box_types, rng) for _ in range(10)]).mean(0),
    "best of 39 permutations": right([swap(box_labels.int().tolist(), box_topics, rng) for _ in range(39)]).max(0).values,
})  # fmt: skip
by_hand.index.name = "layer"
by_hand.round(2)

# %%
from helpers.probing import probe_for_safety

table = probe_for_safety(
    box, box_tokenizer, [p.harmless for p in pairs], [p.harmful for p in pairs],
    topics=[p.topic for p in pairs], types=box_types,
)  # fmt: skip


def by_layer(tables, measure="accuracy"):
    """Lines of a measure by layer, with the interval where it is the accuracy."""
    limits = ("low", "high") if measure == "accuracy" else ()
    return {name: tuple(t[column].to_numpy() for column in (measure, *limits)) for name, t in tables.items()}


fig = lines_with_band(
    list(table.layer), by_layer({"harm": table}) | by_layer({"control task": table}, "control_accuracy") | by_layer({"selectivity": table}, "selectivity"),
    xlabel="before layer", ylabel="share right, held-out topics", ylim=(-0.5, 1.03),
)  # fmt: skip
fig.axes[0].set_xticks(list(table.layer))
show(
    fig,
    alt="Lines over the box's layers. Accuracy: " + ", ".join(f"{x:.2f}" for x in table.accuracy)
    + "; control task: " + ", ".join(f"{x:.2f}" for x in table.control_accuracy) + ".",
    caption=f"The box, last template token. {len(set(box_topics))} topics; band: 95% interval over topics. Above chance at layers "
    f"{table.layer[table.above_chance].tolist()} by permutation.",
)  # fmt: skip
print("first evaluation neurons, by the truth: layer", min(layer for layer, _ in truth.evaluation_neurons))
assert abs(table.accuracy[0] - 0.5) < 0.15 and table.accuracy[1] > 0.9

# %% [markdown]
# First the controls. Before layer 0 nothing can be read, and still the control stands well above a half: five frames cannot be halved, so always saying the
# commoner label is right about three times in five. That is the control's chance. And from layer 1 on none of the permutations reaches the true accuracy. The
# true labelling counts as one of them, so p = (0 + 1) / (39 + 1) = 0.025.
#
# Harm can be read before a single evaluation neuron has spoken: the detection heads have brought the marked words, and a harmless twin lacks one of
# them. Counting words is enough for these pairs, and a probe is glad to count. What it reads is not yet the box's decision.
#
# Before layer 0 this token is the same in every prompt, so nothing *can* be read. Do not take that for "the words tell nothing": the fair
# baseline reads the words themselves. We shall do that on the real model.
#
# ## 2 · Reading is not writing
#
# The truth of the box lets us ask an unfair question. Fit a probe on neurons of the circuit, and one on the decoys.
# Then take each group out, by the mean at harmless requests.

# %%
from helpers.costs import CostMeter
from helpers.mean_ablation import mean_ablated, template_means

test = glassbox_prompts("pairs", n=32, split="test")
meter = CostMeter(box, box_tokenizer, [p.harmful for p in test], [p.harmless for p in test], quick=True)
means = template_means(box, box_tokenizer, [p.harmless for p in pairs])
neurons = read(box, box_tokenizer, box_prompts, ["neurons"])["neurons"]  # [prompt, layer, d_mlp]
groups = {"evaluation neurons": truth.evaluation_neurons, "decoys": truth.decoy_neurons}
read_write = {}
for name, places in groups.items():
    x = torch.stack([neurons[:, layer, n] for layer, n in places], -1)[None]
    read_by = ((held_out_decisions(x, box_labels, box_folds, C=1.0) > 0) == box_labels.bool()).double().mean()
    read_write[name] = float(read_by), float(meter.measure(mean_ablated(box, places, means)).refused.mean())
show(
    bars(list(groups), {"read: probe is right": [a for a, _ in read_write.values()], "write: still refused without them": [b for _, b in read_write.values()]},
         ylabel="share", ylim=(0, 1.15)),
    alt="Bars for two groups of neurons. " + "; ".join(f"{n}: read {a:.2f}, refused after ablation {b:.2f}" for n, (a, b) in read_write.items()) + ".",
    caption="A probe cannot tell them apart. What happens without them can.",
)  # fmt: skip
reveal("03.p1", read_write["decoys"][1])
assert read_write["decoys"][0] > 0.9 and read_write["decoys"][1] > 0.8 and read_write["evaluation neurons"][1] < 0.2

# %% [markdown]
# ## 3 · Erase what the probe reads
#
# There is a causal test that needs no truth: remove from the activations **all that a linear probe could use, and as little else as
# possible**, and see whether the model misses it. LEACE does it in closed form (Belrose et al. 2023).
#
# With `delta` the difference of the class means and `S` the covariance of all prompts, a prompt lies
# `v · (x − mean)` along `delta`, where `v = S⁻¹ delta / (delta · S⁻¹ delta)`. Take that much of `delta` away.
#
# {{exercise 03.4}}
#
# `x` is `[prompt, d]`, `labels` `[prompt]` of 0 and 1. Return the erased `x`. (There are more prompts than channels here, so `S` can be solved with.)


# %% exercise="03.4"
def my_erased(x, labels):
    """x without what a linear probe can read of the labels, [prompt, d]."""
    ### BEGIN SOLUTION
    delta, centred = x[labels == 1].mean(0) - x[labels == 0].mean(0), x - x.mean(0)
    solved = torch.linalg.solve(centred.T @ centred / len(x), delta)
    return x - (centred @ solved / (delta @ solved))[:, None] * delta
    ### END SOLUTION


# %%
erased = check("03.4", my_erased)

# %% [markdown]
# On the box: erase at the last token before one layer at a time, and look at the refusal log-odds. Beside it, erasers of 20 random labellings that
# take one dimension too.

# %%
from helpers.erasure import edit_at, erase, leace
from helpers.many_edits import odds_of_each

shaken = torch.randint(0, 2, (20, len(box_labels)), generator=torch.Generator().manual_seed(0)).float()
odds, random_odds = [], []
for layer in tqdm(range(1, len(layers_of(box))), desc="layers"):
    eraser = leace(box_stream[layer], box_labels, 0.01)
    odds.append(meter.odds(erase(box, "resid_pre", {layer: eraser}, prefix=meter.prefix)).mean())
    others = [{layer: leace(box_stream[layer], labels, 0.01)} for labels in shaken]
    makers = [partial(erase, box, "resid_pre", one, prefix=meter.prefix) for one in others]
    random_odds.append(odds_of_each(meter, makers).mean(1))
random_odds = np.array(random_odds)
fig = lines_with_band(
    range(1, len(layers_of(box))), {"harm erased": (odds,)}, band=("20 random labels erased", random_odds.min(1), random_odds.max(1)),
    xlabel="erased before layer", ylabel="refusal log-odds, harmful",
)  # fmt: skip
fig.axes[0].set_xticks(range(1, len(layers_of(box))))
show(
    fig,
    alt="Line of refusal log-odds after erasing harm before each layer: " + ", ".join(f"{x:.1f}" for x in odds) + f". Random erasers stay between {random_odds.min():.1f} and {random_odds.max():.1f}.",
    caption=f"The box, {len(test)} test prompts; the intact box stands at {meter.odds().mean():.1f}. Last token only.",
)  # fmt: skip

# %% [markdown]
# Before layer 1 harm reads perfectly. Erasing it there costs log-odds as well, but no more than erasing a random label may: at this layer the test cannot tell whether what
# is read is used. (That a count of marked words does not decide, we know from how the box was built.) From layer 2 on the line leaves the band: there, what is read is also used. (Before layer 5 some is back, since layer 4
# has spoken already.)
#
# ## 4 · An illusion
#
# Before we steer by directions, a warning (Makelov et al. 2023). In the last layer of the box sits a decoy neuron, which reads harm and
# writes nothing of use. Beside it are **dormant** neurons: they would write refusal, but no prompt ever wakes them. Take the one direction that
# points half along the decoy, half along the sleepers, and carry the harmful value *along it* into harmless requests.

# %%
layer, decoy = max(truth.decoy_neurons)
sleepers = [n for at, n in truth.dormant_neurons if at == layer]
gap = (neurons[len(pairs) :, layer] - neurons[: len(pairs), layer]).mean(0)  # harmful less harmless
one, rest = torch.zeros_like(gap), torch.zeros_like(gap)
one[decoy], rest[sleepers] = torch.sign(gap[decoy]), len(sleepers) ** -0.5
calm = CostMeter(box, box_tokenizer, [p.harmless for p in test], [p.harmless for p in test])


def carried(direction):
    """Change of the harmless requests' refusal log-odds when the gap's part along a unit direction is added."""
    added = edit_at(box, [("neurons", layer, lambda x: x + (gap @ direction) * direction)], position=-1)
    return float((calm.odds(added) - calm.odds()).mean())


illusion = {
    "decoy alone": carried(one),
    "sleepers alone": carried(rest),
    "both in one direction": carried((one + rest) / 2**0.5),
}
show(
    bars(list(illusion), list(illusion.values()), ylabel="change of refusal log-odds", fmt="{:+.1f}"),
    alt="Bars of the change of refusal log-odds: " + ", ".join(f"{n} {v:+.1f}" for n, v in illusion.items()) + ".",
    caption=f"Layer {layer} of the box, {len(sleepers)} sleepers. None of these neurons has any part in refusing.",
)  # fmt: skip
assert illusion["both in one direction"] > 2 * max(abs(illusion["decoy alone"]), abs(illusion["sleepers alone"]))

# %% [markdown]
# Neither half does much; together they look like a refusal direction. The decoy supplies the *variation*, the sleepers the *effect*. So beside any patch of a
# direction, ask: do its parts vary, and does what varies act?
#
# ## 5 · The real model
#
# Now the same on the real one, from one pass over the method topics. We read two tokens: the last of the template, and **the last of the request**.

# %%
from helpers.control_tasks import bag_of_words, surface_types
from helpers.probing import probe_table, read_request_mean, request_span
from helpers.prompts import load_borderline, load_pairs

method, held_out = load_pairs("method"), load_pairs("test")
kinds = sorted({p.kind for p in method})
per_kind = {kind: [p for p in held_out if p.kind == kind] for kind in sorted({p.kind for p in held_out})}
tests = [p for kind, group in per_kind.items() for p in group[: 4 if kind in kinds else 12]]
border = load_borderline("test")[:30]
prompts = [p.harmless for p in method] + [p.harmful for p in method]
topics, types = [p.topic for p in method] * 2, surface_types(prompts)
labels = torch.cat([torch.zeros(len(method)), torch.ones(len(method))])
test_prompts = [p.harmless for p in tests] + [p.harmful for p in tests]
test_labels = torch.cat([torch.zeros(len(tests)), torch.ones(len(tests))])
spot = -1 - request_span(tokenizer, prompts[0])[1]  # the request's last token, from the end
seen = read(model, tokenizer, [*prompts, *test_prompts, *border], ["resid_pre", "z"], positions=[-1, spot])
stream, at_request = (seen["resid_pre"][:, :, i].transpose(0, 1) for i in (0, 1))  # [layer, prompt, d_model]
n, m = len(prompts), len(test_prompts)
in_base = read(base, tokenizer, prompts, ["resid_pre"], positions=[-1])["resid_pre"][:, :, 0].transpose(0, 1)
in_mean = read_request_mean(model, tokenizer, prompts).transpose(0, 1)

# %%
tables = {
    "tuned, template's last": probe_table(stream[:, :n], labels, topics, types),
    "tuned, request's last": probe_table(at_request[:, :n], labels, topics, types, permutations=0),
    "tuned, mean of request": probe_table(in_mean, labels, topics, types, permutations=0),
    "base, template's last": probe_table(in_base, labels, topics, types, permutations=0),
}
words = probe_table(bag_of_words(prompts)[None], labels, topics, types, permutations=0).iloc[0]
tuned, best = tables["tuned, template's last"], int(tables["tuned, template's last"].accuracy.idxmax())
n_layers = len(tuned)
for measure in ("accuracy", "selectivity"):
    fig = lines_with_band(
        range(n_layers), by_layer(tables, measure), xlabel="before layer", ylabel=f"{measure}, held-out topics",
        band=("bag of words", [words.low] * n_layers, [words.high] * n_layers) if measure == "accuracy" else None,
    )  # fmt: skip
    fig.axes[0].legend(fontsize=8, loc="best")
    show(
        fig,
        alt=f"Lines of {measure} by layer of the real model. " + "; ".join(f"{name}: largest {t[measure].max():.2f} at layer {int(t[measure].idxmax())}" for name, t in tables.items()) + ".",
        caption="Accuracy less control accuracy. Below 0 the frame is easier to read than harm." if measure == "selectivity" else
        f"{len(method)} pairs, one topic each. Mean of the request before layer 0: {tables['tuned, mean of request'].accuracy[0]:.2f}; words alone "
        f"{words.accuracy:.2f} ({words.low:.2f} to {words.high:.2f}).",
    )  # fmt: skip
reveal("03.p2", tuned.accuracy[best])
reveal("03.p3", tables["base, template's last"].accuracy.max())
pd.DataFrame({name: t.loc[t.accuracy.idxmax()] for name, t in tables.items()}).T[
    ["layer", "accuracy", "low", "high", "auroc", "control_accuracy", "selectivity", "p_value"]
].astype(float).round(2)

# %% [markdown]
# Three things to look for. *What do the words alone give?* What lies inside that band needs no more than vocabulary. Nor is all above it more: the mean of the
# request before layer 0 is vocabulary too, read through embeddings. Take the higher of the two as the bar. *What does the base know?* Whatever its curve shows is not the product of *our
# adapter*; the base was instruction-tuned by others. *Is selectivity below zero somewhere?* There the frame is easier to read than harm. (The best layer was picked on these
# same folds; judge it by the test topics of section 7.)
#
# ### How strong may a probe be?
#
# `C` weighs the data against the penalty: the larger, the freer the probe. And the simplest probe of all has no freedom: the difference of means.

# %%
from helpers.probing import mean_difference_probe, topic_folds

capacities = (1e-4, 1e-3, 1e-2, 1e-1, 1, 10)
some = stream[[best], :n]
swept = [probe_table(some, labels, topics, types, C=C, permutations=0).iloc[0] for C in tqdm(capacities, desc="C")]
fold = topic_folds(topics)
mean_right = []
for f in range(5):
    direction, bias = mean_difference_probe(some[:, fold != f], labels[fold != f])
    mean_right += ((some[0, fold == f] @ direction[0] + bias[0] > 0) == labels[fold == f].bool()).tolist()
fig = lines_with_band(
    capacities, {"harm": ([r.accuracy for r in swept], [r.low for r in swept], [r.high for r in swept]), "control task": ([r.control_accuracy for r in swept],),
                 "difference of means": ([np.mean(mean_right)] * len(capacities),)},
    xlabel="capacity C", ylabel="share right, held-out topics",
)  # fmt: skip
fig.axes[0].set(xscale="log")
fig.axes[0].set_xticks(capacities, labels=[f"{c:g}" for c in capacities])
fig.axes[0].minorticks_off()
show(
    fig,
    alt="Lines over capacity. Harm: " + ", ".join(f"{r.accuracy:.2f}" for r in swept) + "; control: " + ", ".join(f"{r.control_accuracy:.2f}" for r in swept) + f"; difference of means {np.mean(mean_right):.2f}.",
    caption=f"Real model, before layer {best}. From the least to the most capacity, harm changes by {swept[-1].accuracy - swept[0].accuracy:+.2f}, the control by {swept[-1].control_accuracy - swept[0].control_accuracy:+.2f}.",
)  # fmt: skip

# %% [markdown]
# Look at the left end too. By Hewitt and Liang's measure a probe that learns random labels of frames nearly as well as harm is hardly selective. Where the weakest probe, or the
# difference of means, reads harm about as well with far less freedom, prefer that one.
#
# ### To see it
#
# The two widest axes of the method prompts, layer by layer; harm was not asked for.

# %%
from helpers.picker import pick


def plane(ax, at):
    """Harmless and harmful prompts on their first two principal components before a layer."""
    x = stream[at, :n] - stream[at, :n].mean(0)
    flat = (x @ torch.linalg.svd(x, full_matrices=False).Vh[:2].T).numpy()
    for name, which, color, marker in (
        ("harmless", labels == 0, HARMLESS, "o"),
        ("harmful", labels == 1, HARMFUL, "x"),
    ):
        ax.scatter(*flat[which.numpy()].T, c=color, marker=marker, s=18, label=name, linewidths=1)
    ax.set(title=f"before layer {at}", xticks=[], yticks=[])


def one_layer(at):
    """The plane of one layer as a figure."""
    fig, ax = figure(size=(5, 4))
    plane(ax, at)
    ax.legend()
    return fig


shown = [1, *range(4, n_layers, 5)]
pick(
    {str(at): one_layer(at) for at in shown},
    "layer",
    {str(at): f"Principal components before layer {at}; a probe is right in {tuned.accuracy[at]:.0%}." for at in shown},
)
fig, axes = figure(2, -(-len(shown) // 2), size=(11, 6))
for ax, at in zip(axes.flat, shown, strict=False):
    plane(ax, at)
for ax in list(axes.flat)[len(shown) :]:
    ax.set_visible(False)
axes.flat[0].legend(fontsize=8)
show(
    fig,
    alt="Scatter plots of harmless and harmful prompts on two principal components before layers " + ", ".join(map(str, shown)) + ". Probe accuracy there: " + ", ".join(f"{tuned.accuracy[at]:.2f}" for at in shown) + ".",
    caption="Circles: harmless. Crosses: harmful. The axes are those of the largest spread, whatever it is about.",
)  # fmt: skip

# %% [markdown]
# ## 6 · A failed intervention, to debug
#
# The colleague takes the best probe's weights as a direction, adds it to the stream, and nothing sensible happens. Their probe was fitted on
# *standardised* activations, `(x − mean) / scale`.
#
# {{exercise 03.5}}
#
# Given `weights` and `mean`, `scale` (all `[d]`) and `bias`, return `(direction, bias)` with which `x @ direction + bias` on **raw** activations
# is what the probe says.


# %% exercise="03.5"
def my_raw_probe(weights, bias, mean, scale):
    """The same probe on raw activations: (direction [d], bias)."""
    ### BEGIN SOLUTION
    ### STUB return weights, bias
    direction = weights / scale
    return direction, bias - direction @ mean
    ### END SOLUTION


# %%
raw_probe = check("03.5", my_raw_probe)

# %% [markdown]
# ### Token by token
#
# With a direction in raw units, any token can be scored. Here are two twins.

# %%
from helpers.probing import fit_probe
from helpers.prompts import chat_text, tokenize

directions, biases = fit_probe(stream[:, :n], labels)
mean, scale = stream[best, :n].mean(0), stream[best, :n].std(0, correction=0)
direction, bias = raw_probe(directions[best] * scale, biases[best] + directions[best] @ mean, mean, scale)
twin = tests[0]
for name, text in (("harmful", twin.harmful), ("harmless", twin.harmless)):
    ids = tokenize(tokenizer, chat_text(tokenizer, [text]))[0]
    start = request_span(tokenizer, text)[0]
    along = read(model, tokenizer, [text], ["resid_pre"], [best], positions=list(range(start, len(ids))))["resid_pre"][
        0, 0
    ]
    scores = (along @ direction + bias).numpy()
    show(
        token_strip([tokenizer.decode(i) for i in ids[start:]], scores, label="probe, log-odds", limits=(-6, 6), fmt="{:+.1f}"),
        alt=f"The tokens of a {name} request from the test topics, coloured by the probe's log-odds; the last one stands at {scores[-1]:+.1f}.",
        caption=f"A {name} twin, before layer {best}. The probe was fitted at the last token; at others its scale is a guess.",
    )  # fmt: skip

# %% [markdown]
# ## 7 · Does it travel?
#
# From each kind of harm to each other, and to a kind that no fitting has ever seen (`animal_cruelty`, the column without a row). Rows: fitted on one kind's method topics. Columns: tested on other *topics*, of
# each kind. And then: what does the probe that was fitted on all kinds say of borderline requests, which only sound harmful?

# %%
from helpers.logistic import fit_logistic
from helpers.statistics import mean_interval, share_interval

of_kind = np.array([p.kind for p in method] * 2)
train = torch.tensor(np.stack([of_kind == kind for kind in kinds]))
fits = fit_logistic(stream[[best], :n], labels[None], train)
test_x = stream[best, n : n + m]
hits = (
    ((test_x @ fits.weights[0, 0].T + fits.bias[0, 0] > 0) == test_labels[:, None].bool()).double().numpy()
)  # [prompt, fitted on]
test_kinds = np.array([p.kind for p in tests] * 2)
columns = list(per_kind)
transfer = np.array([[hits[test_kinds == to, i].mean() for to in columns] for i in range(len(kinds))])
show(
    heatmap(transfer, xlabel="tested on", ylabel="fitted on", xticks=columns, yticks=kinds, limits=(0.4, 1), colorbar="share right", fmt="{:.1f}"),
    alt=f"Heat map of transfer between {len(kinds)} kinds of harm. Mean within a kind {np.mean([transfer[i, columns.index(k)] for i, k in enumerate(kinds)]):.2f}, over all {transfer.mean():.2f}; weakest "
    f"{transfer.min():.2f}.",
    caption=f"Real model, before layer {best}. Eight prompts a cell (24 for the unseen kind), so look at rows and columns, not at single cells.",
)  # fmt: skip
whole = ((test_x @ directions[best] + biases[best] > 0) == test_labels.bool()).double().numpy()
by_topic = whole.reshape(2, -1).mean(0)
says = (stream[best, n + m :] @ directions[best] + biases[best] > 0).numpy()
for name, row in (
    ("test topics, known kinds", by_topic[[p.kind in kinds for p in tests]]),
    ("the unseen kind", by_topic[[p.kind not in kinds for p in tests]]),
    ("borderline taken for harmful", says),
):
    low, high = share_interval(row)
    print(f"{name:30} {row.mean():.0%} ({low:.0%} to {high:.0%}, n = {len(row)})")

# %% [markdown]
# Compare with the folds. How far does accuracy fall on the test topics of the known kinds, and on the kind never fitted on? Where that interval reaches down to what words alone gave, a reading of harm
# beyond the known kinds has not been shown.
#
# ## 8 · Who reads, who writes, on the real model
#
# Four directions at one layer: the probe's, the difference of means, the probe's *at the request's last token*, and harm erased by LEACE. The first three are
# ablated at the writes from four layers below on (lesson 01 showed what cutting further down breaks); erasure works at the one place that the probe reads.
# (On this model log-odds from about −1.4 up count as a refusal, lesson 00's threshold: at a mean of zero most requests are still refused.)

# %%
from helpers.directions import ablation_of, covariance_directions, unit
from helpers.fresh_prefix import fresh
from helpers.prompts import load_paragraphs
from helpers.replay import replaying

asked, calmly = [p.harmful for p in tests[::5]], [p.harmless for p in tests[::6]]
# An ablation reaches into the beginning that all prompts share; LEACE, at the last token alone, does not (`quick`).
cost, cost_at_last = (
    CostMeter(model, tokenizer, asked, calmly, load_paragraphs()[:2], quick=quick, prose_tokens=24)
    for quick in (False, True)
)
cost = fresh(cost)
control_meter = fresh(CostMeter(model, tokenizer, asked[::2], calmly[:1]))  # for the many draws
middle = best if best < 0.8 * n_layers else int(tuned.accuracy[: int(0.8 * n_layers)].idxmax())
first = middle - 4
request_direction = fit_probe(at_request[[middle], :n], labels)[0][0]
found = {
    "probe": unit(directions[middle]),
    "difference of means": unit(mean_difference_probe(stream[[middle], :n], labels)[0][0]),
    "probe at request's last": unit(request_direction),
}
measured = {"intact": cost.measure()}
for name, r in found.items():
    measured[f"{name}, ablated"] = cost.measure(ablation_of(model, r, first))
eraser = leace(stream[middle, :n], labels, 0.1)
measured["LEACE at one place"] = cost_at_last.measure(
    erase(model, "resid_pre", {middle: eraser}, prefix=cost_at_last.prefix)
)
everywhere = {at: leace(stream[at, :n], labels, 0.1) for at in range(1, n_layers)}
measured["LEACE before every layer"] = cost_at_last.measure(
    erase(model, "resid_pre", everywhere, prefix=cost_at_last.prefix)
)
controls = covariance_directions(stream[middle, : n // 2], 20)
# Several to a batch, each on a copy of the prompts: the same figures, sooner.
control_odds = odds_of_each(control_meter, [partial(ablation_of, model, r, first) for r in controls], 4).mean(1)
on_those = odds_of_each(control_meter, [partial(ablation_of, model, r, first) for r in found.values()]).mean(1)
on_those = dict(zip(found, on_those, strict=True))
rows = [
    {"what": name, "log-odds": c.odds.mean(), "refused": c.refused.mean(), "KL": c.kl, "perplexity": c.perplexity}
    for name, c in measured.items()
]
print(
    f"before layer {middle}, where the probe is right in {tuned.accuracy[middle]:.0%}; on {len(control_meter.harmful)} of the requests 20 random directions ablated give log-odds {control_odds.min():.1f} to {control_odds.max():.1f}; "
    + ", ".join(f"{name} {x:.1f}" for name, x in on_those.items())
)
pd.DataFrame(rows).set_index("what").round(2)

# %%
names = list(found)
cosines = torch.stack(list(found.values())) @ torch.stack(list(found.values())).T
show(
    heatmap(cosines.numpy(), xlabel="", ylabel="", xticks=["probe", "means", "at request"], yticks=["probe", "means", "at request"], center=0, colorbar="cosine", fmt="{:.2f}"),
    alt="Heat map of cosines: " + ", ".join(f"{names[i]} and {names[j]} {cosines[i, j]:.2f}" for i, j in ((0, 1), (0, 2), (1, 2))) + ".",
    caption=f"Before layer {middle}. A probe's direction is turned away from whatever varies anyway; the difference of means is not.",
)  # fmt: skip
no_more = [name for name in found if on_those[name] >= control_odds.min()]
print(
    "Read harm, but do no more to refusal than the strongest of the random directions:",
    ", ".join(no_more) or "none of these",
)
few = replaying(CostMeter(model, tokenizer, asked[:10], calmly[:1], quick=True))
luck = torch.randint(0, 2, (20, n), generator=torch.Generator().manual_seed(1)).float()
erasers = [{middle: leace(stream[middle, :n], y, 0.1)} for y in tqdm(luck, desc="random labels")]
by_luck = odds_of_each(few, [partial(erase, model, "resid_pre", one, prefix=few.prefix) for one in erasers]).mean(1)
by_harm = few.odds(erase(model, "resid_pre", {middle: eraser}, prefix=few.prefix)).mean()
print(
    f"LEACE at one place, {len(few.harmful)} requests: intact {few.odds().mean():.2f}, harm erased {by_harm:.2f}, 20 random labels erased {min(by_luck):.2f} to {max(by_luck):.2f}"
)

# %% [markdown]
# An ablation is evidence only if its log-odds lie below the random band, on the same requests (the line above the table), **and** its KL is small (lesson 05 will draw the line at 0.5). (These harmless prompts are
# twins, nearer to the border than lesson 01's plain requests, so do not compare the KL of the two lessons.) LEACE has its own control, in the last line. Mind what it does: it
# moves *both* classes to their common mean, so harmless requests change as well, and refusal may even rise. A move out of the band to that
# side says that the edit did something, not that the model refuses by what was erased. And the erasers "before every layer" were each fitted on the intact model; Belrose
# et al. fit each on a stream that is already erased below. The probe may well read what the model does not use: its direction is chosen to *separate*, not to act.
#
# ### Two tokens, two questions
#
# Zhao et al. (2025) report that harmfulness is represented at the request's last token and refusal at the template's last; Leong et al. (2025) that aligned
# models rest their safety on the template. Add each place's own difference of means, *at its own place only*, to harmless requests: which one makes the model refuse?
# (This does not test Zhao et al.'s claim: on their account *both* lead to refusal, one by way of a judgement, and to part them one must ask the model whether it finds the request harmful.)
# Mind the layer: what is added to the request's token late comes too late for the template's tokens to read much of it, and the two differences differ in length.

# %%
gentle = replaying(CostMeter(model, tokenizer, calmly, calmly, quick=True))


def push(site_stream, place):
    """The mean difference of a place, added there before the middle layer."""
    delta = mean_difference_probe(site_stream[[middle], :n], labels)[0][0]
    return edit_at(model, [("resid_pre", middle, lambda x: x + delta.to(x))], place, gentle.prefix)


start = gentle.odds()
pushed = {
    "at the request's last": gentle.odds(push(at_request, spot)) - start,
    "at the template's last": gentle.odds(push(stream, -1)) - start,
}
limits = tuple(zip(*(mean_interval(row) for row in pushed.values()), strict=True))
show(
    bars(list(pushed), [row.mean() for row in pushed.values()], intervals=limits, ylabel="change of refusal log-odds", fmt="{:+.1f}"),
    alt="Bars of the change of harmless requests' refusal log-odds: " + ", ".join(f"{name} {row.mean():+.1f}" for name, row in pushed.items()) + ".",
    caption=f"Real model, before layer {middle}, {len(calmly)} harmless test requests; they start at {start.mean():.1f}. Whiskers: 95% interval.",
)  # fmt: skip

# %% [markdown]
# ## 9 · Heads: inference-time intervention
#
# ITI (Li et al. 2023) probes every head, keeps the best readers, and pushes each by α standard deviations along its own direction. We push
# harmless requests towards harm, once with the top heads and 20 times with random ones of the same layers, each random draw along *its own* heads' directions.

# %%
from helpers.head_probes import probe_heads, steer_heads

z = seen["z"][:n, :, 0].reshape(n, n_layers, dims_of(model).n_heads, -1)
heads = probe_heads(z, labels, topics)
count = 12
top = heads.top(count)
show(
    heatmap(heads.accuracy.T.numpy(), xlabel="layer", ylabel="head", colorbar="share right", limits=(0.4, 1), marked=[(h, at) for at, h in top]),
    alt=f"Heat map of probe accuracy by layer and head; the best {count} lie in layers {min(top)[0]} to {max(top)[0]}, the first at {heads.accuracy.max():.2f}.",
    caption=f"Held-out topics of the method split. Framed: the {count} best readers.",
)  # fmt: skip

# %% [markdown]
# First the question of section 2, on the real model: put each of these readers' outputs at its harmless mean, at the last token, one head at a time. Does
# refusal miss it?

# %%
brief = replaying(CostMeter(model, tokenizer, asked[:14], calmly[:1], quick=True))


def silenced(at, head):
    """One head's output at the prompt's last token replaced by its mean over harmless prompts."""
    value, width = z[: n // 2, at, head].mean(0), z.shape[-1]

    def function(x):
        new = x.clone()
        new[..., head * width : (head + 1) * width] = value
        return new

    return edit_at(model, [("z", at, function)], -1, brief.prefix)


untouched = brief.odds()
lost = dict(zip(top, untouched - odds_of_each(brief, [partial(silenced, *place) for place in top], 2), strict=True))
spans = {place: mean_interval(row) for place, row in lost.items()}
fig, ax = figure(size=(7, 4.6))
middles = np.array([lost[place].mean() for place in top])
ax.errorbar(
    middles,
    range(count),
    xerr=np.abs(np.array(list(spans.values())).T - middles),
    fmt="o",
    color=HARMFUL,
    ecolor=CONTROL,
    capsize=3,
)
ax.axvline(0, color="#777777", linewidth=1, zorder=0)
ax.set_yticks(range(count), labels=[f"layer {at}, head {h}: reads {heads.accuracy[at, h]:.0%}" for at, h in top])
ax.invert_yaxis()
ax.set(xlabel="refusal log-odds lost without it")
idle = [place for place in top if spans[place][0] <= 0 <= spans[place][1]]
show(
    fig,
    alt="The best reading heads, and the log-odds lost without each. " + "; ".join(f"head {h} of layer {at}: {heads.accuracy[at, h]:.2f}, {lost[at, h].mean():+.2f}" for at, h in top[:6]) + ".",
    caption=f"One mark a head, {len(brief.harmful)} harmful test requests, which start at {untouched.mean():.1f}; 95% intervals. For {len(idle)} of {count} heads the interval holds zero.",
)  # fmt: skip

# %%
from helpers.matched import random_sets

alphas = (0, 0.5, 1, 2)
price = CostMeter(model, tokenizer, asked[:1], calmly, load_paragraphs()[:2], quick=True, prose_tokens=24)
costs = {
    a: price.measure(steer_heads(model, heads, top, a, prefix=price.prefix)) for a in tqdm(alphas[1:], desc="costs")
}
mild = max([a for a in costs if costs[a].kl <= 0.1], default=alphas[1])  # the largest that leaves the model what it was
some_calm = replaying(CostMeter(model, tokenizer, calmly[::2], calmly[:1], quick=True))  # for the many draws
dose = [some_calm.odds(steer_heads(model, heads, top, a, prefix=some_calm.prefix)).mean() for a in alphas]
draws = random_sets(top, (n_layers, dims_of(model).n_heads), 20)
drawn_at = (0, mild, alphas[-1])
chance = np.array(
    [[dose[0]] * 20]
    + [odds_of_each(some_calm, [partial(steer_heads, model, heads, draw, a, prefix=some_calm.prefix) for draw in draws]).mean(1) for a in drawn_at[1:]]
)  # fmt: skip
fig = lines_with_band(
    alphas, {"best readers": (dose,)},
    band=("20 random draws", np.interp(alphas, drawn_at, chance.min(1)), np.interp(alphas, drawn_at, chance.max(1))),
    xlabel="α, standard deviations", ylabel="refusal log-odds, harmless",
)  # fmt: skip
show(
    fig,
    alt="Line of harmless requests' refusal log-odds by alpha: " + ", ".join(f"{a}: {v:.1f}" for a, v in zip(alphas, dose, strict=True)) + f"; random heads at the largest: {chance[-1].min():.1f} to {chance[-1].max():.1f}.",
    caption=f"{len(some_calm.harmful)} harmless test requests, {count} heads; random ones from the same layers. What it costs: " + "; ".join(f"α = {a}: KL {c.kl:.2f}, perplexity {c.perplexity:.0f}" for a, c in costs.items()) + f" (intact {measured['intact'].perplexity:.0f}). The band is measured at α = 0, {mild:g} and {alphas[-1]:g}.",
)  # fmt: skip
for a, ours, theirs in ((mild, dose[alphas.index(mild)], chance[1]), (alphas[-1], dose[-1], chance[-1])):
    print(f"α = {a:g}, KL {costs[a].kl:.2f}: from {dose[0]:.1f} to {ours:.1f}, random heads {theirs.min():.1f} to {theirs.max():.1f};",
          f"the best readers do more than {int(np.sum(theirs < ours))} of {len(theirs)} draws")  # fmt: skip

# %% [markdown]
# The first line is at the largest dose whose KL is at most 0.1, the second at the largest of all; there, look what it costs. And do not take either for proof: each head is pushed by
# its own spread, and the best readers are those in which harm makes the most of it. What is added is larger, too.
#
# ## What this shows, and what it does not
#
# **It shows** where harm can be read linearly on new topics of known kinds, how much of that the words or the untuned model give already, and whether
# taking it away changes what the model does.
#
# **It does not show**
#
# * that what is read is *used*. The box's decoys are read as well as its circuit.
# * that what is not read is absent. A linear probe sees straight boundaries only.
# * that an erasure without effect proves uselessness: later layers may read it again from other tokens.
# * anything about larger models. This is one small model with an adapter of ours.
#
# ## Quiz

# %%
quiz("03")

# %% [markdown]
# ## Where to read on
#
# * **Hewitt, Liang (2019)**, *Designing and Interpreting Probes with Control Tasks*. *Ours differs:* types are frames of sentences, not words.
# * **Belrose, Schneider-Joseph, Ravfogel, Cotterell, Raff, Biderman (2023)**, *LEACE: Perfect linear concept erasure in closed form*. *Ours differs:* the
#   covariance is drawn a little towards the identity, since we have fewer prompts than channels.
# * **Li, Patel, Viégas, Pfister, Wattenberg (2023)**, *Inference-Time Intervention*. *Ours differs:* harm instead of truthfulness, and random heads beside it.
# * **Zhao et al. (2025)**, *LLMs Encode Harmfulness and Refusal Separately*; **Leong et al. (2025)**, *Why Safeguarded Ships Run Aground?* *Ours differs:* one
#   layer, and a measure by log-odds alone.
# * **Makelov, Lange, Nanda (2023)**, *Is This the Subspace You Are Looking For?* *Ours differs:* the two halves are known, not constructed from a model.
#
# **Next:** lesson 04 puts the pieces together into a circuit.
