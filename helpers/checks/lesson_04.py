"""Checks of lesson 04 (the text of every message is in `quizzes/04_circuit_mapping.yaml`)."""

import numpy as np
import torch

from helpers.checks import exercise, wrong_tensor


def _close(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    return got.shape == wanted.shape and torch.allclose(got.float(), wanted.float(), rtol=1e-3, atol=1e-3)


def _named(got: torch.Tensor, known: dict[str, torch.Tensor]) -> str:
    return next((key for key, wrong in known.items() if _close(got, wrong)), "other")


# --- 04.1 the score of an edge --------------------------------------------------------------------------------


def _edge_score(full: torch.Tensor, spare: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return ((full - spare) * gradient).sum((1, 2))


@exercise("04.1", reference=_edge_score)
def edge_score(answer):
    """Log-odds lost, to first order, when an edge carries the twin's write, [pair]."""
    g = torch.Generator().manual_seed(0)
    full, spare, gradient = (torch.randn(4, 6, 10, generator=g) for _ in range(3))
    got, true = answer(full.clone(), spare.clone(), gradient.clone()), _edge_score(full, spare, gradient)
    if mistake := wrong_tensor(got, shape=true.shape):
        return mistake
    if _close(got, true):
        return None
    each = (full - spare) * gradient
    known = {
        "sign_flipped": -true,
        "averaged": each.mean((1, 2)),
        "averaged positions": each.sum(2).mean(1),
        "averaged flipped": -each.mean((1, 2)),
        "absolute": true.abs(),
        "absolute each": each.abs().sum((1, 2)),
        "no_difference": (full * gradient).sum((1, 2)),
        "no_difference flipped": (spare * gradient).sum((1, 2)),
        "one_position": each[:, -1].sum(1),
        "one_position first": each[:, 0].sum(1),
    }
    return _named(got, known).split(" ")[0]


# --- 04.2 integrated gradients --------------------------------------------------------------------------------


def _mean_slope(slope_at, start: torch.Tensor, goal: torch.Tensor, steps: int) -> torch.Tensor:
    return sum(slope_at(start + k / steps * (goal - start)) for k in range(1, steps + 1)) / steps


@exercise("04.2", reference=_mean_slope)
def mean_slope(answer):
    """The mean of slopes at places spread evenly from start to goal (left, right or middle of each step)."""
    g = torch.Generator().manual_seed(1)
    start, goal = torch.randn(3, 5, generator=g), torch.randn(3, 5, generator=g) + 3
    steps, way = 7, goal - start

    def slope_at(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) ** 2 + x.sin()

    got = answer(slope_at, start.clone(), goal.clone(), steps)
    if mistake := wrong_tensor(got, shape=start.shape):
        return mistake

    def mean(places) -> torch.Tensor:
        return torch.stack([slope_at(start + p * way) for p in places]).mean(0)

    right = mean([k / steps for k in range(1, steps + 1)])
    fine = [right, *(mean([(k + shift) / steps for k in range(steps)]) for shift in (0, 0.5))]
    fine += [mean(np.linspace(0, 1, n)) for n in (steps, steps + 1)]
    if any(_close(got, one) for one in fine):
        return None
    known = {
        "plain": slope_at(goal),
        "only_start": slope_at(start),
        "ends_only": mean([0, 1]),
        "from_zero": torch.stack([slope_at(k / steps * goal) for k in range(1, steps + 1)]).mean(0),
    }
    known |= {f"summed {i}": steps * one for i, one in enumerate(fine)}
    known |= {f"multiplied {i}": way * one for i, one in enumerate(fine)}
    return _named(got, known).split(" ")[0]


# --- 04.3 where a head looks when it matters ------------------------------------------------------------------


def _looks(attention: torch.Tensor, effect: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
    share, weight = (attention * changed[:, None, None]).sum(-1), effect.abs()
    return (share * weight).sum((0, 2)) / weight.sum((0, 2))


@exercise("04.3", reference=_looks)
def looks_where_it_matters(answer):
    """Share of attention on the changed words, weighted by the size of the effect at each place, [head]."""
    g = torch.Generator().manual_seed(2)
    attention = torch.randn(5, 4, 7, 7, generator=g).mul(2).softmax(-1)
    effect = torch.randn(5, 4, 7, generator=g) ** 3 + 0.3
    changed = (torch.rand(5, 7, generator=g) < 0.3).float()
    changed[:, 2] = 1
    got = answer(attention.clone(), effect.clone(), changed.clone())
    true = _looks(attention, effect, changed)
    if mistake := wrong_tensor(got, shape=true.shape):
        return mistake
    if _close(got, true):
        return None
    share, weight = (attention * changed[:, None, None]).sum(-1), effect.abs()
    from_changed = (attention * changed[:, None, :, None]).sum(-2)
    known = {
        "unweighted": share.mean((0, 2)),
        "last_only": share[:, :, -1].mean(0),
        "last_only weighted": (share * weight)[:, :, -1].sum(0) / weight[:, :, -1].sum(0),
        "signed": (share * effect).sum((0, 2)) / effect.sum((0, 2)),
        "not_normalised": (share * weight).sum((0, 2)),
        "not_normalised mean": (share * weight).mean((0, 2)),
        "not_normalised signed": (share * effect).sum((0, 2)),
        "queries": (from_changed * weight).sum((0, 2)) / weight.sum((0, 2)),
        "queries unweighted": from_changed.mean((0, 2)),
        "per_pair": ((share * weight).sum(2) / weight.sum(2)).mean(0),
    }
    return _named(got, known).split(" ")[0]


# --- 04.4 faithful and complete -------------------------------------------------------------------------------


def _criteria(full, circuit, empty, without) -> tuple[float, float]:
    a, b, c, d = (float(np.mean(x)) for x in (full, circuit, empty, without))
    return (b - c) / (a - c), (d - c) / (a - c)


@exercise("04.4", reference=_criteria)
def criteria(answer):
    """(share that the circuit alone has, share that is left without it), both counted from the empty model."""
    rng = np.random.default_rng(3)
    empty = rng.normal(-2, 0.5, 8)
    full = empty + np.array([0.4, 6, 7, 5, 8, 6, 7, 0.6])
    circuit, without = empty + rng.uniform(2, 4, 8), empty + rng.uniform(0.2, 2, 8)
    found = answer(full.copy(), circuit.copy(), empty.copy(), without.copy())
    try:
        got = tuple(float(x) for x in found)
    except TypeError:
        return "not_two"
    if len(got) != 2:
        return "not_two"
    if not np.isfinite(got).all():
        return "not_finite"
    a, b = _criteria(full, circuit, empty, without)

    def by_pair(x) -> float:
        return float(((x - empty) / (full - empty)).mean())

    known = {
        None: (a, b),
        "no_baseline": (circuit.mean() / full.mean(), without.mean() / full.mean()),
        "mean_of_shares": (by_pair(circuit), by_pair(without)),
        "swapped": (b, a),
        "one_minus": (a, 1 - b),
        "loss": (1 - a, b),
        "loss of both": (1 - a, 1 - b),
    }
    key = next((key for key, pair in known.items() if np.allclose(got, pair, atol=1e-4)), "other")
    return key and key.split(" ")[0]


# --- 04.5 a mean for each place -------------------------------------------------------------------------------


def _place_means(x: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    real = real[..., None].to(x)
    return (x * real).sum(0) / real.sum(0).clamp(min=1)


@exercise("04.5", reference=_place_means)
def place_means(answer):
    """The mean over pairs at each place, real tokens only, [position, width]."""
    g = torch.Generator().manual_seed(4)
    x = torch.randn(6, 5, 3, generator=g) + torch.arange(5.0)[:, None]
    real = torch.ones(6, 5, dtype=torch.bool)
    real[:4, 0], real[:2, 1] = False, False
    got, true = answer(x.clone(), real.clone()), _place_means(x, real)
    if isinstance(got, torch.Tensor) and got.shape in ((5,), (5, 1)):
        return "width_lost"
    if mistake := wrong_tensor(got, shape=true.shape):
        return mistake
    if _close(got, true):
        return None
    kept = x * real[..., None]
    known = {
        "zero": torch.zeros_like(true),
        "padding_counted": x.mean(0),
        "divided_by_all": kept.mean(0),
        "one_mean": x.mean((0, 1)).expand_as(true),
        "one_mean real": (kept.sum((0, 1)) / real.sum()).expand_as(true),
        "one_mean places": true.mean(0).expand_as(true),
    }
    known |= {f"one_prompt {i}": one for i, one in enumerate(x)}
    return _named(got, known).split(" ")[0]
