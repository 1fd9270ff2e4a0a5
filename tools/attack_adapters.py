"""Attack the standard adapter and the robust ones, every seed, each with attacks fitted on itself; write the tidy table.

    python -m tools.attack_adapters                       # all that were trained; minutes each; goes on where it stopped
    python -m tools.attack_adapters redundant-0 --again   # only this one, anew
    python -m tools.attack_adapters --validate            # only the figures without attack

Fitted on "method" pairs, chosen on "validation", measured on "test". The rows go to helpers/data/robustness/attacks.csv, the
validation figures of each adapter to validation.csv. Models are held in 16 bits (three times as fast); trainings inside an attack
are in 32.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from helpers.cache import cache_dir
from helpers.fresh_prefix import in_context
from helpers.models import load_model, merge_adapter
from helpers.packed_score import packed
from helpers.prompts import load_borderline, load_pairs, load_paragraphs, load_plain
from helpers.refusal import shipped_score
from helpers.robustness import COLUMNS, SHIPPED, Bench, attack_table, attacks_on
from helpers.statistics import mean_interval
from helpers.weights import adapter_folder
from tools.evaluate_adapter import perplexity

LAYERS, FIRSTS = (14, 16, 18), (10, 12, 14)
COUNTS, STEPS = (1000, 3000), (3, 9)
TOPICS = slice(None, None, 4)  # of the test split


def load_attacked(name: str):
    """A model in 16 bits, its tokenizer, and its adapter's folder. name: `refusal`, or idea-seed.

    All are scored by the standard adapter's openings and threshold: it is the same start, and one yardstick.
    """
    folder = adapter_folder("refusal") if name == "refusal" else cache_dir() / "robust" / name
    model, tokenizer = load_model("smollm2-135m", device="cpu", dtype=torch.float32)
    merge_adapter(model, folder)
    model.to(torch.bfloat16)
    model.refusal_score = shipped_score("smollm2-135m-refusal")
    return model, tokenizer, folder


def bench_of(model, tokenizer) -> Bench:
    """The test prompts, the same for all."""
    pairs = load_pairs("test")[TOPICS]
    twins = [p.harmless for p in pairs][::2]
    return Bench(
        model, tokenizer, [p.harmful for p in pairs], twins + load_borderline("test")[::5][: len(twins)],
        load_plain("test")[:16], load_paragraphs()[::5], tokens=12,
    )  # fmt: skip


def validation_row(model, tokenizer, prose: bool = True) -> dict:
    """Shares refused on the validation split by the score, with intervals; prose: and the perplexity of prose without a template."""
    pairs = load_pairs("validation")
    groups = {
        "harmful": [p.harmful for p in pairs],
        "twins": [p.harmless for p in pairs],
        "borderline": load_borderline("validation"),
        "plain": load_plain("validation"),
    }
    score, row = packed(model.refusal_score), {}
    for group, prompts in groups.items():
        odds = score.log_odds(in_context(model, tokenizer, prompts), tokenizer, prompts, batch_size=32)
        refused = odds > score.threshold
        low, high = mean_interval(refused)
        row |= {group: refused.mean(), f"{group}_low": low, f"{group}_high": high, f"{group}_n": len(prompts)}
    return row | ({"perplexity": perplexity(model, tokenizer, load_paragraphs()[::4])} if prose else {})


def attack(name: str) -> tuple[pd.DataFrame, dict]:
    """All rows of one adapter, and its validation figures."""
    model, tokenizer, folder = load_attacked(name)
    begun = time.time()
    validation = validation_row(model, tokenizer)
    print(
        name,
        {k: round(v, 2) for k, v in validation.items() if "_" not in k},
        f"{time.time() - begun:.0f} s",
        flush=True,
    )
    attacks = attacks_on(
        model, tokenizer, load_pairs("method")[::4][:24], load_pairs("validation")[::6][:12], load_plain("method")[:12],
        LAYERS, FIRSTS, folder, COUNTS, STEPS,
    )  # fmt: skip
    print(f"fitted after {time.time() - begun:.0f} s", flush=True)

    def say(row: dict) -> None:
        figures = {k: round(row[k], 2) for k in ("refused", "broken", "by_score", "over_refused", "kl", "perplexity")}
        print(f"{time.time() - begun:.0f} s", row["attack"], row["dose"], figures, row["note"], flush=True)

    return attack_table(bench_of(model, tokenizer), attacks, each=say), validation


def merge(path: Path, new: pd.DataFrame) -> None:
    """Write rows of one adapter and seed into a table, in place of older ones."""
    if path.exists():
        old = pd.read_csv(path)
        same = (old.adapter == new.adapter.iloc[0]) & (old.seed == new.seed.iloc[0])
        new = pd.concat([old[~same], new])
    path.parent.mkdir(parents=True, exist_ok=True)
    new = new.sort_values(["adapter", "seed"], kind="stable")
    new.to_csv(path, index=False, float_format="%.4g", lineterminator="\n")


def trained() -> list[str]:
    """The standard adapter and all that were trained, in the order of their seeds."""
    found = sorted((path.name for path in (cache_dir() / "robust").iterdir()), key=lambda name: (name[-1], name))
    return ["refusal", *found]


def main() -> None:
    """Parse the command line, attack, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--again", action="store_true", help="also where rows are there already")
    parser.add_argument("--validate", action="store_true", help="no attacks, only the validation figures")
    args = parser.parse_args()
    torch.manual_seed(0), np.random.seed(0)
    for name in args.names or trained():
        adapter, _, seed = name.partition("-")
        seed = int(seed or 0)
        head = {"adapter": adapter, "seed": seed}
        if args.validate:
            merge(SHIPPED.with_name("validation.csv"), pd.DataFrame([head | validation_row(*load_attacked(name)[:2])]))
            continue
        if SHIPPED.exists() and not args.again:
            done = pd.read_csv(SHIPPED)
            if len(done[(done.adapter == adapter) & (done.seed == seed)]):
                continue
        table, validation = attack(name)
        rows = pd.concat([pd.DataFrame(head, index=table.index), table[list(COLUMNS)]], axis=1)
        merge(SHIPPED, rows)
        merge(SHIPPED.with_name("validation.csv"), pd.DataFrame([head | validation]))


if __name__ == "__main__":
    main()
