"""Control tasks: what could a probe of this capacity learn that the model never meant? Taught in lesson 03.

A control task gives each *surface type* (the sentence's frame, or its verb) a label by the toss of a coin (Hewitt and
Liang 2019). Nothing in the model is about these labels; a probe can only learn them by heart. Types must recur across
folds: a label of a type that is seen once cannot be learned by anyone, the control would sit at chance, and
selectivity would be accuracy in disguise.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer

from .prompts import phrasings


def surface_types(prompts: Sequence[str]) -> list[str]:
    """The frame of each prompt: the course's phrasing that it fits, else its first two words in lower case."""
    frames = [(f, *f.split("{x}")) for which in ("seen", "heldout") for f in phrasings(which)]
    frames.sort(key=lambda frame: -len(frame[0]))  # the most specific frame first

    def one(prompt: str) -> str:
        fits = (f for f, start, end in frames if prompt.startswith(start) and prompt.endswith(end))
        return next(fits, " ".join(prompt.lower().split()[:2]))

    return [one(prompt) for prompt in prompts]


def recurring(types: Sequence[Hashable], topics: Sequence[Hashable]) -> np.ndarray:
    """Which prompts have a type that stands in at least two topics, [prompt]."""
    where = defaultdict(set)
    for kind, topic in zip(types, topics, strict=True):
        where[kind].add(topic)
    return np.array([len(where[kind]) > 1 for kind in types])


def control_labels(
    types: Sequence[Hashable], topics: Sequence[Hashable], count: int = 5, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` random labellings [labelling, prompt], one label a type, and which prompts take part, [prompt].

    In each labelling half of the types have label 1. Prompts whose type does not recur are left out. Raises ValueError
    if fewer than two types recur, or lists of unlike length are given.
    """
    if len(types) != len(topics):
        raise ValueError(f"Each prompt needs a type and a topic: these are {len(types)} and {len(topics)}.")
    keep = recurring(types, topics)
    names = sorted({kind for kind, k in zip(types, keep, strict=True) if k}, key=str)
    if len(names) < 2:
        raise ValueError(
            f"A control task needs two or more surface types that recur in several topics; here are {len(names)}. Give "
            "types=, such as each prompt's template or verb, or controls=0 to do without selectivity."
        )
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        ones = {names[i] for i in rng.permutation(len(names))[: len(names) // 2]}
        rows.append([float(kind in ones) for kind in types])
    return torch.tensor(rows), torch.tensor(keep)


def bag_of_words(prompts: Sequence[str]) -> torch.Tensor:
    """Which words stand in each prompt, 0 or 1, [prompt, word]: what a probe can know without any model."""
    return torch.tensor(CountVectorizer(binary=True).fit_transform(prompts).toarray()).float()
