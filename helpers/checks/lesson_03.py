"""Checks of lesson 03 (the text of every message is in `quizzes/03_probing.yaml`)."""

import numpy as np
import torch

from helpers.checks import exercise, wrong_tensor
from helpers.erasure import leace
from helpers.probing import topic_folds

# --- 03.1 folds by topic --------------------------------------------------------------------------------------


def _folds(topics, count: int = 5) -> list[int]:
    return topic_folds(topics, count).tolist()


@exercise("03.1", reference=_folds)
def folds_by_topic(answer):
    """A fold for each prompt, 0 to count - 1; a topic is in one fold only; folds are of like size."""
    topics = [f"topic {i % 23}" for i in range(69)]
    found = np.asarray(answer(list(topics), 5))
    if found.shape != (69,):
        return "wrong_length", {"got": list(found.shape)}
    if not set(found.tolist()) <= set(range(5)):
        return "wrong_numbers", {"got": sorted(set(found.tolist()))[:6]}
    split = [t for t in set(topics) if len({f for f, s in zip(found, topics, strict=True) if s == t}) > 1]
    if split:
        return "topic_split", {"count": len(split)}
    sizes = np.bincount(found.astype(int), minlength=5)
    if sizes.min() < 69 / 5 / 2 or sizes.max() > 69 / 5 * 2:
        return "uneven", {"sizes": sizes.tolist()}
    return None


# --- 03.2 a control that can be learned -----------------------------------------------------------------------


def _control(types, rng: np.random.Generator) -> list[int]:
    names = sorted(set(types))
    ones = {names[i] for i in rng.permutation(len(names))[: len(names) // 2]}
    return [int(kind in ones) for kind in types]


def _labels(found, length: int):
    """The labels as an array, or the mistake that keeps them from being labels."""
    array = np.asarray(found)
    if array.shape != (length,):
        return None, ("wrong_length", {"got": list(array.shape), "wanted": length})
    if not set(array.astype(float).tolist()) <= {0.0, 1.0}:
        return None, "not_labels"
    return array.astype(int), None


@exercise("03.2", reference=_control)
def control_task(answer):
    """A random label for each surface type, the same for all its prompts, another one at each draw."""
    types = [f"frame {i % 16}" for i in range(80)]
    draws = []
    for seed in range(12):
        labels, mistake = _labels(answer(list(types), np.random.default_rng(seed)), 80)
        if mistake:
            return mistake
        draws.append(labels)
    torn = sum(len({x for x, t in zip(labels, types, strict=True) if t == kind}) > 1 for kind in set(types)
               for labels in draws)  # fmt: skip
    if torn:
        return "per_prompt"
    if all((labels == draws[0]).all() for labels in draws):
        return "one_class" if len(set(draws[0])) == 1 else "always_the_same"
    if any(len(set(labels)) == 1 for labels in draws):
        return "one_class"
    few = [f"frame {i % 5}" for i in range(40)]  # as few types as the box has: coins fall alike there before long
    if any(len(set(answer(list(few), np.random.default_rng(seed)))) == 1 for seed in range(60)):
        return "one_class"
    by_type = np.array([labels[:16] for labels in draws])
    if (by_type.mean(0) > 0.95).any() or (by_type.mean(0) < 0.05).any():
        return "not_random"
    return None


# --- 03.3 a permutation that keeps pairs whole ----------------------------------------------------------------


def _swap(labels, topics, rng: np.random.Generator) -> list[int]:
    flip = {topic: int(rng.integers(2)) for topic in dict.fromkeys(topics)}
    return [int(y) ^ flip[t] for y, t in zip(labels, topics, strict=True)]


@exercise("03.3", reference=_swap)
def swap_within_pairs(answer):
    """In each topic the two labels change places, or they do not."""
    topics, start = [f"topic {i % 30}" for i in range(60)], [0] * 30 + [1] * 30
    draws = []
    for seed in range(12):
        given = list(start)
        labels, mistake = _labels(answer(given, list(topics), np.random.default_rng(seed)), 60)
        if mistake:
            return mistake
        if given != start:
            return "in_place"
        draws.append(labels)
    if any((labels[:30] == labels[30:]).any() for labels in draws):
        return "twins_alike"
    flipped = np.array([labels[:30] for labels in draws])
    if (flipped == flipped[:, :1]).all():
        return "all_or_none"
    if (flipped == flipped[0]).all():
        return "always_the_same"
    if not 0.3 < flipped.mean() < 0.7:
        return "not_a_coin", {"share": float(flipped.mean())}
    return None


# --- 03.4 erasure ---------------------------------------------------------------------------------------------


def _erased(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return leace(x, labels)(x)


@exercise("03.4", reference=_erased)
def erased(answer):
    """x without what a linear probe reads of the label, the mean kept, and no more changed than needed."""
    g = torch.Generator().manual_seed(0)
    labels = (torch.arange(200) % 4 == 0).float()
    x = torch.randn(200, 12, generator=g) @ torch.randn(12, 12, generator=g) + 2
    x = x + labels[:, None] * torch.randn(12, generator=g)
    given = x.clone()
    got, true = answer(given, labels.clone()), _erased(x, labels)
    if mistake := wrong_tensor(got, shape=x.shape):
        return mistake
    if not torch.equal(given, x):
        return "in_place"
    one = labels == 1
    if torch.allclose(got, true.to(got), atol=1e-2):
        return None
    if torch.allclose(got, x, atol=1e-4):
        return "unchanged"
    gap = float((got[one].mean(0) - got[~one].mean(0)).norm() / (x[one].mean(0) - x[~one].mean(0)).norm())
    if gap > 1.5:
        return "sign_flipped"
    if gap > 0.02:
        return "still_readable", {"share": gap}
    if not torch.allclose(got.mean(0), x.mean(0), atol=1e-2):
        return "mean_moved"
    more = float((got - x).square().sum() / (true - x).square().sum())
    return "too_much", {"times": more}


# --- 03.5 a probe in the model's own units --------------------------------------------------------------------


def _raw(weights, bias, mean, scale):
    raw = weights / scale
    return raw, bias - raw @ mean


@exercise("03.5", reference=_raw)
def raw_units(answer):
    """(direction, bias) that give on raw activations what the probe gives on standardised ones."""
    g = torch.Generator().manual_seed(0)
    w, mean = torch.randn(8, generator=g), torch.randn(8, generator=g) * 3
    scale, bias = torch.rand(8, generator=g) * 4 + 0.2, torch.tensor(0.7)
    found = answer(w.clone(), bias.clone(), mean.clone(), scale.clone())
    if not isinstance(found, tuple | list) or len(found) != 2:
        return "not_two"
    got, b = found
    if mistake := wrong_tensor(got, shape=(8,)):
        return mistake
    raw, right = _raw(w, bias, mean, scale)
    if torch.allclose(got, w, atol=1e-4):
        return "not_rescaled"
    if torch.allclose(got, w * scale, atol=1e-4):
        return "multiplied"
    if not torch.allclose(got, raw, atol=1e-4):
        return "other_direction"
    b = float(b)
    known = {"bias_kept": bias, "bias_sign": bias + raw @ mean, "bias_unscaled": bias - w @ mean}
    if abs(b - float(right)) < 1e-3:
        return None
    return next((key for key, value in known.items() if abs(b - float(value)) < 1e-3), "other_bias")
