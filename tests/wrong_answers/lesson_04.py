"""Wrong answers to the exercises of lesson 04, one for each message, and other right ones."""

import numpy as np
import torch


def context(exercise_id):
    """The keyword arguments that the lesson gives to check()."""
    return {}


# --- 04.2 ---------------------------------------------------------------------------------------------------


def _slopes(slope_at, start, goal, places):
    return torch.stack([slope_at(start + p * (goal - start)) for p in places])


def _right(slope_at, start, goal, steps):
    return _slopes(slope_at, start, goal, [k / steps for k in range(1, steps + 1)]).mean(0)


# --- 04.3 ---------------------------------------------------------------------------------------------------


def _share(attention, changed):
    return (attention * changed[:, None, None]).sum(-1)


def _weighted(share, weight):
    return (share * weight).sum((0, 2)) / weight.sum((0, 2))


# --- 04.4 ---------------------------------------------------------------------------------------------------


def _two(full, circuit, empty, without):
    gap = full.mean() - empty.mean()
    return (circuit.mean() - empty.mean()) / gap, (without.mean() - empty.mean()) / gap


def _by_pair(full, circuit, empty, without):
    return tuple(((x - empty) / (full - empty)).mean() for x in (circuit, without))


# --- 04.5 ---------------------------------------------------------------------------------------------------


def _means(x, real):
    rows = [x[real[:, place], place].mean(0) for place in range(x.shape[1])]
    return torch.stack(rows)


WRONG = {
    "04.1": {
        "sign_flipped": lambda c: lambda full, spare, g: ((spare - full) * g).sum((1, 2)),
        "averaged": lambda c: lambda full, spare, g: ((full - spare) * g).mean((1, 2)),
        "absolute": lambda c: lambda full, spare, g: ((full - spare) * g).sum((1, 2)).abs(),
        "no_difference": lambda c: lambda full, spare, g: (full * g).sum((1, 2)),
        "one_position": lambda c: lambda full, spare, g: ((full - spare) * g)[:, -1].sum(-1),
        "other": lambda c: lambda full, spare, g: (full - spare).sum((1, 2)),
    },
    "04.2": {
        "plain": lambda c: lambda f, a, b, n: f(b),
        "only_start": lambda c: lambda f, a, b, n: f(a),
        "summed": lambda c: lambda f, a, b, n: n * _right(f, a, b, n),
        "ends_only": lambda c: lambda f, a, b, n: (f(a) + f(b)) / 2,
        "multiplied": lambda c: lambda f, a, b, n: (b - a) * _right(f, a, b, n),
        "from_zero": lambda c: lambda f, a, b, n: _right(f, 0 * a, b, n),
        "other": lambda c: lambda f, a, b, n: f((a + b) / 2),
    },
    "04.3": {
        "unweighted": lambda c: lambda a, e, ch: _share(a, ch).mean((0, 2)),
        "last_only": lambda c: lambda a, e, ch: _share(a, ch)[:, :, -1].mean(0),
        "signed": lambda c: lambda a, e, ch: _weighted(_share(a, ch), e),
        "not_normalised": lambda c: lambda a, e, ch: (_share(a, ch) * e.abs()).sum((0, 2)),
        "queries": lambda c: lambda a, e, ch: _weighted((a * ch[:, None, :, None]).sum(-2), e.abs()),
        "per_pair": lambda c: lambda a, e, ch: ((_share(a, ch) * e.abs()).sum(2) / e.abs().sum(2)).mean(0),
        "other": lambda c: lambda a, e, ch: _weighted(_share(a, ch), e**2),
    },
    "04.4": {
        "not_two": lambda c: lambda *x: _two(*x)[0],
        "no_baseline": lambda c: (
            lambda full, circuit, empty, without: (
                circuit.mean() / full.mean(),
                without.mean() / full.mean(),
            )
        ),
        "mean_of_shares": lambda c: _by_pair,
        "swapped": lambda c: lambda *x: _two(*x)[::-1],
        "one_minus": lambda c: lambda *x: (_two(*x)[0], 1 - _two(*x)[1]),
        "loss": lambda c: lambda *x: (1 - _two(*x)[0], _two(*x)[1]),
        "other": lambda c: lambda full, circuit, empty, without: (circuit.mean(), without.mean()),
    },
    "04.5": {
        "zero": lambda c: lambda x, real: torch.zeros_like(x[0]),
        "one_mean": lambda c: lambda x, real: x[real].mean(0).expand_as(x[0]),
        "padding_counted": lambda c: lambda x, real: x.mean(0),
        "divided_by_all": lambda c: lambda x, real: (x * real[..., None]).mean(0),
        "one_prompt": lambda c: lambda x, real: x[0],
        "width_lost": lambda c: lambda x, real: _means(x, real).mean(-1),
        "other": lambda c: lambda x, real: x.median(0).values,
    },
}

RIGHT = {
    "04.1": [lambda c: lambda full, spare, g: torch.einsum("btd,btd->b", full - spare, g)],
    "04.2": [
        lambda c: _right,
        lambda c: lambda f, a, b, n: _slopes(f, a, b, [(k + 0.5) / n for k in range(n)]).mean(0),
        lambda c: lambda f, a, b, n: _slopes(f, a, b, np.linspace(0, 1, n)).mean(0),
    ],
    "04.3": [lambda c: lambda a, e, ch: torch.einsum("bhqk,bk,bhq->h", a, ch, e.abs()) / e.abs().sum((0, 2))],
    "04.4": [lambda c: _two, lambda c: lambda *x: np.array(_two(*x))],
    "04.5": [lambda c: _means],
}
