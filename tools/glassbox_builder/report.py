"""Prints the table box x property, the pitfalls, file sizes and times; in Markdown, so that it can stand in a note."""

import time
from functools import cache

import torch

from helpers.glassbox import DATA, KINDS, glassbox_prompts, load_glassbox, load_tokenizer, manifest, model_of, read_box
from helpers.glassbox_language import vocabulary

from .calibrate import batch, build
from .kinds import RECIPES
from .pitfalls import PITFALLS, Lab
from .promises import PROMISES, Promise, measured
from .properties import Properties
from .truth import truth_of

EXTRA = (
    Promise("log-odds, harmful minus harmless", ">=", 0.0),
    Promise("two static statistics find", "<=", 1.0),
)


@cache
def built(kind: str, seed: int):
    """A new box: (model, truth)."""
    assembly, weights, direction = build(RECIPES[kind], seed)
    return model_of(weights), truth_of(kind, assembly, direction)


@cache
def shipped(name: str):
    """A box as it stands in the files: (model, truth)."""
    weights, truth = read_box(name)
    return model_of(weights), truth


def report(seeds: int = 0) -> int:
    """Measures the shipped files, or with `seeds` so many new builds of each kind, of which the worst figure is shown."""
    if seeds:
        boxes = {kind: [built(kind, seed) for seed in range(seeds)] for kind in KINDS}
    else:
        names = sorted(name.removesuffix(".safetensors") for name in manifest() if name.endswith(".safetensors"))
        boxes = {name: [shipped(name)] for name in names}
    figures = {
        name: [measured(Properties(model, truth, vocabulary())) for model, truth in some]
        for name, some in boxes.items()
    }
    columns = list(figures)
    print(f"| property (worst of {seeds or 1}) | bound | " + " | ".join(columns) + " |")
    print("|---|---|" + "---|" * len(columns))
    kept = True
    for promise in (*PROMISES, *EXTRA):
        cells = []
        for name in columns:
            values = [f[promise.name] for f in figures[name] if promise.name in f]
            worst = promise.worst(values) if values else None
            kept &= worst is None or promise.holds(worst)
            cells.append("" if worst is None else f"{worst:.3g}" + ("" if promise.holds(worst) else " **broken**"))
        bound = f"{promise.sign} {promise.bound:.3g}" if promise in PROMISES else ""
        print(f"| {promise.name} | {bound} | " + " | ".join(cells) + " |")
    print()
    _pitfalls({kind: boxes[kind] for kind in KINDS})
    _files_and_times()
    return int(not kept)


def _pitfalls(boxes) -> None:
    print("| pitfall | box | naive recall at k | right recall at k |")
    print("|---|---|---|---|")
    labs = {kind: [Lab(model, load_tokenizer(), truth) for model, truth in some] for kind, some in boxes.items()}
    for name, (kind, method) in PITFALLS.items():
        pairs = [method(lab) for lab in labs[kind]]
        naive, right = max(n.recall_at_k for n, _ in pairs), min(r.recall_at_k for _, r in pairs)
        print(f"| {name} | {kind} | {naive:.2f} | {right:.2f} |")
    print()


def _files_and_times() -> None:
    start = time.perf_counter()
    model, _, _ = load_glassbox("concentrated")
    loaded = time.perf_counter() - start
    ids, mask = batch(glassbox_prompts("harmful", 256))
    start = time.perf_counter()
    with torch.no_grad():
        model(ids, attention_mask=mask, logits_to_keep=1)
    ran = time.perf_counter() - start
    sizes = {path.name: path.stat().st_size for path in sorted(DATA.iterdir()) if path.is_file()}
    print(f"parameters {sum(p.numel() for p in model.parameters()):,}; load {loaded:.2f} s; 256 prompts {ran:.2f} s")
    print(f"files {sum(sizes.values()) / 1e6:.1f} MB: " + ", ".join(f"{n} {s / 1e3:.0f} kB" for n, s in sizes.items()))
