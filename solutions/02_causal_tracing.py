# %% [markdown]
# # 02 · Causal tracing
#
# Lesson 01 asked *which* neurons react. Now we ask *where and when* refusal is decided, and we ask it by doing something: take two
# requests that differ in one word, run both, carry an activation from one run into the other, and see **how much of the refusal comes
# along**. This is called causal tracing, activation patching or interchange. It is the sharpest tool of this course so far, and it cuts
# both ways.
#
# **After this lesson you can**
#
# * exchange an activation at the right place, and say why that place;
# * measure what an exchange did, on a scale that does not saturate;
# * read both directions, and tell what is *needed* from what is *enough*;
# * find a component that hides behind its backup;
# * trace pairs of unequal length without fooling yourself;
# * say why noise and word replacement can disagree.
#
# **Time:** about 100 minutes, of which the computer needs about three. **To know before:** lessons 00 and 01.
# Words that are new to you stand in the [glossary](../GLOSSARY.md).
#
# There are six exercises; in five of them you repair what a colleague left behind. As always, no exercise can stop you.

# %% [markdown]
# ## Set-up

# %%
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from helpers.checks import check, hint  # noqa: F401 (hint is for you)
from helpers.glassbox import KINDS, glassbox_prompts, load_glassbox, score
from helpers.models import dims_of, layers_of, load_model
from helpers.plots import bars, heatmap, lines_with_band, show
from helpers.quiz import quiz, reveal

model, tokenizer = load_model("smollm2-135m-refusal")  # the one that says no
box, box_tokenizer, truth = load_glassbox("concentrated")  # the one whose circuit is known

# %% [markdown]
# ## Predict before you run

# %%
quiz("02.p1")

# %%
quiz("02.p2")

# %%
quiz("02.p3")

# %% [markdown]
# ## 1 · One exchange
#
# We begin on the glass box. A request and its harmless twin differ in one word, and so does all that follows from it.

# %%
box_pairs = glassbox_prompts("pairs", n=32, split="test")
box_sides = [p.harmful for p in box_pairs], [p.harmless for p in box_pairs]
for pair in box_pairs[:4]:
    print(f"{pair.harmful:38} | {pair.harmless:38} | the {pair.changed} differs")

# %% [markdown]
# The plan: run the harmless request (the **donor**) and keep the residual stream after some layer. Run the harmful one, put the kept
# vector into its place, and let the rest of the model go on as if nothing had happened. If the model now answers, then what it
# needed to know for its refusal was *there*.
#
# A colleague has tried, and reports that it makes no difference at any layer. They patched **the wrong position**.
#
# {{exercise 02.1}}
#
# Repair it: return the logits of the next token, `[vocabulary]`, for the prompt `run`, when the residual stream after `layer` holds what
# `donor` has there, **at the last token of the template**. The two prompts may have different lengths. `patch(model, site, layer, value,
# positions=[...])` replaces what stands at some positions.

# %% exercise="02.1"
from helpers.hooks import patch, record
from helpers.prompts import chat_text, tokenize


def my_patched(model, tokenizer, run, donor, layer):
    """Logits after `run` with the stream after `layer` taken from `donor` at the last token, [vocabulary]."""
    ids, other = tokenize(tokenizer, chat_text(tokenizer, [run, donor]))
    with record(model, ["resid_post"], [layer]) as seen:
        model(torch.tensor([other]))
    value = seen["resid_post"][layer][0]  # [position, d_model]
    ### BEGIN SOLUTION
    ### STUB with patch(model, "resid_post", layer, value[0], positions=[0]):
    ### STUB     return model(torch.tensor([ids])).logits[0, -1]
    with patch(model, "resid_post", layer, value[-1], positions=[-1]):
        return model(torch.tensor([ids])).logits[0, -1]
    ### END SOLUTION


# %%
patched = check("02.1", my_patched, model=box, tokenizer=box_tokenizer)

# %%
refusing = box.refusal_score.openings[0][0]  # the first token of the box's refusal
one = box_pairs[0]
with torch.no_grad():
    carried = [
        float(patched(box, box_tokenizer, one.harmful, one.harmless, layer).softmax(-1)[refusing])
        for layer in range(len(layers_of(box)))
    ]
    before = float(patched(box, box_tokenizer, one.harmful, one.harmful, 0).softmax(-1)[refusing])
print(f"P(refusal) of {one.harmful!r}: {before:.2f}")
print("with its last token's stream from the twin, after layer 0, 1, ...:", [round(p, 2) for p in carried])
assert before > 0.9 and max(carried) < 0.1

# %% [markdown]
# One vector, at one token, and the refusal is gone: after the first layer all that the box will ever use has arrived at the last token.
# `CausalTracer` does the same for many pairs, sites, layers and positions at once. It recomputes only what a patch can touch, and every patch at
# the same time: the layers above it, the positions from it on.
#
# Below, each cell is one exchange, averaged over 32 pairs. Left, something harmless is put into a harmful run, and the cell says how
# much of the refusal **goes**. Right, something harmful is put into a harmless run, and the cell says how much **comes**. 1 means: as
# much as if the whole prompt had been exchanged. A dot marks cells whose 95% interval over pairs lies above 0.02. A minus marks cells that go the
# other way by more than a tenth of the scale.

# %%
from helpers.trace_plots import COMPONENTS, TITLES, corner, grid_of, lines_by_layer, two_maps
from helpers.tracing import CRITICAL, DIRECTIONS, CausalTracer, refusal_change

box_tracer = CausalTracer(box, box_tokenizer)
box_map = box_tracer.trace_safety_circuit(*box_sides, ["resid_pre", "attn_out", "mlp_out"], positions="map")


def maps_of(table, component, columns="position", line=0.02):
    """Both directions of one component's share of the gap as grids, and where the interval lies above a line."""
    chosen = table[table.component == component]
    grids = {TITLES[d]: grid_of(chosen, d, "share_of_gap", columns).to_numpy() for d in DIRECTIONS}
    above = {TITLES[d]: grid_of(chosen, d, "share_low", columns).to_numpy() > line for d in DIRECTIONS}
    return grids, above


def short(direction):
    """A direction's name without its question."""
    return TITLES[direction].split(":")[0]


def largest(table, count=2):
    """The largest effects of each direction, in words."""
    words = []
    for direction in DIRECTIONS:
        top = table[table.direction == direction].nlargest(count, "share_of_gap")
        places = [f"{COMPONENTS[r.component]} {r.layer} at {r.position}: {r.share_of_gap:.2f} ({r.share_low:.2f} to {r.share_high:.2f})" for r in top.itertuples()]  # fmt: skip
        words.append(f"{short(direction)} " + ", ".join(places))
    return "; ".join(words)


for component, name in (("resid_pre", "residual stream before each layer"), ("attn_out", "attention"), ("mlp_out", "MLP")):  # fmt: skip
    grids, above = maps_of(box_map, component)
    show(
        two_maps(grids, sure=above, xlabel="place", colorbar="share of the gap", title=f"The box: {name}",
                 xticks=["differing word", "words after", "-2", "-1"]),
        alt=f"Two maps by layer and place of the box's {name}. " + largest(box_map[box_map.component == component]) + ".",
        caption="The box, 32 test pairs. Largest: " + largest(box_map[box_map.component == component]) + ".",
    )  # fmt: skip

# %% [markdown]
# Read it from below. Before layer 0 the difference lies in the word that differs. Layer 0's attention carries it to the last token. MLPs
# 1 and 2 evaluate there, attention 3 decides, MLPs 4 and 5 speak. That is the truth of this box (`truth.edges` has every step).
#
# But compare left with right before you go on. The residual stream looks the same in both. **The components do not.** Section 3
# is about why. (In the tables *benign* means harmless: `benign_into_harmful` is the left map, `harmful_into_benign` the right one.)
#
# ## 2 · How much is much?
#
# The colleague counts *answers*: a request is refused or it is not, so an exchange counts if it turns the answer. To see what that
# does, exchange one, two, three ... of the six production neurons (the ones that *speak*).

# %%
speaking = list(truth.production_neurons)
groups = {str(k): speaking[:k] for k in range(1, len(speaking) + 1)}
into_harmful, into_harmless = box_tracer.trace(*box_sides, ["neurons"], neurons=groups)
how_many = list(range(1, len(speaking) + 1))

# %% [markdown]
# {{exercise 02.2}}
#
# Write the measure that this course uses. All three are arrays of refusal log-odds, one number a pair: of the `patched` run, of the
# untouched run (`baseline`), and of the `donor`'s own run. Return **the share of the gap**, one number: the mean way that the log-odds
# went, over the mean way from the baseline to the donor.

# %% exercise="02.2"


def my_share(patched, baseline, donor):
    """How far the log-odds moved towards the donor's: 0 not at all, 1 all the way."""
    ### BEGIN SOLUTION
    ### STUB return float(np.mean((patched > 0) != (baseline > 0)))
    return float(np.mean(patched - baseline) / np.mean(donor - baseline))
    ### END SOLUTION


# %%
share = check("02.2", my_share)

# %%
curves = {"answers turned": [], "probability": [], "share of the gap in log-odds": []}
for row in into_harmful.patched:
    curves["answers turned"].append(np.mean(row < 0))
    curves["probability"].append(refusal_change(row, into_harmful.baseline, DIRECTIONS[0]).mean())
    curves["share of the gap in log-odds"].append(share(row, into_harmful.baseline, into_harmful.donor))
fig = lines_with_band(how_many, {name: (row,) for name, row in curves.items()}, xlabel="production neurons exchanged",
                      ylabel="effect", ylim=(-0.05, 1.1))  # fmt: skip
show(
    fig,
    alt="Three lines over the number of exchanged production neurons. " + "; ".join(f"{name}: " + ", ".join(f"{v:.2f}" for v in row) for name, row in curves.items()) + ".",
    caption="The box, harmless into harmful, 32 test pairs. The same six exchanges on three scales.",
)  # fmt: skip
assert curves["answers turned"][1] < 0.05 < 0.25 < curves["share of the gap in log-odds"][1]
assert np.all(np.diff(curves["share of the gap in log-odds"]) > 0.05)

# %% [markdown]
# Each neuron does about as much as the next. By answers the first two do nothing, and after the fourth nothing is left to
# do: **a count saturates**, and which neuron gets the credit depends on the order. Probabilities are little better. Log-odds, here where the six write straight to the output, nearly add up.
# (They have a weakness too: at the far end a large step in log-odds is a step from very unlikely to rather unlikely. So the tables have both,
# and `is_safety_critical` asks for a *refusal change*, a change of probability, over 0.3.)
#
# ## 3 · Two directions
#
# Now single heads, in both directions.

# %%
box_heads = box_tracer.trace_safety_circuit(*box_sides, ["heads"])
wide = box_heads.pivot_table(index=["layer", "unit"], columns="direction", values="refusal_change")[list(DIRECTIONS)]
in_truth = {place: name for name in ("detection_heads", "decision_components", "decoy_heads") for place in getattr(truth, name)}  # fmt: skip
wide["in truth"] = [in_truth.get(place, "") for place in wide.index]
wide[wide["in truth"] != ""].round(2).replace(-0.0, 0.0)

# %%
(decider,) = truth.decision_components
needed_there, enough_there = (float(wide.loc[decider, d]) for d in DIRECTIONS)
print(f"The decision head: harmless into harmful {needed_there:.2f}, harmful into harmless {enough_there:.2f}")
reveal("02.p1", enough_there)
assert needed_there > 0.9 and abs(enough_there) < 0.1

# %% [markdown]
# Without its decision head the box does not refuse: it is **needed**. Give a harmless run the harmful decision, and it still answers: it is
# not **enough**. It has a partner, the evaluation neurons' own writes, and the box refuses only if both come together (an AND).
# A table with one direction only would have called the same head everything or nothing.
#
# {{exercise 02.3}}
#
# Say it in words. `needed` is a place's effect from harmless into harmful, `enough` the one from harmful into harmless. Return `"both"`,
# `"needed"`, `"enough"` or `"neither"`; an effect counts when it is **over** `line`.


# %% exercise="02.3"
def my_verdict(needed, enough, line=0.3):
    """What both directions together say of a place."""
    ### BEGIN SOLUTION
    ### STUB return "both" if needed > line else "neither"
    if needed > line and enough > line:
        return "both"
    if needed > line:
        return "needed"
    return "enough" if enough > line else "neither"
    ### END SOLUTION


# %%
verdict = check("02.3", my_verdict)

# %%
stages = {
    "detection": [(box_map.component == "attn_out") & (box_map.layer == 0)],
    "evaluation, layer 1": [(box_map.component == "mlp_out") & (box_map.layer == 1)],
    "evaluation, layer 2": [(box_map.component == "mlp_out") & (box_map.layer == 2)],
    "decision": [(box_map.component == "attn_out") & (box_map.layer == 3)],
    "production, layer 4": [(box_map.component == "mlp_out") & (box_map.layer == 4)],
    "production, layer 5": [(box_map.component == "mlp_out") & (box_map.layer == 5)],
}
here = box_map.position == -1
both_ways = {
    name: [float(box_map[mask & here & (box_map.direction == d)].share_of_gap.iloc[0]) for d in DIRECTIONS]
    for name, (mask,) in stages.items()
}
pd.DataFrame(
    [{"stage": name, "needed": a, "enough": b, "verdict": verdict(a, b)} for name, (a, b) in both_ways.items()]
).round(2)

# %% [markdown]
# ### A mean of one half
#
# Two detection heads came out at one half. Is that a head of middling importance? Split the mean by what differs between the twins:

# %%
(traced_heads,) = box_tracer.trace(*box_sides, ["heads"], directions=DIRECTIONS[:1])
changes = refusal_change(traced_heads.patched, traced_heads.baseline, DIRECTIONS[0])
sorts = ["object", "verb"]
by_sort = pd.DataFrame(
    [
        {"layer.head": f"{place.layer}.{place.unit}", **{f"the {s} differs": row[[p.changed == s for p in box_pairs]].mean() for s in sorts}, "all": row.mean()}
        for place, row in zip(traced_heads.places, changes, strict=True) if (place.layer, place.unit) in truth.detection_heads
    ]
)  # fmt: skip
assert by_sort.iloc[:, 1:3].to_numpy().max() > 0.9
by_sort.round(2).replace(-0.0, 0.0)

# %% [markdown]
# Each is everything for one kind of pair and nothing for the other: one reads verbs, one reads objects. The third reads permit words, in which these
# pairs do not differ, and **tracing cannot see what the pairs do not vary**. So look at single pairs as well as at means; below you
# will have sliders for it.
#
# ## 4 · The component that hides
#
# The box `redundant` has a second path, which wakes up when the first is cut. The same exchange, harmless into harmful, with all of
# its main evaluation neurons:

# %%
double, double_tokenizer, double_truth = load_glassbox("redundant")
double_tracer = CausalTracer(double, double_tokenizer)
paths = {
    "main path": double_truth.evaluation_neurons,
    "backup": double_truth.backup_neurons,
    "both": double_truth.evaluation_neurons + double_truth.backup_neurons,
    "decoys": double_truth.decoy_neurons,
}
on_paths = double_tracer.trace_safety_circuit(*box_sides, ["neurons"], neurons=paths)
by_path = {d: on_paths[on_paths.direction == d].set_index("unit") for d in DIRECTIONS}
show(
    bars(list(paths), {TITLES[d]: by_path[d].refusal_change[list(paths)].round(2) + 0.0 for d in DIRECTIONS}, ylabel="refusal change",
         intervals={TITLES[d]: (by_path[d].low[list(paths)].round(2) + 0.0, by_path[d].high[list(paths)].round(2) + 0.0) for d in DIRECTIONS}, fmt="{:.2f}", ylim=(0, 1.2)),
    alt="Bars of refusal change by group of neurons, " + "; ".join(f"{short(d)}: " + ", ".join(f"{n} {by_path[d].refusal_change[n]:.2f}" for n in paths) for d in DIRECTIONS) + ".",
    caption="The box `redundant`, 32 test pairs, evaluation neurons at the last token.",
)  # fmt: skip
still = float(by_path[DIRECTIONS[0]].patched_refusal["main path"])
print(f"Harmful requests with a harmless main path: P(refusal) {still:.2f}")
reveal("02.p2", still)
assert still > 0.9 and by_path[DIRECTIONS[0]].refusal_change["both"] > 0.9 and by_path[DIRECTIONS[1]].refusal_change["main path"] > 0.9  # fmt: skip

# %% [markdown]
# Harmless into harmful, neither path is needed, since the other one does the work (an OR). A tracing in this direction alone would
# conclude that these neurons have no part in refusing. From harmful into harmless both light up. So the two directions have opposite blind spots:
#
# | | harmless into harmful | harmful into harmless |
# |---|---|---|
# | asks | is it needed? | is it enough? |
# | cannot see | what has a **backup** (OR) | what needs a **partner** (AND) |
#
# (In the literature the left column is also called *noising*, the right one *denoising*, whatever does the corrupting.)
#
# Could one find a backup by patching alone? Yes: exchange **two places at once**. Here are all pairs of the 48 heads, in one sweep. The
# diagonal holds each head alone.

# %%
from helpers.joint import joint_changes

every_head = [(layer, head) for layer in range(dims_of(double).n_layers) for head in range(dims_of(double).n_heads)]
joint = joint_changes(double, double_tokenizer, *(side[:16] for side in box_sides), every_head)
print("the largest effect of a single head:", round(float(np.diag(joint).max()), 2))

# %% [markdown]
# {{exercise 02.4}}
#
# Find the pairs that hide each other. `joint` is `[head, head]`, symmetric, with the single heads' effects on its diagonal. Return
# `(i, j)` with `i < j` for which **both together** are over `line`, while **neither alone** is.


# %% exercise="02.4"
def my_hidden(joint, line=0.3):
    """Pairs of places that do together what neither does alone: a list of (i, j), i < j."""
    ### BEGIN SOLUTION
    alone = np.diag(joint) > line
    count = len(joint)
    return [
        (i, j)
        for i in range(count)
        for j in range(i + 1, count)
        if joint[i, j] > line and not alone[i] and not alone[j]
    ]
    ### END SOLUTION


# %%
hidden = check("02.4", my_hidden)

# %%
found = [(every_head[i], every_head[j]) for i, j in hidden(joint)]
members = sorted({head for pair in found for head in pair})
main_and_backup = set(double_truth.heads + double_truth.backup_heads)
print("pairs that hide each other:", found)
print("all of them in the circuit or its backup:", set(members) <= main_and_backup)
few = sorted({*members, *double_truth.decoy_heads})
places = [every_head.index(head) for head in few]
names = [f"{layer}.{head}" for layer, head in few]
show(
    heatmap(joint[np.ix_(places, places)].round(2) + 0.0, xlabel="head", ylabel="head", xticks=names, yticks=names, limits=(0, 1),
            colorbar="refusal change", fmt="{:.1f}", title="Two heads at once"),
    alt="Heat map of the refusal change when two heads of the redundant box are exchanged together. Pairs that act only together: " + ", ".join(f"{a[0]}.{a[1]} with {b[0]}.{b[1]}" for a, b in found) + ".",
    caption="The box `redundant`, harmless into harmful, 16 test pairs; layer.head. On the diagonal each head alone. Decoys are among them, and do nothing.",
)  # fmt: skip
assert set(members) <= main_and_backup and set(double_truth.decision_components) <= set(members)
assert np.diag(joint).max() < 0.1

# %% [markdown]
# Each of these pairs cuts the main path at one place and the backup at another, so that nothing is left. A half means what it meant in section 3: such a
# head reads verbs, or objects, and half of the pairs do not vary that. Every pair costs a patch, and there may be backups of backups. But mark the rule: *no effect* in one direction is no proof of *no part*.
#
# How do the rankings do on all four kinds?

# %%
everyone = [(layer, n) for layer in range(dims_of(box).n_layers) for n in range(dims_of(box).d_mlp)]
singles = {f"{layer}.{n}": [(layer, n)] for layer, n in everyone}
rows = []
for kind in tqdm(KINDS, desc="boxes"):
    other, other_tokenizer, other_truth = load_glassbox(kind)
    tracer = CausalTracer(other, other_tokenizer)
    some = [side[:12] for side in box_sides]
    of_heads, of_neurons = tracer.trace_safety_circuit(*some, ["heads"]), tracer.trace_safety_circuit(*some, ["neurons"], neurons=singles)  # fmt: skip
    of_neurons["unit"] = [int(unit.split(".")[1]) for unit in of_neurons.unit]
    for stage, table in (("heads", of_heads), ("evaluation_neurons", of_neurons), ("production_neurons", of_neurons)):
        wide = table.pivot_table(index=["layer", "unit"], columns="direction", values="share_of_gap")
        for name, values in (("needed", wide[DIRECTIONS[0]]), ("enough", wide[DIRECTIONS[1]]), ("the larger", wide.max(axis=1))):  # fmt: skip
            order = [(int(layer), int(unit)) for layer, unit in values.sort_values(ascending=False).index]
            got = score(order, other_truth, stage)
            rows.append({"box": kind, "stage": stage, "ranked by": name, "recall at k": got.recall_at_k, "decoys": got.decoys})  # fmt: skip
on_boxes = pd.DataFrame(rows)
on_boxes.pivot(index=["stage", "ranked by"], columns="box", values="recall at k")[list(KINDS)].round(2)

# %% [markdown]
# k is the number of true ones, among 48 heads or 1,536 neurons. Where the two directions disagree, the box has a backup or a partner. The head that is
# never found is the reader of permit words, for the reason you have seen. And single neurons are a hard test: where dozens share the work each does next to
# nothing, and where a backup stands by, one of them does nothing at all. (A 0.00 need not be a failure. In `concentrated`, ranked by *needed* the evaluation
# neurons fill the first places and leave none for the production neurons; ranked by *enough* it is the other way round. Both are in the circuit.)
#
# ## 5 · The real model
#
# ### Pairs of unequal length
#
# In real language the twin of a request is often longer or shorter by a token. The colleague numbered the tokens of both from the end and exchanged them one
# by one as far as they went. No error, and a map full of nonsense: a verb had been exchanged for an article.
#
# {{exercise 02.5}}
#
# `harmful` and `harmless` are two prompts' token ids, in their template, whose last `after` tokens belong to the template. Return the positions, **counted
# from the end** (-1 is the last), at which tokens of the two prompts correspond: all of them if the prompts are equally long, else those
# of the template's end.


# %% exercise="02.5"
def my_places(harmful, harmless, after):
    """Positions, counted from the end, where an exchange makes sense: a list of negative numbers."""
    ### BEGIN SOLUTION
    ### STUB return list(range(-min(len(harmful), len(harmless)), 0))
    count = len(harmful) if len(harmful) == len(harmless) else after
    return list(range(-count, 0))
    ### END SOLUTION


# %%
places_of = check("02.5", my_places)

# %%
from helpers.prompts import load_pairs
from helpers.roles import equal_length, template_ends

after = template_ends(tokenizer)[1]
test_pairs = load_pairs("test")
lengths = []
for pair in test_pairs:
    ids = tokenize(tokenizer, chat_text(tokenizer, [pair.harmful, pair.harmless]))
    lengths.append(len(places_of(*ids, after)) > after)
print(f"{sum(lengths)} of {len(test_pairs)} test pairs are equally long; the template's end has {after} tokens:",
      [tokenizer.decode(i) for i in ids[0][-after:]])  # fmt: skip
assert sum(lengths) == len(equal_length(tokenizer, test_pairs))
unequal = test_pairs[lengths.index(False)]
try:
    CausalTracer(model, tokenizer).trace_safety_circuit(unequal.harmful, unequal.harmless, positions="map")
except ValueError as error:
    print("\nthe tracer says:", error)

# %% [markdown]
# `positions="end"` works for every pair. For the request's own words we keep equally long pairs, and gather their tokens by **role**: the words that
# differ, the words after them, each token of the template's end.
#
# ### Which pairs?
#
# An exchange needs a gap: a harmful request that is refused, and a twin that is not. We keep those, and say how many they are. What we find holds for
# requests that the model decides clearly, and for no others.

# %%
from helpers.packed_score import packed
from helpers.refusal import refusal_score_of
from helpers.shared_prefix import WithPrefix, shared_prefix

refusal = refusal_score_of(model, tokenizer)
candidates = equal_length(tokenizer, test_pairs)[::4]
asked = {side: [getattr(p, side) for p in candidates] for side in ("harmful", "harmless")}
quickly = WithPrefix(model, shared_prefix(tokenizer, [*asked["harmful"], *asked["harmless"]]))
odds = [packed(refusal).log_odds(quickly, tokenizer, prompts) for prompts in tqdm(asked.values(), desc="which pairs")]
clear = [p for p, a, b in zip(candidates, *odds, strict=True) if a > refusal.threshold > b]
pairs = clear[:12]
sides = [p.harmful for p in pairs], [p.harmless for p in pairs]
print(f"{len(clear)} of {len(candidates)} pairs are told apart; {len(pairs)} are traced")

# %% [markdown]
# ### Where the difference lives
#
# A map has hundreds of cells, so it uses the quick score: the first token of a refusal opening only. Its peaks are measured again with the whole
# score below.

# %%
quick = CausalTracer(model, tokenizer, quick=True)
n_layers = dims_of(model).n_layers
stream = quick.trace(*sides, ["resid_pre"], positions="map", layers=range(0, n_layers, 2))
parts = quick.trace(
    *sides, ["attn_out", "mlp_out"], positions=["differing words", "words after", -1], layers=range(0, n_layers, 2)
)
# the layers between, at the last token only
between = quick.trace(*sides, ["attn_out", "mlp_out"], positions=[-1], layers=range(1, n_layers, 2))

# %%
from helpers.trace_view import explore, together
from helpers.tracing import table_of

stream_table = pd.concat([table_of(one) for one in stream], ignore_index=True)
part_table = pd.concat([table_of(one) for one in parts], ignore_index=True)
last_table = pd.concat([part_table, *(table_of(one) for one in between)], ignore_index=True)
end = [tokenizer.decode(i) for i in tokenize(tokenizer, chat_text(tokenizer, sides[0][:1]))[0][-after:]]
shown = {n - after: f"{n - after} {text!r}" for n, text in enumerate(end)}

# %% [markdown]
# With the sliders you can look at every pair, site and measure; below them stands the mean of the residual stream.

# %%
explore([together(*both) for both in zip(stream, parts, strict=True)], [p.kind for p in pairs])

# %%
grids, above = maps_of(stream_table, "resid_pre")
show(
    two_maps(grids, sure=above, xlabel="place", colorbar="share of the gap", title="The real model: residual stream before each layer",
             xticks=[shown.get(position, position) for position in dict.fromkeys(stream_table.position)], yticks=range(0, n_layers, 2)),
    alt="Two maps of the real model's residual stream by layer and place. " + largest(stream_table) + ".",
    caption=f"{len(pairs)} test pairs, quick score. Dots: the 95% interval lies above 0.02.",
)  # fmt: skip


def crossing(direction):
    """The lowest traced layer before which the last token carries more of the gap than the differing words do."""
    grid = grid_of(stream_table, direction, "share_of_gap")
    late = grid.index[grid[-1] > grid["differing words"]]
    return int(late.min()) if len(late) else n_layers


for direction in DIRECTIONS:
    grid = grid_of(stream_table, direction, "share_of_gap")
    middle = grid["words after"].idxmax()
    print(f"{short(direction)}: the last token carries more than the differing words from layer {crossing(direction)} on; "
          f"the words after them carry most before layer {middle} ({grid['words after'][middle]:.2f})")  # fmt: skip
top, bottom = (grid_of(stream_table, DIRECTIONS[1], "share_of_gap").iloc[i] for i in (-1, 0))
assert bottom["differing words"] > 0.9 > 0.1 > abs(bottom[-1]) and top[-1] > 0.7

# %% [markdown]
# The bottom row must show everything at the differing words, and the top row nearly everything at the last token: there is nowhere else to come from,
# and nowhere else to go. What is *found* is the way between: how high the news climbs before it moves, and where it rests on the way.
#
# ### Who carries it?
#
# The same for what attention and MLPs **write**, at three places, in every second layer.

# %%
for component, name in (("attn_out", "attention"), ("mlp_out", "MLP")):
    grids, above = maps_of(part_table, component)
    most = max(float(np.abs(grid[1:]).max()) for grid in grids.values())  # layer 0 may outshine all: see below
    show(
        two_maps(grids, sure=above, xlabel="place", colorbar="share of the gap", title=f"The real model: {name}", reach=most,
                 xticks=["differing words", "words after", "last token"], yticks=range(0, n_layers, 2)),
        alt=f"Two maps of the real model's {name} by layer and place. " + largest(part_table[part_table.component == component]) + ".",
        caption=f"Colours end at {most:.2f}, the largest above layer 0. Largest: " + largest(part_table[part_table.component == component]) + ".",
    )  # fmt: skip

# %% [markdown]
# One cell at the very bottom of the MLP maps deserves a warning. Layer 0's MLP, at the words that differ, has little to read but the words themselves: to
# exchange it is close to exchanging the words. If it carries nearly everything, that says nothing about refusal. **A large effect is not yet a
# discovery.**
#
# The darkest cell of the attention maps lies at the *words after*: there the news leaves the word that differs and moves to its neighbours, halfway
# up. You can look at it pair by pair with the sliders above. From here on we follow the last token only, where the answer begins: with intervals, and
# in every layer.

# %%
at_last = last_table[last_table.position == -1].sort_values(["direction", "component", "layer"], ignore_index=True)
peak = {d: at_last[at_last.direction == d].nlargest(3, "share_of_gap") for d in DIRECTIONS}
show(
    lines_by_layer(at_last),
    alt="Lines of the share of the gap over the layers at the last token, attention and MLP, both directions. " + largest(at_last) + ".",
    caption=f"{len(pairs)} test pairs; bands: 95% intervals over pairs.",
)  # fmt: skip
needed_most, enough_most = (float(peak[d].share_of_gap.max()) for d in DIRECTIONS)
print(f"The largest single part at the last token: needed {needed_most:.2f}, enough {enough_most:.2f}")
print("Sum over all parts at the last token:", {short(d): round(float(at_last[at_last.direction == d].share_of_gap.sum()), 2) for d in DIRECTIONS})  # fmt: skip
reveal("02.p3", enough_most)

# %% [markdown]
# Look at the sums. They need not be 1: whoever hands on what another one brought is counted again. But both directions count the same parts, so in a
# model where effects simply add the two sums would be alike. A smaller sum on the left *fits* **parts that stand in for each other**: take
# one harmful part away and the rest still refuses, while each alone brings a good deal. It also fits a score that bends between its ends. So take it as a hint, and
# test it. We will.
#
# ### The peaks again, with the whole score and a control
#
# For the control, the donor is *another prompt of the run's own class*: a patch at the same place, mostly a *larger* change, without the difference in harm. Twenty draws. (These
# peaks were found on the same pairs, and so look a little better than they are.)

# %%
tracer = CausalTracer(model, tokenizer, refusal)
strongest = pd.concat(peak.values()).sort_values("share_of_gap", ascending=False).drop_duplicates(["layer", "component"])[:4]  # fmt: skip
again = []
for component in tqdm(sorted(set(strongest.component)), desc="peaks"):
    wanted = sorted(set(strongest[strongest.component == component].layer))
    full = tracer.trace_safety_circuit(*sides, [component], layers=wanted)
    drawn = quick.trace_safety_circuit(*sides, [component], layers=wanted, controls=20)
    again.append(full.assign(control_low=drawn.control_low, control_high=drawn.control_high, beyond_control=drawn.low > drawn.control_high))  # fmt: skip
again = pd.concat(again, ignore_index=True)
columns = ["layer", "component", "direction", "share_of_gap", "share_low", "share_high", "refusal_change", "low", "high",
           "control_low", "control_high", "beyond_control", "is_safety_critical"]  # fmt: skip
print(f"{int(again.beyond_control.sum())} of {len(again)} rows lie above all twenty draws with their whole interval (both by the quick score); {int(again.is_safety_critical.sum())} are critical (over {CRITICAL})")  # fmt: skip
again[columns].round(2)

# %% [markdown]
# A peak that vanishes under the whole score belonged to the first token. One that merely shrinks may owe the loss to that, to having been picked by the quick score, or to chance: compare the intervals. (`low` and `high` are by the whole score and the controls by the quick one: compare `beyond_control` only.)
#
# ### Needed or enough?
#
# In the line printed below the picture, *needed* and *enough* only mean: over a tenth of the gap.

# %%
wide = at_last.pivot_table(index=["layer", "component"], columns="direction", values="share_of_gap")[list(DIRECTIONS)]
limits = at_last.pivot_table(index=["layer", "component"], columns="direction", values=["share_low", "share_high"])
points, names, intervals = {}, {}, {}
for component, name in (("attn_out", "attention"), ("mlp_out", "MLP")):
    one = wide.xs(component, level="component")
    part = limits.xs(component, level="component")
    points[name] = one[DIRECTIONS[0]].tolist(), one[DIRECTIONS[1]].tolist()
    names[name] = [str(layer) if max(row) > 0.18 else "" for layer, row in zip(one.index, one.to_numpy(), strict=True)]
    intervals[name] = np.array([part[bound, d] for d in DIRECTIONS for bound in ("share_low", "share_high")])
show(
    corner(points, names=names, value="share of the gap", bars=intervals),
    alt="Scatter plot of all attention and MLP layers at the last token, needed across and enough up. " + largest(at_last, 4) + ".",
    caption="One mark a part, with its layer; crosses are 95% intervals. On the diagonal both directions would agree.",
)  # fmt: skip
words = [verdict(a, b, 0.1) for a, b in wide.to_numpy()]
print("at a line of 0.1:", {name: words.count(name) for name in ("both", "needed", "enough", "neither")})
print(
    f"{np.mean(wide[DIRECTIONS[1]] > wide[DIRECTIONS[0]]):.0%} of the parts do more from harmful into harmless than the other way round"
)

# %% [markdown]
# ### Heads
#
# Which heads bring the news? They are **ranked on the method topics**, and reported on the test topics: of 270 heads some will look good by luck (even with
# perfect 95% intervals, one head in forty would lie above 0 by chance alone; with only ten pairs it is more than that).

# %%
method = equal_length(tokenizer, load_pairs("method"))[::7][:10]
method_heads = quick.trace_safety_circuit([p.harmful for p in method], [p.harmless for p in method], ["heads"])
grids, above = maps_of(method_heads, "heads", "unit", line=0.01)
most = float(max(np.abs(g).max() for g in grids.values()))
ranking = method_heads[method_heads.direction == DIRECTIONS[1]].sort_values("share_of_gap", ascending=False)
leaders = [(int(r.layer), int(r.unit)) for r in ranking.itertuples()]
show(
    two_maps(grids, sure=above, xlabel="head", colorbar="share of the gap", reach=most, title="The real model: heads at the last token"),
    alt="Two maps of the real model's heads by layer. The first five from harmful into harmless: " + ", ".join(f"{r.layer}.{r.unit} {r.share_of_gap:.2f}" for r in ranking[:5].itertuples()) + ".",
    caption=f"{len(method)} method pairs; mind the scale, which ends at {most:.2f}. Dots: the interval lies above 0.01. First five (layer.head, 95% interval): " + ", ".join(f"{r.layer}.{r.unit} {r.share_of_gap:.2f} ({r.share_low:.2f} to {r.share_high:.2f})" for r in ranking[:5].itertuples()) + ".",
)  # fmt: skip

# %% [markdown]
# And now the test of the hint. Exchange the first 1, 2, 4 ... heads of that list **together**, on test pairs, beside twenty random sets of heads from the same
# layers. If heads stand in for each other, the left line should rise faster than its single heads promised.

# %%
from helpers.joint import trace_head_groups
from helpers.matched import random_sets
from helpers.statistics import mean_interval
from helpers.sweep import first_tokens
from helpers.trace_plots import lines_of_groups

counts, shape = [1, 2, 4, 8, 16, 32], (n_layers, dims_of(model).n_heads)
sets = [leaders[:k] for k in counts]
alike = [one for chosen in sets for one in random_sets(chosen, shape, 20)]
in_groups, extra = {}, {}
for direction in DIRECTIONS:
    one = trace_head_groups(
        model,
        tokenizer,
        *sides,
        [*sets, *[[head] for head in leaders[:8]], *alike],
        direction,
        score=first_tokens(refusal),
    )
    shares = np.array([share(row, one.baseline, one.donor) for row in one.patched])
    in_groups[direction] = shares[:6], np.cumsum(shares[6:14])[[0, 1, 3, 7]], shares[14:].reshape(6, 20)
    moved = (one.patched - one.baseline) / np.mean(one.donor - one.baseline)  # [group, pair]
    extra[direction] = moved[3] - moved[6:14].sum(0)  # eight together less eight added up, for each pair
show(
    lines_of_groups(counts, {TITLES[d]: rows for d, rows in in_groups.items()}, ylabel="share of the gap"),
    alt="Lines of the share of the gap by the number of heads exchanged together. " + "; ".join(f"{short(d)}: " + ", ".join(f"{k} heads {v:.2f}" for k, v in zip(counts, g, strict=True)) for d, (g, _, _) in in_groups.items()) + ".",
    caption=f"{len(pairs)} test pairs, heads ranked on method pairs, last token only. Random: from the same layers. "
    + "; ".join(f"{short(d)}, 8 random heads {c[3].min():.2f} to {c[3].max():.2f}" for d, (_, _, c) in in_groups.items()) + ".",
)  # fmt: skip
more = {}
for direction, (group, added, _) in in_groups.items():
    low, high = mean_interval(extra[direction])
    more[direction] = "more" if low > 0 else "less" if high < 0 else "as much"
    print(f"{short(direction)}: the first 8 together {group[3]:.2f}, added up {added[3]:.2f}; difference {extra[direction].mean():+.2f} ({low:+.2f} to {high:+.2f}), n = {len(pairs)}")  # fmt: skip
left, right = (more[d] for d in DIRECTIONS)
readings = {
    ("more", "more"): "Together they do more both ways: they stand in for each other and need each other, or log-odds bend that much. A table of single heads shows who belongs to this group, but not how much they do together.",
    ("more", "as much"): "Together they are needed more than their sum: they stand in for each other.",
    ("more", "less"): "Needed more than their sum, enough with less: they stand in for each other (OR).",
    ("as much", "more"): "Together they are enough for more than their sum: they need each other.",
    ("less", "more"): "Enough for more than their sum, needed less: they need each other (AND).",
}  # fmt: skip
print(readings.get((left, right), "No sign here that heads stand in for each other, or need each other."))

# %% [markdown]
# The gap between the two lines is what a table of single heads could never have told you. But if the group does more than its sum in *both* directions, by about as much, then
# the test has not told backups from a bent scale; only a gap on the left without one on the right would speak for backups. (The heads were ranked by what they bring, not by
# what is lost without them.)
#
# ## 6 · Noise instead of a twin
#
# Causal tracing became famous with another way to break a run (ROME, Meng et al. 2022): add **Gaussian noise** to the embeddings of the subject, three times
# as large as embeddings vary, then mend one place at a time with its clean activation. No twin is needed, which is handy. The colleague has tried it on refusal.
# Whatever they mend, nothing comes back.
#
# {{exercise 02.6}}
#
# Debug it. `entering` is what enters the first block, `[position, d_model]`; `request` says which positions are the request's, bool `[position]`. Return a
# new tensor with Gaussian noise **added at the request's tokens only**, its standard deviation `scale` times that of *their* values. Draw it by
# `torch.randn(shape, generator=generator)`.


# %% exercise="02.6"
def my_noise(entering, request, scale, generator):
    """What enters the first block, with noise on the request's tokens, [position, d_model]."""
    ### BEGIN SOLUTION
    ### STUB return entering + scale * torch.randn(entering.shape, generator=generator)
    noise = torch.randn(entering.shape, generator=generator)
    return entering + scale * entering[request].std() * noise * request[:, None]
    ### END SOLUTION


# %%
noisy = check("02.6", my_noise)

# %% [markdown]
# What had the colleague done? Compare three runs of a few harmful requests: intact, your noise, and theirs. How far does the next token move, and what is left of the refusal?

# %%
from helpers.hooks import edit


def colleague(entering, request, scale, generator):
    """Noise of its own size on everything, template and all."""
    return entering + scale * torch.randn(entering.shape, generator=generator)


before_request = template_ends(tokenizer)[0]


@torch.no_grad()
def moved_by(prompt, disturb, seed=0):
    """How far the next token's distribution moves from the intact run, in nats; and P(a refusal's first token)."""
    ids = tokenize(tokenizer, chat_text(tokenizer, [prompt]))[0]
    request = torch.zeros(len(ids), dtype=torch.bool)
    request[before_request:-after] = True

    def function(x):
        return disturb(x[0].cpu(), request, 3.0, torch.Generator().manual_seed(seed))[None].to(x)

    row = torch.tensor([ids], device=model.device)
    intact = model(row, logits_to_keep=1).logits[0, -1].log_softmax(-1)
    with edit(model, [("resid_pre", 0, function)]):
        log_p = model(row, logits_to_keep=1).logits[0, -1].log_softmax(-1)
    openings = sorted({opening[0] for opening in refusal.openings})
    return float((intact.exp() * (intact - log_p)).sum()), float(log_p[openings].exp().sum())


runs = {"intact": lambda x, *_: x, "noise on the request": noisy, "the colleague's noise": colleague}
broken = {
    name: np.mean([moved_by(prompt, disturb) for prompt in sides[0][:8]], axis=0) for name, disturb in runs.items()
}
broken = pd.DataFrame(broken, index=["KL to the intact run (nats)", "P(a refusal's first token)"]).T
broken.round(2)

# %% [markdown]
# The colleague changed two things at once: where the noise falls (on the template too) and how large it is (3, whatever size the embeddings have). This table cannot say which
# of them did the damage; but where the KL says that hardly anything of the intact run is left, there is little that mending one place could bring back. *A corruption must break what you study, and nothing else.*
# Look at the other row as well: noise on the request alone weakens the refusal and need not take it away. What was not lost cannot come back, so the gap to
# mend is smaller than a twin's.
#
# ### Where the two disagree
#
# Now both, on the same pairs: the harmful request is corrupted by noise, or replaced by its twin; then attention or MLPs are mended from the intact run, in one layer,
# and in a window of six (a fifth of the layers, as ROME's 10 of 48).

# %%
from helpers.noise import trace_corrupted

window = n_layers // 5
mended = trace_corrupted(
    model, tokenizer, *(side[:8] for side in sides), positions=["differing words", "words after", -1], windows=(1, window),
    layers=range(0, n_layers, 4), draws=2, score=first_tokens(refusal),
)  # fmt: skip
lost = mended.groupby("corruption")[["intact", "corrupted"]].mean()
lost.round(2)

# %%
from helpers.trace_plots import mended_panels

paired = mended.pivot_table(
    index=["window", "component", "position", "layer"], columns="corruption", values="share_of_gap"
)
agreement = {size: float(np.corrcoef(paired.loc[size].noise, paired.loc[size].twin)[0, 1]) for size in (1, window)}
apart = (paired.noise - paired.twin).abs().nlargest(3)
apart_words = ", ".join(
    f"{COMPONENTS[c]} {layer} at {place}, window {size} ({paired.loc[(size, c, place, layer)].noise:.2f} against {paired.loc[(size, c, place, layer)].twin:.2f})"
    for size, c, place, layer in apart.index
)
show(
    mended_panels(mended),
    alt=f"Six panels of the share of refusal that returns by layer, for noise and twin, single layers and windows of {window}. Correlation of noise and twin {agreement[1]:.2f} for single layers and {agreement[window]:.2f} for windows. Furthest apart: {apart_words}.",
    caption=f"8 test pairs, two draws of noise; bands (windows only): 95% intervals. Noise against twin: correlation {agreement[1]:.2f} in single layers, {agreement[window]:.2f} in windows. Furthest apart: {apart_words}.",
)  # fmt: skip
at_end = mended[mended.position == -1].pivot_table(
    index=["corruption", "component"], columns="window", values="share_of_gap", aggfunc="max"
)
print("The largest share that returns at the last token, one layer and six:", {f"{a}, {COMPONENTS[b]}": [round(float(x), 2) for x in row] for (a, b), row in zip(at_end.index, at_end.to_numpy(), strict=True)})  # fmt: skip
gaps = {name: float(row.intact - row.corrupted) for name, row in lost.iterrows()}
smaller = min(gaps, key=gaps.get)
print(
    f"log-odds lost: noise {gaps['noise']:.2f}, twin {gaps['twin']:.2f}; the {smaller} leaves the smaller gap; a share is of its own gap, so compare where the shares lie, not how high they are"
)

# %% [markdown]
# The correlations say how far both tell one story; they are flattered by the many cells where both find nothing, and by the MLP of layer 0. So look at the panels. Where the two
# part, there may be three reasons (the second is in Zhang and Nanda 2024; the others are ours, and not tested here):
#
# * **They ask different questions.** The twin keeps everything but harm: a request is still a request. Noise takes away *all* of the words, so what mends the run need
#   not have to do with harm.
# * **Noise is no text.** No prompt leads to such activations; attention may look elsewhere, and a part that is mended in that company can do the opposite of
#   what it does in a real run.
# * **Noise does not break to a known place.** A twin ends as a request that is answered. Noise ends anywhere, and so a *share* of what was lost has another size.
#
# And windows: where six layers in a row bring back more than any of them alone, as in ROME, that is no contradiction: six effects that merely add
# up also exceed the largest of them. Only a window above the *sum* of its layers would say that they work together. So a window's peak shows a region, not a layer.
#
# ## What this shows, and what it does not
#
# **It shows**, on the boxes, that an exchange finds what the pairs vary, that *needed* and *enough* are two questions, and that a backup or a
# partner makes one of the answers "nothing". On the real model it shows the way of the difference, from the words to the last token, with intervals
# and a control.
#
# **It does not show**
#
# * what a part *computes*. It carries the difference; it may only pass it on.
# * anything the twins have in common: what both runs share is invisible, as the permit reader was.
# * requests that the model does not tell apart: they were left out.
# * that shares add up. Parts stand in for each other, and feed each other.
# * a mechanism in larger models. This is one small model with an adapter of ours.
#
# ## Quiz

# %%
quiz("02")

# %% [markdown]
# ## Where to read on
#
# * **Meng, Bau, Andonian, Belinkov (2022)**, *Locating and Editing Factual Associations in GPT* (ROME). In GPT-2 XL facts came back at the subject's last token in
#   middle MLPs, windows of 10 of 48 layers. *Ours differs:* refusal instead of facts, and a twin beside the noise.
# * **Zhang, Nanda (2024)**, *Towards Best Practices of Activation Patching in Language Models*. Noise against replacement, logit difference against probability, windows
#   against layers. *Ours differs:* one behaviour, on a model small enough to run everything.
# * **Heimersheim, Nanda (2024)**, *How to Use and Interpret Activation Patching*. AND and OR, and what each direction can see. *Ours differs:* boxes in which the
#   ANDs and ORs were put by hand.
# * **Vig, Gehrmann, Belinkov, Qian, Nevo, Singer, Shieber (2020)**, *Investigating Gender Bias in Language Models Using Causal Mediation Analysis*. Where interchange in
#   language models began. *Ours differs:* positions and both directions.
# * **McGrath, Rahtz, Kramar, Mikulik, Legg (2023)**, *The Hydra Effect*. Self-repair in large models. *Ours differs:* a repair that is known, and found by pairs.
#
# **Next:** lesson 03 asks what can be *read* at each place, and why reading is not the same as using.
