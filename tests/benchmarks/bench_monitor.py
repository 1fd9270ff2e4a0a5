"""What watching costs: seconds to generate under the monitor against plain generation, in turns, in one run.

python tests/benchmarks/bench_monitor.py [--rounds 7] [--prompts 4] [--tokens 24]

Both ways answer the same prompts with the same greedy tokens (the monitor does not stop them), so the work is the same but
for the watching. Seconds are those of the processor; each round takes both, in turn first and second, and the ratio is taken within rounds.
"""

import argparse
import time

import numpy as np

from helpers.models import load_model
from helpers.monitor import SafetyMonitor
from helpers.prompts import load_pairs
from helpers.refusal import generate


def main(rounds: int = 7, prompts: int = 4, tokens: int = 24) -> np.ndarray:
    """The ratio of each round, [round]."""
    model, tokenizer = load_model()
    pairs = load_pairs("method")[:16]
    monitor = SafetyMonitor(model, tokenizer).fit([p.harmful for p in pairs], [p.harmless for p in pairs])
    monitor.threshold = float("inf")
    asked = [p.harmless for p in load_pairs("validation")[:prompts]]
    ways = {
        "plain": lambda: generate(model, tokenizer, asked, tokens),
        "watched": lambda: [w.text for w in monitor.generate(asked, tokens, stop=False)],
    }
    same = {name: way() for name, way in ways.items()}  # warm, and the same answers
    assert same["plain"] == same["watched"]
    ratios = []
    for i in range(rounds):
        took = {}
        for name in sorted(ways, reverse=bool(i % 2)):
            start = time.process_time()
            ways[name]()
            took[name] = time.process_time() - start
        ratios.append(took["watched"] / took["plain"])
        print(
            f"round {i + 1}: plain {took['plain']:.2f} s, watched {took['watched']:.2f} s, ratio {ratios[-1]:.3f}",
            flush=True,
        )
    return np.array(ratios)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in (("rounds", 7), ("prompts", 4), ("tokens", 24)):
        parser.add_argument(f"--{name}", type=int, default=value)
    found = main(**vars(parser.parse_args()))
    print(f"median ratio {np.median(found):.3f} ({found.min():.3f} to {found.max():.3f})")
