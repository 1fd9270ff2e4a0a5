"""Attacks on a model's refusal, each fitted on the very model that it attacks. Taught in lesson 07.

An attack that was fitted on another model says nothing about a defence: it may have moved the direction, and no more. So
everything here takes the defended model, fits on one set of pairs, chooses on another, and hands out `Attack`s, in growing doses:

    for attack in direction_attacks(model, tokenizer, fit, choose):
        with attack.on(model) as attacked:       # hooks, or changed weights; all undone at the end
            ...

fit: pairs of the split "method". choose: pairs of "validation". A dose is what the attacker pays, in `unit`s. `attacks_on` makes all
families but the adapter's; `helpers/robustness.py` measures them.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from .attack import Attack, hooked, no_attack, prompt_attacks
from .attack_fitting import (
    Cut,
    both,
    choose_cut,
    direction_held,
    nested_basis,
    rank_by_write,
    subspace_cut,
    write_means,
)
from .directions import MAX_KL, kl_divergence, next_token_log_probs
from .fresh_prefix import in_context
from .hooks import add_direction
from .mean_ablation import Place, mean_ablated, template_means
from .models import layers_of
from .orthogonalise import orthogonalised
from .packed_score import packed
from .prompts import Pair
from .refusal import refusal_score_of
from .weight_attacks import adapter_attacks, training_attacks

SUBSPACES = (2, 4, 8)
STRENGTHS = (0.25, 0.5, 1.0, 2.0)


def direction_attacks(
    model,
    tokenizer,
    fit: Sequence[Pair],
    choose: Sequence[Pair],
    harmless: Sequence[str],
    layers: Sequence[int] | None = None,
    firsts: Sequence[int] = (0,),
    subspaces: Sequence[int] = SUBSPACES,
    cut: Cut | None = None,
) -> list[Attack]:
    """Direction steered down, ablated, held at its harmless mean, with more directions behind it, and out of the weights.

    harmless: plain requests to do no damage to, for the choice. layers, firsts: where a direction is looked for, and from which
    layers on it is cut (`choose_cut`). subspaces: how many directions to cut, beyond the one. Doses are directions.
    """
    cut = cut or choose_cut(model, tokenizer, fit, both(choose)[0], harmless, layers, firsts)
    where = f"layer {cut.layer}, cut from {cut.first} on" + ("" if cut.cheap else f", at a KL of {cut.kl:.2f}")
    means = write_means(model, tokenizer, both(fit)[1][:16], cut.direction, cut.first)
    strength = steering_strength(model, tokenizer, cut, both(choose)[0], harmless)
    basis = nested_basis(model, tokenizer, fit, cut, max(subspaces, default=1))
    chosen = list(range(cut.first, len(layers_of(model)))) if cut.first else None
    found = [
        Attack("direction steered down", 1, "directions", hooked(lambda m: add_direction(m, cut.difference, cut.layer, -strength)),
               note=f"layer {cut.layer}, {strength:g} times the difference"),
        Attack("direction held at its mean", 1, "directions", hooked(lambda m: direction_held(m, cut.direction, means)), note=where),
        Attack("weights orthogonalised", 1, "directions", lambda m: nullcontext(orthogonalised(m, cut.direction, chosen)), note=where),
        Attack("direction ablated", 1, "directions", hooked(lambda m: subspace_cut(m, basis[:1], cut.first)), note=where),
    ]  # fmt: skip
    for k in subspaces:
        part = basis[:k]
        note = where if len(part) == k else f"{where}; only {len(part)} were left"
        found.append(
            Attack(
                "subspace ablated", k, "directions", hooked(lambda m, b=part: subspace_cut(m, b, cut.first)), note=note
            )
        )
    return found


def steering_strength(
    model, tokenizer, cut: Cut, harmful: Sequence[str], harmless: Sequence[str], max_kl: float = MAX_KL
) -> float:
    """By how many differences of means to steer down: of STRENGTHS the one with the least refusal at a KL of at most max_kl
    (the smallest, if none is so cheap)."""
    score = packed(refusal_score_of(model, tokenizer))
    fresh = in_context(model, tokenizer, [*harmful, *harmless])
    clean, odds = next_token_log_probs(fresh, tokenizer, harmless), {}
    for strength in STRENGTHS:
        with add_direction(model, cut.difference, cut.layer, -strength):
            kl = kl_divergence(clean, next_token_log_probs(fresh, tokenizer, harmless)).mean()
            if kl > max_kl:
                break
            odds[strength] = float(score.log_odds(fresh, tokenizer, harmful, batch_size=32).mean())
    return min(odds, key=odds.get) if odds else STRENGTHS[0]


def neuron_attacks(
    model, tokenizer, ranked: Sequence[Place], harmless: Sequence[str], counts: Sequence[int] = (1000, 3000)
) -> list[Attack]:
    """The first of a ranking of neurons (`rank_by_write`) held at their harmless means, place by place; doses are neurons."""
    means = template_means(model, tokenizer, harmless)
    return [
        Attack("top neurons ablated", k, "neurons", hooked(lambda m, k=k: mean_ablated(m, ranked[:k], means)))
        for k in counts
    ]


def attacks_on(
    model,
    tokenizer,
    fit: Sequence[Pair],
    choose: Sequence[Pair],
    plain: Sequence[str],
    layers: Sequence[int] | None = None,
    firsts: Sequence[int] = (0,),
    adapter: Path | None = None,
    counts: Sequence[int] = (1000, 3000),
    steps: Sequence[int] = (3, 9),
) -> list[Attack]:
    """Every attack on this model, in growing doses, the untouched model first. Fitting them takes a minute or two.

    plain: harmless requests, for the choice of a direction, for means, and for benign fine-tuning. adapter: the folder of the LoRA
    adapter that is merged into the model, for subtracting it. layers, firsts: as in `choose_cut`.
    """
    cut = choose_cut(model, tokenizer, fit, both(choose)[0], plain, layers, firsts)
    ranked = rank_by_write(model, tokenizer, fit, cut.direction, cut.first)
    return [
        no_attack(),
        *prompt_attacks(),
        *(adapter_attacks(adapter) if adapter else []),
        *direction_attacks(model, tokenizer, fit, choose, plain, cut=cut),
        *neuron_attacks(model, tokenizer, ranked, both(fit)[1][:16], counts),
        *training_attacks(model, tokenizer, fit, plain, cut, steps, ranked=ranked),
    ]
