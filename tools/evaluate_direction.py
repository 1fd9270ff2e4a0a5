"""Has the refusal an inside to study? The difference-of-means direction of a model, chosen, judged, and its controls.

    python -m tools.evaluate_direction smollm2-135m-refusal

Fitted on "method" pairs, chosen on "validation" (Arditi et al. 2024), reported on "test" by the answers, with the
KL on harmless requests and the perplexity beside it, and the same for control directions: 20 drawn from the harmless
covariance at the chosen layer, and an unrelated concept. A candidate is a direction and the layer from which on it is
ablated (0: every write). KL is told twice: on plain requests, as in the paper, and on those twins of harmful ones
that the intact model answers (where it refuses, the KL would count refusal itself). Prints one JSON object.
"""

import argparse
import json

import numpy as np
import torch

from helpers.directions import (
    DirectionJudge,
    ablation_of,
    concept_direction,
    covariance_directions,
    kl_divergence,
    mean_differences,
    next_token_log_probs,
    score_directions,
    searchable_layers,
    select_direction,
    unit,
)
from helpers.hooks import read
from helpers.models import load_model, unembedding_of
from helpers.prompts import load_pairs, load_paragraphs, load_plain
from helpers.refusal import classify_answer, generate, is_refusal, refusal_score_of
from helpers.statistics import mean_interval
from tools.evaluate_adapter import perplexity

PHRASES = (
    "bake bread",
    "fix a bike",
    "learn chess",
    "paint a wall",
    "plant a tree",
    "write a poem",
    "sew a button",
    "tie a knot",
)
POSITIONS = (-1,)  # the last token of the template, where the answer begins
FIRSTS = (0, 8, 10, 12, 14)  # the layers from which on a direction is ablated


def both(split: str, phrasings=("seen",)) -> tuple[list[str], list[str]]:
    """Harmful requests and their twins."""
    pairs = [pair for phrasing in phrasings for pair in load_pairs(split, phrasing)]
    return [p.harmful for p in pairs], [p.harmless for p in pairs]


class Bench:
    """Everything that is said of one ablated direction, on fixed prompts."""

    def __init__(self, model, tokenizer, split: str = "test", every: int = 1):
        self.model, self.tokenizer = model, tokenizer
        self.score = refusal_score_of(model, tokenizer)
        self.harmful, twins = (prompts[::every] for prompts in both(split))
        odds = self.score.log_odds(model, tokenizer, twins)
        answered = [twin for twin, x in zip(twins, odds, strict=True) if x < self.score.threshold]
        self.harmless = {"plain": load_plain(split)[::every], "twins": answered[::2]}
        self.texts = load_paragraphs()[::4]
        self.clean = {name: next_token_log_probs(model, tokenizer, x) for name, x in self.harmless.items()}

    def measure(self, direction: torch.Tensor | None, first: int = 0) -> dict:
        """Refusal of the harmful requests, KL on the harmless ones, perplexity on plain text."""
        with ablation_of(self.model, direction, first):
            odds = self.score.log_odds(self.model, self.tokenizer, self.harmful)
            said = generate(self.model, self.tokenizer, self.harmful, 24)
            now = {name: next_token_log_probs(self.model, self.tokenizer, x) for name, x in self.harmless.items()}
            text = perplexity(self.model, self.tokenizer, self.texts)
        refused = [is_refusal(answer) for answer in said]
        return {
            "by answers": float(np.mean(refused)),
            "interval": mean_interval(refused),
            "by score": float((odds > self.score.threshold).mean()),
            "log-odds": float(odds.mean()),
            **{f"kl {name}": float(kl_divergence(self.clean[name], x).mean()) for name, x in now.items()},
            "perplexity": text,
            "broken": float(np.mean([classify_answer(answer) == "broken" for answer in said])),
        }


def choose(model, tokenizer) -> tuple[dict, torch.Tensor]:
    """The chosen candidate's row, and its unit direction."""
    differences = mean_differences(model, tokenizer, *both("method", ("seen", "free")), POSITIONS)
    harmful, harmless = both("validation")[0][::2], load_plain("validation")
    judge = DirectionJudge(model, tokenizer, refusal_score_of(model, tokenizer), harmful, harmless)
    table = score_directions(judge, differences, searchable_layers(model), POSITIONS, FIRSTS)
    print(table.round(3).to_string(), flush=True)
    try:
        best = select_direction(table, len(differences), threshold=judge.score.threshold)
    except ValueError as reason:
        # Then the cheapest of those that do take refusal away; its price is part of the result.
        print(reason, flush=True)
        best = table[table.bypass < judge.score.threshold].sort_values("kl").iloc[0]
    layer, position = int(best.layer), int(best.position)
    return best.to_dict(), unit(differences[layer, POSITIONS.index(position)])


def in_16_bits(name: str):
    """The model three times as fast, for what is compared with its like: the choice, and the controls."""
    model, tokenizer = load_model(name, device="cpu", dtype=torch.bfloat16)
    # A slice of the last position is no contiguous tensor, and its product with the unembedding would be slow.
    unembedding_of(model).register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))
    return model, tokenizer


def evaluate(name: str, controls: int = 20) -> dict:
    """All figures: the chosen direction in 32 bits; it and its controls, on every second topic, in 16."""
    quick, tokenizer = in_16_bits(name)
    best, direction = choose(quick, tokenizer)
    layer, position, first = int(best["layer"]), int(best["position"]), int(best["first"])
    model, _ = load_model(name)
    bench = Bench(model, tokenizer)
    result = {"chosen": best, "clean": bench.measure(None), "ablated": bench.measure(direction, first)}
    result["ablated at every write"] = bench.measure(direction)
    print(json.dumps(result), flush=True)
    twins = both("test")[1]
    resid = read(quick, tokenizer, twins, ["resid_pre"], [layer], positions=position)["resid_pre"][:, 0]
    twin = Bench(quick, tokenizer, every=2)
    result["in 16 bits"] = {"clean": twin.measure(None), "ablated": twin.measure(direction, first)}
    rows = [twin.measure(d, first) for d in covariance_directions(resid, controls)]
    result["controls"] = {key: [row[key] for row in rows] for key in rows[0]}
    concept = concept_direction(quick, tokenizer, PHRASES, layer, position)
    result["concept"] = twin.measure(concept, first)
    return result


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    args = parser.parse_args()
    print(json.dumps(evaluate(args.name), indent=1))


if __name__ == "__main__":
    main()
