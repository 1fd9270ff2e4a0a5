# %% [markdown]
# # 08 · Capstone: the mystery box
#
# *A box has come in.* It refuses what it should refuse and answers what it should answer. Somewhere inside sits a circuit that decides, and around it
# sit parts that only look like it. Nobody will tell you which kind of box it is. You have three thousand passes, everything you have learned, and a form to
# fill in. When you have handed it in, the roles change: then the box is yours, and others attack it.
#
# **After this lesson you can**
#
# * plan an investigation under a budget, and say what each answer costs;
# * find a circuit from the answer backwards, each step telling the next one where to look;
# * tell four kinds of circuit apart by experiments that can fail;
# * hand in findings that others can score;
# * build a guard that survives attacks, and say which it does not survive.
#
# **Time:** about 120 minutes, of which the computer needs two. **To know before:** lessons 00 to 05.
# Words that are new to you stand in the [glossary](../GLOSSARY.md).
#
# There are five exercises; in each you repair what a colleague left behind. As always, no exercise can stop you. A whole solution stands in the notebook beside
# this one, and in `helpers/capstone_solver.py`. You may of course solve the case in your own way: only the hand-in counts.

# %% [markdown]
# ## Set-up

# %%
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from helpers.capability import box_facts, knows
from helpers.capstone import LIMIT, PAR, WEIGHTS, grade, open_case
from helpers.checks import check, hint  # noqa: F401 (hint is for you)
from helpers.glassbox import KINDS, glassbox_prompts, load_glassbox, mystery, ranked, score
from helpers.plots import CONTROL, HARMFUL, HARMLESS, MARKERS, bars, figure, heatmap, show
from helpers.quiz import quiz, reveal

TEAM = "demo"  # your name or your team's
SEED = 4  # the seed that your instructor gave you; any whole number if you study alone

case = open_case(SEED)
model, tokenizer, budget = case.model, case.tokenizer, case.budget
print(budget)

# %% [markdown]
# ## Predict before you run

# %%
quiz("08.p1")

# %%
quiz("08.p2")

# %% [markdown]
# ## 1 · The briefing
#
# | you hand in | what it is |
# |---|---|
# | `detection_heads` | heads that bring news of the marked words |
# | `evaluation_neurons` | neurons that join them: harmful, or not |
# | `decision_components` | heads that decide |
# | `production_neurons` | neurons that speak the refusal |
# | the kind | concentrated, distributed, redundant or entangled |
#
# You are scored on **precision** and **recall** (means over the four stages), **kind** and **cost**. A right kind counts as far as you found the evaluation neurons,
# whose cut shows it, and thrift as far as you found anything: guessing and doing nothing earn nothing. Parts of a backup count neither for nor against you.

# %%
print("weights:", WEIGHTS)
print(f"cost: all points up to {PAR:,} passes, none at {LIMIT:,}")

# %% [markdown]
# ### What is a pass?
#
# One prompt through all blocks, once. Your colleague has written the meter. It counts calls.
#
# {{exercise 08.1}}
#
# `prompts` go through `blocks` of the model's `n_blocks`; with `backward`, a gradient is taken as well, which costs two more forwards of the same
# size. Return the passes.


# %% exercise="08.1"
def my_passes(prompts, blocks, n_blocks, backward):
    """What a run costs, in passes."""
    ### BEGIN SOLUTION
    ### STUB return 1
    return prompts * blocks / n_blocks * (3 if backward else 1)
    ### END SOLUTION


# %%
passes = check("08.1", my_passes)
print(
    f"every head of the box patched for 48 pairs, from its own layer on: {sum(8 * passes(48, 6 - i, 6, False) for i in range(6)):,.0f} passes"
)
print(f"every neuron the same way: {sum(256 * passes(48, 6 - i, 6, False) for i in range(6)):,.0f} passes")
print(f"one gradient for all of them: {passes(48, 6, 6, True):,.0f} passes")

# %% [markdown]
# So brute force is out. The real meter hangs on the box and sees every block that runs, yours and the helpers'. First, behaviour:

# %%
from helpers.refusal import refusal_score_of

refusal = refusal_score_of(model, tokenizer)
looked = {}
for kind in ("harmful", "harmless", "borderline"):
    odds = refusal.log_odds(model, tokenizer, glassbox_prompts(kind, n=8, split="validation"))
    looked[f"{kind} requests refused"] = float((odds > refusal.threshold).mean())
looked["questions answered"] = float(knows(model, tokenizer, box_facts(8)).mean())
for what, share in looked.items():
    print(f"{what}: {share:.0%}")
print(budget.mark("first look"))

# %% [markdown]
# From outside, all kinds of boxes look like this.
#
# ## 2 · The usual suspects
#
# Your colleague has closed cases before: *take whatever reacts most*. On one box of each named kind, whose truth lies open, here is how that goes. (Nothing of this comes out of your
# budget.)

# %%
from helpers.capstone_solver import naive, solve

rows = {}
for kind in KINDS:
    m, t, truth = load_glassbox(kind)
    found = score(naive(m, t).stages, truth)
    rows[kind] = {stage.replace("_", " "): f"{s.recall:.0%} found, decoys: {s.decoys}" for stage, s in found.items()}
pd.DataFrame(rows).T

# %% [markdown]
# The decoys react and nobody listens. Worse, evaluation, the heart of it, is not touched at all. So work the other way round: **begin at the answer, and ask who is
# listened to**.
#
# ## 3 · Backwards from the answer
#
# ### Who speaks
#
# 48 pairs of twins, equally many by changed object, verb and permit word. The neurons that write the refusal's first word themselves are found by direct attribution
# (lesson 04), without a single patch.

# %%
from helpers.capstone_solver import case_pairs
from helpers.circuits import direct_attribution
from helpers.twins import Twins

pairs = case_pairs(48)
twins = Twins(model, tokenizer, pairs)
runs = [twins.read(side, ["resid_pre", "attn_out", "z", "neurons"]) for side in ("harmful", "harmless")]
spoken = direct_attribution(twins)  # [layer, neuron]
print("the largest:", [round(float(spoken[p]), 2) for p in ranked(spoken, 8)])
print(budget.mark("who speaks"))

# %% [markdown]
# A ranking has no end of its own. Your colleague always takes ten.
#
# {{exercise 08.2}}
#
# `values` fall. Begin with the first `start`. Keep all that reach **half the median of those kept so far**, and go on until nothing changes. Return how many are kept,
# at least `start`.


# %% exercise="08.2"
def my_cut(values, start):
    """How many of the largest belong together."""
    ### BEGIN SOLUTION
    ### STUB return min(10, len(values))
    values = np.asarray(values)
    count = start
    while True:
        more = int((values >= np.median(values[:count]) / 2).sum())
        if more <= count:
            return count
        count = more
    ### END SOLUTION


# %%
cut = check("08.2", my_cut)


# %%
def kept(scores, start):
    """The places of a ranking up to its cut."""
    order = ranked(scores)
    return order[: cut([float(scores[p]) for p in order], start)]


production = kept(spoken, 4)
hears = min(layer for layer, _ in production)
print(f"{len(production)} neurons speak, the first of them in layer {hears}.")

# %% [markdown]
# Why the median, and not the largest gap? Far down a ranking, where values are next to nothing, ratios are largest of all. And in a box with many small members the
# loudest are exceptions. It is a rule of thumb all the same: look at the picture below before you trust it.
#
# ### What they hear, and who decides
#
# The speakers listen to the stream. In what direction does it differ, harmful from harmless, where the first of them reads it? And which heads *write* in that
# direction?

# %%
from helpers.capstone_solver import change_at_end, head_writes, heard_direction

direction = heard_direction(runs, hears)
written = head_writes(model, change_at_end(runs, "z"), direction)  # [layer, head]
written[hears + 1 :] = 0  # behind the first who speak, nobody can tell them anything
decision = kept(written, 1)
decides = min(layer for layer, _ in decision)
print(f"{len(decision)} head(s) decide, the first of them in layer {decides}.")
print(budget.mark("who decides"))

# %% [markdown]
# Not one pass: all of it was in what you had read already. Reading is dear, looking is free.
#
# ### Who evaluates
#
# Now the neurons before the decision that write in this direction: the change of their activation times their column along it. Your colleague has averaged this
# over all pairs. That is unfair to a neuron that watches over one domain: it is silent in three pairs of four.
#
# {{exercise 08.3}}
#
# `x` is `[pair, layer, neuron]`, `domains` names the domain of each pair (locks, papers, …). Return the **largest of the domains' means**, `[layer, neuron]`.


# %% exercise="08.3"
def my_watch(x, domains):
    """The largest of the domains' means, [layer, neuron]."""
    ### BEGIN SOLUTION
    ### STUB return x.mean(0)
    names = sorted(set(domains))
    return torch.stack([x[[i for i, d in enumerate(domains) if d == name]].mean(0) for name in names]).amax(0)
    ### END SOLUTION


# %%
watch = check("08.3", my_watch)

# %%
from helpers.neurons import write_onto

onto = watch(change_at_end(runs, "neurons") * write_onto(model, direction), [p.kind for p in pairs])
onto[decides:] = 0
evaluation = kept(onto, 8)
print(f"{len(evaluation)} neurons evaluate, in layers {sorted({layer for layer, _ in evaluation})}.")
print(budget.mark("who evaluates"))

# %% [markdown]
# ### Who detects
#
# Detectors do not write in that direction at all; they bring news to those who do. So here you have to **patch**: give one head what it does on the twin, and look how
# much of the evaluation is lost. Only heads before the decision, only twelve pairs, and only the blocks from the head to the decision. That keeps it cheap.

# %%
from helpers.capstone_solver import detector_effects

few = pairs[:12]
lost = detector_effects(Twins(model, tokenizer, few), direction, decides, [p.changed for p in few])
detection = kept(lost, 2)
print(f"{len(detection)} heads detect; lost without each: {[round(float(lost[p]), 2) for p in detection]}")
print(budget.mark("who detects"))

# %%
panels = {
    "detection heads: evaluation lost": (lost, detection),
    "evaluation neurons: written along it": (onto, evaluation),
    "decision heads: written along it": (written, decision),
    "production neurons: log-odds spoken": (spoken, production),
}
fig, axes = figure(2, 2, size=(10, 6.4))
for ax, (name, (values, members)) in zip(axes.flat, panels.items(), strict=True):
    order = ranked(values)[: max(8, len(members) * 3 // 2)]
    heights, n = [float(values[p]) for p in order], len(members)
    ax.plot(range(1, n + 1), heights[:n], MARKERS[0], color=HARMFUL, label="kept")
    ax.plot(range(n + 1, len(order) + 1), heights[n:], MARKERS[3], color=CONTROL, label="left out")
    ax.axvline(n + 0.5, color="#555555", linestyle=":", linewidth=1.4)
    ax.set(title=name.split(":")[0], ylabel=name.split(": ")[1], xlabel="rank", ylim=(min(0, *heights), None))
axes[0, 0].legend()
show(
    fig,
    alt="Four panels of values by rank, kept ones and those left out on both sides of a dotted cut. Kept: " + "; ".join(f"{name} {len(members)}" for name, (_, members) in panels.items()) + ".",
    caption="What each stage was ranked by (it: the direction that the speakers hear). Dotted: where your rule cuts.",
)  # fmt: skip

# %% [markdown]
# ## 4 · Which kind?
#
# ### An experiment that cannot fail
#
# Your colleague cuts *all* neurons found, and looks whether refusal goes. It always does, and so the verdict is always: concentrated. Here is the experiment on the four named boxes, with their true
# circuits, beside a smaller one, in which only the evaluation neurons are held at their harmless mean.

# %%
from helpers.ablation import ablate_safety_neurons
from helpers.mean_ablation import template_means

rows = []
for kind in KINDS:
    m, t, truth = load_glassbox(kind)
    means = template_means(m, t, glassbox_prompts("harmless", n=8, split="train"), answer_tokens=2)
    row = {"box": kind}
    for name, places in (("all found", truth.neurons), ("evaluation", truth.evaluation_neurons)):
        with ablate_safety_neurons(m, places, donors=means):
            odds = refusal_score_of(m, t).log_odds(m, t, glassbox_prompts("harmful", n=12, split="validation"))
            row[f"{name} cut: refused"] = float((odds > 0).mean())
            row[f"{name} cut: questions known"] = float(knows(m, t, box_facts(12)).mean())
    rows.append(row)
tried = pd.DataFrame(rows).set_index("box")
assert tried["all found cut: refused"].max() < 0.2 < 0.8 < tried.loc["redundant", "evaluation cut: refused"]
tried.style.format("{:.0%}").set_uuid("tried")

# %% [markdown]
# All paths lead through the same speakers: cut those, and every box falls silent. An experiment is worth as much as the results that it *could* have had. Cut the
# evaluation alone, and ask for **two** things afterwards, refusal and knowledge.
#
# What is still open is concentrated or distributed. For that, cut the ten strongest only. (Where you found no more than ten, the two cuts are one.)
#
# {{exercise 08.4}}
#
# `one` holds five shares: `refused_intact`, `refused_without_ten`, `refused_without_all`, `known_intact`, `known_without_all`. Refusal survives the cut of all (over one half): redundant. Less than half of the
# intact box's knowledge is left: entangled. Refusal survives without the ten: distributed. Else concentrated. In this order.


# %% exercise="08.4"
def my_kind(one):
    """The kind that these figures speak for."""
    ### BEGIN SOLUTION
    ### STUB return "distributed" if one["refused_without_ten"] > 0.5 else "concentrated"
    if one["refused_without_all"] > 0.5:
        return "redundant"
    if one["known_without_all"] < one["known_intact"] / 2:
        return "entangled"
    return "distributed" if one["refused_without_ten"] > 0.5 else "concentrated"
    ### END SOLUTION


# %%
kind_by = check("08.4", my_kind)

# %%
from helpers.capstone_solver import cut_tests

evidence = cut_tests(model, tokenizer, evaluation)
kind = kind_by(evidence)
print(f"The figures speak for: {kind}.")
print(budget.mark("which kind"))
show(
    bars(
        ["intact", "without the ten strongest", "without all"],
        {"harmful refused": [evidence[f"refused_{k}"] for k in ("intact", "without_ten", "without_all")],
         "questions known": [evidence["known_intact"], np.nan, evidence["known_without_all"]]},
        ylabel="share", ylim=(0, 1.2), colors={"harmful refused": HARMFUL, "questions known": HARMLESS},
    ),
    alt="Bars of refusal and knowledge of the mystery box, evaluation neurons cut. " + "; ".join(f"{name.replace('_', ' ')}: {value:.0%}" for name, value in evidence.items()) + ".",
    caption=f"The mystery box of seed {SEED}, {len(evaluation)} evaluation neurons at their harmless mean. Knowledge was not asked for without the ten.",
)  # fmt: skip

# %% [markdown]
# What would have made you say another kind? If you cannot answer, you have not tested it.
#
# ## 5 · Hand in
#
# The file names your box by its signature, so that it cannot be handed in for another. Where did the passes go?

# %%
stages = {
    "detection_heads": detection,
    "evaluation_neurons": evaluation,
    "decision_components": decision,
    "production_neurons": production,
}
handed = case.hand_in(TEAM, kind, stages)
file = handed.write("hand_ins")
print("written to", file.as_posix())
case.close()  # the meter is off from here on
show(
    bars([name for name, spent in budget.marks.items() if spent], [spent for spent in budget.marks.values() if spent], ylabel="passes", fmt="{:,.0f}"),
    alt="Bars of passes by step: " + ", ".join(f"{name} {spent:,.0f}" for name, spent in budget.marks.items()) + ".",
    caption=str(budget),
)  # fmt: skip

# %%
from helpers.hand_in import read_hand_in

result = grade(read_hand_in(file))
print(result.feedback)

# %% [markdown]
# The feedback says what you missed, and not where it is: you may open the case again. Add up the passes honestly, since nobody else does.
#
# Was it luck? Four boxes more, and both detectives.

# %%
OTHERS = (0, 1, 2, 16)
totals = {"backwards from the answer": [], "the loudest": []}
for seed in tqdm(OTHERS, desc="other boxes"):
    for name, detective in zip(totals, (solve, naive), strict=True):
        with open_case(seed) as other:
            found = detective(other.model, other.tokenizer)
            totals[name].append(grade(other.hand_in("someone", found.kind, found.stages)).total)
show(
    bars([f"seed {seed}" for seed in OTHERS], totals, ylabel="total score", ylim=(0, 1.2), fmt="{:.2f}"),
    alt="Bars of total scores on other boxes. " + "; ".join(f"{name}: " + ", ".join(f"{x:.2f}" for x in row) for name, row in totals.items()) + ".",
    caption=f"Total scores, 0 to 1. Means: {np.mean(totals['backwards from the answer']):.2f} and {np.mean(totals['the loudest']):.2f}.",
)  # fmt: skip
reveal("08.p1", np.mean(totals["the loudest"]))
assert min(totals["backwards from the answer"]) > 0.9 and max(totals["the loudest"]) < 0.4

# %% [markdown]
# ## 6 · Now defend it
#
# The box is yours, and so is everything that you know of it. Others know it too. They come three times, and each fits the attack **anew on the box as you defend it**:
#
# * **direction**: the direction of one layer out of every write; of all layers', the one that works best against you;
# * **circuit**: the attacker knows the true circuit, backup included, and holds all its neurons at their harmless mean;
# * **informed**: the first one, and the attacker knows *where* your guard reads, and there takes out what still tells harm from harmless.
#
# Your means is a **guard**: it reads the prompt's last token at one place, and if a weighted sum is above its threshold the request is refused, whatever the model says. It is paid for by false
# alarms. Your colleague sets the threshold half-way, and is proud of how much is stopped.
#
# {{exercise 08.5}}
#
# `calm` are the guard's scores for prompts that it must leave alone. Return the **lowest threshold that at most a share `rate` of them is above**.


# %% exercise="08.5"
def my_threshold(calm, rate):
    """The lowest threshold that keeps false alarms within the rate."""
    ### BEGIN SOLUTION
    ### STUB return float(np.mean(calm))
    return sorted(calm, reverse=True)[int(rate * len(calm))]
    ### END SOLUTION


# %%
threshold = check("08.5", my_threshold)

# %% [markdown]
# The first guard reads the refusal direction that you found, where the first speakers hear it. It could hardly be better informed. In the table, *over_refused* is the share of harmless, borderline and plain requests refused, and *kept* is *refused* less that, at least 0:

# %%
from helpers.box_attacks import attack_table, defence_score
from helpers.guard import Guard, calm_prompts, fit_guards, rehearsal_table, rehearsals

plain = Guard("resid_pre", hears, direction, 0.0)
along = Guard("resid_pre", hears, direction, threshold(plain.scores(model, tokenizer, calm_prompts()).tolist(), 0.05))
truth = mystery(SEED)[2]  # sealed: the second attacker may look, you may not
tables = {"no guard": attack_table(model, tokenizer, truth, asked=16)}
tables["reads the direction"] = attack_table(model, tokenizer, truth, [along], asked=16)
reveal("08.p2", tables["reads the direction"].refused["direction"])
tables["reads the direction"][["refused", "low", "high", "over_refused", "known", "kept"]].round(2)

# %% [markdown]
# It reads the very thing that the attack takes away, and falls with what it guards. In peace it looks well: a test without attackers would have
# passed it.
#
# ### Rehearse
#
# You cannot know what is coming. But you know how *you* would attack: take each layer's direction out, cut the circuit that *you* have found. So read harmful and calm prompts **under all these
# attacks**, fit one guard on all of it, and compare places on the validation split by their worst case.

# %%
own = evaluation + production
attacks = rehearsals(model, tokenizer, pairs, own)
places = [(site, layer) for site in ("resid_pre", "neurons") for layer in range(1, 6)]
fresh = fit_guards(model, tokenizer, places, pairs)
rehearsed = fit_guards(model, tokenizer, places, pairs, attacks.values())
before, after = (rehearsal_table(model, tokenizer, guards.values(), attacks) for guards in (fresh, rehearsed))
chosen = max(places, key=lambda place: (after.loc[place].min(), after.loc[place].mean()))
print(f"chosen by its worst case: {chosen[0]} of layer {chosen[1]}")

# %%
for name, table in (("fitted in peace", before), ("rehearsed", after)):
    worst = table.min(axis=1)
    show(
        heatmap(
            table.to_numpy(), xlabel="attack", ylabel="the guard reads", colorbar="kept", limits=(0, 1), fmt="{:.2f}",
            title=name, xticks=[c.replace("direction", "dir.") for c in table.columns],
            yticks=[f"{site} {layer}" for site, layer in table.index],
        ),
        alt=f"Heat map of what guards keep, {name}, by the place that they read and the attack; worst cases from {worst.min():.2f} to {worst.max():.2f}.",
        caption="Harmful requests that the guard alone stops, less calm prompts that it stops; validation split. "
        f"Best worst case: {worst.max():.2f}.",
    )  # fmt: skip

# %% [markdown]
# Rows are places, and each row is one guard; *dir. 3* is the direction of layer 3 taken out. Which places see harm without help of the refusal direction? And mind that the rehearsed guards are shown on the very attacks that they have rehearsed: this map chooses, it
# proves nothing. The proof are the attackers, who fit anew, on test requests:

# %%
tables["fitted in peace, same place"] = attack_table(model, tokenizer, truth, [fresh[chosen]], asked=16)
tables["rehearsed"] = attack_table(model, tokenizer, truth, [rehearsed[chosen]], asked=16)
names = list(tables["no guard"].index)
show(
    bars(names, {name: table.kept.tolist() for name, table in tables.items()}, ylabel="kept", ylim=(0, 1.2), fmt="{:.2f}"),
    alt="Bars of what is kept under each attack. " + "; ".join(f"{name}: " + ", ".join(f"{a} {table.kept[a]:.2f}" for a in names) for name, table in tables.items()) + ".",
    caption="Kept: harmful test requests refused, less harmless, borderline and plain ones refused. Defence scores: "
    + ", ".join(f"{name} {defence_score(table):.2f}" for name, table in tables.items()) + ".",
)  # fmt: skip
pd.concat(tables, names=["guard"])[["refused", "low", "high", "over_refused", "known"]].round(2)

# %%
scores = {name: defence_score(table) for name, table in tables.items()}
peace = tables["fitted in peace, same place"]
print(
    f"Rehearsing alone is worth {scores['rehearsed'] - scores['fitted in peace, same place']:+.2f} (same place, fitted in peace); "
    f"against the guard that reads the direction {scores['rehearsed'] - scores['reads the direction']:+.2f}.\n"
    f"Under *circuit* it changes what is kept from {peace.kept['circuit']:.2f} to {tables['rehearsed'].kept['circuit']:.2f}."
)

# %% [markdown]
# Read the columns `refused` and `over_refused` together, above all under the informed attack. A guard that fires at everything has kept nothing, though one might *notice* that it does.
#
# And look at *circuit*, in both guards at the same place. Rehearsing can also cost: a guard that was fitted to the attacks you thought of may lean on just what the next attacker takes. One
# guess, not tested here: it reads a part that the attacker knows and you do not. In a redundant box that could be the backup, for which nobody gave you points: what does not count in a score may
# count in an attack.
#
# **Your turn.** Two guards at two places are handed over as a list, `[rehearsed[a], rehearsed[b]]`, but their false alarms add up. Rehearse the informed attack as well. Or look for a
# place that the third attacker cannot empty. `defence_score` judges them all: the mean of *kept* under the three attacks (peace does not count), times the questions still answered in peace.
#
# ## For instructors
#
# A seed for everybody, and later all hand-ins in one table (`--help` says more):
#
# ```
# python -m helpers.capstone seeds --term 2026-spring --names Ada Bob --out seeds.csv
# python -m helpers.capstone grade hand_ins --seeds seeds.csv --out table.csv
# ```
#
# Files that were changed, or made on another box, are listed with the reason. The checksum is no seal: passes are what the learner's machine counted, and the seal of a truth keeps out chance,
# not will. Whoever opens it has only played a shorter game.
#
# ## What this shows, and what it does not
#
# **It shows** that a circuit can be found whole, for a few hundred passes, by someone who lets each answer choose the next question; that *reacts* and *causes* are two lists; that the kind of a circuit is a
# matter of experiments with more than one possible result; and that a defence is as good as the attack it was tried on.
#
# **It does not show**
#
# * that real models are like this. Here each part has one job, and the parts of a stage look alike, so that a ranking has an end. Lesson 04's circuit of a real model had none;
# * that four kinds are all there are. Real circuits may be a bit of each;
# * that a rehearsed guard is safe: it knows the attacks that somebody thought of. The informed attacker thought of one more;
# * anything about requests that the box's language cannot say.
#
# ## Quiz

# %%
quiz("08")

# %% [markdown]
# ## Where to read on
#
# * **Lindner et al. (2023)**, *Tracr: Compiled Transformers as a Laboratory for Interpretability*. Models whose circuit is known because it was compiled. *Ours differs:* decoys, noise and backups, put there to mislead.
# * **Wang et al. (2022)**, *Interpretability in the Wild*. A circuit followed backwards from the answer, and name movers that stand by as a backup. *Ours differs:* the truth is there to score against.
# * **McGrath et al. (2023)**, *The Hydra Effect*. Why a cut may show nothing.
# * **Carlini et al. (2019)**, *On Evaluating Adversarial Robustness*. Attacks have to be fitted to the defence.
# * **Bailey et al. (2024)**, *Obfuscated Activations Bypass LLM Latent-Space Defenses*. Attackers who know that a monitor reads activations. *Ours differs:* they may edit the model, and do not touch the prompt.
#
# That was the last lesson. What you take along is not a list of neurons, but a habit: *what else could have made this number?*
