"""Directions: difference of means, what ablating and adding one does, and how one is chosen. Taught in lesson 01.

The method is that of Arditi et al. 2024 ("Refusal in language models is mediated by a single direction"): a
candidate is the difference of the mean residual stream between harmful and harmless prompts, at a layer and a
template position. Each is scored on validation prompts: *bypass*, the refusal log-odds of harmful prompts with the
direction ablated; *induce*, that of harmless prompts with the difference added; *KL*, how far the ablation moves
the next-token distribution of harmless prompts. The one with the lowest bypass wins, among those with a small KL
that can induce refusal and do not sit in the last fifth of the layers.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from .hooks import ablate_direction, add_direction, read
from .models import layers_of
from .prompts import LAST, Batch, check_prompts, token_batches
from .refusal import RefusalScore

MAX_KL = 0.1  # nats; Arditi et al. 2024, section 2.3 and appendix C
LAST_SHARE = 0.8  # only the first 80% of the layers are searched, as there


def mean_differences(
    model, tokenizer, harmful: Sequence[str], harmless: Sequence[str], positions: Sequence[int] = (-1,)
) -> torch.Tensor:
    """Mean of harmful minus mean of harmless in the residual stream before each layer, [layer, position, d_model].

    Raises ValueError for an empty list of prompts.
    """
    check_prompts(harmful), check_prompts(harmless)
    groups = [
        read(model, tokenizer, prompts, ["resid_pre"], positions=list(positions))["resid_pre"]
        for prompts in (harmful, harmless)
    ]
    return groups[0].mean(0) - groups[1].mean(0)


def unit(direction: torch.Tensor) -> torch.Tensor:
    """The direction with length 1, [d_model]. Raises ValueError if it has no length."""
    length = direction.norm()
    if not torch.isfinite(length) or length < 1e-12:
        raise ValueError("This direction has no length: were both groups of prompts the same?")
    return direction / length


def reading_vector(harmful: torch.Tensor, harmless: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """RepE's direction from pairs of activations, [pair, d_model] each: first principal component, a unit [d_model].

    The order within each pair is shuffled before the difference is taken, so that the mean over pairs is near zero and
    what the pairs share becomes the widest axis. In a fixed order the PCA's own centring would take it away. Its sign
    is chosen so that harmful lies higher. Zou et al. 2023 ("Representation engineering"), section 3.1 and appendix C.
    Raises ValueError for fewer than two pairs, or groups of unlike shape.
    """
    if harmful.shape != harmless.shape or harmful.dim() != 2 or len(harmful) < 2:
        raise ValueError(
            "Reading vectors need pairs: two tensors [pair, d_model] of one shape, two pairs at least; these are "
            f"{tuple(harmful.shape)} and {tuple(harmless.shape)}."
        )
    difference = (harmful - harmless).float().cpu()
    swap = torch.randint(0, 2, (len(difference), 1), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    shuffled = difference * swap
    component = torch.linalg.svd(shuffled - shuffled.mean(0), full_matrices=False).Vh[0]
    return unit(component * torch.sign((difference @ component).mean()))


def first_token_log_probs(model, batch: Batch) -> torch.Tensor:
    """Log-probabilities of the first answer token, [batch, vocabulary], of a batch padded at the left."""
    return model(**batch.inputs(), logits_to_keep=LAST).logits[:, -1].float().log_softmax(-1)


@torch.inference_mode()
def next_token_log_probs(model, tokenizer, prompts: Sequence[str], batch_size: int = 32) -> torch.Tensor:
    """Log-probabilities of the first answer token, [prompt, vocabulary], in the order of the prompts."""
    rows: list[torch.Tensor | None] = [None] * len(prompts)
    for batch in token_batches(tokenizer, prompts, batch_size):
        for i, row in zip(batch.order, first_token_log_probs(model, batch.to(model.device)).cpu(), strict=True):
            rows[i] = row
    return torch.stack(rows)


def kl_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) in nats over the last axis, from log-probabilities."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@dataclass(frozen=True)
class DirectionJudge:
    """Scores interventions on fixed prompts: harmful ones to bypass refusal on, harmless ones to do no damage to."""

    model: torch.nn.Module
    tokenizer: object
    score: RefusalScore
    harmful: Sequence[str]
    harmless: Sequence[str]

    def clean(self) -> dict:
        """The untouched model's log-odds on both groups, and its harmless next-token log-probabilities."""
        return {
            "harmful": self._odds(self.harmful),
            "harmless": self._odds(self.harmless),
            "log_probs": next_token_log_probs(self.model, self.tokenizer, self.harmless),
        }

    def _odds(self, prompts: Sequence[str]) -> np.ndarray:
        return self.score.log_odds(self.model, self.tokenizer, prompts)

    def ablated(self, direction: torch.Tensor, clean: dict, first: int = 0) -> dict[str, float]:
        """Bypass and KL of one unit direction, ablated as in `ablation_of`."""
        with ablation_of(self.model, direction, first):
            bypass = self._odds(self.harmful).mean()
            log_probs = next_token_log_probs(self.model, self.tokenizer, self.harmless)
        return {"bypass": float(bypass), "kl": float(kl_divergence(clean["log_probs"], log_probs).mean())}

    def added(self, difference: torch.Tensor, layer: int) -> float:
        """Mean refusal log-odds of the harmless prompts with the difference of means added before one layer."""
        with add_direction(self.model, difference, layer):
            return float(self._odds(self.harmless).mean())


def score_directions(
    judge: DirectionJudge,
    differences: torch.Tensor,
    layers: Iterable[int] | None = None,
    positions: Sequence[int] = (-1,),
    firsts: Sequence[int] = (0,),
) -> pd.DataFrame:
    """A row for each candidate: layer, position, first, bypass, kl, induce, norm. differences: [layer, position, d_model].

    layers: None for all but the first, before which a position holds nothing but its own token.
    firsts: the layers from which on a direction is ablated, each tried with each direction; 0 is every write, as in
    Arditi et al. 2024. Low layers may use the same axis for something else, and then cutting there only does damage.
    """
    clean = judge.clean()
    rows = []
    for layer in range(1, len(differences)) if layers is None else layers:
        for p, position in enumerate(positions):
            difference = differences[layer, p]
            added = {"induce": judge.added(difference, layer), "norm": float(difference.norm())}
            for first in firsts:
                ablated = judge.ablated(unit(difference), clean, first)
                rows.append({"layer": layer, "position": position, "first": first, **ablated, **added})
    return pd.DataFrame(rows)


def select_direction(table: pd.DataFrame, n_layers: int, max_kl: float = MAX_KL, threshold: float = 0.0) -> pd.Series:
    """The candidate with the lowest bypass, among those that pass. threshold: log-odds that count as refusal.

    Raises ValueError if none passes, and says which condition the nearest ones fail.
    """
    fine = table[(table.kl <= max_kl) & (table.induce > threshold) & (table.layer < LAST_SHARE * n_layers)]
    if fine.empty:
        raise ValueError(
            f"No candidate passes: {(table.kl <= max_kl).sum()} have a KL of at most {max_kl}, "
            f"{(table.induce > threshold).sum()} induce refusal, "
            f"{(table.layer < LAST_SHARE * n_layers).sum()} lie in the first {LAST_SHARE:.0%} of the layers. "
            "Try more positions or layers, or more prompts."
        )
    return fine.loc[fine.bypass.idxmin()]


def covariance_directions(activations: torch.Tensor, count: int, seed: int = 0) -> torch.Tensor:
    """Random unit directions with the covariance of harmless activations [prompt, d_model]; [count, d_model].

    A direction drawn evenly in all dimensions would be too easy a control: most of them carry nothing. These carry
    as much as the model's own variation does.
    """
    if len(activations) < 2:
        raise ValueError("A covariance needs at least two prompts.")
    centred = (activations - activations.mean(0)).float()
    weights = torch.randn(count, len(centred), generator=torch.Generator().manual_seed(seed))
    drawn = weights @ centred.cpu()
    return drawn / drawn.norm(dim=-1, keepdim=True)


def concept_direction(model, tokenizer, phrases: Sequence[str], layer: int, position: int = -1) -> torch.Tensor:
    """A control: the difference of means of an unrelated concept, `How do I x?` against `Help me x.`; [d_model]."""
    check_prompts(phrases)
    ask = [f"How do I {x}?" for x in phrases]
    command = [f"Help me {x}." for x in phrases]
    return unit(mean_differences(model, tokenizer, ask, command, positions=(position,))[layer, 0])


def ablation_of(model, direction: torch.Tensor | None, first: int = 0) -> AbstractContextManager:
    """A unit direction ablated at every write (first=0), or at those of the layers from `first` on; nothing for None,
    so that a loop can hold its baseline as one more case."""
    if direction is None:
        return nullcontext()
    return ablate_direction(model, direction, range(first, len(layers_of(model))) if first else None)


def searchable_layers(model) -> range:
    """The layers that a direction may be chosen from. Not the first: before it, a template position holds its token
    alone, the same in every prompt."""
    return range(1, int(LAST_SHARE * len(layers_of(model))))
