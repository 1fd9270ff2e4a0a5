"""The draws of a control: the score's own three forwards, one forward with an answer tree, and several draws to a batch.

    python -m tests.benchmarks.bench_draws [--threads 2]

Twenty sets of neurons, twenty directions and twenty sets of heads are ablated on the default model, six prompts each; by the clock,
in turn, three times: medians and their ratios. The answers must agree to 1e-3.
"""

import argparse
import time
from functools import partial

import numpy as np
import torch

from helpers.ablation import heads_scaled
from helpers.costs import CostMeter
from helpers.directions import ablation_of
from helpers.fresh_prefix import fresh
from helpers.many_edits import odds_of_each
from helpers.matched import random_sets
from helpers.mean_ablation import mean_ablated, template_means
from helpers.models import dims_of, load_model
from helpers.prompts import load_pairs
from helpers.refusal import refusal_score_of


def draws(model, tokenizer, count: int) -> dict[str, list]:
    """Of each kind so many interventions, as functions that give a context manager."""
    dims, seeded = dims_of(model), torch.Generator().manual_seed(0)
    means = template_means(model, tokenizer, [p.harmless for p in load_pairs("method")[:16]])
    chosen = [divmod(i, dims.d_mlp) for i in np.random.default_rng(0).permutation(dims.n_layers * dims.d_mlp)[:2304]]
    neurons = random_sets(chosen, (dims.n_layers, dims.d_mlp), count)
    heads = random_sets([(12, 0), (13, 1), (14, 2), (15, 3)], (dims.n_layers, dims.n_heads), count)
    directions = torch.nn.functional.normalize(torch.randn(count, dims.d_model, generator=seeded))
    return {
        "2,304 neurons": [partial(mean_ablated, model, one, means) for one in neurons],
        "a direction, from layer 12 on": [partial(ablation_of, model, r, 12) for r in directions],
        "four heads": [partial(heads_scaled, model, group) for group in heads],
    }


def main(prompts: int = 6, count: int = 20, rounds: int = 3) -> None:
    """Print seconds of each way."""
    model, tokenizer = load_model()
    pairs = load_pairs("test")
    asked = [p.harmful for p in pairs[:prompts]]
    print(f"{count} draws, {prompts} prompts, {torch.get_num_threads()} threads")
    for name, makers in draws(model, tokenizer, count).items():
        meter = CostMeter(model, tokenizer, asked, [pairs[0].harmless], quick="neurons" in name)
        meter = meter if "neurons" in name else fresh(meter)
        plain = refusal_score_of(model, tokenizer)

        def by_forwards(makers=makers, meter=meter, plain=plain):
            found = []
            for make in makers:
                with make():
                    found.append(plain.log_odds(meter.model, tokenizer, asked))
            return np.stack(found)

        ways = {
            "three forwards": by_forwards,
            "a tree": lambda makers=makers, meter=meter: np.stack([meter.odds(make()) for make in makers]),
            "five in a batch": lambda makers=makers, meter=meter: odds_of_each(meter, makers),
        }
        seconds, found = {way: [] for way in ways}, {}
        for _ in range(rounds):
            for way, run in ways.items():
                began = time.perf_counter()
                found[way] = run()
                seconds[way].append(time.perf_counter() - began)
        apart = max(np.abs(x - found["three forwards"]).max() for x in found.values())
        assert apart < 1e-3, apart
        middle = {way: float(np.median(times)) for way, times in seconds.items()}
        told = ", ".join(f"{way} {x:.1f} s ({x / middle['three forwards']:.2f})" for way, x in middle.items())
        print(f"{name}: {told}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    main()
