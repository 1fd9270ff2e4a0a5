"""What the robust adapters are trained on: a part of the "adapter" split, distilled once and kept.

A short stage needs few examples, so a sample of the requests that the shipped adapter's last stage saw is enough:
the same splits, phrasings, system prompts, refusals and soft targets (`refusal_examples.py`).
"""

import random

import torch

from helpers.cache import cache_dir
from tools.refusal_examples import Example, Mix, distil, prose, refusal_example, requests

MIX = Mix(frames=1, borderline_frames=1, plain_frames=1, first_person=True, seed=7)
HARMFUL, HARMLESS = 1200, 1500  # how many of each are kept


def stage_examples(base, tokenizer) -> tuple[list[Example], torch.Tensor]:
    """The stage's examples, and prose of the base model, [text, token]; made once (some minutes), then read."""
    kept = cache_dir() / "robust-stage.pt"
    if kept.exists():
        found = torch.load(kept)
        return [Example(**fields) for fields in found["examples"]], found["prose"]
    rng, asked = random.Random(MIX.seed + 1), requests(MIX)
    harmful = rng.sample([r for r in asked if r.kind], HARMFUL)
    harmless = rng.sample([r for r in asked if not r.kind], HARMLESS)
    examples = [refusal_example(tokenizer, rng, r, deep=True) for r in harmful]
    examples += distil(base, tokenizer, harmless, MIX.answer_tokens)
    texts = prose(base, tokenizer, count=128, tokens=40, seed=7)
    part = kept.with_suffix(".part")
    torch.save({"examples": [vars(e) for e in examples], "prose": texts}, part)
    part.replace(kept)
    return examples, texts
