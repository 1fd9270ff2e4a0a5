"""Twenty random sets of neurons taken out: in batches, each on rows of its own, against one after the other.

    python -m tests.benchmarks.bench_sets [--threads 2]

On the default model, by the clock, in turn, three times: medians and their ratio. The answers must agree to 1e-3.
"""

import argparse
import time

import numpy as np
import torch

from helpers.costs import CostMeter
from helpers.many_sets import odds_of_sets
from helpers.matched import random_sets
from helpers.mean_ablation import mean_ablated, template_means
from helpers.models import dims_of, load_model
from helpers.prompts import load_pairs


def main(neurons: int = 2304, prompts: int = 6, sets: int = 20, rounds: int = 3) -> None:
    """Print seconds of both ways."""
    model, tokenizer = load_model()
    pairs, dims = load_pairs("test"), dims_of(model)
    means = template_means(model, tokenizer, [p.harmless for p in load_pairs("method")[:16]])
    meter = CostMeter(model, tokenizer, [p.harmful for p in pairs[:prompts]], [pairs[0].harmless], quick=True)
    chosen = [divmod(i, dims.d_mlp) for i in np.random.default_rng(0).permutation(dims.n_layers * dims.d_mlp)[:neurons]]
    drawn = random_sets(chosen, (dims.n_layers, dims.d_mlp), sets)
    seconds = {"one by one": [], "in batches": []}
    for _ in range(rounds):
        began = time.perf_counter()
        alone = np.stack([meter.odds(mean_ablated(model, one, means)) for one in drawn])
        seconds["one by one"].append(time.perf_counter() - began)
        began = time.perf_counter()
        together = odds_of_sets(meter, drawn, means)
        seconds["in batches"].append(time.perf_counter() - began)
        assert np.abs(alone - together).max() < 1e-3, np.abs(alone - together).max()
    middle = {name: float(np.median(times)) for name, times in seconds.items()}
    print(f"{sets} sets of {neurons:,} neurons, {prompts} prompts, {torch.get_num_threads()} threads: "
          + ", ".join(f"{name} {x:.1f} s" for name, x in middle.items())
          + f"; {middle['one by one'] / middle['in batches']:.2f} times as fast")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    main()
