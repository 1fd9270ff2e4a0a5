"""Wrong answers to the exercises of lesson 08, one for each message, and other right ones."""

import numpy as np
import torch

from helpers.checks import lesson_08 as course


def context(exercise_id):
    """The keyword arguments that the lesson gives to check(): none in this lesson."""
    return {}


def _means(x, domains):
    return torch.stack([x[[i for i, d in enumerate(domains) if d == name]].mean(0) for name in sorted(set(domains))])


def _cut_by_loop(values, start):
    kept = list(values[:start])
    while True:
        middle = sorted(kept)[len(kept) // 2] if len(kept) % 2 else sum(sorted(kept)[len(kept) // 2 - 1 :][:2]) / 2
        more = [v for v in values if v >= middle / 2]
        if len(more) <= len(kept):
            return len(kept)
        kept = more


def _loop_by_domain(x, domains):
    best = None
    for name in set(domains):
        mean = x[torch.tensor([d == name for d in domains])].mean(0)
        best = mean if best is None else torch.maximum(best, mean)
    return best


WRONG = {
    "08.1": {
        "calls_counted": lambda c: lambda prompts, blocks, n, backward: 1,
        "rows_only": lambda c: lambda prompts, blocks, n, backward: prompts,
        "blocks_ignored": lambda c: lambda prompts, blocks, n, backward: prompts * (3 if backward else 1),
        "backward_free": lambda c: lambda prompts, blocks, n, backward: prompts * blocks / n,
        "backward_as_forward": lambda c: lambda prompts, blocks, n, backward: prompts * blocks / n * (1 + backward),
        "blocks_for_passes": lambda c: lambda prompts, blocks, n, backward: prompts * blocks * (1 + 2 * backward),
        "no_number": lambda c: lambda prompts, blocks, n, backward: str(prompts),
        "other": lambda c: lambda prompts, blocks, n, backward: prompts + blocks,
    },
    "08.2": {
        "always_ten": lambda c: lambda values, start: min(10, len(values)),
        "largest_gap": lambda c: course._gap,
        "half_of_the_first": lambda c: lambda v, start: max(start, sum(x >= v[0] / 2 for x in v)),
        "only_once": lambda c: course._once,
        "start_only": lambda c: lambda values, start: start,
        "no_count": lambda c: lambda values, start: values[:start],
        "other": lambda c: lambda values, start: len(values),
    },
    "08.3": {
        "over_all": lambda c: lambda x, domains: x.mean(0),
        "loudest_pair": lambda c: lambda x, domains: x.amax(0),
        "mean_of_means": lambda c: lambda x, domains: _means(x, domains).mean(0),
        "sums": lambda c: (
            lambda x, domains: torch.stack(
                [x[[i for i, d in enumerate(domains) if d == n]].sum(0) for n in set(domains)]
            ).amax(0)
        ),
        "absolute": lambda c: lambda x, domains: _means(x, domains).abs().amax(0),
        "smallest": lambda c: lambda x, domains: _means(x, domains).amin(0),
        "other": lambda c: lambda x, domains: x[0],
    },
    "08.4": {
        "refusal_alone": lambda c: course._refusal_alone,
        "ten_only": lambda c: course._ten_only,
        "ten_first": lambda c: course._ten_first,
        "no_backup": lambda c: course._no_backup,
        "knowledge_absolute": lambda c: course._absolute,
        "always_the_same": lambda c: lambda one: "concentrated",
        "unknown_word": lambda c: lambda one: "spread",
        "other": lambda c: lambda one: "redundant" if one["known_without_all"] > 0.5 else "entangled",
    },
    "08.5": {
        "middle": lambda c: lambda calm, rate: float(np.mean(calm)),
        "never": lambda c: lambda calm, rate: max(calm),
        "other_end": lambda c: lambda calm, rate: sorted(calm)[int(rate * len(calm))],
        "too_low": lambda c: lambda calm, rate: sorted(calm)[-2 * int(rate * len(calm)) - 2],
        "too_high": lambda c: lambda calm, rate: sorted(calm)[-int(rate * len(calm))],
        "no_number": lambda c: lambda calm, rate: sorted(calm),
    },
}

RIGHT = {
    "08.1": [lambda c: lambda prompts, blocks, n, backward: prompts * (1 + 2 * backward) * blocks / n],
    "08.2": [lambda c: _cut_by_loop],
    "08.3": [lambda c: _loop_by_domain],
    "08.4": [lambda c: lambda one: course.kind_of(one)],
    "08.5": [lambda c: lambda calm, rate: sorted(calm, reverse=True)[int(rate * len(calm))]],
}
