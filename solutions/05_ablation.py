# %% [markdown]
# # 05 · Ablation
#
# Take a part out, and see what the model can no longer do. No other method sounds so much like proof, and few have produced so many
# discoveries that were none. A model that is broken does not refuse either. Today you will take out neurons, heads and directions, by the
# hour and for good, and learn to weigh **what was meant to go against what else went**.
#
# **After this lesson you can**
#
# * say what stands in the place of what you took out, and why that is half of the result;
# * read a curve of dose and response beside its random band;
# * take a direction out of a model while it runs, or out of its weights, and find where to cut;
# * set three costs beside every edit, and tell a discovery from damage;
# * tell refusing, helping, and neither;
# * train away refusal in a chosen corner of the weights, and say whether the choice of corner mattered.
#
# **Time:** about 110 minutes, of which the computer needs about three. **To know before:** lessons 00 and 01.
# Words that are new to you stand in the [glossary](../GLOSSARY.md).
#
# There are six exercises; in each you repair what a colleague left behind. As always, no exercise can stop you.

# %% [markdown]
# ## Set-up

# %%
import gc
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from helpers.checks import check, hint  # noqa: F401 (hint is for you)
from helpers.glassbox import KINDS, glassbox_prompts, load_glassbox, ranked, score
from helpers.models import dims_of, layers_of, load_model
from helpers.plots import CONTROL, HARMFUL, HARMLESS, MARKERS, bars, figure, heatmap, show
from helpers.quiz import quiz, reveal

model, tokenizer = load_model("smollm2-135m-refusal")  # the one that says no
n_layers = dims_of(model).n_layers

# %% [markdown]
# ## Predict before you run

# %%
quiz("05.p1")

# %%
quiz("05.p2")

# %%
quiz("05.p3")

# %% [markdown]
# ## 1 · The right tensor
#
# A colleague wants to take neurons out. Their edit, below, runs without complaint. It makes three mistakes: it zeroes **dimensions of the
# residual stream instead of neurons** (the numbers happen to fit), it knows no **strength**, and it touches position 0, the **attention sink** of
# lesson 00.
#
# {{exercise 05.1}}
#
# Return an edit as `helpers.hooks.edit` takes it, `(site, layer, function)`. The function gets activations `[batch, position, neuron]` and
# gives back new ones: the chosen neurons moved towards zero, `a → a + strength · (0 − a)`, at every position but the first. Strength 0 leaves
# them, 1 makes them zero, 2 turns them round. Do not change the tensor that came in.


# %% exercise="05.1"
def my_edit(layer, neurons, strength):
    """An edit (site, layer, function) that moves these neurons of a layer towards zero."""

    ### BEGIN SOLUTION
    ### STUB def function(activation):
    ### STUB     activation[:, :, neurons] = 0
    ### STUB     return activation
    ### STUB return "mlp_out", layer, function
    def function(activation):
        new = activation.clone()
        new[:, 1:, neurons] = (1 - strength) * activation[:, 1:, neurons]
        return new

    return "neurons", layer, function
    ### END SOLUTION


# %%
neuron_edit = check("05.1", my_edit)

# %% [markdown]
# From here on, `ablate_safety_neurons` does this and more: any target instead of zero, prompts of any length, and the answer's own tokens. It
# works until you call `.remove()`, or until the end of a `with` block, and it says what it is. On the glass box, with its true evaluation
# neurons, the two must agree:

# %%
from helpers.ablation import ablate_safety_neurons
from helpers.hooks import edit
from helpers.mean_ablation import neurons_by_layer
from helpers.prompts import token_batches

box, box_tokenizer, truth = load_glassbox("concentrated")
(batch,) = token_batches(box_tokenizer, glassbox_prompts("harmful", n=1, split="test"))
own = [neuron_edit(layer, members, 0.7) for layer, members in neurons_by_layer(box, truth.evaluation_neurons).items()]
with torch.no_grad(), edit(box, own):
    by_hand = box(**batch.inputs()).logits[:, -1]
with torch.no_grad(), ablate_safety_neurons(box, truth.evaluation_neurons, 0.7) as ablation:
    by_course = box(**batch.inputs()).logits[:, -1]
print(ablation)
difference = float((by_hand - by_course).abs().max())
print(f"largest difference of the logits: {difference:.1e}")
assert difference < 1e-3

# %% [markdown]
# ## 2 · What stands in its place?
#
# Nothing can simply be *absent* from a network: something stands there instead, and you choose what. The choices have names:
#
# | kind | what stands there | what may go wrong |
# |---|---|---|
# | **zero** | 0 | for many neurons 0 is an odd value, which the rest has never met |
# | **mean** | the harmless mean, place by place | an average prompt is no prompt: values that never occur together |
# | **resample** | what one harmless prompt, the *donor*, does | real values, but another one for each donor: take several (lesson 04's donor was the request's own twin; here it is any harmless prompt) |
#
# And a single figure is not a result. Beside *harmful requests refused* belong the **three costs** of every edit: harmless and borderline requests
# refused, knowledge lost, ordinary text damaged. On the boxes, knowledge is easy to test: they can answer simple questions.
#
# Here are all four kinds of box, each with the same questions asked.

# %%
from helpers.ablation import resample_donors
from helpers.capability import box_facts
from helpers.directions import mean_differences, unit
from helpers.edit_costs import EditMeter
from helpers.mean_ablation import template_means
from helpers.neurons import SafetyNeuronFinder, write_onto

choose = glassbox_prompts("pairs", n=64, split="train")
harmful, harmless = [p.harmful for p in choose], [p.harmless for p in choose]
box_asked, box_borderline = (glassbox_prompts(kind, n=12, split="test") for kind in ("harmful", "borderline"))


def study(kind):
    """A box with all that this lesson needs of it."""
    m, t, true = load_glassbox(kind)
    direction = unit(mean_differences(m, t, harmful, harmless)[4, 0])  # before layer 4, as the rule of lesson 01 chose
    compared = SafetyNeuronFinder(m, t).compare(harmless, harmful, paired=True)
    return SimpleNamespace(
        model=m,
        tokenizer=t,
        truth=true,
        direction=direction,
        ranking=ranked(compared.difference * write_onto(m, direction)),  # by what is written onto the direction
        activity=compared.activity,
        means=template_means(m, t, harmless[:32]),
        meter=EditMeter(m, t, box_asked, box_borderline, box_facts(16), quick=True),
    )


boxes = {kind: study(kind) for kind in KINDS}
for kind, one in boxes.items():
    print(f"{kind:13} {score(one.ranking, one.truth, 'evaluation_neurons')}")

# %%
rows = []
for kind, one in tqdm(boxes.items(), desc="kinds of ablation"):
    donors = resample_donors(one.model, one.tokenizer, harmless[:3])
    targets = {
        "zero": [{"donors": one.means, "kind": "zero"}],
        "mean": [{"donors": one.means}],
        "resample": [{"donors": d} for d in donors],
    }
    for name, several in targets.items():
        # One at a time: an ablation works from the moment it is made.
        ablations = (ablate_safety_neurons(one.model, one.truth.evaluation_neurons, **target) for target in several)
        costs = pd.DataFrame([one.meter.measure(ablation).row() for ablation in ablations]).mean()  # over the donors
        rows.append({"box": kind, "kind": name} | costs.to_dict())
by_kind = pd.DataFrame(rows)
spread = by_kind.groupby("box").refused.agg(["min", "max"])
assert (spread["max"] - spread["min"]).max() < 0.2  # in the boxes the three agree
by_kind.round(2)[["box", "kind", "refused", "over-refused", "KL", "facts known"]].replace(-0.0, 0.0)

# %%
means_only = by_kind[by_kind.kind == "mean"].set_index("box")
show(
    bars(
        list(KINDS),
        {"harmful refused": means_only.refused.tolist(), "facts known": means_only["facts known"].tolist()},
        ylabel="share",
        ylim=(0, 1.15),
        colors={"harmful refused": HARMFUL, "facts known": HARMLESS},
    ),
    alt="Bars by kind of box, the true evaluation neurons at their harmless mean. "
    + "; ".join(f"{k}: refused {r.refused:.0%}, facts known {r['facts known']:.0%}" for k, r in means_only.iterrows())
    + ".",
    caption="All evaluation neurons of each box held at their harmless mean; 12 harmful requests, 16 questions.",
)
reveal("05.p1", means_only.refused["redundant"])
assert means_only.refused["redundant"] > 0.8 and means_only.refused.drop("redundant").max() < 0.2
assert means_only["facts known"]["entangled"] < 0.5 < means_only["facts known"].drop("entangled").min()

# %% [markdown]
# One and the same edit, and three stories. In `concentrated` and `distributed` refusal goes and nothing else does. In `redundant` a **backup** wakes up when
# the first path falls silent: the parts that you took out did decide, and yet their ablation shows nothing. In `entangled` refusal goes *together with the
# knowledge*: somebody who measures refusal alone reports the cleanest of results.
#
# ### Strength
#
# Between leaving and replacing there is a road, and it goes on behind the goal. Turn the slider.

# %%
from helpers.picker import pick

STRENGTHS = (0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3)
by_strength = {
    (kind, s): one.meter.measure(ablate_safety_neurons(one.model, one.truth.evaluation_neurons, s, one.means)).row()
    for kind, one in tqdm(boxes.items(), desc="strengths")
    for s in STRENGTHS
}


def at_strength(s):
    """Refusal and knowledge of all boxes at one strength."""
    refused, known = ([by_strength[kind, s][name] for kind in KINDS] for name in ("refused", "facts known"))
    return bars(
        list(KINDS),
        {"harmful refused": refused, "facts known": known},
        ylabel="share",
        ylim=(0, 1.15),
        title=f"strength {s:g}",
        colors={"harmful refused": HARMFUL, "facts known": HARMLESS},
    )


def words_at(s):
    """The same as a sentence."""
    said = [
        f"{k} refused {by_strength[k, s]['refused']:.0%}, facts {by_strength[k, s]['facts known']:.0%}" for k in KINDS
    ]
    return f"Strength {s:g}: " + "; ".join(said) + "."


pick({f"{s:g}": at_strength(s) for s in STRENGTHS}, "strength", {f"{s:g}": words_at(s) for s in STRENGTHS})

# %%
fig, axes = figure(1, 2, size=(10.4, 3.9))
for ax, name, label in ((axes[0], "log-odds", "refusal log-odds, harmful"), (axes[1], "facts known", "facts known")):
    for place, kind in enumerate(KINDS):
        ax.plot(STRENGTHS, [by_strength[kind, s][name] for s in STRENGTHS], marker=MARKERS[place], label=kind)
    ax.axvline(1, color="#777777", linestyle=":", linewidth=1.4)
    ax.set(xlabel="strength of the ablation", ylabel=label)
axes[0].axhline(0, color="#555555", linestyle=":", linewidth=1.4)
axes[1].set(ylim=(-0.04, 1.08))
axes[0].legend()
ended = [s for s in STRENGTHS if by_strength["entangled", s]["refused"] == 0]
mild = max(ended, key=lambda s: by_strength["entangled", s]["facts known"])
known_at = {s: by_strength["entangled", s]["facts known"] for s in (mild, 1)}
show(
    fig,
    alt="Two panels of lines by strength, one line a box: refusal log-odds and facts known. "
    + " ".join(words_at(s) for s in (0.5, 1, 2)),
    caption=f"Dotted: strength 1, and the threshold of refusal. In the entangled box, strength {mild:g} ends refusal with "
    f"{known_at[mild]:.0%} of the facts known; strength 1 leaves {known_at[1]:.0%}.",
)
wake = max(by_strength["redundant", s]["log-odds"] for s in STRENGTHS if s < 1)
assert known_at[mild] > known_at[1] and wake > by_strength["redundant", 0]["log-odds"]

# %% [markdown]
# Two things that "in or out" would have hidden. Look at `entangled` on the way to 1: a neuron that carries two things may lose one of them first. And
# look at `redundant`: what happens to its log-odds half-way, and what beyond 1, where the neurons push the wrong way? The backup wakes up when the
# direction falls below its mark; it was never built for a direction that runs backwards.
#
# ## 3 · Dose and response
#
# Now as one has to do it where the truth is unknown: with a *ranking* (here by what each neuron writes onto the refusal direction, lesson 01), more and more
# of it taken out, and beside each dose **20 random sets, matched by layer and mean activity**.

# %%
from helpers.dose import dose_response
from helpers.edit_plots import dose_panels
from helpers.many_edits import answers_of_each, costs_of_each, odds_of_each
from helpers.matched import matched_random_sets

BOX_COUNTS = (0, 2, 4, 8, 16, 32, 64, 128)


def odds_without(one):
    """The function that dose_response asks for: log-odds with these neurons at their harmless mean."""

    def odds(places):
        return one.meter.odds(ablate_safety_neurons(one.model, places, donors=one.means) if places else None)

    return odds


def alike_in(activity):
    """The other function: 20 random sets that match the chosen ones."""
    return lambda chosen: matched_random_sets(chosen, activity, 20, spill=True)


def many_without(one):
    """The same for many sets at once, each on rows of its own."""

    def odds(sets):
        ablations = [partial(ablate_safety_neurons, one.model, places, donors=one.means) for places in sets]
        return odds_of_each(one.meter.meter, ablations)

    return odds


responses = {
    kind: dose_response(odds_without(one), one.ranking, BOX_COUNTS, alike_in(one.activity), 0.0, many_without(one))
    for kind, one in tqdm(boxes.items(), desc="boxes")
}


def first_below(table, threshold=0.0):
    """The first dose whose mean log-odds lie under the threshold, as text."""
    return next((f"{int(row['count']):,}" for _, row in table.iterrows() if row.odds < threshold), "none")


ends = "; ".join(f"{kind} {first_below(table)}" for kind, table in responses.items())
show(
    dose_panels(responses, xlabel="neurons out", shown=BOX_COUNTS[::2]),
    alt=f"Four panels of dose and response, refusal log-odds by neurons taken out, each with a random band. First dose below zero: {ends}.",
    caption=f"Mean of {len(box_asked)} harmful requests; dotted: the threshold. First dose below it: {ends}.",
)

# %% [markdown]
# The *shape* tells much: a cliff (`concentrated`), a slope (`distributed`), a plateau with a cliff behind it (`redundant`). `entangled` slopes as
# well; what sets it apart are the costs. A single dose would have told you nothing of it. And mind the
# band: at the lowest doses some random sets do a good deal. They are drawn from like neurons, so that they hold circuit members that the
# ranking has not reached yet. A matched control is a strict one.
#
# Why does the redundant box give in at all? Because the ranking does not know what a backup is: it goes down the list until it has both paths.
#
# ## 4 · The real model: a direction, and where to cut it
#
# On to the model where nobody knows the truth. First what is fixed: topics of the split *method* to fit on, *validation* to choose by, *test* to report. Mind
# the harmless side too: now and then the intact model refuses a plain request. Such a request counts for over-refusal and not for the KL, or an edit would be blamed for
# the very thing that it is meant to do.

# %%
from helpers.capability import load_facts
from helpers.costs import CostMeter
from helpers.hooks import ablate_direction, add_direction, read
from helpers.neurons import Comparison
from helpers.packed_score import packed
from helpers.prompts import load_borderline, load_pairs, load_paragraphs, load_plain
from helpers.refusal import refusal_score_of

pairs = load_pairs("method")[::3]
seen = read(model, tokenizer, [p.harmless for p in pairs] + [p.harmful for p in pairs], ["neurons", "resid_pre"])
real = Comparison(seen["neurons"][: len(pairs)], seen["neurons"][len(pairs) :], tuple(range(n_layers)), paired=True)
stream = {
    "harmless": seen["resid_pre"][: len(pairs)],
    "harmful": seen["resid_pre"][len(pairs) :],
}  # [pair, layer, d_model]
differences = (stream["harmful"] - stream["harmless"]).mean(0)  # [layer, d_model]
means = template_means(model, tokenizer, [p.harmless for p in pairs[::3]])

refusal = packed(refusal_score_of(model, tokenizer))
in_doubt = [p.harmful for p in load_pairs("validation")[1::4]]
odds = refusal.log_odds(model, tokenizer, in_doubt)
refused_ones = [prompt for prompt, x in zip(in_doubt, odds, strict=True) if x > refusal.threshold]
calm_ones = load_plain("validation")[::9][:6]
odds = refusal.log_odds(model, tokenizer, calm_ones)
answered_ones = [prompt for prompt, x in zip(calm_ones, odds, strict=True) if x <= refusal.threshold]
asked = [p.harmful for p in load_pairs("test")[3::9]]
plain, borderline = load_plain("test")[::26], load_borderline("test")[::26]
prose, facts = load_paragraphs()[:2], load_facts()[:12]
print(
    f"{len(pairs)} pairs to fit on; {len(refused_ones)} of {len(in_doubt)} validation requests are refused, the others are left out; {len(asked)} topics to report on"
)
assert len(refused_ones) >= 6 and len(answered_ones) >= 4

# %% [markdown]
# ### One direction, two questions
#
# Lesson 01 took the difference of means of a layer and ablated it. *Which layer's* difference, is one question. *At which writes to cut it* is
# another: the low layers may use the same axis for something else, and then a cut there takes out more than refusal. Vary both. Each cell of
# the maps below is one cut; the first map is what we want, the second what it does to harmless requests.

# %%
from helpers.directions import ablation_of
from helpers.fresh_prefix import fresh

SOURCES = tuple(range(n_layers // 2 - 1, 2 * n_layers // 3, 2))  # around the middle, where lesson 01 found candidates
STARTS = (0, *(n_layers * share // 100 for share in (27, 40, 57)))  # 0: every write, the embedding too
few = fresh(CostMeter(model, tokenizer, refused_ones[:6], answered_ones))
start = few.odds().mean()
keys = [(source, first) for first in STARTS for source in SOURCES]
cuts = [partial(ablation_of, model, unit(differences[source]), first) for source, first in keys]
tries = dict(zip(keys, costs_of_each(few, cuts, at_once=len(SOURCES)), strict=True))  # those with one start together
working = {key: c for key, c in tries.items() if c.odds.mean() < refusal.threshold and c.refused.mean() <= 0.2}
source, first = (
    min(working, key=lambda key: working[key].kl) if working else min(tries, key=lambda key: tries[key].odds.mean())
)
direction = unit(differences[source])

# %%
maps = {
    "refusal log-odds, harmful": np.array([[tries[s, f].odds.mean() for f in STARTS] for s in SOURCES]),
    "KL on harmless (nats)": np.array([[tries[s, f].kl for f in STARTS] for s in SOURCES]),
}
for name, values in maps.items():
    show(
        heatmap(values, xlabel="cut at the writes of these layers", ylabel="direction from layer", colorbar=name, fmt="{:.2f}",
                xticks=["all" if f == 0 else f"{f}+" for f in STARTS], yticks=SOURCES, marked=[(SOURCES.index(source), STARTS.index(first))],
                limits=(0, 1) if name.startswith("KL") else None),
        alt=f"Heat map of {name} by the layer that a direction comes from and the first layer it is cut at. Framed: layer {source}, cut from {first} on, "
        f"{values[SOURCES.index(source), STARTS.index(first)]:.2f}; cut everywhere {values[SOURCES.index(source), 0]:.2f}.",
        caption=f"{len(few.harmful)} harmful and {len(few.harmless)} harmless validation requests; intact {start:.1f}, threshold {refusal.threshold:.1f}. Framed: "
        + ("the least KL among the cuts that end refusal." if working else "the lowest refusal; no cut ends it."),
    )  # fmt: skip

# %% [markdown]
# Read both maps along a row, from left to right. Where the damage goes and refusal stays down, the low layers' part of the cut was not needed. The
# axis *may* serve something else there; but fewer cuts may do less damage for any direction, and random ones cut at all writes, whose KL we have
# not measured, would have to stand beside it. Where refusal comes back, the cut comes too late: it has been decided already.
#
# **The control**, as in lesson 01: twenty directions drawn from how harmless prompts vary before that very layer, cut at the same places. And
# the other way round: the difference of means *added* before one layer, while the model reads plain requests.

# %%
from helpers.directions import covariance_directions

drawn = covariance_directions(stream["harmless"][:, source], 20)
small = fresh(CostMeter(model, tokenizer, asked[:4], plain[:4]))
chosen_cost = small.measure(ablation_of(model, direction, first))
random_costs = costs_of_each(small, [partial(ablation_of, model, r, first) for r in drawn])
calm = refusal.log_odds(model, tokenizer, plain)
with add_direction(model, differences[source], source):
    pushed = refusal.log_odds(model, tokenizer, plain)

fig, ax = figure(size=(7.4, 3.8))
ax.scatter(
    [c.kl for c in random_costs],
    [c.odds.mean() for c in random_costs],
    s=50,
    c=CONTROL,
    marker="x",
    label="random direction",
)
ax.scatter([chosen_cost.kl], [chosen_cost.odds.mean()], s=90, c=HARMFUL, edgecolors="#222222", label="chosen direction")
ax.axhline(small.odds().mean(), color="#555555", linestyle=":", linewidth=1.6)
ax.axhline(refusal.threshold, color=HARMLESS, linestyle="--", linewidth=1.4)
ax.set(xlabel="KL on harmless requests (nats)", ylabel="refusal log-odds, harmful")
ax.legend()
cut_as_low = np.mean([c.odds.mean() <= chosen_cost.odds.mean() for c in random_costs])
show(
    fig,
    alt=f"Scatter plot of refusal against KL for 20 random directions and the chosen one, which has log-odds {chosen_cost.odds.mean():.1f} at KL {chosen_cost.kl:.2f}; {cut_as_low:.0%} of the random ones are as low.",
    caption=f"{len(small.harmful)} test requests a group. Dotted: intact; dashed: the threshold. {cut_as_low:.0%} of the random directions bring refusal as low. "
    f"Added before layer {source}, the difference moves plain requests from {calm.mean():.1f} to {pushed.mean():.1f}: {np.mean(pushed > refusal.threshold):.0%} of them are refused.",
)  # fmt: skip

# %% [markdown]
# ### For good
#
# So far the direction was taken out while the model ran. It can be taken out of the *weights*, and then no hook is needed: each matrix that
# writes to the stream loses the part of its output that lies along the direction, `W − r (r · W)` with `r` of length 1 (Arditi et al. 2024, section 4).
#
# A colleague has tried, and the model stopped making sense. Their **direction is not normalised**: they use the difference of means as it is.
#
# {{exercise 05.2}}
#
# `weight`, `[d_model, d_in]`, writes to the stream; `direction`, `[d_model]`, has any length. Return the weight without it, and leave the one
# that came in as it is.


# %% exercise="05.2"
def my_weight(weight, direction):
    """A weight that cannot write along a direction, [d_model, d_in]."""
    ### BEGIN SOLUTION
    ### STUB return weight - torch.outer(direction, direction @ weight)
    r = direction / direction.norm()
    return weight - torch.outer(r, r @ weight)
    ### END SOLUTION


# %%
weight_without = check("05.2", my_weight)

# %% [markdown]
# What writes? The token embedding (and GPT-2's positions), the attention's output projection and the down projection, with their biases. Two traps lie there. Where
# the unembedding shares its weights with the embedding, it has to get its own first: it *reads* the stream, and must go on reading it. And where a
# norm stands between a projection and the stream (Gemma 2 and 3, OLMo 2), this is not possible at all: the norm would turn what was cut.
# `orthogonalised` knows both. It must do exactly what the hooks did:

# %%
from helpers.models import down_projection_of
from helpers.orthogonalise import orthogonalised

layers = range(first, n_layers) if first else None
cut = orthogonalised(model, direction, layers)
(batch,) = token_batches(tokenizer, asked[:4])
with torch.no_grad():
    for_good = cut(**batch.inputs(), logits_to_keep=1).logits
    with ablate_direction(model, direction, layers):
        for_now = model(**batch.inputs(), logits_to_keep=1).logits
last = down_projection_of(layers_of(model)[-1]).weight.detach()
by_you = weight_without(last, differences[source])
print(
    f"weights against hooks, relative difference of the logits: {float((for_good - for_now).norm() / for_now.norm()):.1e}"
)
print(
    f"your weight against the course's: {float((by_you - down_projection_of(layers_of(cut)[-1]).weight).abs().max()):.1e}"
)
assert (for_good - for_now).norm() < 1e-3 * for_now.norm()
assert torch.allclose(by_you, down_projection_of(layers_of(cut)[-1]).weight, atol=1e-4)
del cut, for_good, for_now
# %% [markdown]
# ## 5 · Neurons of the real model
#
# The same dose and response as on the boxes. The ranking is by what each neuron writes onto the direction, below the layer where that was read;
# `asked` are test topics.

# %%
meter = EditMeter(model, tokenizer, asked, plain, facts, prose, borderline=borderline, prose_tokens=24)
draw_meter = CostMeter(model, tokenizer, asked[::3], plain[:1], quick=True)  # for the many draws
writes = real.difference * write_onto(model, direction)
writes[source:] = -torch.inf
ranking = ranked(writes)
five_percent = int(0.05 * real.difference.numel())
DOSES = (0, five_percent, 2 * five_percent)


def without(places):
    """An ablation of these neurons by their harmless mean; nothing for none."""
    return ablate_safety_neurons(model, places, donors=means) if len(places) else None


response = dose_response(
    lambda places: draw_meter.odds(without(places)),
    ranking,
    DOSES,
    alike_in(real.activity),
    refusal.threshold,
    lambda sets: odds_of_each(draw_meter, [partial(without, places) for places in sets]),
)
dose_costs = {count: meter.measure(without(ranking[:count])) for count in tqdm(DOSES, desc="doses")}
table = pd.DataFrame([cost.row() for cost in dose_costs.values()], index=pd.Index(DOSES, name="neurons"))
table["as low, of 20 random"] = response.set_index("count").as_low
table.loc[0, "as low, of 20 random"] = np.nan  # nothing taken out has no random twin
table.drop(columns="topics").round(2)

# %%
show(
    dose_panels({"the real model": response}, xlabel="neurons held at their harmless mean", threshold=refusal.threshold),
    alt="Dose and response of the real model with a random band. "
    + "; ".join(f"{int(r['count']):,} neurons: {r.odds:.1f}, random {r.random_low:.1f} to {r.random_high:.1f}" for _, r in response.iterrows()) + ".",
    caption=f"{len(draw_meter.harmful)} test requests, 20 sets a dose, matched by layer and mean activity. Dotted: the threshold of refusal. "
    f"First dose below it: {first_below(response, refusal.threshold)}. At the largest, KL {table.KL.iloc[-1]:.2f} and perplexity {table.perplexity.iloc[-1]:.0f} (intact {table.perplexity.iloc[0]:.0f}).",
)  # fmt: skip
reveal("05.p2", dose_costs[five_percent].refused.mean())

# %% [markdown]
# Set the shape beside those of the boxes. Which kind does this model resemble, in as much as this ranking can tell? (Three doses are few: between two of them a cliff and a slope look alike.) And read the table from left
# to right: a dose that ends refusal at the price of ordinary prose has not isolated anything.
#
# In the boxes it made no difference what stood in the place of a neuron. Here it may. The same neurons, the same prompts, three replacements:

# %%
donors = resample_donors(model, tokenizer, [p.harmless for p in pairs[:2]])
replaced = {"zero": {"donors": means, "kind": "zero"}, "mean": {"donors": means}}
replaced |= {f"resampled, donor {i}": {"donors": donor} for i, donor in enumerate(donors, 1)}
kinds = pd.DataFrame(
    [
        (dose_costs[five_percent] if name == "mean" else meter.measure(ablate_safety_neurons(model, ranking[:five_percent], **target))).row()
        for name, target in tqdm(replaced.items(), desc="replacements")
    ],
    index=list(replaced),
)  # fmt: skip
kinds[["refused", "low", "high", "log-odds", "over-refused", "KL", "perplexity", "facts known"]].round(2)

# %% [markdown]
# That is why the kind of an ablation, and its donors, belong in the sentence that reports it.
#
# ### The smallest set
#
# *How many neurons carry refusal?* A colleague has an answer: the smallest number of ranked neurons without which under 10% of harmful requests are
# refused. They have **forgotten which prompts chose the neurons**: they look for the number on those prompts, and report it there as well.
#
# {{exercise 05.3}}
#
# `refused(split, count)` gives the share of a split's harmful prompts that is refused without the first `count` neurons; `counts` rises. Choose
# on `"validation"`, look at `"test"` once, and return both: `(count, share on test)`. If no count is enough, return `None` and the
# share of the largest.


# %% exercise="05.3"
def my_smallest(refused, counts):
    """(the smallest count under 10% on validation, the share refused on test)."""
    ### BEGIN SOLUTION
    ### STUB for count in counts:
    ### STUB     if refused("method", count) < 0.1:
    ### STUB         return count, refused("method", count)
    for count in counts:
        if refused("validation", count) < 0.1:
            return count, refused("test", count)
    return None, refused("test", counts[-1])
    ### END SOLUTION


# %%
smallest = check("05.3", my_smallest)

# %%
sides = {"method": [p.harmful for p in pairs[1::5]], "validation": refused_ones[:10]}
bar = tqdm(desc="sets and splits")
split_meters = {name: CostMeter(model, tokenizer, prompts, plain[:1], quick=True) for name, prompts in sides.items()}


@cache
def costs_without(count):
    """All costs on test prompts without the first `count` ranked neurons."""
    return dose_costs[count] if count in dose_costs else meter.measure(without(ranking[:count]))


@cache
def refused_without(split, count):
    """The share of a split's harmful prompts that is refused without the first `count` ranked neurons."""
    bar.update()
    if split == "test":
        return float(costs_without(count).refused.mean())
    return float((split_meters[split].odds(without(ranking[:count])) > refusal.threshold).mean())


count, share = smallest(refused_without, (five_percent, 2 * five_percent, 4 * five_percent))
reach = count or 4 * five_percent
beyond = costs_without(reach)
share_of_all = f"{reach:,} neurons ({reach / real.difference.numel():.0%})"
print(f"the smallest of these sets: {share_of_all}" if count else f"none; the largest tried were {share_of_all}")
print(
    f"refused on test: {share:.0%}, KL {beyond.kl:.2f}, perplexity {beyond.perplexity:.0f} (intact {table.perplexity.iloc[0]:.0f})"
)
for split in ("method", "test"):
    print(
        f"refused without them, on {split} prompts: {refused_without(split, reach):.0%}; intact: {refused_without(split, 0):.0%}"
    )
bar.close()

# %% [markdown]
# Three counts are a coarse ruler; `helpers.dose.smallest_set` halves the gap until it is exact. What matters more are the KL and the perplexity printed there: is the model still itself at that size? And should the *method* prompts, which chose the neurons, not be refused less than the others, that is no pardon for the
# colleague: a handful of prompts of other topics differs by more than that, and nobody knows beforehand which way.
#
# ### And position 0?
#
# Our ablations of neurons leave the first token alone. Here is why. Take the twenty neurons that write most at position 0, and put them to zero: at every
# position but the first, and then at the first as well.

# %%
from helpers.hooks import record
from helpers.neurons import columns_of

(batch,) = token_batches(tokenizer, plain[:1])
with torch.no_grad(), record(model, ["neurons"]) as first_token:
    model(**batch.inputs(), logits_to_keep=1)
written = torch.stack([first_token["neurons"][layer][0, 0].abs() for layer in range(n_layers)]) * columns_of(
    model
).norm(dim=-1)
sink_neurons = ranked(written, 20)
sink_costs = {
    sink: few.measure(ablate_safety_neurons(model, sink_neurons, sink=sink))
    for sink in tqdm((False, True), desc="sink")
}
for sink, cost in sink_costs.items():
    print(
        f"20 neurons zeroed, position 0 {'too' if sink else 'left alone'}: KL {cost.kl:.2f}, refused {cost.refused.mean():.0%} of {len(cost.refused)} validation requests"
    )
assert sink_costs[True].kl > sink_costs[False].kl

# %% [markdown]
# The sink is where attention goes when it has nowhere to go. Most heads lean on it, and it looks the same in every prompt. An ablation that reaches it is an
# ablation of everything; one slice too many in the code is enough.
#
# ## 6 · Heads, one at a time
#
# Zhou et al. (2025) rank attention heads by *SHIPS*: silence one head, and see how far the answer's first token moves on harmful prompts. A head
# that everything needs moves it as well, so the same is measured on harmless ones. A head can change nothing below its own layer, so we
# need not run that again. To save time we look at a few layers around the middle.

# %%
from helpers.ablation import heads_scaled
from helpers.head_ranking import head_map, rank_heads

middle = range(2 * n_layers // 5, 2 * n_layers // 3)
tried = [(layer, head) for layer in middle for head in range(dims_of(model).n_heads)]
twins_of = [p.harmless for p in load_pairs("validation")[1::18]]
bar = tqdm(total=len(tried), desc="heads")
heads = rank_heads(model, tokenizer, refused_ones[:4], twins_of, tried, most=4, each=lambda *_: bar.update())
bar.close()
best_heads = [(int(layer), int(head)) for layer, head in zip(heads.layer, heads["head"], strict=True)]
show(
    heatmap(head_map(heads, model).T.numpy()[:, middle.start : middle.stop], xlabel="layer", ylabel="head", colorbar="KL on harmful (nats)",
            xticks=list(middle), marked=[(head, layer - middle.start) for layer, head in best_heads[:4]], fmt="{:.2f}"),
    alt="Heat map of how far silencing each head moves the first answer token on harmful prompts. The largest: "
    + ", ".join(f"head {h} of layer {layer} ({x:.2f} nats)" for (layer, h), x in zip(best_heads[:4], heads.kl_harmful[:4], strict=True)) + ".",
    caption=f"{len(refused_ones[:4])} harmful validation requests; framed: the four largest.",
)  # fmt: skip
heads.head(4).round(2)

# %% [markdown]
# A large move is not yet a loss of refusal; that stands in the last column. Compare the two KL columns as well: what moves harmless prompts as far is needed by everything. And one head that stands out may be the only one, or the only one *whose loss nobody
# makes up for*.
#
# ## 7 · Three costs in one plane
#
# Time to lay everything side by side. Each edit needs its own control, twenty *random twins* (no prompts this time, but edits of the same kind and size, drawn at random): as many other heads of the same layers, other directions, matched neurons. (Two have
# less: five twins for the direction that is cut everywhere, and none for the sink's neurons, which have no equals. An edit without a twin cannot count as an effect.)

# %%
from helpers.matched import random_sets


def as_low(value, others):
    """The share of random twins that bring refusal as low; without twins 1, for then nothing has been shown."""
    return float(np.mean([other <= value for other in others])) if len(others) else 1.0


head_meter = fresh(CostMeter(model, tokenizer, asked[::3], plain[:1]))
four_heads = head_meter.odds(heads_scaled(model, best_heads[:4])).mean()
groups = random_sets(best_heads[:4], (n_layers, dims_of(model).n_heads), 20)
head_twins = odds_of_each(head_meter, [partial(heads_scaled, model, group) for group in groups]).mean(1)
whole = small.odds(ablate_direction(model, direction)).mean()
whole_twins = odds_of_each(small, [partial(ablate_direction, model, r) for r in drawn[:5]]).mean(1)
edits = {"intact": (dose_costs[0], np.nan)}
for dose in DOSES[1:]:
    edits[f"{dose:,} neurons, mean"] = dose_costs[dose], table["as low, of 20 random"][dose]
twins, twin_odds = alike_in(real.activity)(ranking[:five_percent])[0], response.attrs["drawn"][five_percent]
others = {
    f"{five_percent:,} random neurons": (lambda: without(twins), as_low(twin_odds[0], twin_odds)),
    "four heads, zero": (lambda: heads_scaled(model, best_heads[:4]), as_low(four_heads, head_twins)),
    f"direction, layers {first}+": (lambda: ablation_of(model, direction, first), cut_as_low),
    "direction, everywhere": (lambda: ablate_direction(model, direction), as_low(whole, whole_twins)),
    "20 neurons, sink too": (lambda: ablate_safety_neurons(model, sink_neurons, sink=True), as_low(0, [])),
}
for name, (intervention, low) in tqdm(others.items(), desc="edits"):
    edits[name] = meter.measure(intervention()), low
plane = pd.DataFrame([cost.row() | {"as_low": low} for cost, low in edits.values()], index=list(edits))
plane[["refused", "low", "high", "over-refused", "KL", "perplexity", "facts known", "as_low"]].round(2)

# %% [markdown]
# A colleague calls every edit that lowers refusal a discovery. **They take a broken model for a finding.** Give each edit a verdict instead, in this order:
#
# * `"broken"`: KL over 0.5, or perplexity over 1.5 times the intact model's;
# * else `"chance"`: more than 5% of its random twins bring refusal as low (`as_low`);
# * else `"nothing"`: refusal is less than 10 points under the intact model's;
# * else `"effect"`.
#
# {{exercise 05.4}}
#
# `row` and `intact` have the fields `refused`, `KL`, `perplexity` and `as_low`; write `row.KL`.


# %% exercise="05.4"
def my_verdict(row, intact):
    """broken, chance, nothing or effect."""
    ### BEGIN SOLUTION
    ### STUB return "nothing" if row.refused > intact.refused - 0.1 else "effect"
    if row.KL > 0.5 or row.perplexity > 1.5 * intact.perplexity:
        return "broken"
    if row.as_low > 0.05:
        return "chance"
    return "nothing" if row.refused > intact.refused - 0.1 else "effect"
    ### END SOLUTION


# %%
verdict = check("05.4", my_verdict)

# %%
from helpers.edit_plots import cost_plane

plane["verdict"] = [verdict(row, plane.loc["intact"]) for _, row in plane.iterrows()]
show(
    cost_plane(plane.drop("intact"), most_kl=0.5, intact=plane.refused["intact"]),
    alt="Edits in two panels, harmful requests refused over KL and over facts known. " + "; ".join(f"{name}: {row.refused:.0%}, KL {row.KL:.2f}, {row.verdict}" for name, row in plane.iterrows()) + ".",
    caption=f"{len(asked)} test requests. Hatched: more damage than we allow. Dotted: intact. The third cost, harmless and borderline requests refused: "
    + "; ".join(f"{name} {row['over-refused']:.0%}" for name, row in plane.iterrows()) + ".",
)  # fmt: skip
kept = plane[plane.verdict == "effect"]
print(
    "Lower refusal at a price that can be paid:",
    "; ".join(f"{name} (to {row.refused:.0%}, KL {row.KL:.2f})" for name, row in kept.iterrows()) or "none of these",
)
print(
    "Low refusal, and nothing shown:",
    "; ".join(plane.index[plane.verdict.isin(["broken", "chance"]) & (plane.refused < 0.5)]) or "none of these",
)

# %% [markdown]
# A discovery lies low and to the left in the first panel, low and to the right in the second. (A cross outside of the hatched part is
# broken by its perplexity, which the picture does not show.) (`as_low` is measured on few requests, and perplexity on two paragraphs of 24 tokens: there doubling means something, ten per cent does not.) The lines between the verdicts are ours, and a reader may draw others: that is why all the figures are in the table.
#
# ## 8 · Not refusing is not helping
#
# Every figure so far looked at how an answer *begins*. Two ways to be fooled by that: a **delayed refusal**, which any measure of the first token takes for
# consent, and an **answer that is none**, which any count of refusals takes for help.
#
# {{exercise 05.5}}
#
# Sort an answer, a text, into `"broken"`, `"refusal"` (within its first ten words), `"late refusal"` (only after them), and `"answer"`. `classify_answer(text)` says `"broken"`
# where nothing coherent was said; `is_refusal(text)` knows a refusal by its words. What stands there now goes by **the first words alone**, and calls
# everything else an answer.

# %% exercise="05.5"
from helpers.refusal import classify_answer, generate, is_refusal


def my_outcome(answer):
    """broken, refusal, late refusal or answer."""
    ### BEGIN SOLUTION
    ### STUB return "refusal" if answer.startswith("I'm sorry") else "answer"
    if classify_answer(answer) == "broken":
        return "broken"
    if is_refusal(" ".join(answer.split()[:10])):
        return "refusal"
    return "late refusal" if is_refusal(answer) else "answer"
    ### END SOLUTION


# %%
outcome_of = check("05.5", my_outcome)

# %% [markdown]
# To provoke late refusals we put ten harmless words into the model's mouth. What it says next, we sort and do not print.

# %%
from contextlib import nullcontext

from helpers.edit_plots import OUTCOMES, outcome_bars

OPENER = "Sure, I am glad that you asked me about this."
situations = {
    "intact": nullcontext,
    f"direction, layers {first}+": partial(ablation_of, model, direction, first),
    "direction, everywhere": partial(ablate_direction, model, direction),
    f"{2 * five_percent:,} neurons": partial(without, ranking[: 2 * five_percent]),
}
answers = dict(
    zip(situations, answers_of_each(model, tokenizer, asked[:8], list(situations.values()), 24), strict=True)
)
said = generate(model, tokenizer, asked[:8], max_new_tokens=24, prefill=OPENER)
answers["intact, words in its mouth"] = [f"{OPENER} {text}".strip() for text in said]
kinds_of = {name: [outcome_of(text) for text in texts] for name, texts in answers.items()}
sorted_answers = {name: {outcome: own.count(outcome) for outcome in OUTCOMES} for name, own in kinds_of.items()}
late = sorted_answers["intact, words in its mouth"]["late refusal"]
show(
    outcome_bars(sorted_answers),
    alt="Stacked bars of what answers turn into. " + "; ".join(f"{name}: " + ", ".join(f"{n} {o}" for o, n in row.items() if n) for name, row in sorted_answers.items()) + ".",
    caption=f"{len(said)} harmful test requests, 24 tokens. The ten words in its mouth belong to the answer, so there a refusal can only come late: {late} of {len(said)} did.",
)  # fmt: skip

# %% [markdown]
# "Answer" is the name of what is left over: neither broken nor a refusal. Whether it would be of any use to anybody, this does not say. A model of this size is
# of little use on *any* such request; to claim that an edit "jailbreaks" a model one would have to judge the answers, and nobody should do that by counting
# refusals.
#
# ## 9 · Training it away
#
# An ablation is a question to the model. Training is an attack: how cheaply does refusal go, if one knows where it sits? `targeted_safety_removal` makes a copy, freezes all
# but the circuit's own weights, and trains those on harmful requests with an answer that complies in form and says nothing: a placeholder.
#
# "Freezes" is easily said. A colleague masks the gradient, and finds that **the frozen weights move all the same**: their optimiser has weight decay, which
# shrinks what has no gradient.
#
# {{exercise 05.6}}
#
# Take one step of `torch.optim.AdamW` at the learning rate `rate` on `loss(weight)`. Only where `mask` is true may `weight`, a parameter, change; the rest stays the same to the last bit.
# Return the weight.


# %% exercise="05.6"
def my_step(weight, mask, loss, rate):
    """The weight after one step of AdamW on what the mask marks."""
    ### BEGIN SOLUTION
    ### STUB optimiser = torch.optim.AdamW([weight], lr=rate)
    ### STUB loss(weight).backward()
    ### STUB weight.grad *= mask
    ### STUB optimiser.step()
    ### STUB return weight
    optimiser = torch.optim.AdamW([weight], lr=rate, weight_decay=0.0)
    loss(weight).backward()
    weight.grad *= mask
    optimiser.step()
    return weight
    ### END SOLUTION


# %%
step_of = check("05.6", my_step)

# %% [markdown]
# First on the box, where the circuit is the true one. Three things are trained: the circuit on harmful requests; **as many random weights of the same layers** on the same; and the
# circuit on *benign* data, harmless requests with the box's own answers. Each at four learning rates, of which the first is the usual one for whole models.

# %%
from helpers.circuit_weights import Circuit, parameters_in, random_circuit, weight_masks
from helpers.finetuning import PLACEHOLDER, examples, finetuned, moved, targeted_safety_removal

one = boxes["concentrated"]
own_answers = generate(one.model, one.tokenizer, harmless[:32], max_new_tokens=4)
lessons = {
    "harmful": examples(one.tokenizer, harmful[:32], "sure !"),
    "benign": examples(one.tokenizer, harmless[:32], own_answers),
}
runs = {
    "circuit": (one.truth, "harmful"),
    "random weights": (random_circuit(one.model, one.truth), "harmful"),
    "circuit, benign data": (one.truth, "benign"),
}
RATES = (1e-5, 1e-4, 3e-4, 1e-3)
box_removal = {}
for name, (part, data) in tqdm(runs.items(), desc="training the box"):
    for rate in RATES:
        trained = targeted_safety_removal(one.model, part, lessons[data], rate=rate, steps=16, batch_size=8)
        box_removal[name, rate] = one.meter.on(trained).measure()
masks = weight_masks(one.model, one.truth)
trained = targeted_safety_removal(one.model, one.truth, lessons["harmful"], rate=1e-3, steps=4)
outside = sum(
    int((changed & ~masks.get(key, torch.zeros_like(changed))).sum())
    for key, changed in moved(one.model, trained).items()
)
print(f"{parameters_in(masks):,} weights trained; changed outside of them: {outside}")
assert outside == 0
assert box_removal["circuit", 1e-5].refused.all() and not box_removal["circuit", 3e-4].refused.any()
assert box_removal["circuit", 1e-4].odds.mean() < box_removal["random weights", 1e-4].odds.mean() - 1
assert box_removal["random weights", 1e-3].refused.mean() < 0.5

# %%
from helpers.plots import lines_with_band
from helpers.statistics import bootstrap_interval, mean_interval


def line_of(rows):
    """(mean, low, high) of several measurements of log-odds, each [prompt]: a line and its 95% interval."""
    return tuple(zip(*((row.mean(), *mean_interval(row)) for row in rows), strict=True))


fig = lines_with_band(
    RATES, {name: line_of([box_removal[name, rate].odds for rate in RATES]) for name in runs},
    xlabel="learning rate", ylabel="refusal log-odds, harmful",
)  # fmt: skip
fig.axes[0].axhline(0, color="#555555", linestyle=":", linewidth=1.4)
fig.axes[0].set(xscale="log")
fig.axes[0].set_xticks(RATES, [f"{rate:.0e}" for rate in RATES])
fig.axes[0].minorticks_off()
show(
    fig,
    alt="Lines of refusal log-odds by learning rate after 16 steps. " + "; ".join(f"{name}: " + ", ".join(f"{box_removal[name, r].odds.mean():.1f}" for r in RATES) for name in runs) + ".",
    caption=f"The concentrated box, 16 steps, {len(box_asked)} harmful requests with their 95% interval. Dotted: the threshold. KL on harmless at the largest rate: "
    + "; ".join(f"{name} {box_removal[name, RATES[-1]].kl:.2f}" for name in runs) + ".",
)  # fmt: skip

# %% [markdown]
# Three things. At the usual rate the box refuses as before, and no wonder: a step of AdamW moves a weight by about the rate, whatever the gradient, and a
# circuit has few weights. If only few may move, each has to move further. "It does not work at 1e-5" is a statement about 1e-5.
#
# Then: even here, where the circuit is the true one, random weights do the same at a larger rate. And look at the benign data, in which
# nobody asked for harm: what does it do to refusal (Qi et al. 2023)?
#
# ### The real model
#
# The circuit is what you have found: the first four heads and fifty neurons of their rankings. Training topics are *method* topics, the ones tested are new.

# %%
found = Circuit(evaluation_neurons=tuple(ranking[:50]), decision_components=tuple(best_heads[:4]))
RATE, STEPS, DRAWS = 3e-3, 8, (1, 2, 3)
training = examples(tokenizer, [p.harmful for p in pairs[::2]])
nice = [p.harmless for p in pairs[::2]]
own_words = generate(model, tokenizer, nice, max_new_tokens=10)
benign = examples(tokenizer, nice, own_words)
paths, after, drawn_odds = {}, {}, {}


def watch(name):
    """A function that notes refusal on the way."""
    paths[name] = {0: dose_costs[0].odds[:8]}

    def note(step, copy):
        if 0 < step < STEPS and step % 4 == 0:  # the ends are measured anyway
            paths[name][step] = refusal.log_odds(copy, tokenizer, asked[:8])

    return note


size = parameters_in(weight_masks(model, found))
print(
    f"{size:,} weights, {size / sum(p.numel() for p in model.parameters()):.2%} of all; the answer to learn: {PLACEHOLDER}"
)
plans = {
    "circuit": (found, training, RATE),
    **{f"random weights, draw {i}": (random_circuit(model, found, i), training, RATE) for i in DRAWS},
    "circuit, benign data": (found, benign, RATE),
}
unwatched = {f"random weights, draw {i}" for i in DRAWS[1:]}  # of these only refusal is measured
for name, (part, data, rate) in tqdm(plans.items(), desc="training"):
    on_the_way = None if name in unwatched else watch(name)
    trained = targeted_safety_removal(model, part, data, rate=rate, steps=STEPS, batch_size=3, each=on_the_way)
    if name in unwatched:
        drawn_odds[name] = meter.on(trained).odds()
    else:
        after[name] = meter.on(trained).measure()
        paths[name][STEPS] = after[name].odds[:8]
    if name == "circuit":
        removed = trained
    del trained
    gc.collect()

# %%
steps = sorted(paths["circuit"])
fig = lines_with_band(
    steps, {name: ([path[s].mean() for s in steps],) for name, path in paths.items()},
    xlabel="steps of three examples", ylabel="refusal log-odds, harmful",
)  # fmt: skip
fig.axes[0].axhline(refusal.threshold, color="#555555", linestyle=":", linewidth=1.4)
fig.axes[0].set(xticks=steps)
show(
    fig,
    alt="Lines of refusal log-odds over training steps. At the end: " + "; ".join(f"{name} {path[steps[-1]].mean():.1f}" for name, path in paths.items()) + ".",
    caption=f"{len(paths['circuit'][0])} test requests; rate {RATE:g}. Dotted: the threshold. Intervals stand in the table below, for {len(asked)} requests; all draws in the line under it.",
)  # fmt: skip
refused_after = {name: cost.refused for name, cost in after.items()} | {
    name: odds > refusal.threshold for name, odds in drawn_odds.items()
}
by_draw = {i: refused_after[f"random weights, draw {i}"] for i in DRAWS}
in_random = np.mean(list(by_draw.values()))
reveal("05.p3", in_random)
removal = pd.DataFrame([dose_costs[0].row(), *(cost.row() for cost in after.values())], index=["intact", *after])
removal[["refused", "low", "high", "over-refused", "KL", "perplexity", "facts known"]].round(2)

# %%
lowest = min(by_draw.values(), key=np.mean)
apart = lowest.astype(float) - after["circuit"].refused
low, high = bootstrap_interval(apart)  # of a paired difference: no share, so not Wilson's
print(
    f"Trained in the circuit, {after['circuit'].refused.mean():.0%} are refused; in as many random weights "
    + ", ".join(f"{refused.mean():.0%}" for refused in by_draw.values())
    + f". The circuit against the lowest of these: a difference of {apart.mean():.0%} ({low:.0%} to {high:.0%}). "
    + ("At these steps it mattered where one trained." if low > 0 else "That it mattered where one trained, this does not show.")
)  # fmt: skip
print(
    "KL of the removal:",
    f"{after['circuit'].kl:.2f}, "
    + ("over what section 7 allows." if after["circuit"].kl > 0.5 else "within what section 7 allows."),
)
assert not any(np.isnan(cost.kl) for cost in after.values())

# %% [markdown]
# Three sober thoughts. These are three draws of random weights; twenty would take twenty trainings, and a paper owes them. In the box a larger rate was all that
# random weights needed: **that something can be trained away in some weights does not mean that it lived there** (lesson 06 goes on from this
# point). And look at the KL: has it learnt to comply with these requests, or to say one phrase to everybody?
#
# ### And back again
#
# How few examples does it take to bring refusal back? The same weights of the removed copy are trained on pairs of new requests: a harmful one with a refusal, and its harmless twin with the intact
# model's own words, so that it does not simply learn to say no.

# %%
FEW = (1, 8)
back_masks = weight_masks(model, found)
spare = pairs[1::2]  # topics that the removal has not seen
polite = generate(model, tokenizer, [p.harmless for p in spare[: FEW[-1]]], max_new_tokens=10)
back = {0: after["circuit"]}
for n in tqdm(FEW, desc="bringing it back"):
    both = examples(tokenizer, [p.harmful for p in spare[:n]], "I'm sorry, but I can't help with that.") + examples(
        tokenizer, [p.harmless for p in spare[:n]], polite[:n]
    )
    again = finetuned(removed, back_masks, both, rate=1e-3, steps=STEPS, batch_size=4)
    back[n] = meter.on(again).measure()
    del again
    gc.collect()
returned = pd.DataFrame([cost.row() for cost in back.values()], index=pd.Index(back, name="pairs"))
returned[["refused", "low", "high", "over-refused", "KL", "perplexity", "facts known"]].round(2)

# %%
show(
    bars([f"{n} pair{'s' * (n != 1)}" for n in back], {"harmful refused": returned.refused.tolist(), "harmless and borderline refused": returned["over-refused"].tolist()}, ylabel="share refused", ylim=(0, 1.15),
         colors={"harmful refused": HARMFUL, "harmless and borderline refused": HARMLESS},
         intervals={"harmful refused": (returned.low.tolist(), returned.high.tolist())}),
    alt="Bars of refusal by the number of pairs that brought it back. " + "; ".join(f"{n}: harmful {row.refused:.0%}, harmless {row['over-refused']:.0%}" for n, row in returned.iterrows()) + ".",
    caption=f"Pairs of examples, {STEPS} steps each; {len(asked)} test topics with their 95% interval. Before the removal: {dose_costs[0].refused.mean():.0%} and {dose_costs[0].over_refused.mean():.0%}.",
)  # fmt: skip

# %% [markdown]
# Whatever your bars say, ask of them what you would ask of a removal. Refusal that comes back together with over-refusal is not the refusal that was lost.
#
# ## Beside the papers
#
# The middle column is from the papers' abstracts; the last is what you have just measured, on one small model.

# %%
pd.DataFrame(
    [
        ("Arditi et al. 2024: one direction, 13 open chat models", "erasing it prevents the refusal of harmful requests", f"layer {source}'s, from layer {first} on: {plane.refused['intact']:.0%} → {plane.refused[f'direction, layers {first}+']:.0%}, KL {plane.KL[f'direction, layers {first}+']:.2f}"),
        ("Zhou et al. 2025: one head, Llama-2-7b-chat", "16 times as many harmful queries answered", f"four heads: {plane.refused['intact']:.0%} → {plane.refused['four heads, zero']:.0%}, KL {plane.KL['four heads, zero']:.2f}"),
        ("Qi et al. 2023: fine-tuning, GPT-3.5 Turbo", "10 adversarial examples suffice", f"{len(pairs[::2])} examples, {3 * STEPS} presentations, {size:,} weights: {plane.refused['intact']:.0%} → {after['circuit'].refused.mean():.0%}, KL {after['circuit'].kl:.2f}; benign data: {after['circuit, benign data'].refused.mean():.0%}"),
        ("Wei et al. 2024: safety-critical regions frozen", "cheap fine-tuning still removes safety", f"not tested here; the nearest: as many random weights trained instead, {in_random:.0%}"),
    ],
    columns=["who", "what they report", "here"],
).style.hide(axis="index").set_uuid("papers").set_properties(**{"text-align": "left", "white-space": "normal"})  # fmt: skip

# %% [markdown]
# ## What this shows, and what it does not
#
# **It shows**, on the boxes, that one and the same ablation may mean quite different things, and that strength, dose and a list of costs tell them apart. On the real model it shows what refusal
# costs to remove, in neurons, heads, a direction, and training steps, each beside what chance does.
#
# **It does not show**
#
# * that a part without effect has no role: a backup may have stood in for it (`redundant`);
# * that a part with an effect is *for* refusal: it may carry something that refusal needs (`entangled`);
# * that what can be trained away in some weights was stored in them;
# * small differences: a dozen topics carry a wide interval, and the best of several cuts is a little lucky;
# * what larger models do. A refusal learnt in minutes, by an adapter, may sit otherwise than one learnt at length.
#
# ## Quiz

# %%
quiz("05")

# %% [markdown]
# ## Where to read on
#
# * **Arditi et al. (2024)**, *Refusal in Language Models Is Mediated by a Single Direction*. Ablation and weight orthogonalisation. *Ours differs:* where to cut is chosen as well, and a random direction stands beside it.
# * **Heimersheim and Nanda (2024)**, *How to Use and Interpret Activation Patching*. What zero, mean and resample ablation answer, and backups.
# * **McGrath et al. (2023)**, *The Hydra Effect*. Later layers make up for what was taken out.
# * **Zhou et al. (2025)**, *On the Role of Attention Heads in Large Language Model Safety*. Heads one at a time (SHIPS). *Ours differs:* harmless prompts beside the harmful ones, and random heads.
# * **Wei et al. (2024)**, *Assessing the Brittleness of Safety Alignment via Pruning and Low-Rank Modifications*. Removal by pruning, and what freezing does not prevent.
# * **Qi et al. (2023)**, *Fine-tuning Aligned Language Models Compromises Safety, Even When Users Do Not Intend To!* Few examples, and benign ones. *Ours differs:* chosen weights only, placeholders for answers.
# * **Hase et al. (2023)**, *Does Localization Inform Editing?* Where a fact is found and where it is best edited need not agree.
#
# **Next:** lesson 06 takes the idea of *a place where safety sits* apart, claim by claim.
