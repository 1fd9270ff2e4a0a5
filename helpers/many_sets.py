"""Many sets of neurons ablated side by side: the draws of a control, each on rows of its own in one batch. Used in lessons 01, 05, 06.

A control of twenty random sets asks the same few prompts twenty times, and so few rows keep no processor busy. Here the batch
holds the prompts several times over, and each copy runs without its own set of neurons.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from tqdm import tqdm

from .costs import CostMeter
from .hooks import edit
from .mean_ablation import Place, TemplateMeans, neurons_by_layer, template_places
from .models import dims_of
from .prompts import Batch, token_batches
from .shared_prefix import WithPrefix


@contextmanager
def each_its_own(model, sets: Sequence[Sequence[Place]], means: TemplateMeans) -> Iterator[None]:
    """While inside, a batch falls into as many equal parts as there are sets, and part i runs with the neurons of set i held at
    their harmless mean of each place: `mean_ablated` with a set for each part of the rows."""
    dims = dims_of(model)
    out = torch.zeros(len(sets), dims.n_layers, dims.d_mlp, dtype=torch.bool)
    for i, neurons in enumerate(sets):
        for layer, members in neurons_by_layer(model, neurons).items():
            out[i, layer, members] = True

    def replace(layer: int):
        table, own = means.values[:, layer], out[:, layer]

        def function(x: torch.Tensor) -> torch.Tensor | None:
            place = now["place"]
            if not bool((place >= 0).any()):
                return None  # the shared beginning, read for one row
            rows = own.repeat_interleave(len(x) // len(sets), 0)
            held = (rows[:, None] & (place >= 0)[..., None]).to(x.device)
            return torch.where(held, table[place.clamp(min=0)].to(x), x)

        return function

    touched = out.any(-1).any(0).nonzero().flatten().tolist()
    with (
        template_places(model, len(means.prefix), means.depth) as now,
        edit(model, [("neurons", layer, replace(layer)) for layer in touched]),
    ):
        yield


@torch.inference_mode()
def odds_of_sets(
    meter: CostMeter, sets: Sequence[Sequence[Place]], means: TemplateMeans, at_once: int = 5
) -> np.ndarray:
    """Refusal log-odds of the meter's harmful prompts without each of these sets, [set, prompt], as
    `meter.odds(mean_ablated(model, one, means))` gives them one by one; `at_once` sets share a batch.

    What takes over two seconds shows a progress bar. Raises ValueError if there is no set, and as `mean_ablated` does.
    """
    sets = [list(one) for one in sets]
    if not sets:
        raise ValueError("There are no sets to ablate: draw at least one, with matched_random_sets(...).")
    model = meter.model.model if isinstance(meter.model, WithPrefix) else meter.model
    (batch,) = token_batches(meter.tokenizer, meter.harmful, len(meter.harmful))
    found = np.zeros((len(sets), len(meter.harmful)))
    for start in tqdm(range(0, len(sets), at_once), desc="sets", delay=2, leave=False):
        part = sets[start : start + at_once]
        with each_its_own(model, part, means):
            odds = meter.score._score_batch(meter.model, _times(batch, len(part)).to(model.device))
        found[start : start + len(part), batch.order] = odds.view(len(part), -1).cpu().numpy()
    return found


def _times(batch: Batch, times: int) -> Batch:
    """The rows of a batch `times` over, copy after copy."""
    ids, mask, positions = (x.repeat(times, 1) for x in (batch.input_ids, batch.attention_mask, batch.position_ids))
    return Batch(ids, mask, positions, batch.last.repeat(times), list(range(times * len(batch.order))))
