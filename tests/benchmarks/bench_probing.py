"""Probes for 30 layers, 5 folds, 200 prompts: one call against a plain loop over scikit-learn, in one run.

python tests/benchmarks/bench_probing.py
"""

import time

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers.probing import held_out_decisions, probe_table, topic_folds


def main(layers: int = 30, prompts: int = 200, d: int = 576, C: float = 0.01) -> dict[str, float]:
    """Seconds of both ways, their ratio, the largest difference of a decision, and the whole table's seconds."""
    g = torch.Generator().manual_seed(0)
    y = (torch.arange(prompts) >= prompts // 2).float()
    x = torch.randn(layers, prompts, d, generator=g) + 0.1 * y[None, :, None]
    topics = [i % (prompts // 2) for i in range(prompts)]
    folds = topic_folds(topics)
    start = time.perf_counter()
    ours = held_out_decisions(x, y, folds, C).numpy()
    middle = time.perf_counter()
    plain = np.zeros_like(ours)
    for layer in range(layers):
        for fold in range(5):
            train = folds != fold
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=5000, tol=1e-8))
            probe.fit(x[layer, train].double().numpy(), y[train].numpy())
            plain[layer, ~train] = probe.decision_function(x[layer, ~train].double().numpy())
    end = time.perf_counter()
    probe_table(x, y, topics, [i % 7 for i in range(prompts)])
    table = time.perf_counter() - end
    return {"ours": middle - start, "scikit-learn": end - middle, "ratio": (end - middle) / (middle - start),
            "largest difference": float(np.abs(ours - plain).max()), "whole table": table}  # fmt: skip


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name:20}{value:10.4f}")
