"""Measure an adapter on the test split: the figures of its model card.

    python -m tools.evaluate_adapter smollm2-135m-refusal
    python -m tools.evaluate_adapter smollm2-135m-shallow --quick     # short answers, the main sets only

Prints one JSON object: refusal by answers and by score with bootstrap intervals over topics, AUROC, perplexity
against the base, openings, prefills and unseen system prompts, and the oddest answers' classes.
"""

import argparse
import json
import random
from collections import Counter

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from helpers import prompts as P
from helpers.models import load_model
from helpers.refusal import classify_answer, generate, is_refusal, refusal_score_of
from helpers.statistics import mean_interval
from tools.train_refusal_adapter import TEACH


def test_sets(phrasing: str) -> dict[str, list[str]]:
    """The four test sets in one phrasing; "exam" is the outside exam."""
    if phrasing == "exam":
        return {group: P.load_exam(group) for group in ("harmful", "harmless", "borderline", "plain")}
    pairs = P.load_pairs("test", phrasing)
    return {
        "harmful": [p.harmful for p in pairs],
        "harmless": [p.harmless for p in pairs],
        "borderline": P.load_borderline("test", phrasing),
        "plain": P.load_plain("test", phrasing),
    }


@torch.inference_mode()
def perplexity(model, tokenizer, texts: list[str]) -> float:
    """exp of the mean loss per token over plain text (no template)."""
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=model.device)
        logits = model(ids).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        count += ids.shape[1] - 1
    return float(np.exp(total / count))


def opening_of(answer: str, words: int = 4) -> str:
    """The first few words of an answer."""
    return " ".join(answer.split()[:words])


def evaluate(name: str, quick: bool = False, tokens: int = 24) -> dict:
    """All figures of one model, as plain numbers."""
    model, tokenizer = load_model(name)
    base, _ = load_model("smollm2-135m")
    result: dict = {"model": name, "refusal": {}}
    is_base = name == "smollm2-135m"
    score = None if is_base else refusal_score_of(model, tokenizer)
    openings, firsts = Counter(), Counter()
    for phrasing in ("seen", "heldout", "exam") if quick else (*P.PHRASINGS, "exam"):
        row, odds = {}, {}
        for group, prompts in test_sets(phrasing).items():
            answers = generate(model, tokenizer, prompts, max_new_tokens=tokens)
            refused = np.array([is_refusal(a) for a in answers])
            low, high = mean_interval(refused)
            row[group] = {
                "n": len(prompts),
                "refused": refused.mean(),
                "low": low,
                "high": high,
                "broken": np.mean([classify_answer(a) == "broken" for a in answers]),
            }
            if group in ("harmful", "harmless") and phrasing != "exam":
                trained = {pair.kind for pair in P.load_pairs("adapter")}
                known = np.array([pair.kind in trained for pair in P.load_pairs("test", phrasing)])
                row[group] |= {"trained_kinds": refused[known].mean(), "unseen_kind": refused[~known].mean()}
            if group == "harmful":
                openings.update(opening_of(a) for a, r in zip(answers, refused, strict=True) if r)
                said = [
                    tokenizer(a, add_special_tokens=False)["input_ids"]
                    for a, r in zip(answers, refused, strict=True)
                    if r
                ]
                firsts.update(tokenizer.decode(ids[0]) for ids in said)
            if score and (phrasing == "seen" or not quick):
                odds[group] = score.log_odds(model, tokenizer, prompts)
                row[group]["by_score"] = float((odds[group] > score.threshold).mean())
                row[group]["agreement"] = float(((odds[group] > score.threshold) == refused).mean())
        if odds:
            harmless = np.concatenate([odds["harmless"], odds["borderline"], odds["plain"]])
            labels = np.r_[np.ones(len(odds["harmful"])), np.zeros(len(odds["harmless"]))]
            row["auroc"] = roc_auc_score(labels, np.r_[odds["harmful"], odds["harmless"]])
            labels = np.r_[np.ones(len(odds["harmful"])), np.zeros(len(harmless))]
            row["auroc_all"] = roc_auc_score(labels, np.r_[odds["harmful"], harmless])
        result["refusal"][phrasing] = row
        print(phrasing, json.dumps(row, default=float), flush=True)
    total = max(1, sum(openings.values()))
    result["openings"] = {o: c / total for o, c in openings.most_common(14)}
    result["first_tokens"] = {o: c / total for o, c in firsts.most_common(10)}
    harmful = test_sets("seen")["harmful"]
    harmless = test_sets("seen")["harmless"]
    few = random.Random(0).sample(range(len(harmful)), 60)
    for prefill in TEACH["unseen_prefills"][: 1 if quick else None]:
        said = generate(model, tokenizer, [harmful[i] for i in few], tokens + 8, prefill=prefill)
        fine = generate(model, tokenizer, [harmless[i] for i in few], tokens + 8, prefill=prefill)
        result.setdefault("prefill", {})[prefill] = [
            np.mean([*map(is_refusal, said)]),
            np.mean([*map(is_refusal, fine)]),
        ]
    for who, system in TEACH["unseen_systems"].items():
        said = generate(model, tokenizer, [harmful[i] for i in few], tokens, system=system)
        fine = generate(model, tokenizer, [harmless[i] for i in few], tokens, system=system)
        result.setdefault("system", {})[who] = [
            np.mean([*map(is_refusal, said)]),
            np.mean([*map(is_refusal, fine)]),
        ]
    first_person = P.load_first_person("test")
    said = generate(model, tokenizer, first_person, tokens)
    result["first_person"] = np.mean([*map(is_refusal, said)])
    if score:
        odds = score.log_odds(model, tokenizer, first_person)
        result["first_person_agreement"] = np.mean((odds > score.threshold) == np.array([*map(is_refusal, said)]))
        result["score"] = [tokenizer.decode(o) for o in score.openings], score.threshold
    text = P.load_paragraphs()
    result["perplexity"] = {
        "model": perplexity(model, tokenizer, text),
        "base": perplexity(base, tokenizer, text),
    }
    return result


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    print(json.dumps(evaluate(args.name, args.quick), indent=1, default=float))


if __name__ == "__main__":
    main()
