"""Has the refusal an inside to study? The difference-of-means direction of a model, chosen, judged, and its controls.

    python -m tools.evaluate_direction smollm2-135m-refusal

Fitted on "method" pairs, chosen on "validation" (Arditi et al. 2024), reported on "test" by the answers, with the
harmless KL and the perplexity beside it, and the same for control directions: 20 drawn from the harmless covariance
at the chosen layer, and an unrelated concept. Prints one JSON object. About ten minutes on two cores.
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
from helpers.prompts import load_pairs, load_paragraphs
from helpers.refusal import classify_answer, generate, is_refusal, refusal_score_of
from helpers.statistics import bootstrap_interval
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


def both(split: str, phrasings=("seen",)) -> tuple[list[str], list[str]]:
    """Harmful requests and their twins."""
    pairs = [pair for phrasing in phrasings for pair in load_pairs(split, phrasing)]
    return [p.harmful for p in pairs], [p.harmless for p in pairs]


class Bench:
    """Everything that is said of one ablated direction, on fixed prompts."""

    def __init__(self, model, tokenizer, harmful: list[str], harmless: list[str], texts: list[str]):
        self.model, self.tokenizer = model, tokenizer
        self.harmful, self.harmless, self.texts = harmful, harmless, texts
        self.score = refusal_score_of(model, tokenizer)
        self.clean = next_token_log_probs(model, tokenizer, harmless)

    def measure(self, direction: torch.Tensor | None) -> dict:
        """Refusal of the harmful requests, KL on the harmless ones, perplexity on plain text."""
        with ablation_of(self.model, direction):
            odds = self.score.log_odds(self.model, self.tokenizer, self.harmful)
            said = generate(self.model, self.tokenizer, self.harmful, 24)
            row = {
                "by score": float((odds > self.score.threshold).mean()),
                "log-odds": float(odds.mean()),
                "kl": float(
                    kl_divergence(self.clean, next_token_log_probs(self.model, self.tokenizer, self.harmless)).mean()
                ),
                "perplexity": perplexity(self.model, self.tokenizer, self.texts),
                "by answers": float(np.mean([is_refusal(a) for a in said])),
                "interval": bootstrap_interval([is_refusal(a) for a in said]),
                "broken": float(np.mean([classify_answer(a) == "broken" for a in said])),
            }
        return row


def choose(model, tokenizer) -> tuple[dict, torch.Tensor]:
    """The chosen candidate's row, and its unit direction."""
    harmful, harmless = both("method", ("seen", "free"))
    differences = mean_differences(model, tokenizer, harmful, harmless, POSITIONS)
    judge = DirectionJudge(model, tokenizer, refusal_score_of(model, tokenizer), *(x[::2] for x in both("validation")))
    table = score_directions(judge, differences, searchable_layers(model), POSITIONS)
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
    """All figures."""
    quick, tokenizer = in_16_bits(name)
    best, direction = choose(quick, tokenizer)
    print(json.dumps(best), flush=True)
    layer, position = int(best["layer"]), int(best["position"])
    harmful, harmless = both("test")
    model, _ = load_model(name)
    bench = Bench(model, tokenizer, harmful, harmless[::2], load_paragraphs()[::4])
    result = {"chosen": best, "clean": bench.measure(None), "ablated": bench.measure(direction)}
    print(json.dumps(result), flush=True)
    resid = read(quick, tokenizer, harmless, ["resid_pre"], [layer], positions=position)["resid_pre"][:, 0]
    twin = Bench(quick, tokenizer, harmful, harmless[::2], load_paragraphs()[::4])
    result["in 16 bits"] = {"clean": twin.measure(None), "ablated": twin.measure(direction)}
    rows = [twin.measure(d) for d in covariance_directions(resid, controls)]
    result["controls"] = {key: [row[key] for row in rows] for key in rows[0]}
    concept = concept_direction(quick, tokenizer, PHRASES, layer, position)
    result["concept"] = twin.measure(concept)
    return result


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    args = parser.parse_args()
    print(json.dumps(evaluate(args.name), indent=1))


if __name__ == "__main__":
    main()
