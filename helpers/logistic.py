"""Many logistic regressions at once: every layer, fold and labelling in one call. Used by lesson 03.

With more channels than prompts it is cheaper to work in the *dual*: all that a linear probe needs to know of its
inputs is the table of their inner products, [prompt, prompt]. Each fold gets such a table from inputs standardised on
its own training prompts. Steps with a fixed bound on the curvature (Boehning and Lindsay 1988) share one inverse
between all labellings and mostly arrive; where they do not, Newton's method goes on (Rasmussen and Williams 2006,
algorithm 3.1, with a free intercept). The objective is scikit-learn's: C * sum of log losses + |w|^2 / 2.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Fits:
    """Probes for each labelling, site (a layer, a head) and fold.

    decisions: log-odds for every prompt, in training or not, [labelling, site, fold, prompt]. weights, bias: the same
    probe on raw inputs, [labelling, site, fold, d] and [labelling, site, fold]; weights is None if not asked for.
    """

    decisions: torch.Tensor
    weights: torch.Tensor | None
    bias: torch.Tensor | None


def fit_logistic(
    x: torch.Tensor, labels: torch.Tensor, train: torch.Tensor, C: float = 0.01, weights: bool = True
) -> Fits:
    """Standardised logistic regression, for all labellings, sites and folds.

    x: [site, prompt, d]. labels: 0 or 1, [labelling, prompt]. train: which prompts a fold learns from, [fold, prompt].
    Raises ValueError for shapes that do not fit, numbers that are not finite, C not above 0, and training prompts that
    are all of one class.
    """
    _check(x, labels, train, C)
    y, train = labels.double(), train.double()
    decisions, found, bias = [], [], []
    for site in x:  # one site at a time bounds the memory: [fold, prompt, prompt]
        scaled, mean, scale = standardise(site.double(), train)
        kernel = scaled @ scaled.mT
        dual, b = _newton(kernel, y, train, C)
        decisions.append(_at(kernel, dual) + b[..., None])
        if weights:
            w = torch.einsum("kfn,fnd->kfd", dual, scaled) / scale
            found.append(w)
            bias.append(b - (w * mean).sum(-1))
    stacked = [torch.stack(part, 1).float() if part else None for part in (decisions, found, bias)]
    return Fits(*stacked)


def standardise(x: torch.Tensor, train: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [prompt, d] in each fold's own training units: [fold, prompt, d], with their mean and scale [fold, d].

    A channel that does not move in training keeps scale 1, as in scikit-learn.
    """
    share = train / train.sum(-1, keepdim=True)
    mean = share @ x
    centred = x - mean[:, None]
    scale = torch.einsum("fn,fnd->fd", share, centred.square()).sqrt()
    scale = torch.where(scale <= 1e-7 * (1 + mean.abs()), torch.ones_like(scale), scale)
    return centred / scale[:, None], mean, scale


def _check(x: torch.Tensor, labels: torch.Tensor, train: torch.Tensor, C: float) -> None:
    n = x.shape[1] if x.dim() == 3 else -1
    if labels.dim() != 2 or train.dim() != 2 or not labels.shape[1] == train.shape[1] == n:
        raise ValueError(
            "Probes need x [site, prompt, d], labels [labelling, prompt] and train [fold, prompt] on the same prompts; "
            f"these are {tuple(x.shape)}, {tuple(labels.shape)} and {tuple(train.shape)}."
        )
    if not C > 0:
        raise ValueError(f"C is the weight of the data against the penalty, above 0; {C!r} is not.")
    if not torch.isfinite(x).all():
        raise ValueError("These activations hold numbers that are not finite: read the model in a wider dtype.")
    ones, count = labels.double() @ train.double().T, train.double().sum(-1)
    if bool(((ones == 0) | (ones == count)).any()):
        raise ValueError(
            "In some fold all training prompts are of one class: give more topics, or fewer folds, so that both "
            "classes are in each."
        )


def _at(kernel: torch.Tensor, dual: torch.Tensor) -> torch.Tensor:
    """Kernel times dual, [labelling, fold, prompt]."""
    return torch.matmul(kernel, dual.permute(1, 2, 0)).permute(2, 0, 1)


def _loss(f: torch.Tensor, dual: torch.Tensor, inner: torch.Tensor, y: torch.Tensor, cost: torch.Tensor):
    """The objective, [labelling, fold]; inner: kernel times dual."""
    losses = torch.nn.functional.softplus(f) - y[:, None] * f
    return (cost * losses).sum(-1) + (dual * inner).sum(-1) / 2


def _majorise(kernel: torch.Tensor, y: torch.Tensor, cost: torch.Tensor, steps: int = 100):
    """Steps with the curvature at its bound, p(1-p) = 1/4: slower than Newton's, but one inverse serves them all, and
    none can overshoot. Returns the dual, the intercept, and whether the last step moved no log-odds by over 1e-6."""
    weight = (cost / 4).sqrt()
    eye = torch.eye(kernel.shape[-1], dtype=kernel.dtype)
    inverse = torch.linalg.inv(eye + weight[..., None] * kernel * weight[..., None, :])
    one = _at(inverse, weight[None])
    dual = torch.zeros(len(y), *cost.shape, dtype=kernel.dtype)
    inner, b = torch.zeros_like(dual), torch.zeros(dual.shape[:2], dtype=kernel.dtype)
    for _ in range(steps):
        f = inner + b[..., None]
        gradient = cost * (y[:, None] - torch.sigmoid(f))
        solved = _at(inverse, weight * f + torch.where(weight > 0, gradient / weight.clamp(min=1e-30), 0.0))
        b = (weight * solved).sum(-1) / (weight * one).sum(-1)
        dual = weight * (solved - b[..., None] * one)
        inner = _at(kernel, dual)
        if bool(((inner + b[..., None] - f).abs() <= 1e-6).all()):
            return dual, b, True
    return dual, b, False


def _newton(kernel: torch.Tensor, y: torch.Tensor, train: torch.Tensor, C: float, steps: int = 50):
    """Dual weights [labelling, fold, prompt] and intercepts [labelling, fold] at the optimum."""
    cost, eye = C * train, torch.eye(kernel.shape[-1], dtype=kernel.dtype)
    dual, b, arrived = _majorise(kernel, y, cost)
    if arrived:
        return dual, b
    inner = _at(kernel, dual)
    loss = _loss(inner + b[..., None], dual, inner, y, cost)
    for _ in range(steps):
        f = inner + b[..., None]
        p = torch.sigmoid(f)
        weight = (cost * (p * (1 - p)).clamp(min=1e-10)).sqrt()  # 0 for prompts that are not in training
        gradient = cost * (y[:, None] - p)
        # In the scaled unknown u = dual / weight: (1 + S K S) u + S b = S z, with sum(S u) = 0.
        root = torch.linalg.cholesky(eye + weight[..., None] * kernel * weight[..., None, :])
        target = weight * f + torch.where(weight > 0, gradient / weight.clamp(min=1e-30), 0.0)
        solved = torch.cholesky_solve(torch.stack([target, weight], -1), root)
        new_b = (weight * solved[..., 0]).sum(-1) / (weight * solved[..., 1]).sum(-1)
        step = weight * (solved[..., 0] - new_b[..., None] * solved[..., 1]) - dual
        step_b, moved = new_b - b, _at(kernel, step)
        length = torch.ones_like(b)
        for _ in range(20):  # halve where the whole step would overshoot
            t = length[..., None]
            trial = inner + t * moved
            trial_loss = _loss(trial + (b + length * step_b)[..., None], dual + t * step, trial, y, cost)
            worse = trial_loss > loss + 1e-12 * (1 + loss.abs())
            if not bool(worse.any()):
                break
            length = torch.where(worse, length / 2, length)
        t = length[..., None]
        dual, b, inner = dual + t * step, b + length * step_b, inner + t * moved
        gain, loss = loss - trial_loss, trial_loss
        if bool((gain.abs() <= 1e-10 * (1 + loss.abs())).all()):
            break
    return dual, b
