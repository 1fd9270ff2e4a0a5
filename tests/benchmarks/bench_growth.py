"""How time and memory grow: with the number of prompts (up to 2,048), with layers, and with length.

    python -m tests.benchmarks.bench_growth [--out FOLDER] [--most 2048]

Prompts: one layer's stream of every prompt is read, each number in a process of its own, so that its peak memory is its own.
Layers and length: a patch sweep over all attention and MLP writes, last position, on random models of a small width, beside
the same patches one whole forward each (every fifth is run, and the time scaled). Seconds are the processor's.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from helpers.hooks import read
from helpers.models import dims_of, load_model
from helpers.prompts import load_borderline, load_pairs, load_plain, pad
from helpers.refusal import RefusalScore
from helpers.sweep import Patch, Sweep
from tests.benchmarks.bench_peers import timed
from tests.benchmarks.peers import Plain

COUNTS = (16, 64, 256, 1024, 2048)
LAYERS, LENGTHS = (6, 12, 24, 48), (32, 64, 128, 256, 512)
USUAL = (12, 64)  # layers, length
ROWS = 8


def peak() -> float:
    """This process's largest memory so far, in MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def reading(count: int) -> None:
    """Read the middle layer of `count` prompts; prints seconds, and the MB that it took beside the model."""
    model, tokenizer = load_model()
    known = [x for p in load_pairs("method") + load_pairs("test") for x in (p.harmful, p.harmless)]
    known += load_plain("method") + load_borderline("method")
    prompts = [known[i % len(known)] for i in range(count)]
    read(model, tokenizer, known[:2], ["resid_pre"], [15])
    before, began = peak(), time.process_time()
    read(model, tokenizer, prompts, ["resid_pre"], [15])
    print(time.process_time() - began, peak() - before)


def by_count(most: int) -> pd.DataFrame:
    """prompts, seconds, MB."""
    rows = []
    for count in (c for c in COUNTS if c <= most):
        code = f"from tests.benchmarks.bench_growth import reading; reading({count})"
        out = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True
        ).stdout
        seconds, megabytes = map(float, out.split()[-2:])
        rows.append({"prompts": count, "seconds": seconds, "MB": megabytes, "ms a prompt": 1000 * seconds / count})
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


@torch.no_grad()
def sweeping(layers: int, length: int) -> dict:
    """Seconds of the sweep, of one forward, and of one forward a patch; checked to be equal."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500, hidden_size=256, intermediate_size=704, num_hidden_layers=layers, num_attention_heads=8,
        max_position_embeddings=1024, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    ids = torch.randint(1, 500, (ROWS, length)).tolist()
    batch = pad(ids, list(range(ROWS)), 0)
    score = RefusalScore(((3,), (7,)), 0.0)
    last = torch.zeros(ROWS, length, dtype=torch.bool)
    last[:, -1] = True
    value = torch.randn(ROWS, length, dims_of(model).d_model)
    patches = [Patch(site, layer, last, value) for layer in range(layers) for site in ("attn_out", "mlp_out")]

    plain = Plain(model, batch)

    def whole(patch: Patch) -> torch.Tensor:
        log_p = plain.patched(patch).double().log_softmax(-1)[:, [3, 7]].logsumexp(-1)
        return log_p - torch.log(-torch.expm1(log_p))

    plain.forward()
    forward, _ = timed(plain.forward)
    sweep, ours = timed(lambda: Sweep(model, batch, score).scores(patches))
    some = patches[::5]
    each, theirs = timed(lambda: torch.stack([whole(p) for p in some]))
    assert torch.allclose(ours[::5].double(), theirs, atol=1e-3), float((ours[::5] - theirs).abs().max())
    return {
        "layers": layers,
        "length": length,
        "forward": forward,
        "sweep": sweep,
        "whole": each * len(patches) / len(some),
    }


def draw(counts: pd.DataFrame, layers: pd.DataFrame, lengths: pd.DataFrame, path: Path) -> None:
    """Four panels."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    axes[0].plot(counts.prompts, counts.seconds, "o-", color="#0072B2")
    axes[0].set(xlabel="prompts", ylabel="seconds", title="reading a layer: time", xscale="log", yscale="log")
    axes[1].plot(counts.prompts, counts.MB, "s-", color="#D55E00")
    axes[1].set(
        xlabel="prompts", ylabel="MB beside the model", title="reading a layer: memory", xscale="log", ylim=(0, None)
    )
    for ax, table, name in ((axes[2], layers, "layers"), (axes[3], lengths, "length")):
        ax.plot(table[name], table.whole, "^--", color="#8A8A8A", label="a forward each")
        ax.plot(table[name], table.sweep, "o-", color="#0072B2", label="helpers.sweep")
        ax.set(xlabel=name, ylabel="seconds", title=f"patch sweep: {name}", xscale="log", yscale="log")
        ax.legend()
    fig.savefig(path, dpi=150)


def main(out: Path | None, most: int) -> None:
    """Measure, print, and write the tables and the plot if `out` is given."""
    counts = by_count(most)
    layers = pd.DataFrame([sweeping(n, USUAL[1]) for n in LAYERS])
    lengths = pd.DataFrame([sweeping(USUAL[0], n) for n in LENGTHS])
    for table in (layers, lengths):
        table["times"] = table.whole / table.sweep
    print(counts.round(3).to_string(index=False), layers.round(3).to_string(index=False), sep="\n\n")
    print(lengths.round(3).to_string(index=False))
    if out:
        out.mkdir(parents=True, exist_ok=True)
        counts.to_csv(out / "growth_prompts.csv", index=False, float_format="%.4g")
        pd.concat([layers, lengths]).to_csv(out / "growth_sweep.csv", index=False, float_format="%.4g")
        draw(counts, layers, lengths, out / "growth.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--most", type=int, default=COUNTS[-1])
    given = parser.parse_args()
    main(given.out, given.most)
