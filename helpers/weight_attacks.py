"""Attacks on a model's weights: a few steps of training, and its adapter taken off. Taught in lesson 07, with `attacks.py`."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from .attack import Attack, weights_swapped
from .attack_fitting import Cut, both, rank_by_write, top_heads
from .circuit_weights import Circuit, weight_masks
from .finetuning import PLACEHOLDER, check_trainable, examples, finetuned
from .mean_ablation import Place
from .models import down_projection_of, layers_of, merge_adapter, out_projection_of
from .prompts import Pair, check_prompts
from .refusal import generate


def training_attacks(
    model,
    tokenizer,
    fit: Sequence[Pair],
    plain: Sequence[str],
    cut: Cut,
    steps: Sequence[int] = (3, 9),
    rate: float = 1e-3,
    benign_rate: float = 1e-4,
    neurons: int = 200,
    heads: int = 8,
    batch_size: int = 2,
    ranked: Sequence[Place] | None = None,
) -> list[Attack]:
    """Targeted removal, and fine-tuning on benign data; doses are steps. Both train copies in 32 bits, here and now.

    Targeted removal trains the circuit alone (the neurons and heads that write most onto the direction) on harmful requests of `fit`
    with a placeholder. Benign fine-tuning trains all output and down projections of the upper half on plain requests, each
    answered by the model itself after `Sure!`: nothing harmful is in it (Qi et al. 2024). Raises ValueError for large models.
    """
    harmful, _ = both(fit)
    ranked = (ranked or rank_by_write(model, tokenizer, fit, cut.direction, cut.first))[:neurons]
    members = Circuit(
        evaluation_neurons=tuple(ranked),
        decision_components=tuple(top_heads(model, tokenizer, fit, cut.direction, heads)),
    )
    plain = check_prompts(plain)
    own = [f"Sure! {said}".strip() for said in generate(model, tokenizer, plain, max_new_tokens=12, prefill="Sure!")]
    wide = copy.deepcopy(model).float()
    check_trainable(wide, data := examples(tokenizer, harmful, PLACEHOLDER))
    upper = layers_of(wide)[len(layers_of(wide)) // 2 :]
    names = {id(p): name for name, p in wide.named_parameters()}
    masks = {
        names[id(module.weight)]: torch.ones(module.weight.shape, dtype=torch.bool)
        for layer in upper
        for module in (out_projection_of(layer), down_projection_of(layer))
    }
    plans = (
        ("targeted removal", weight_masks(wide, members), data, rate),
        ("benign fine-tuning", masks, examples(tokenizer, plain, own), benign_rate),
    )
    found = []
    for name, mask, lessons, speed in plans:
        kept = trained_weights(wide, mask, lessons, speed, steps, batch_size)
        for n in steps:
            found.append(
                Attack(
                    name,
                    n,
                    "steps",
                    lambda m, w=kept[n]: weights_swapped(m, w),
                    note=f"rate {speed:g}, {batch_size} examples a step",
                )
            )
    return found


def trained_weights(model, masks, data, rate: float, steps: Sequence[int], batch_size: int = 2) -> dict[int, dict]:
    """One training, its weights kept on the way: {steps: {parameter: values}}, of those parameters alone that were trained."""
    kept: dict[int, dict[str, torch.Tensor]] = {}

    def keep(step: int, trained: nn.Module) -> None:
        if step in steps:
            named = dict(trained.named_parameters())
            kept[step] = {name: named[name].detach().clone() for name in masks}

    finetuned(model, masks, data, rate, max(steps), batch_size, each=keep)
    return kept


def adapter_attacks(folder: Path, shares: Sequence[float] = (0.5, 1.0)) -> list[Attack]:
    """The model's own LoRA adapter taken off again, by a share of it; 1 leaves the base. folder: the merged adapter's."""

    def on(share: float):
        @contextmanager
        def without(model: nn.Module) -> Iterator[nn.Module]:
            weights = adapter_weights(model, folder)
            named = dict(model.named_parameters())
            with weights_swapped(model, {name: named[name] - share * delta for name, delta in weights.items()}):
                yield model

        return without

    return [Attack("adapter subtracted", share, "shares of it", on(share)) for share in shares]


def adapter_weights(model: nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    """What a LoRA adapter adds to each weight of the model, {parameter: delta}, by `merge_adapter` itself."""
    named = {name: p for name, p in model.named_parameters() if p.dim() == 2}
    blank = copy.deepcopy(model).float()
    for p in blank.parameters():
        p.zero_()
    merge_adapter(blank, folder)
    deltas = {name: p.detach() for name, p in blank.named_parameters() if name in named}
    return {name: delta.to(named[name].dtype) for name, delta in deltas.items() if bool(delta.any())}
