"""Lesson 01 at full size: every ranking's ablation on all test topics, beside 20 matched random sets of its own.

    python -m tools.sweep_neurons smollm2-135m-refusal > sweep.json

For each ranking and count: refusal by score and log-odds on harmful test requests with their interval over topics,
KL on the twins, perplexity of prose; and the same of 20 sets matched by layer and activity. Rankings are fitted on
the method split. In 16 bits (see `in_16_bits`): what is compared here is compared with its like.
"""

import argparse
import json

import numpy as np
import torch

from helpers.costs import CostMeter
from helpers.glassbox import ranked
from helpers.matched import matched_random_sets, mean_activity
from helpers.mean_ablation import mean_ablated, template_means
from helpers.models import load_model
from helpers.neurons import SafetyNeuronFinder, contrast, utility, without_top, write_onto
from helpers.prompts import load_pairs, load_paragraphs
from helpers.statistics import mean_interval
from tools.evaluate_direction import choose, in_16_bits

COUNTS = (50, 200, 1000, 2300)


def rankings(model, tokenizer, direction: torch.Tensor, layer: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Scores of all neurons, [layer, d_mlp], by each ranking of the lesson, and their mean activity."""
    pairs = load_pairs("method")
    harmful, harmless = [p.harmful for p in pairs], [p.harmless for p in pairs]
    found = SafetyNeuronFinder(model, tokenizer).compare(harmless, harmful, paired=True)
    writes = found.difference * write_onto(model, direction)
    writes[layer:] = -torch.inf  # what is written later cannot be read as this direction
    base, _ = load_model("smollm2-135m", device="cpu", dtype=model.dtype)
    scores = {
        "difference": found.difference.abs(),
        "effect size": found.effect_size.abs(),
        "write": writes,
        "contrast": contrast(base, model, tokenizer, harmful),
        "write less utility": without_top(writes, utility(model, found.safe), 0.1),
    }
    return scores, found.activity


def row_of(costs: list, topics: int) -> dict:
    """One intervention's figures; of several, their range and median."""
    odds = np.array([c.odds.mean() for c in costs])
    refused = np.array([c.refused.mean() for c in costs])
    one = len(costs) == 1
    row = {
        "log-odds": odds[0] if one else [odds.min(), np.median(odds), odds.max()],
        "refused": refused[0] if one else [refused.min(), np.median(refused), refused.max()],
        "kl": float(np.median([c.kl for c in costs])),
        "perplexity": float(np.median([c.perplexity for c in costs])),
        "topics": topics,
    }
    return row | ({"log-odds interval": mean_interval(costs[0].odds)} if one else {})


def sweep(name: str, draws: int = 20, every: int = 2) -> list[dict]:
    """A row for each ranking and count. The random sets are scored on every `every`-th topic."""
    model, tokenizer = in_16_bits(name)
    best, direction = choose(model, tokenizer)
    pairs, prose = load_pairs("test"), load_paragraphs()[::4]
    harmful, harmless = [p.harmful for p in pairs], [p.harmless for p in pairs]
    whole = CostMeter(model, tokenizer, harmful, harmless[::2], prose, quick=True)
    part = CostMeter(model, tokenizer, harmful[::every], harmless[::4], prose[:4], quick=True)
    means = template_means(model, tokenizer, [p.harmless for p in load_pairs("method")])
    scores, activity = rankings(model, tokenizer, direction, int(best["layer"]))
    rows = [{"ranking": "intact", **row_of([whole.measure()], len(pairs))}]
    print(json.dumps(rows[0], default=float), flush=True)
    for ranking, values in scores.items():
        for count in COUNTS:
            chosen = ranked(values, count)
            random_sets = matched_random_sets(chosen, activity, draws, spill=True)
            row = {
                "ranking": ranking,
                "neurons": count,
                **row_of([whole.measure(mean_ablated(model, chosen, means))], len(pairs)),
                "random": row_of([part.measure(mean_ablated(model, s, means)) for s in random_sets], len(part.harmful)),
                "same topics": row_of([part.measure(mean_ablated(model, chosen, means))], len(part.harmful)),
                "activity": [mean_activity(chosen, activity), mean_activity(random_sets[0], activity)],
            }
            rows.append(row)
            print(json.dumps(row, default=float), flush=True)
    return rows


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    sweep(parser.parse_args().name)


if __name__ == "__main__":
    main()
