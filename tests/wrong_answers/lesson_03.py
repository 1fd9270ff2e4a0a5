"""Wrong answers to the exercises of lesson 03, one for each message, and other right ones."""

import numpy as np
import torch

from helpers.erasure import leace


def context(exercise_id):
    """The keyword arguments that the lesson gives to check()."""
    return {}


# --- 03.1 ---------------------------------------------------------------------------------------------------


def _by_topic(topics, count):
    names = list(dict.fromkeys(topics))
    return [names.index(topic) % count for topic in topics]


# --- 03.2 ---------------------------------------------------------------------------------------------------


def _coin(types, rng):
    coin = {kind: int(rng.integers(2)) for kind in sorted(set(types))}
    return [coin[kind] for kind in types]


def _balanced(types, rng):
    names = sorted(set(types))
    ones = set(rng.choice(names, len(names) // 2, replace=False))
    return [int(kind in ones) for kind in types]


def _first_fixed(types, rng):
    return [1 if kind == "frame 0" else label for kind, label in zip(types, _balanced(types, rng), strict=True)]


# --- 03.3 ---------------------------------------------------------------------------------------------------


def _flipped(labels, topics, rng, share=0.5):
    flip = {topic: int(rng.random() < share) for topic in dict.fromkeys(topics)}
    return [int(y) ^ flip[t] for y, t in zip(labels, topics, strict=True)]


def _all_at_once(labels, topics, rng):
    flip = int(rng.integers(2))
    return [y ^ flip for y in labels]


def _in_place(labels, topics, rng):
    labels[:] = _flipped(labels, topics, rng)
    return labels


# --- 03.4 ---------------------------------------------------------------------------------------------------


def _delta(x, labels):
    return x[labels == 1].mean(0) - x[labels == 0].mean(0)


def _projected(x, labels, mean=True):
    r = _delta(x, labels)
    r = r / r.norm()
    centre = x.mean(0) if mean else 0 * x[0]
    return x - ((x - centre) @ r)[:, None] * r


def _half(x, labels):
    return x + 0.5 * (leace(x, labels)(x) - x)


def _write_in(x, labels):
    x -= x - leace(x, labels)(x)
    return x


def _by_hand(x, labels):
    delta, a = _delta(x, labels), x - x.mean(0)
    solved = torch.linalg.solve(a.T @ a / len(x), delta)
    return x - (a @ solved / (delta @ solved))[:, None] * delta


WRONG = {
    "03.1": {
        "wrong_length": lambda c: lambda topics, count: list(range(count)),
        "wrong_numbers": lambda c: lambda topics, count: [f + 1 for f in _by_topic(topics, count)],
        "topic_split": lambda c: lambda topics, count: [i % count for i in range(len(topics))],
        "uneven": lambda c: lambda topics, count: [min(f, 1) for f in _by_topic(topics, count)],
    },
    "03.2": {
        "wrong_length": lambda c: lambda types, rng: [int(rng.integers(2)) for _ in set(types)],
        "not_labels": lambda c: lambda types, rng: [hash(t) % 7 + 2 for t in types],
        "per_prompt": lambda c: lambda types, rng: rng.integers(0, 2, len(types)).tolist(),
        "one_class": lambda c: _coin,
        "always_the_same": lambda c: lambda types, rng: [int(t.split()[1]) % 2 for t in types],
        "not_random": lambda c: _first_fixed,
    },
    "03.3": {
        "wrong_length": lambda c: lambda labels, topics, rng: _flipped(labels, topics, rng)[:30],
        "not_labels": lambda c: lambda labels, topics, rng: [2 * y - 1 for y in labels],
        "in_place": lambda c: _in_place,
        "twins_alike": lambda c: lambda labels, topics, rng: rng.permutation(labels).tolist(),
        "all_or_none": lambda c: _all_at_once,
        "always_the_same": lambda c: lambda labels, topics, rng: _flipped(labels, topics, np.random.default_rng(0)),
        "not_a_coin": lambda c: lambda labels, topics, rng: _flipped(labels, topics, rng, 0.1),
    },
    "03.4": {
        "in_place": lambda c: _write_in,
        "unchanged": lambda c: lambda x, labels: x.clone(),
        "still_readable": lambda c: _half,
        "sign_flipped": lambda c: lambda x, labels: 2 * x - leace(x, labels)(x),
        "mean_moved": lambda c: lambda x, labels: _projected(x, labels, mean=False),
        "too_much": lambda c: _projected,
    },
    "03.5": {
        "not_two": lambda c: lambda w, b, m, s: w / s,
        "not_rescaled": lambda c: lambda w, b, m, s: (w, b),
        "multiplied": lambda c: lambda w, b, m, s: (w * s, b - (w * s) @ m),
        "other_direction": lambda c: lambda w, b, m, s: (w / s**2, b),
        "bias_kept": lambda c: lambda w, b, m, s: (w / s, b),
        "bias_sign": lambda c: lambda w, b, m, s: (w / s, b + (w / s) @ m),
        "bias_unscaled": lambda c: lambda w, b, m, s: (w / s, b - w @ m),
        "other_bias": lambda c: lambda w, b, m, s: (w / s, b * 0 + 9),
    },
}

RIGHT = {
    "03.1": [lambda c: _by_topic],
    "03.2": [lambda c: _balanced],
    "03.3": [lambda c: _flipped],
    "03.4": [lambda c: lambda x, labels: leace(x, labels)(x), lambda c: _by_hand],
    "03.5": [lambda c: lambda w, b, m, s: (w / s, b - (w * m / s).sum())],
}
