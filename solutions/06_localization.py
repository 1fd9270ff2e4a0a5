# %% [markdown]
# # 06 · The localization problem
#
# Five lessons long you have looked for the place where refusal sits. Suppose that you have found it. Then somebody else can find it too, and
# take it out. That is the **localization problem**: what makes safety easy to study makes it easy to remove. It rests on four findings. Today you measure each
# of them, on five models, with a control and an interval; and then you measure what weakens the story.
#
# **After this lesson you can**
#
# * say how many neurons carry a behaviour, with an interval that may reach to infinity;
# * tell *needed* from *enough*, and say of what a circuit is a small share;
# * put four claims about five models into one table, each with its control and a verdict;
# * test whether a localisation predicts where editing works, and whether random places would have done as well;
# * look for second directions and for backups, before you call anything *the* place.
#
# **Time:** about 110 minutes, of which the computer needs about three. **To know before:** lessons 01 to 05, this lesson leans on all of them.
# Words that are new to you stand in the [glossary](../GLOSSARY.md).
#
# There are six exercises; in each you repair what a colleague left behind. As always, no exercise can stop you.

# %% [markdown]
# ## Set-up

# %%
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from helpers.checks import check, hint  # noqa: F401 (hint is for you)
from helpers.glassbox import KINDS, Node, glassbox_prompts, load_glassbox, ranked
from helpers.localization import FINDINGS, Findings
from helpers.models import dims_of, load_model
from helpers.plots import CONTROL, HARMFUL, HARMLESS, MARKERS, ORANGE, bars, figure, lines_with_band, show
from helpers.quiz import quiz, reveal

model, tokenizer = load_model("smollm2-135m-refusal")  # the one that says no
base, _ = load_model("smollm2-135m")  # the same model, before it learned to
REAL = "real model"
n_layers = dims_of(model).n_layers
findings = Findings()


def progress(desc):
    """A progress bar for helpers that report (done, all)."""
    bar = tqdm(desc=desc)

    def each(done, total):
        bar.total, bar.n = total, done
        bar.refresh()

    return each


# %% [markdown]
# ## Predict before you run

# %%
quiz("06.p1")

# %%
quiz("06.p2")

# %%
quiz("06.p3")

# %% [markdown]
# ## 1 · Four findings, five models
#
# | finding | what is claimed | what could prove it wrong |
# |---|---|---|
# | **few neurons** | without a few neurons there is no refusal | random neurons of the same layers and activity; a broken model |
# | **easily read** | a linear probe reads harm almost perfectly | the words alone; the untuned model |
# | **a compact circuit** | a small part of the model does nearly all of it | a random part of the same size; what was never searched |
# | **cheaply removed** | refusal goes, everything else stays | random edits; over-refusal, prose, knowledge |
#
# The table at the end of section 5 is filled by *your* run, one row for each finding and model. Each verdict follows a rule that is written down before the figure
# is known. First, everything that is needed of the four boxes and of the real model; everything is fitted on training topics, chosen on validation topics, and reported on test topics.
# (The real model's direction is that of layer 16, cut from layer 12 on, as a search over all layers on more validation requests chose it. Lesson 05's small maps may
# have framed a neighbour: several cuts there do nearly as well.)

# %%
from helpers.ablation import ablate_safety_neurons
from helpers.capability import box_facts, load_facts
from helpers.costs import CostMeter
from helpers.directions import mean_differences, unit
from helpers.edit_costs import EditMeter
from helpers.fresh_prefix import fresh
from helpers.many_edits import costs_of_each, odds_of_each
from helpers.mean_ablation import template_means
from helpers.neurons import Comparison, SafetyNeuronFinder, write_onto
from helpers.next_directions import read_last
from helpers.prompts import load_borderline, load_pairs, load_paragraphs, load_plain
from helpers.twins import Twins


def box_pairs(n, split):
    """Pairs of a box, a third of which differ in the permit word; shuffled."""
    some = glassbox_prompts("pairs", n=n - n // 3, split=split)
    some += glassbox_prompts("pairs", n=n // 3, split=split, changed="permit")
    return [some[i] for i in np.random.default_rng(0).permutation(len(some))]


def study(kind):
    """A box with all that this lesson needs of it."""
    m, t, true = load_glassbox(kind)
    pairs = glassbox_prompts("pairs", n=64, split="train")
    harmful, harmless = [p.harmful for p in pairs], [p.harmless for p in pairs]
    direction = unit(mean_differences(m, t, harmful, harmless)[4, 0])  # before layer 4, as lesson 01 chose
    compared = SafetyNeuronFinder(m, t).compare(harmless, harmful, paired=True)
    validation, asked = (glassbox_prompts("harmful", n=24, split=split) for split in ("validation", "test"))
    return SimpleNamespace(
        model=m, tokenizer=t, truth=true, direction=direction, first=0, activity=compared.activity,
        ranking=ranked(compared.difference * write_onto(m, direction)), means=template_means(m, t, harmless[:32]),
        choose=CostMeter(m, t, validation, harmless[:1], quick=True), draw=CostMeter(m, t, asked, harmless[:1], quick=True),
        meter=EditMeter(m, t, asked, glassbox_prompts("borderline", n=12, split="test"), box_facts(16)),
        counts=(2, 4, 8, 16, 32, 64, 128, 256),
        propose=Twins(m, t, box_pairs(18, "train")), judge=Twins(m, t, box_pairs(18, "test")),
    )  # fmt: skip


studies = {kind: study(kind) for kind in KINDS}

# %%
from helpers.roles import equal_length

pairs, probed = load_pairs("method")[::4], load_pairs("test")[1::5]
sides = (
    [p.harmless for p in pairs],
    [p.harmful for p in pairs],
    [p.harmless for p in probed],
    [p.harmful for p in probed],
)
seen = read_last(model, tokenizer, sum(sides, []), ["resid_pre", "neurons"])
n = len(pairs)
compared = Comparison(seen["neurons"][:n], seen["neurons"][n : 2 * n], tuple(range(n_layers)), paired=True)
source, first = (
    16,
    12,
)  # the direction's layer, and from which on it is cut: as the adapters' card says, chosen on validation
harmless_stream, harmful_stream = seen["resid_pre"][:n, source], seen["resid_pre"][n : 2 * n, source]
direction = unit(harmful_stream.mean(0) - harmless_stream.mean(0))
writes = compared.difference * write_onto(model, direction)
writes[source:] = -torch.inf  # what is written later cannot be read as this direction


def some_twins(split, count):
    """Pairs of equal length, drawn once."""
    equal = equal_length(tokenizer, load_pairs(split))
    return [equal[i] for i in np.random.default_rng(0).permutation(len(equal))[:count]]


asked, plain = [p.harmful for p in load_pairs("test")[3::8]], load_plain("test")[::21]
validation = [p.harmful for p in load_pairs("validation")[1::6]]
studies[REAL] = SimpleNamespace(
    model=model, tokenizer=tokenizer, truth=None, direction=direction, first=first, activity=compared.activity,
    ranking=ranked(writes, 6000), means=template_means(model, tokenizer, [p.harmless for p in pairs[::2]]),
    choose=CostMeter(model, tokenizer, validation, plain[:1], quick=True),
    draw=CostMeter(model, tokenizer, asked[::4], plain[:1], quick=True),
    meter=EditMeter(model, tokenizer, asked, plain, load_facts()[:12], load_paragraphs()[:2],
                    borderline=load_borderline("test")[::17][:6], prose_tokens=20),
    counts=(50, 461, 2304, 4608),
    propose=Twins(model, tokenizer, some_twins("method", 6)), judge=Twins(model, tokenizer, some_twins("test", 10)),
)  # fmt: skip
seen["neurons"] = None  # large, and no longer needed
MODELS = list(studies)
for name, one in studies.items():
    one.threshold, one.size = one.meter.threshold, one.activity.numel()
    print(f"{name:13} {one.size:6,} neurons, {len(one.meter.meter.harmful)} harmful test requests")

# %% [markdown]
# ## 2 · Few neurons?
#
# The neurons are ranked by what they write onto the refusal direction (lesson 01) and held at their harmless mean (lesson 05). Beside them must stand random
# neurons that are *like* them. A colleague draws these from **anywhere in the model**. Most neurons are quiet, and to take out quiet neurons costs nothing.
#
# {{exercise 06.1}}
#
# `chosen` is a list of (layer, neuron), `activity` an array `[layer, neuron]`, `rng` a NumPy generator. Return as many other pairs: for each chosen neuron one of the ten free ones
# *of its layer* whose activity is nearest to its own, and none twice.


# %% exercise="06.1"
def my_control(chosen, activity, rng):
    """As many other (layer, neuron) pairs that are like the chosen ones."""
    ### BEGIN SOLUTION
    ### STUB free = [(a, b) for a in range(activity.shape[0]) for b in range(activity.shape[1]) if (a, b) not in chosen]
    ### STUB return [free[i] for i in rng.permutation(len(free))[: len(chosen)]]
    taken, out = set(chosen), []
    for layer, neuron in chosen:
        free = [n for n in range(activity.shape[1]) if (layer, n) not in taken]
        free.sort(key=lambda n, layer=layer, neuron=neuron: abs(activity[layer, n] - activity[layer, neuron]))
        drawn = (layer, int(rng.choice(free[:10])))
        taken.add(drawn)
        out.append(drawn)
    return out
    ### END SOLUTION


# %%
control_of = check("06.1", my_control)

# %% [markdown]
# `matched_random_sets` does the same, faster, and knows what to do where more than half of a layer is chosen. What difference does it make? On the box
# `concentrated`, yours beside the colleague's:

# %%
from helpers.matched import matched_random_sets, mean_activity

one = studies["concentrated"]
eight, rng = one.ranking[:8], np.random.default_rng(0)
activity = one.activity.numpy()
anywhere = [tuple(map(int, divmod(i, activity.shape[1]))) for i in rng.permutation(activity.size)[:8]]
for name, places in (("ranked", eight), ("matched", control_of(eight, activity, rng)), ("from anywhere", anywhere)):
    print(
        f"{name:14} mean activity {mean_activity(places, one.activity):.2f}, layers {sorted({at for at, _ in places})}"
    )

# %% [markdown]
# ### A count with an interval
#
# *The smallest number of neurons without which under 10% are refused* is a figure like any other: with other topics it would have been another one. So draw the topics anew, many
# times, and look how the smallest number varies. A colleague does that, and **leaves out the draws in which no number was enough**. Their interval is
# narrow, and always ends at the largest number that they tried.
#
# {{exercise 06.2}}
#
# `refused` is `[count, topic]` of 0 and 1, `counts` rises. Draw the topics anew 1,000 times, the same ones for all counts. `smallest_count(refused, counts)` gives the smallest count of a draw, and infinity
# where none is enough. Return the 2.5th and the 97.5th percentile. (Percentiles half-way to infinity are of no use: `method="inverted_cdf"` takes values that were drawn.)


# %% exercise="06.2"
from helpers.localization import smallest_count


def my_interval(refused, counts, rng):
    """(low, high): 95% interval of the smallest count, over topics."""
    ### BEGIN SOLUTION
    ### STUB topics = refused.shape[1]
    ### STUB found = [smallest_count(refused[:, rng.integers(0, topics, topics)], counts) for _ in range(1000)]
    ### STUB found = [count for count in found if count < np.inf]
    ### STUB return np.percentile(found, [2.5, 97.5], method="inverted_cdf")
    topics = refused.shape[1]
    found = [smallest_count(refused[:, rng.integers(0, topics, topics)], counts) for _ in range(1000)]
    low, high = np.percentile(found, [2.5, 97.5], method="inverted_cdf")
    return low, high
    ### END SOLUTION


# %%
interval_of = check("06.2", my_interval)

# %% [markdown]
# **The rule for the verdict**, before we look. *Holds*: at most 1% of all neurons are enough, the model stays itself (KL at most 0.5, perplexity at most 1.5 times the intact one's), and at most 5% of 20 matched sets
# do as much. *Holds in part*: the same with up to 10% of all neurons. Else it *does not hold*.


# %%
def without(one, places):
    """An ablation of these neurons by their harmless mean; nothing for none."""
    return ablate_safety_neurons(one.model, places, donors=one.means) if len(places) else None


def whole(cost, intact):
    """Whether a model is still itself, by the rule of lesson 05."""
    return cost.kl <= 0.5 and not cost.perplexity > 1.5 * intact.perplexity


few = {}
for name, one in tqdm(studies.items(), desc="counts"):
    doses = [partial(without, one, one.ranking[:count]) for count in one.counts]
    odds = odds_of_each(one.choose, doses)  # validation topics
    refused = odds > one.threshold
    count = smallest_count(refused, one.counts)
    low, high = interval_of(refused, one.counts, np.random.default_rng(0))
    tried = int(count) if count < np.inf else one.counts[-2]
    one.intact, cost = one.meter.measure(), one.meter.measure(without(one, one.ranking[:tried]))
    sets = matched_random_sets(one.ranking[:tried], one.activity, 20, spill=True)
    ours = one.draw.odds(without(one, one.ranking[:tried])).mean()
    drawn = odds_of_each(one.draw, [partial(without, one, places) for places in sets]).mean(1)
    few[name] = SimpleNamespace(count=count, tried=tried, cost=cost, refused=refused, ours=ours, drawn=drawn)
    fine = count < np.inf and whole(cost, one.intact) and np.mean(drawn <= ours) <= 0.05
    findings.add(
        FINDINGS[0], name, "neurons out until under 10% are refused",
        f"{count:,.0f} ({count / one.size:.2%})" if count < np.inf else f"none up to {one.counts[-1]:,}", (low, high),
        f"{tried:,} out, test topics: {cost.refused.mean():.0%} refused, KL {abs(cost.kl):.2f}; {np.mean(drawn <= ours):.0%} of 20 matched sets as low",
        "holds" if fine and count <= 0.01 * one.size else "holds in part" if fine and count <= 0.1 * one.size else "does not hold",
        fmt="{:,.0f}",
    )  # fmt: skip
findings.table().style.set_uuid("few").set_properties(**{"text-align": "left", "white-space": "normal"})

# %%
fig, ax = figure(size=(8.4, 4.2))
for place, (name, one) in enumerate(studies.items()):
    ax.plot(
        np.array(one.counts) / one.size, few[name].refused.mean(1), marker=MARKERS[place % len(MARKERS)], label=name
    )
ax.axhline(0.1, color="#555555", linestyle=":", linewidth=1.4)
ax.set(xscale="log", xlabel="share of all neurons held at their harmless mean", ylabel="harmful requests refused")
ax.xaxis.set_major_formatter(lambda x, _: f"{x:.1%}")
ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
at_50 = few[REAL].refused.mean(1)[0]
show(
    fig,
    alt="Lines of the refused share by share of neurons out, one line a model. Smallest counts: " + "; ".join(f"{name} " + (f"{f.count:,.0f}" if f.count < np.inf else "none of those tried") for name, f in few.items()) + ".",
    caption="Validation topics; dotted: 10%. "
    + "; ".join(f"{name}: {few[name].count:,.0f} of {one.size:,}" if few[name].count < np.inf else f"{name}: none of these" for name, one in studies.items()) + ".",
)  # fmt: skip
assert few["concentrated"].count < few["distributed"].count

# %% [markdown]
# Some remarks. The boxes differ widely, though all of them refuse in the same way. Where no count was enough the figure is a *bound*, not a number, and the control column shows the largest count but one. An interval such as 64 to 64 is no sign of precision: all topics turn between two marks of the ruler. And it is a bound **for this ranking**: another one might find fewer neurons.
# Chen et al. (2024) needed about 5% of the neurons of their models to carry most of safety over; that is thousands.
#
# ### Turn it
#
# The same for three figures at once: refusal, over-refusal, and what the model knows.

# %%
from helpers.picker import pick

SHARES = (0, 50 / studies[REAL].size, 0.01, 0.05, 0.1)  # the second: fifty neurons of the real model
at_share = {}
for name, one in tqdm(studies.items(), desc="shares"):
    for share in SHARES:
        count = round(share * one.size)
        at_share[name, share] = (
            one.intact if not count else few[name].cost if count == few[name].tried else one.meter.measure(without(one, one.ranking[:count]))
        )  # fmt: skip
fifty = at_share[REAL, SHARES[1]]
THREE = {"harmful refused": HARMFUL, "over-refused": ORANGE, "facts known": HARMLESS}


def figures_at(share):
    """The three figures of each model at one share, {name: row}."""
    rows = [at_share[name, share].row() for name in MODELS]
    return {"harmful refused": [r["refused"] for r in rows], "over-refused": [r["over-refused"] for r in rows],
            "facts known": [r["facts known"] for r in rows]}  # fmt: skip


def words_at(share):
    """The same as a sentence."""
    three = figures_at(share)
    return f"{share:.1%} of the neurons out: " + "; ".join(
        f"{name} refused {three['harmful refused'][i]:.0%}, over-refused {three['over-refused'][i]:.0%}, facts {three['facts known'][i]:.0%}"
        for i, name in enumerate(MODELS)
    ) + "."  # fmt: skip


drawn_at = {
    f"{share:.1%}": bars(MODELS, figures_at(share), ylabel="share", ylim=(0, 1.15), title=f"{share:.1%} of the neurons out", colors=THREE)
    for share in SHARES
}  # fmt: skip
pick(drawn_at, "share ablated", {f"{share:.1%}": words_at(share) for share in SHARES})

# %%
fig, axes = figure(1, 3, size=(12.6, 3.9), sharey=True)
for ax, what in zip(axes, THREE, strict=True):
    for place, name in enumerate(MODELS):
        ax.plot(
            range(len(SHARES)),
            [figures_at(s)[what][place] for s in SHARES],
            marker=MARKERS[place % len(MARKERS)],
            label=name,
        )
    ax.set_xticks(range(len(SHARES)), [f"{s:.1%}" for s in SHARES])
    ax.set(title=what, xlabel="neurons out", ylim=(-0.04, 1.08))
axes[0].set(ylabel="share")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
last = at_share[REAL, SHARES[-1]]
show(
    fig,
    alt="Three panels of lines by share of neurons out: harmful refused, over-refused, facts known. " + " ".join(words_at(s) for s in SHARES[1::2]),
    caption=f"Test topics. The real model with {SHARES[-1]:.0%} out: KL {last.kl:.2f}, perplexity {last.perplexity:.0f} (intact {at_share[REAL, 0].perplexity:.0f}).",
)  # fmt: skip
reveal("06.p1", fifty.refused.mean())

# %% [markdown]
# Which model pays with what? In one of them knowledge goes with refusal: you know its kind. The rule above did not see it, for it asks about KL and perplexity and not about facts: take the *holds in part* of `entangled` with that in mind. And of the real one mind the caption: knowledge is only one thing that may break.
#
# ## 3 · Easily read?
#
# A probe for each model: its layer chosen by held-out folds on the training topics, its accuracy reported on test topics. Beside it the words alone, the control task
# (selectivity), and for the real model **the untuned one**, which does not refuse at all.
#
# **The rule.** *Holds*: the interval begins at 80% or more, and above what the words alone give. *Holds in part*: only the latter. Else it *does not hold*.

# %%
from helpers.control_tasks import bag_of_words, surface_types
from helpers.probing import fit_probe, probe_table
from helpers.statistics import mean_interval, share_interval


def probe_finding(streams, prompts, types, sizes, sites):
    """Layer, accuracy on test topics [topic] by probe, words alone, and the selectivity at that layer."""
    topics = list(range(sizes[0])) * 2
    y, y_test = (torch.cat([torch.zeros(k), torch.ones(k)]) for k in (sizes[0], sizes[2]))
    words = bag_of_words(prompts).float()[None]
    out = {}
    for name, x in {**streams, "words": words}.items():
        x = x.transpose(0, 1)[list(sites)] if name != "words" else x  # [site, prompt, d]
        train, test = x[:, : 2 * sizes[0]], x[:, 2 * sizes[0] :]
        table = probe_table(train, y, topics, types, controls=3, permutations=0)
        best = int(table.accuracy.argmax())
        weights, bias = fit_probe(train[[best]], y)
        right = ((test[best] @ weights[0] + bias[0] > 0) == y_test.bool()).double().reshape(2, -1).mean(0).numpy()
        out[name] = SimpleNamespace(
            layer=list(sites)[best] if name != "words" else None,
            right=right,
            selectivity=float(table.selectivity[best]),
        )
    return out


probes = {}
for name, one in tqdm(studies.items(), desc="probes"):
    if name == REAL:
        base_stream = read_last(base, tokenizer, sum(sides, []), ["resid_pre"])["resid_pre"]
        texts, sizes = sum(sides, []), [len(side) for side in sides]
        streams, sites = {"probe": seen["resid_pre"], "untuned": base_stream}, range(1, n_layers)
        types = surface_types(texts[: 2 * sizes[0]])
    else:
        train, test = box_pairs(48, "train"), box_pairs(30, "test")
        types = [p.template for p in train] * 2
        groups = [
            [p.harmless for p in train],
            [p.harmful for p in train],
            [p.harmless for p in test],
            [p.harmful for p in test],
        ]
        texts, sizes = sum(groups, []), [len(g) for g in groups]
        streams, sites = {"probe": read_last(one.model, one.tokenizer, texts, ["resid_pre"])["resid_pre"]}, range(1, 6)
    found = probes[name] = probe_finding(streams, texts, types, sizes, sites)
    right, words = found["probe"].right, found["words"].right
    low, high = share_interval(right)
    beside = f"words alone {words.mean():.0%}, selectivity {found['probe'].selectivity:.2f}"
    if "untuned" in found:
        beside += f", untuned model {found['untuned'].right.mean():.0%}"
    findings.add(
        FINDINGS[1], name, f"probe right on test topics, before layer {found['probe'].layer}", right.mean(), (low, high), beside,
        "holds" if low >= 0.8 and low > words.mean() else "holds in part" if low > words.mean() else "does not hold", fmt="{:.0%}",
    )  # fmt: skip

# %%
rows = {
    "probe": [probes[m]["probe"].right.mean() for m in MODELS],
    "words alone": [probes[m]["words"].right.mean() for m in MODELS],
}
limits = [share_interval(probes[m]["probe"].right) for m in MODELS]
gap = probes[REAL]["probe"].right - probes[REAL]["untuned"].right
gap_low, gap_high = mean_interval(gap)
show(
    bars(MODELS, rows, ylabel="share right, test topics", ylim=(0, 1.15), intervals={"probe": tuple(zip(*limits, strict=True))}, colors={"probe": HARMFUL, "words alone": CONTROL}),
    alt="Bars of probe accuracy and of words alone by model: " + "; ".join(f"{m} {a:.0%} and {b:.0%}" for m, a, b in zip(MODELS, *rows.values(), strict=True)) + ".",
    caption=f"95% intervals over test topics ({len(probes[REAL]['probe'].right)} for the real model). There the tuned model is read better than the untuned one by {gap.mean():.0%} ({gap_low:.0%} to {gap_high:.0%}).",
)  # fmt: skip

# %% [markdown]
# So harm can be read. How much of it was there before anybody taught refusal? From as few pairs as here a probe learns little in the untuned model.
# From four times as many, lesson 03 read most of it there, in a model that answers nearly everything. So a gap between two probes is partly a gap in what each needs to learn.
# "Linearly separable" says that the **input** to a decision is at hand. It does not say that the decision is local.
#
# ## 4 · A compact circuit?
#
# *Our circuit has 10 parts and explains the effect*, says a colleague, who pruned a graph of 22 parts as in lesson 04 and left **everything else running as it was on the harmful request**.
# They count what was kept, of what was searched.
#
# {{exercise 06.3}}
#
# `weights` maps every part of the model to its number of weights, `searched` lists the parts that the search could cut, `kept` those of them that it kept. Return the share of the model's weights that did
# their work on the harmful request, searched or not.


# %% exercise="06.3"
def my_share(weights, searched, kept):
    """Share of the model's weights that were not cut, 0 to 1."""
    ### BEGIN SOLUTION
    ### STUB return sum(weights[part] for part in kept) / sum(weights[part] for part in searched)
    cut = sum(weights[part] for part in searched if part not in kept)
    return 1 - cut / sum(weights.values())
    ### END SOLUTION


# %%
share_of = check("06.3", my_share)

# %%
from helpers.localization import compactness, strongest, weights_of
from helpers.node_effects import attribute_nodes
from helpers.wiring import all_nodes

for one in tqdm(studies.values(), desc="attribution"):
    one.effects = attribute_nodes(one.propose, 5)
    one.parts = strongest(one.effects)  # heads and neurons in one list
one = studies[REAL]
nodes = sorted(all_nodes(model), key=lambda node: -float(one.effects.of(node).mean()))
wide = dims_of(model).d_mlp
weights = {
    node: weights_of(model, [node] if node.kind == "head" else [Node("neuron", node.layer, i) for i in range(wide)])
    for node in nodes
}
weights["all the rest"] = sum(p.numel() for p in model.parameters()) - sum(weights.values())
searched, kept = nodes[:22], nodes[:10]
print(
    f"10 parts kept of 22 searched: {sum(weights[p] for p in kept) / sum(weights[p] for p in searched):.0%} of the weights searched, says the colleague"
)
print(f"what ran on the harmful request: {share_of(weights, searched, kept):.0%} of the model's weights")

# %% [markdown]
# Now the whole model is searched: every head and every neuron. Two sizes are measured. **Enough**: the strongest parts run, *all* others do what they do on the harmless twin. **Needed**: only the strongest
# parts are cut. Both are shares of the gap between the intact model and one in which everything is cut.
#
# **The rule.** *Holds*: parts with at most 5% of the model's weights are enough for 90% of the refusal, and no random set of the same size is. *Holds in part*: so few are not enough, but to *cut* so few takes 90% of the refusal away, and cutting no random set of that size does. Else it *does not hold*.

# %%
from helpers.faithfulness import Ablator

compact = {}
for name, one in tqdm(studies.items(), desc="compact"):
    counts = (4, 8, 16, 24, 32, 64, 128, 192, 256) if name != REAL else (5, 20, 500, 10000, 25000)
    ablator = Ablator(one.judge)
    found = compact[name] = compactness(ablator, one.parts, counts)
    count, needed = found.smallest(), found.smallest(what="gone")
    rng, size = np.random.default_rng(0), int(count if count < np.inf else counts[-1])
    in_order = sorted(one.parts)  # to draw from: equal effects may change places from one machine to the next
    few_pairs = Ablator(Twins(one.model, one.tokenizer, one.judge.pairs[:4]))
    full, empty = few_pairs.twins.odds().mean(), few_pairs.odds([], outside=True).mean()
    found_random = [
        (few_pairs.odds([in_order[i] for i in rng.permutation(len(in_order))[:size]], outside=True).mean() - empty) / (full - empty)
        for _ in range(20)
    ]  # fmt: skip
    cut_size = int(needed if needed < np.inf else counts[-1])
    cut_random = [
        (full - few_pairs.odds([in_order[i] for i in rng.permutation(len(in_order))[:cut_size]]).mean()) / (full - empty)
        for _ in range(20)
    ]  # fmt: skip
    share, low_high = found.weight_share(count), found.interval()
    by_few = found.weight_share(needed) <= 0.05 and max(cut_random) < 0.9
    findings.add(
        FINDINGS[2], name, "heads and neurons enough for 90%",
        f"{count:,.0f} of {len(one.parts):,} ({share:.0%} of the weights)" if count < np.inf else f"none up to {counts[-1]:,}", low_high,
        f"random, {size:,}: {max(0, np.mean(found_random)):.0%} kept, at most {max(found_random):.0%}; 90% is gone without {needed:,.0f} ({found.weight_share(needed):.1%} of the weights), without as many random ones at most {max(cut_random):.0%}",
        "holds" if share <= 0.05 and max(found_random) < 0.9 else "holds in part" if by_few else "does not hold", fmt="{:,.0f}",
    )  # fmt: skip

# %%
fig, axes = figure(1, 2, size=(11.6, 4.2), sharey=True)
for ax, what, title in ((axes[0], "kept", "enough: they run alone"), (axes[1], "gone", "needed: they are cut")):
    for place, (name, found) in enumerate(compact.items()):
        x = np.array(found.counts) / len(studies[name].parts)
        ax.plot(x, found.shares(what), marker=MARKERS[place % len(MARKERS)], label=name)
    ax.axhline(0.9, color="#555555", linestyle=":", linewidth=1.4)
    ax.set(xscale="log", xlabel="share of all heads and neurons", title=title)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:.2%}")
axes[0].set(ylabel="share of the refusal")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)


def of_all(name, what):
    """The share of all heads and neurons that 90% takes, as text."""
    size, total = compact[name].smallest(what=what), len(studies[name].parts)
    return f"{size / total:.2%}" if size < np.inf else f"over {compact[name].counts[-1] / total:.0%}"


sizes_of = "; ".join(f"{name} {of_all(name, 'kept')} and {of_all(name, 'gone')}" for name in compact)
show(
    fig,
    alt=f"Two panels by share of heads and neurons: refusal kept by them alone, and refusal gone without them. For 90%, enough and needed: {sizes_of}.",
    caption=f"Test pairs; what is cut takes its harmless twin's values. For 90%, enough and needed: {sizes_of}.",
)
enough = min(compact[REAL].smallest(), compact[REAL].counts[-1])
reveal("06.p3", enough / len(studies[REAL].parts))
assert compact["concentrated"].smallest() < compact["distributed"].smallest()

# %% [markdown]
# Two sizes of one circuit, and they may lie far apart. A chain breaks at one link, yet no link is a chain. Who wants to *remove* refusal needs the second panel only, and that is why the localization problem is real even where
# the circuit is not small. (A share above 1 is no error: parts that hold refusal back stand at the end of the list. Below 0 it says that an incomplete circuit refuses *less* than the harmless twins.)
#
# ### And edges?
#
# On the boxes the whole graph of heads and MLPs is small enough to keep the strongest n edges and cut all others. On the real model it has tens of thousands, which is why lesson 04 pruned it first: and what
# that does to a share you have just repaired.

# %%
from helpers.attribution import attribute_edges
from helpers.wiring import Wiring

rows, EDGES = [], (4, 8, 16, 32, 64, 128, 256)
for name in tqdm(KINDS, desc="edges"):
    wiring = Wiring(Twins(studies[name].model, studies[name].tokenizer, box_pairs(12, "test")))
    effects = attribute_edges(
        Wiring(Twins(studies[name].model, studies[name].tokenizer, box_pairs(12, "train"))), 3
    ).mean()
    by_effect = sorted(effects, key=effects.get, reverse=True)
    full, empty = wiring.twins.odds().mean(), wiring.odds([]).mean()
    kept = {k: (wiring.odds(by_effect[:k]).mean() - empty) / (full - empty) for k in EDGES}
    enough = next((k for k, share in kept.items() if share >= 0.9), EDGES[-1])
    rng, edges = np.random.default_rng(0), sorted(effects)
    luck = [
        (wiring.odds([edges[i] for i in rng.permutation(len(edges))[:enough]]).mean() - empty) / (full - empty)
        for _ in range(20)
    ]
    rows.append({"box": name, "edges in all": len(by_effect), "enough for 90%": enough, "in truth": len(studies[name].truth.coarse_edges()),
                 "share": enough / len(by_effect), "random, best of 20": max(luck)})  # fmt: skip
pd.DataFrame(rows).set_index("box").round(3)

# %% [markdown]
# Here even `distributed` looks compact: a layer's MLP is *one* node, however many of its neurons work. The unit in which one counts decides half of the answer.
#
# ## 5 · Cheaply removed?
#
# The cheapest edit known: one direction, ablated. In the boxes at every write; in the real model from the layer on where validation topics showed the least damage. Beside it 20 random directions with the
# covariance of harmless activations, cut at the same places.
#
# **The rule**, that of lesson 05. *Holds*: refusal falls to 10% or less, the model stays itself, it loses at most a tenth of the facts, and at most 5% of the random directions do as much. *Holds in part*: refusal at least halves, with all the rest. Else it *does not hold*.

# %%
from helpers.directions import ablation_of, covariance_directions

removal = {}
for name, one in tqdm(studies.items(), desc="removal"):
    cost = removal[name] = one.meter.measure(ablation_of(one.model, one.direction, one.first))
    if name == REAL:
        calm = harmless_stream
    else:
        calm = read_last(one.model, one.tokenizer, glassbox_prompts("harmless", n=24, split="train"), ["resid_pre"])[
            "resid_pre"
        ][:, 4]
    one.luck = covariance_directions(calm, 20)
    small = fresh(
        CostMeter(
            one.model, one.tokenizer, one.meter.meter.harmful[:: 4 if name == REAL else 1], one.meter.meter.harmless[:1]
        )
    )
    ours = small.odds(ablation_of(one.model, one.direction, one.first)).mean()
    drawn = odds_of_each(small, [partial(ablation_of, one.model, r, one.first) for r in one.luck]).mean(1)
    low, high = mean_interval(cost.refused)
    before, after = one.intact.row(), cost.row()
    fine = (
        whole(cost, one.intact)
        and after["facts known"] >= before["facts known"] - 0.1
        and np.mean(drawn <= ours) <= 0.05
    )
    perplexity = f", perplexity {before['perplexity']:.0f} → {after['perplexity']:.0f}" if name == REAL else ""
    findings.add(
        FINDINGS[3], name, "harmful refused, direction cut", f"{before['refused']:.0%} → {after['refused']:.0%}", (low, high),
        f"over-refused {before['over-refused']:.0%} → {after['over-refused']:.0%}, facts {before['facts known']:.0%} → {after['facts known']:.0%}, KL {abs(cost.kl):.2f}{perplexity}; {np.mean(drawn <= ours):.0%} of 20 random directions as low",
        "holds" if fine and after["refused"] <= 0.1 else "holds in part" if fine and after["refused"] <= before["refused"] / 2 else "does not hold", fmt="{:.0%}",
    )  # fmt: skip
assert findings.missing(MODELS) == []

# %% [markdown]
# ### The table

# %%
table = findings.table()
table.style.set_uuid("findings").set_properties(**{"text-align": "left", "white-space": "normal"})

# %%
print(table.verdict.unstack().reindex(FINDINGS)[MODELS].to_string())
held_all = [m for m in MODELS if (table.verdict.xs(m, level="model") == "holds").all()]
print("\nall four hold in:", ", ".join(held_all) or "none of them")

# %% [markdown]
# Read it by columns first: is there a model in which all four hold? Then by rows: which findings hold in every model, also in `distributed`, where nothing sits in one place? Would you call them signs of localisation? And then look at `entangled` and
# `redundant`. In lesson 05 the one lost its knowledge together with its neurons, and the other outlived the loss of its first path. Cut the *direction* instead, and both fall like the rest, at no such price.
#
# So far the case for the prosecution. The rest of the lesson hears the other side.
#
# ## 6 · Does a place tell where to edit?
#
# Hase et al. (2023) asked it of facts: they traced where a fact sits, edited each layer, and found that the one tells next to nothing about the other. The same for refusal: for every layer, how much refusal is lost **without
# its MLP**, and how much **a small training edit of that MLP** removes (three steps, towards answering the harmful request as its twin is answered; nothing harmful is learnt).
#
# A colleague has the answer already: a positive correlation, by zero ablation. It is Pearson's, and **one layer makes it**.
#
# {{exercise 06.4}}
#
# `x` and `y` are arrays with one value a layer. Return three numbers: their *rank* correlation, and the least and the most of it with any one layer left out. `ranks(values)` gives ranks.


# %% exercise="06.4"
from helpers.localization import ranks


def my_correlation(x, y):
    """(rank correlation, the least, the most with one place left out)."""

    ### BEGIN SOLUTION
    ### STUB rho = np.corrcoef(x, y)[0, 1]
    ### STUB return rho, rho, rho
    def rho(a, b):
        return float(np.corrcoef(ranks(a), ranks(b))[0, 1])

    left = [rho(np.delete(x, i), np.delete(y, i)) for i in range(len(x))]
    return rho(x, y), min(left), max(left)
    ### END SOLUTION


# %%
correlation_of = check("06.4", my_correlation)

# %%
from helpers.circuit_weights import Circuit, random_circuit, weight_masks
from helpers.layer_edits import edit_places, layer_ablations, layer_places
from helpers.localization import rank_correlation
from helpers.node_effects import patch_nodes

ABLATIONS = ("resample", "mean", "zero")
layers = list(range(1, n_layers, 2))
one = studies[REAL]
locate = Twins(model, tokenizer, some_twins("method", 10))  # six of these train the edits as well
lost_without_layer = layer_ablations(locate, layers, ABLATIONS, each=progress("ablating layers"))
layer_edit = edit_places(
    one.propose, one.judge, layer_places(model, layers), rate=5e-4, steps=3, each=progress("editing layers")
)
edit_by_pair = np.array([layer_edit[layer][0] for layer in layers])  # [layer, pair]
edited = edit_by_pair.mean(1)

box = studies["concentrated"]
heads = [Node("head", i, h) for i in range(6) for h in range(8)]
box_places = {node: weight_masks(box.model, Circuit(decision_components=((node.layer, node.index),))) for node in heads}
box_lost = patch_nodes(box.propose, heads)  # [head, pair]
box_edit = edit_places(box.propose, box.judge, box_places, rate=1e-3, steps=6, each=progress("editing heads"))
box_edited = np.array([box_edit[node][0] for node in heads])

# %%
rows = []
for name, x, y in (
    ("box, heads, resample", box_lost, box_edited),
    *((f"real, layers, {kind}", lost_without_layer[kind], edit_by_pair) for kind in ABLATIONS),
):
    ranked_by, (rho, least, most) = rank_correlation(x, y), correlation_of(x.mean(1), y.mean(1))
    rows.append({"where": name, "places": len(x), "rank correlation": rho, "low": ranked_by.low, "high": ranked_by.high, "p": ranked_by.p,
                 "least, one left out": least, "most": most, "Pearson": np.corrcoef(x.mean(1), y.mean(1))[0, 1]})  # fmt: skip
agreement = pd.DataFrame(rows).set_index("where")
agreement.round(2)

# %%
fig, axes = figure(1, 2, size=(11.6, 4.2))
ours = lost_without_layer["resample"].mean(1)
limits = np.array([mean_interval(layer_edit[layer][0]) for layer in layers])
axes[0].errorbar(ours, edited, yerr=np.abs(limits.T - edited), fmt="o", color=HARMFUL, ecolor=CONTROL, capsize=2)
for x, y, layer in zip(ours, edited, layers, strict=True):
    axes[0].annotate(str(layer), (x, y), (4, 4), textcoords="offset points", size=8)
axes[0].set(
    xlabel="log-odds lost without the MLP (resample)",
    ylabel="log-odds lost by the edit",
    title="the real model, by layer",
)
truth_heads = {Node("head", *p) for p in box.truth.heads}
for inside, color, marker, label in ((False, CONTROL, "x", "other heads"), (True, HARMFUL, "o", "the circuit's heads")):
    at = [i for i, node in enumerate(heads) if (node in truth_heads) == inside]
    axes[1].scatter(box_lost[at].mean(1), box_edited[at].mean(1), c=color, marker=marker, s=50, label=label)
axes[1].set(
    xlabel="log-odds lost without the head", ylabel="log-odds lost by the edit", title="the box concentrated, by head"
)
axes[1].legend()
row = agreement.loc["real, layers, resample"]
show(
    fig,
    alt=f"Two scatter plots of an edit's success against ablation: layers of the real model, rank correlation {row['rank correlation']:.2f}; heads of a box, {agreement['rank correlation'].iloc[0]:.2f}.",
    caption=f"Rank correlation, real model: {row['rank correlation']:+.2f} ({row.low:+.2f} to {row.high:+.2f}, {len(layers)} layers); box: {agreement['rank correlation'].iloc[0]:+.2f} ({agreement.low.iloc[0]:+.2f} to {agreement.high.iloc[0]:+.2f}, {len(heads)} heads). "
    f"Largest KL of an edit on harmless twins: {max(kl for _, kl in layer_edit.values()):.2f}.",
)  # fmt: skip
reveal("06.p2", row["rank correlation"])

# %% [markdown]
# Had the place told where to edit, both clouds would rise to the right. In the box we know the heads that *matter*; the question was whether they are the heads that can be *taught*. There look at the picture, not at the correlation: nearly all other heads cost next to nothing, so it is mostly about the order of zeros. On the real model
# fifteen layers and ten pairs give a wide interval: read its two ends in the caption. Everything between them is possible, and that is more than weak correlations; only an agreement beyond the upper end speaks against the data. And mind the largest KL there: where it lies over 0.5, that edit has changed more than refusal. Look which layers can be taught best, and what an edit of a late layer can
# still reach. And compare the column *Pearson* with the rank correlations: where they differ, a few layers make the difference.
#
# ### Random places
#
# Wang and Veitch (2025) sharpen the question: if an edit at the place works, would an edit *anywhere* have worked? Each place deserves **its own best strength**; one rate for all may suit only one of them. On the box the true circuit, and 20
# sets of as many random weights of the same layers; on the real model the 100 neurons of the upper layers with the largest effect.

# %%
RATES = (3e-4, 1e-3, 3e-3)
sets = {"circuit": weight_masks(box.model, box.truth)} | {
    i: weight_masks(box.model, random_circuit(box.model, box.truth, i)) for i in range(20)
}
box_random = {
    rate: edit_places(box.propose, box.judge, sets, rate=rate, steps=6, each=progress("random places"))
    for rate in RATES
}
upper = [(p.layer, p.index) for p in studies[REAL].parts if p.kind == "neuron" and p.layer >= first][:100]
found = Circuit(evaluation_neurons=tuple(upper))
real_sets = {"found": weight_masks(model, found)} | {
    i: weight_masks(model, random_circuit(model, found, i)) for i in range(4)
}
by_rate = [
    edit_places(
        studies[REAL].propose, studies[REAL].judge, real_sets, rate=rate, steps=3, each=progress("random places")
    )
    for rate in (3e-3, 1e-2)
]
real_random = {name: max((one[name] for one in by_rate), key=lambda edit: edit[0].mean()) for name in real_sets}

# %%
fig, axes = figure(1, 2, size=(11.6, 4.0))
for place, rate in enumerate(RATES):
    drawn = [box_random[rate][i][0].mean() for i in range(20)]
    axes[0].scatter([place] * 20, drawn, c=CONTROL, marker="x", s=40, label="20 random sets" if not place else None)
    axes[0].scatter(
        [place],
        [box_random[rate]["circuit"][0].mean()],
        c=HARMFUL,
        s=80,
        edgecolors="#222222",
        label="the true circuit" if not place else None,
    )
axes[0].axhline(box.judge.odds().mean(), color="#555555", linestyle=":", linewidth=1.4)
axes[0].set_xticks(range(len(RATES)), [f"{rate:g}" for rate in RATES])
axes[0].set(xlabel="learning rate", ylabel="log-odds lost by the edit", title="the box concentrated")
axes[0].legend(loc="lower right")
names = list(real_sets)
middle = [real_random[name][0].mean() for name in names]
spans = np.array([mean_interval(real_random[name][0]) for name in names])
axes[1].errorbar(range(len(names)), middle, yerr=np.abs(spans.T - middle), fmt="none", ecolor="#555555", capsize=3)
axes[1].scatter([0], middle[:1], c=HARMFUL, s=80, edgecolors="#222222")
axes[1].scatter(range(1, len(names)), middle[1:], c=CONTROL, marker="x", s=60)
axes[1].set_xticks(range(len(names)), ["found", *(f"random {i + 1}" for i in names[1:])], rotation=30, size=9)
axes[1].set(title="the real model, 100 neurons each, at the better of two rates")
as_much = {
    rate: np.mean([box_random[rate][i][0].mean() >= box.judge.odds().mean() for i in range(20)]) for rate in RATES
}
show(
    fig,
    alt="Left, log-odds lost by edits of the box's circuit and of 20 random sets at three rates; right, of 100 found neurons of the real model and four random sets: " + ", ".join(f"{m:.1f}" for m in middle) + ".",
    caption="Dotted: what it takes to end refusal in the box. Random sets that end it: " + "; ".join(f"rate {rate:g} {share:.0%}" for rate, share in as_much.items())
    + f". Real model: found {middle[0]:.2f}, random {min(middle[1:]):.2f} to {max(middle[1:]):.2f}, at a KL of {real_random['found'][1]:.2f} and {np.mean([real_random[i][1] for i in names[1:]]):.2f}.",
)  # fmt: skip
print(f"true circuit of the box at the smallest rate: {box_random[RATES[0]]['circuit'][0].mean():.1f} log-odds lost; "
      f"random sets at their best rate: {np.mean([max(box_random[r][i][0].mean() for r in RATES) for i in range(20)]):.1f} on average")  # fmt: skip

# %% [markdown]
# At one small rate the true circuit stands out. Let the random sets choose their own rate, and look again. That an edit works is **no evidence for a place**, unless nobody else can do it as cheaply; *how cheaply* is what the place decides, if it decides
# anything. (Four random sets on the real model are few: the best that could be said is *one of five*. And look at the KL in the caption: how much of an edit is an edit of refusal?)
#
# ## 7 · One direction?
#
# Section 5 cut one direction. Wollschläger et al. (2025) find several, independent of each other, and whole cones between them (a cone: every mixture of its directions carries refusal too). A colleague confirms it at once: **a second direction, as good as the first**.
#
# {{exercise 06.5}}
#
# `stream(cut)` gives the activations of harmful and harmless prompts, `[prompt, d_model]` each, with the directions of the list `cut` ablated in the layers above. Return the second direction: of length 1, at right angles to `first`, and fitted on
# a model in which `first` is cut.


# %% exercise="06.5"
def my_second(stream, first):
    """The second direction, a unit [d_model]."""
    ### BEGIN SOLUTION
    ### STUB harmful, harmless = stream([])
    ### STUB left = harmful.mean(0) - harmless.mean(0)
    ### STUB return left / left.norm()
    harmful, harmless = stream([first])
    left = harmful.mean(0) - harmless.mean(0)
    left = left - (left @ first) * first
    return left / left.norm()
    ### END SOLUTION


# %%
second_of = check("06.5", my_second)

# %%
from helpers.next_directions import between, successive_directions, without_directions


def stream(cut):
    """Harmful and harmless activations before layer `source`, with these directions cut from layer `first` on."""
    with without_directions(model, cut, first):
        x = read_last(model, tokenizer, sides[1] + sides[0], ["resid_pre"])["resid_pre"][:, source]
    return x[:n], x[n:]


second = second_of(stream, direction)
few_meter = fresh(CostMeter(model, tokenizer, asked[::2], plain[:6]))
cuts = {"none": [], "first": [direction], "second": [second], "both": [direction, second]}
makers = [partial(without_directions, model, cut, first) for cut in cuts.values()]
cut_costs = dict(zip(cuts, costs_of_each(few_meter, makers), strict=True))
luck = [partial(ablation_of, model, r, first) for r in studies[REAL].luck[:10]]
random_cuts = odds_of_each(few_meter, luck).mean(1)
box_twins = {"first": [], "second": [], "both": [], "random, lowest": [], "random, mean": []}
for kind in KINDS:
    one = studies[kind]
    some = glassbox_prompts("pairs", n=32, split="train")
    d = successive_directions(one.model, one.tokenizer, [p.harmful for p in some], [p.harmless for p in some], 4, 2)
    for name, cut in (("first", d[:1]), ("second", d[1:]), ("both", d)):
        box_twins[name].append(one.meter.odds(without_directions(one.model, cut)).mean())
    by_luck = odds_of_each(one.meter.meter, [partial(ablation_of, one.model, r) for r in one.luck]).mean(1)
    box_twins["random, lowest"].append(min(by_luck))
    box_twins["random, mean"].append(np.mean(by_luck))
rows = {name: {REAL: cost.odds.mean(), "KL, real": cost.kl} for name, cost in cut_costs.items()}
rows |= {"random, lowest": {REAL: min(random_cuts)}, "random, mean": {REAL: np.mean(random_cuts)}}
for name, row in box_twins.items():
    rows[name] |= dict(zip(KINDS, row, strict=True))
rows["none"] |= {kind: studies[kind].intact.odds.mean() for kind in KINDS}
pd.DataFrame(rows).T[[*MODELS, "KL, real"]].rename_axis("cut").round(2)

# %% [markdown]
# The table gives mean refusal log-odds. Does the second one do anything by itself? Compare it with the last two rows before you answer: random
# directions, cut in the same way (20 in a box, 10 in the real model). The boxes are narrow, and there any direction takes something. Ask for this control
# wherever you read of a second direction. Does it add to the first? And then the question of the cone: what lies *between* the two? If refusal lay along one axis alone, a direction tilted by an angle would lose its grip
# in the same way whatever it is tilted towards. So tilt the first one towards the second, and towards random directions at right angles to it.

# %%
ANGLES = (-60, -30, 0, 30, 60)
tilted_meter = fresh(CostMeter(model, tokenizer, asked[::3], plain[:1]))


def tilted(others):
    """Refusal log-odds with the first direction, tilted by each angle towards each other one, cut: [other, angle]."""
    leaning = [between(direction, other, angle) for other in others for angle in ANGLES]
    odds = odds_of_each(tilted_meter, [partial(ablation_of, model, r, first) for r in leaning])
    return odds.mean(1).reshape(len(others), len(ANGLES))


side_ways = [unit(r - (r @ direction) * direction) for r in studies[REAL].luck[:3]]
(towards, *luck) = tilted([second, *side_ways])
luck = np.array(luck)
fig = lines_with_band(
    ANGLES, {"towards the second": (towards,), "towards random ones, mean of 3": (luck.mean(0),)},
    band=("random, lowest to highest", luck.min(0), luck.max(0)), xlabel="angle from the first direction, degrees", ylabel="refusal log-odds, harmful",
)  # fmt: skip
fig.axes[0].axhline(studies[REAL].threshold, color="#555555", linestyle=":", linewidth=1.4)
fig.axes[0].set_xticks(ANGLES)
show(
    fig,
    alt="Lines of refusal log-odds by angle. Towards the second direction: " + ", ".join(f"{a}: {v:.1f}" for a, v in zip(ANGLES, towards, strict=True)) + "; towards random ones: " + ", ".join(f"{v:.1f}" for v in luck.mean(0)) + ".",
    caption=f"Real model, {len(tilted_meter.harmful)} test requests; intact {tilted_meter.odds().mean():.1f}; dotted: the threshold.",
)  # fmt: skip
print(
    f"at 60 degrees: towards the second {towards[4]:.1f}, away from it {towards[0]:.1f}, towards random ones {luck[:, 4].min():.1f} to {luck[:, 4].max():.1f}"
)

# %% [markdown]
# A cone would show as a line that stays low on one side, *below the band*: directions there work as well, though their cosine with the first is small. A line inside of the band says only that the grip is lost slowly, whatever
# one tilts towards. Wollschläger et al. search for their directions by gradient, in larger models; ours is small, its refusal was taught by one adapter, and a difference of means finds what is strongest, not all that would do.
#
# ## 8 · No role?
#
# Single heads, now. In the box `redundant` a colleague cut the head that decides, saw refusal stay, and **reported that the head has no role**.
#
# {{exercise 06.6}}
#
# `lost(parts)` gives the log-odds lost when the parts of a list are cut together (0 for the empty list). Return the most that `part` adds to a loss: by itself, or with any one of the `others` cut already.


# %% exercise="06.6"
def my_role(lost, part, others):
    """The most that a part adds to what is lost, alone or with one other cut."""
    ### BEGIN SOLUTION
    ### STUB return lost([part])
    return max(lost([*given, part]) - lost(given) for given in ([], *([other] for other in others)))
    ### END SOLUTION


# %%
role_of = check("06.6", my_role)

# %%
from helpers.self_repair import Cuts, cut_response, together

redundant = studies["redundant"]
redundant_heads = [Node("head", *p) for p in (*redundant.truth.heads, *redundant.truth.backup_heads)]


losses = {name: Cuts(studies[name].judge) for name in ("redundant", REAL)}  # each set of parts is run once


def lost_in(name):
    """The function that the exercise asks for."""
    return lambda parts: float(losses[name](parts).mean())


top = [part for part in studies[REAL].parts if part.kind == "head"][:4]
rows = []
for name, some in (("redundant", redundant_heads), (REAL, top)):
    for head in some:
        others = [h for h in some if h != head]
        label = studies[name].truth.labels.get(head, "") if studies[name].truth else ""
        rows.append({"model": name, "head": f"{head.layer}.{head.index} {label}".strip(), "lost alone": lost_in(name)([head]),
                     "its role": role_of(lost_in(name), head, others)})  # fmt: skip
roles = pd.DataFrame(rows).set_index(["model", "head"])
roles.round(2)

# %% [markdown]
# (In `redundant`, 3.2 is the head that decides and 4.1 its backup. The largest of several figures is never below the first: on the real model wait for the intervals of the last table.) And who steps in? Read what every *later* part writes onto the refusal direction, with the head cut and without. In the box we know who should answer. In the real model we cut its strongest head.

# %%
main = Node("head", *redundant.truth.decision_components[0])
answers = {
    "redundant": cut_response(redundant.judge, [main], redundant.truth.direction),
    REAL: cut_response(studies[REAL].judge, [top[0]], direction),
}
direct = cut_response(studies[REAL].judge, [top[0]])
fig, axes = figure(1, 2, size=(11.6, 4.0))
for ax, (name, answer) in zip(axes, answers.items(), strict=True):
    t = answer.table()
    for part, color, marker in (("attention", HARMFUL, "o"), ("mlp", HARMLESS, "s")):
        own = t[t.part == part]
        ax.errorbar(
            own.layer,
            own.change,
            yerr=np.abs(own[["low", "high"]].to_numpy().T - own.change.to_numpy()),
            fmt=marker,
            color=color,
            label=part,
            capsize=2,
        )
    ax.axhline(0, color="#555555", linestyle=":", linewidth=1.4)
    ax.set(
        title=f"{name}: the head itself {answer.direct.mean():+.2f}",
        xlabel="layer",
        ylabel="change of its write along the direction",
    )
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend()
up = answers["redundant"].table().nlargest(1, "change").iloc[0]
show(
    fig,
    alt=f"Two panels, by layer, of how later parts' writes along the refusal direction change after a head is cut. In the box the largest rise is layer {up.layer}'s {up.part}, {up.change:+.2f}; in the real model rises add up to {answers[REAL].repaired:.2f}, falls to {answers[REAL].passed_on:.2f}.",
    caption=f"Test pairs, 95% intervals. Box: refusal log-odds change by {answers['redundant'].total.mean():+.1f}. Real model, head {top[0].layer}.{top[0].index}: {direct.total.mean():+.2f} in all; by its own write onto the answer {direct.direct.mean():+.2f}, later parts {direct.passed_on:+.2f} and {direct.repaired:+.2f}.",
)  # fmt: skip
pairs_of_heads = together(losses[REAL], top)
summed = sum(lost_in(REAL)([h]) for h in top)
jointly = lost_in(REAL)(top)
print(
    f"the four strongest heads of the real model: {summed:.2f} log-odds lost one at a time, added up; {jointly:.2f} together"
)
pairs_of_heads.assign(
    one=[f"{h.layer}.{h.index}" for h in pairs_of_heads.one],
    other=[f"{h.layer}.{h.index}" for h in pairs_of_heads.other],
).round(2)

# %% [markdown]
# Points above zero make up for the cut, points below pass it on. (The panels are in units of the stream; the caption's figures for the real model are log-odds, each part as if it alone had changed, so they need not add up.) In the box the backup more than makes up for it, so that the box refuses *harder* without its deciding head. In the real model, see which sign prevails: a head whose loss is passed on
# by all that comes after it is no redundant one. And an *excess* above zero in the table is what two heads that stand in for each other would show, one below zero what two in one line would; a threshold behind them can do either. Several pairs are looked at: an interval that only just clears zero shows little.
#
# ## 9 · And the kind of ablation?
#
# Last, the oldest doubt. Section 6 has ablated the layers' MLPs in three ways. Do they at least agree with each other?

# %%
kinds_agree = pd.DataFrame(
    [[rank_correlation(lost_without_layer[a].mean(1), lost_without_layer[b].mean(1)).rho for b in ABLATIONS] for a in ABLATIONS],
    index=ABLATIONS, columns=ABLATIONS,
)  # fmt: skip
fig = lines_with_band(
    layers, {kind: (row.mean(1),) for kind, row in lost_without_layer.items()}, xlabel="layer of the MLP ablated", ylabel="refusal log-odds lost",
)  # fmt: skip
fig.axes[0].set_yscale("symlog", linthresh=1)
fig.axes[0].yaxis.set_major_formatter(lambda x, _: f"{x:g}")
tops = {kind: layers[int(row.mean(1).argmax())] for kind, row in lost_without_layer.items()}
show(
    fig,
    alt="Lines of log-odds lost without each layer's MLP for three kinds of ablation. The most important layer: " + ", ".join(f"{k} {v}" for k, v in tops.items()) + ".",
    caption=f"Real model, {len(locate)} pairs. The layer that matters most: " + ", ".join(f"by {k} layer {v}" for k, v in tops.items())
    + ". Rank correlations: " + ", ".join(f"{a} and {b} {kinds_agree.loc[a, b]:.2f}" for a, b in (("resample", "mean"), ("resample", "zero"), ("mean", "zero"))) + ".",
)  # fmt: skip

# %% [markdown]
# *Where it sits* is an answer to a question that names its ablation. Without that it is none.
#
# ## 10 · Fifty neurons
#
# Here is the question that this course was made around. Answer it first.

# %%
quiz("06.q1")

# %% [markdown]
# And the same of the models that you have measured. What did *fifty* neurons do, and what did the set do whose joint ablation was tried?

# %%
box = studies["concentrated"]
own = {
    f"{REAL}, first 50 of the ranking": (fifty, studies[REAL].intact, 50 / studies[REAL].size),
    f"{REAL}, {few[REAL].tried:,} of the ranking": (
        few[REAL].cost,
        studies[REAL].intact,
        few[REAL].tried / studies[REAL].size,
    ),
    f"concentrated, {few['concentrated'].tried} of the ranking": (
        few["concentrated"].cost,
        box.intact,
        few["concentrated"].tried / box.size,
    ),
    f"entangled, {few['entangled'].tried} of the ranking": (
        few["entangled"].cost,
        studies["entangled"].intact,
        few["entangled"].tried / studies["entangled"].size,
    ),
}


def which(cost, before):
    """The choice of the question that a measurement speaks for."""
    lost = before.refused.mean() - cost.refused.mean()
    if not whole(cost, before) or cost.knows.mean() < before.knows.mean() - 0.25:
        return "it stops working, in part"
    if lost < -0.05:
        return "it becomes safer"
    if lost < 0.1:
        return "nothing changes"
    return (
        "refusals drop sharply, capability stays"
        if cost.refused.mean() < before.refused.mean() / 2
        else "refusals drop somewhat"
    )


pd.DataFrame(
    [
        {"ablated": name, "share of all neurons": f"{share:.2%}", "refused": f"{before.refused.mean():.0%} → {cost.refused.mean():.0%}",
         "facts known": f"{before.knows.mean():.0%} → {cost.knows.mean():.0%}", "KL": round(abs(cost.kl), 2), "what it speaks for": which(cost, before)}
        for name, (cost, before, share) in own.items()
    ]
).set_index("ablated")  # fmt: skip

# %% [markdown]
# Four rows, and not one answer. Whoever asks the question has to say *which* fifty, *how they were identified*, and *in which model*. Fifty of a 7B model's neurons are 0.014%; the most that our table can say about such a model is what to measure.
#
# ## Beside the papers
#
# The middle column is what the papers report; the last is what you have just measured, on one small model.

# %%
pd.DataFrame(
    [
        ("Chen et al. 2024: safety neurons, several aligned models", "about 5% of the neurons carry over 90% of the safety gain when patched", f"{few[REAL].tried / studies[REAL].size:.0%} ablated: {studies[REAL].intact.refused.mean():.0%} → {few[REAL].cost.refused.mean():.0%} refused"),
        ("Hase et al. 2023: facts, GPT-J", "where a fact is traced tells little about where to edit it", f"refusal, {len(layers)} layers: rank correlation {agreement['rank correlation'].iloc[1]:+.2f} ({agreement.low.iloc[1]:+.2f} to {agreement.high.iloc[1]:+.2f})"),
        ("Wang and Veitch 2025: truthfulness", "optimal edits at random places can do as well", f"real model: found {middle[0]:.2f}, random {min(middle[1:]):.2f} to {max(middle[1:]):.2f} log-odds lost"),
        ("Wollschläger et al. 2025: refusal", "several directions, and cones of them", f"60 degrees towards the second: {towards[4]:.1f}, towards random ones {luck[:, 4].mean():.1f} log-odds"),
        ("McGrath et al. 2023: the hydra effect", "later layers make up for an ablated one", f"after one head: later parts {direct.passed_on:+.2f} and {direct.repaired:+.2f} log-odds"),
    ],
    columns=["who", "what they report", "here"],
).style.hide(axis="index").set_uuid("papers").set_properties(**{"text-align": "left", "white-space": "normal"})  # fmt: skip

# %% [markdown]
# ## What this shows, and what it does not
#
# **It shows**, for five models, which of the four findings hold by rules that were fixed beforehand; that *needed* and *enough* are two sizes; and that on the real model no agreement could be shown between where ablation costs most and where training does most.
#
# **It does not show**
#
# * that no smaller set of neurons exists: each count is a bound for one ranking;
# * that a layer's ablation and its edit are unrelated: fifteen layers of one model, one rate, one objective;
# * that random places are as good: four draws on the real model, and two strengths;
# * how wide a cone is, or how many directions there are: one plane was looked at;
# * that a large model has the same weak points. Its safety was taught at length, ours by an adapter in minutes.
#
# ## Quiz

# %%
quiz("06")

# %% [markdown]
# ## Where to read on
#
# * **Hase, Bansal, Kim, Ghandeharioun (2023)**, *Does Localization Inform Editing?* *Ours differs:* a behaviour instead of facts, and a few steps at one rate.
# * **Wang, Veitch (2025)**, *Does Editing Provide Evidence for Localization?* *Ours differs:* weights are trained, not heads' outputs, towards the harmless twin's answer.
# * **Wollschläger et al. (2025)**, *The Geometry of Refusal in Large Language Models: Concept Cones and Representational Independence*. *Ours differs:* differences of means fitted one after the other; they optimise directions by gradient.
# * **Chen et al. (2024)**, *Finding Safety Neurons in Large Language Models*. *Ours differs:* ablation in the tuned model; they patch safety back into the untuned one.
# * **McGrath, Rahtz, Kramár, Mikulik, Legg (2023)**, *The Hydra Effect*; **Rushing, Nanda (2024)**, *Explorations of Self-Repair in Language Models*. Who steps in, and how incompletely.
#
# **Next:** lesson 07 tries to build models whose row in the table reads otherwise.
