"""What an attacker finds out about a model: its refusal direction, more directions behind it, its neurons and heads.

Everything is fitted on the model under attack, on requests given for it. Taught in lesson 07, with `attacks.py`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .directions import MAX_KL, ablation_of, kl_divergence, next_token_log_probs, searchable_layers, unit
from .fresh_prefix import headless_of, in_context
from .hooks import edit, record
from .mean_ablation import Place
from .models import body_of, dims_of, layers_of, out_projection_of, weight_of
from .neurons import write_onto
from .packed_score import packed
from .prompts import Pair, check_prompts, token_batches
from .refusal import RefusalScore, refusal_score_of

WRITES = ("attn_out", "mlp_out")


def both(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    """Harmful requests and their harmless twins. Raises ValueError for fewer than two pairs."""
    pairs = list(pairs)
    if len(pairs) < 2 or not all(isinstance(pair, Pair) for pair in pairs):
        raise ValueError("An attack is fitted on matched pairs, at least two: give load_pairs('method').")
    return [p.harmful for p in pairs], [p.harmless for p in pairs]


def at_the_end(model, tokenizer, pairs: Sequence[Pair], site: str, layers: Sequence[int] | None = None) -> torch.Tensor:
    """The difference of means at the template's last token, harmful minus harmless, [layer, width]: as `read`, but under the edits of
    the moment, with what all prompts begin with read once a batch."""
    layers = list(range(len(layers_of(model))) if layers is None else layers)
    groups = both(pairs)
    fresh, means = headless_of(in_context(model, tokenizer, groups[0] + groups[1])), []
    for prompts in groups:
        total = 0.0
        for batch in token_batches(tokenizer, prompts):
            batch = batch.to(model.device)
            with torch.no_grad(), record(model, [site], layers, keep=lambda x: x[:, -1].float().sum(0).cpu()) as seen:
                fresh(**batch.inputs(), use_cache=True)
            total = total + torch.stack([seen[site][layer] for layer in layers])
        means.append(total / len(prompts))
    return means[0] - means[1]


@dataclass(frozen=True)
class Cut:
    """A direction to ablate: where it was fitted, from which layer on it is cut, and what that did when it was chosen.

    direction: a unit [d_model]. difference: before it was made a unit. odds: mean refusal log-odds of harmful requests with
    it cut. kl: nats on harmless ones. cheap: whether that is at most the bound.
    """

    direction: torch.Tensor
    difference: torch.Tensor
    layer: int
    first: int
    odds: float
    kl: float
    cheap: bool


def choose_cut(
    model,
    tokenizer,
    fit: Sequence[Pair],
    harmful: Sequence[str],
    harmless: Sequence[str],
    layers: Sequence[int] | None = None,
    firsts: Sequence[int] = (0,),
    max_kl: float = MAX_KL,
    score: RefusalScore | None = None,
) -> Cut:
    """The difference of means (fitted on pairs) whose ablation leaves the least refusal at a KL of at most max_kl.

    Chosen on the harmful and harmless requests by Arditi et al.'s rule (2024), without the demand that it also induce refusal:
    an attacker does not care. firsts: layers from which on it is cut, 0 for every write. If none is cheap enough, the one of lowest KL
    among those that take away refusal (else of all), with cheap=False. Raises ValueError for empty lists.
    """
    both(fit)  # checked before anything is computed
    layers = list(searchable_layers(model) if layers is None else layers)
    harmful, harmless = check_prompts(harmful), check_prompts(harmless)
    score = packed(score or refusal_score_of(model, tokenizer))
    fresh = in_context(model, tokenizer, [*harmful, *harmless])
    differences = at_the_end(model, tokenizer, fit, "resid_pre", layers)
    clean, found = next_token_log_probs(fresh, tokenizer, harmless), []
    for difference, layer in zip(differences, layers, strict=True):
        for first in firsts:
            with ablation_of(model, unit(difference), first):
                odds = float(score.log_odds(fresh, tokenizer, harmful, batch_size=32).mean())
                now = next_token_log_probs(fresh, tokenizer, harmless)
            kl = float(kl_divergence(clean, now).mean())
            found.append(Cut(unit(difference), difference, layer, first, odds, kl, kl <= max_kl))
    cheap = [one for one in found if one.cheap]
    if cheap:
        return min(cheap, key=lambda one: one.odds)
    return min([one for one in found if one.odds < score.threshold] or found, key=lambda one: one.kl)


def subspace_cut(model, basis: torch.Tensor, first: int = 0):
    """While inside, nothing is written into the span of orthonormal rows [k, d_model], by layers from `first` on (0: nor
    by the embedding): x - B' B x. One row does what `ablate_direction` does. Raises ValueError for rows that are not orthonormal."""
    dims = dims_of(model)
    if basis.dim() != 2 or basis.shape[1] != dims.d_model or not len(basis):
        raise ValueError(f"A subspace of this model is a tensor [k, {dims.d_model}], not {tuple(basis.shape)}.")
    basis = basis.detach().float()
    if not torch.allclose(basis @ basis.T, torch.eye(len(basis), device=basis.device), atol=1e-3):
        raise ValueError("The rows of a subspace must be orthonormal: take those of torch.linalg.qr(rows.T).Q.T.")

    def remove(x: torch.Tensor) -> torch.Tensor:
        rows, wide = basis.to(x.device), x.float()
        return wide - (wide @ rows.T) @ rows

    writes = [(site, layer, remove) for layer in range(first, dims.n_layers) for site in WRITES]
    return edit(model, writes if first else [("resid_pre", 0, remove), *writes])


def nested_basis(model, tokenizer, fit: Sequence[Pair], cut: Cut, count: int) -> torch.Tensor:
    """Directions behind the direction: orthonormal rows [count, d_model], the chosen one first.

    Found in rounds: with all rows so far cut, the differences of means of all layers from the cut's own first on are read anew, and
    the widest axes of what is left of them join, as many as there are rows already (fewer, if nothing is left).
    """
    basis = cut.direction[None].clone()
    layers = list(range(max(cut.first, 1), len(layers_of(model))))
    while len(basis) < count:
        with subspace_cut(model, basis, cut.first):
            left = at_the_end(model, tokenizer, fit, "resid_pre", layers)
        # Each of length 1: else the last layers, the loudest, decide alone.
        left = torch.nn.functional.normalize(left, dim=-1)
        left = left - (left @ basis.T) @ basis
        _, sizes, axes = torch.linalg.svd(left, full_matrices=False)
        new = axes[: min(len(basis), count - len(basis), int((sizes > 1e-4).sum()))]
        if not len(new):
            break
        basis = torch.linalg.qr(torch.cat([basis, new]).T).Q.T.contiguous()
    return basis


@torch.no_grad()
def write_means(model, tokenizer, harmless: Sequence[str], direction: torch.Tensor, first: int = 0) -> dict:
    """What each write puts along a direction on harmless requests, on average over all tokens: {(site, layer): number}."""
    sums, count = {}, 0
    direction = direction.to(model.device)
    layers = range(first, len(layers_of(model)))
    for batch in token_batches(tokenizer, check_prompts(harmless)):
        batch = batch.to(model.device)
        real = batch.attention_mask.bool()
        with record(model, WRITES, layers, keep=lambda x, real=real: (x[real].float() @ direction).sum()) as seen:
            body_of(model)(**batch.inputs(), use_cache=False)
        count += int(real.sum())
        for site in WRITES:
            for layer in layers:
                sums[site, layer] = sums.get((site, layer), 0.0) + float(seen[site][layer])
    return {place: total / count for place, total in sums.items()}


@contextmanager
def direction_held(model, direction: torch.Tensor, means: dict) -> Iterator[None]:
    """While inside, every write named in `means` holds its harmless mean along a unit direction, instead of nothing: a mean
    ablation of the direction. It leaves in place whatever harmless requests have in common there."""

    def hold(mean: float):
        def function(x: torch.Tensor) -> torch.Tensor:
            r, wide = direction.to(x.device), x.float()
            return wide + (mean - wide @ r)[..., None] * r

        return function

    with edit(model, [(site, layer, hold(mean)) for (site, layer), mean in means.items()]):
        yield


def rank_by_write(model, tokenizer, fit: Sequence[Pair], direction: torch.Tensor, first: int = 0) -> list[Place]:
    """All neurons of layers from `first` on, by how much more they write onto a direction for harmful requests."""
    scores = at_the_end(model, tokenizer, fit, "neurons") * write_onto(model, direction)
    scores[:first] = float("-inf")
    order, width = scores.flatten().argsort(descending=True, stable=True).tolist(), scores.shape[1]
    return [(i // width, i % width) for i in order[: (len(scores) - first) * width]]


def top_heads(model, tokenizer, fit: Sequence[Pair], direction: torch.Tensor, count: int) -> list[Place]:
    """The attention heads that write most onto a direction for harmful requests, compared with harmless ones."""
    dims, seen = dims_of(model), at_the_end(model, tokenizer, fit, "z")
    onto = [direction.cpu() @ weight_of(out_projection_of(layer)).detach().float().cpu() for layer in layers_of(model)]
    scores = (seen * torch.stack(onto)).view(dims.n_layers, dims.n_heads, dims.d_head).sum(-1)
    order = scores.flatten().argsort(descending=True, stable=True)[:count].tolist()
    return [(i // dims.n_heads, i % dims.n_heads) for i in order]
