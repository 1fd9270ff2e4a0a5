"""What many interventions do, several to a batch: a control's draws, or a map of tries. Used in lessons 01, 03, 05, 06.

Each figure is what `CostMeter` gives for one intervention after the other, sooner (`side_by_side.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from .costs import Cost, CostMeter
from .directions import first_token_log_probs, kl_divergence
from .prompts import Batch, token_batches
from .refusal import answers_to
from .shared_prefix import held
from .side_by_side import side_by_side

ROWS = 96  # of a batch, at most: their logits take 0.3 GB in a model like ours
Make = Callable[[], AbstractContextManager[Any] | None]


def odds_of_each(meter: CostMeter, interventions: Sequence[Make], at_once: int = 5) -> np.ndarray:
    """Refusal log-odds of the meter's harmful prompts under each intervention, [intervention, prompt]: `meter.odds(one())` one by one.

    interventions: functions without arguments that give a context manager, or None for the untouched model. They must be made of
    `hooks.edit`, as all ablations of the course are: other weights (`orthogonalised`) would count for every row of a batch, and so
    for the others as well. `at_once` of them share a batch, fewer where that would be over ROWS rows. What takes over two seconds
    shows a progress bar. Raises ValueError if there is none.
    """
    asked, odds = _prompts(meter, meter.harmful), []
    for part in _chunks(interventions, at_once, len(meter.harmful)):
        with side_by_side(part):
            odds.append(_each(meter.score.score_batch, meter, asked, len(part)))
    return torch.cat(odds).numpy()


def costs_of_each(meter: CostMeter, interventions: Sequence[Make], at_once: int = 5) -> list[Cost]:
    """`meter.measure(one())` of each intervention. Arguments as for `odds_of_each`."""
    asked, calm = _prompts(meter, meter.harmful), _prompts(meter, meter.harmless)
    odds, now, prose = [], [], []
    for part in _chunks(interventions, at_once, max(len(meter.harmful), len(meter.harmless))):
        with side_by_side(part), held(meter.model):
            odds.append(_each(meter.score.score_batch, meter, asked, len(part)))
            now.append(_each(first_token_log_probs, meter, calm, len(part)))
            prose += meter.perplexities(len(part))
    odds, kl = torch.cat(odds).numpy(), kl_divergence(meter.clean, torch.cat(now)).mean(-1).tolist()
    return [Cost(row, row > meter.score.threshold, *rest) for row, *rest in zip(odds, kl, prose, strict=True)]


def answers_of_each(
    model, tokenizer, prompts: Sequence[str], interventions: Sequence[Make], max_new_tokens: int = 32, at_once: int = 5
) -> list[list[str]]:
    """`refusal.generate(model, tokenizer, prompts)` under each intervention, [intervention][prompt]. Arguments as for `odds_of_each`."""
    (batch,) = token_batches(tokenizer, prompts, len(prompts))
    answers = []
    for part in _chunks(interventions, at_once, len(prompts)):
        with side_by_side(part):
            said = answers_to(model, tokenizer, batch.times(len(part)), max_new_tokens)
        for start in range(0, len(said), len(prompts)):
            own = dict(zip(batch.order, said[start : start + len(prompts)], strict=True))
            answers.append([own[i] for i in range(len(prompts))])
    return answers


def _prompts(meter: CostMeter, prompts: Sequence[str]) -> Batch:
    (batch,) = token_batches(meter.tokenizer, prompts, len(prompts))
    return batch.to(meter.model.device)


@torch.inference_mode()
def _each(measure, meter: CostMeter, batch: Batch, copies: int) -> torch.Tensor:
    """What `measure(model, batch)` gives for each prompt of each copy of the batch, [copy, prompt, ...], on the CPU."""
    values = measure(meter.model, batch.times(copies)).cpu().unflatten(0, (copies, -1))
    ordered = torch.empty_like(values)
    ordered[:, batch.order] = values
    return ordered


def _chunks(interventions: Sequence[Make], at_once: int, prompts: int) -> Iterator[list[Make]]:
    """So many of them at a time, under a progress bar."""
    if not len(interventions):
        raise ValueError("There is nothing to measure: give at least one intervention.")
    at_once = max(1, min(at_once, ROWS // prompts))
    for start in tqdm(range(0, len(interventions), at_once), desc="interventions", delay=2, leave=False):
        yield list(interventions[start : start + at_once])
