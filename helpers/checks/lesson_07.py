"""Checks of lesson 07 (the text of every message is in `quizzes/07_robust_safety.yaml`)."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch

from helpers.checks import exercise, wrong_tensor

# --- 07.1 an attack that was not fitted again -------------------------------------------------------------------


def _refusal_left(find: Callable, refused: Callable, standard, defended) -> float:
    direction = find(defended, "method")
    return refused(defended, direction, "test")


# (model attacked, split reported, model fitted on, split fitted on) → the share that is refused
SHARES = {
    (attacked, report, fitted, split): 0.01 * (7 + 11 * i)
    for i, (attacked, report, fitted, split) in enumerate(
        (a, r, f, s)
        for a in ("defended", "standard")
        for r in ("test", "method")
        for f in ("defended", "standard")
        for s in ("method", "test")
    )
}


class _Lab:
    """Two models by name, and a direction for each of them and each split; what was looked at is remembered."""

    def __init__(self):
        self.found: list[tuple[str, str]] = []

    def find(self, model: str, split: str) -> tuple[str, str]:
        self.found.append((model, split))
        return model, split

    def refused(self, model: str, direction, split: str) -> float:
        if not isinstance(direction, tuple):
            raise TypeError("refused(model, direction, split) needs a direction that find() has given.")
        return SHARES[(model, split, *direction)]


@exercise("07.1", reference=_refusal_left)
def refusal_left(answer):
    """The share of test requests that the defended model refuses, the direction fitted on itself on method requests."""
    lab = _Lab()
    got = answer(lab.find, lab.refused, "standard", "defended")
    if isinstance(got, tuple):
        return "no_share", {"got": "a direction or a pair"}
    if got not in SHARES.values():
        return "no_share", {"got": repr(got)}
    attacked, report, fitted, split = next(key for key, share in SHARES.items() if share == got)
    if attacked == "standard":
        return "wrong_model"
    if fitted == "standard":
        return "not_refitted"
    if split == "test":
        return "fitted_on_test"
    if report == "method":
        return "reported_on_method"
    return None


# --- 07.2 over-refusal sold as robustness -----------------------------------------------------------------------

TIMES, LEFT, SLACK = 3, 0.5, 0.05
STANDARD = SimpleNamespace(refused=0.84, over_refused=0.14, dose=1.0, left=0.05)
NEVER = math.inf
DEFENDED = (
    SimpleNamespace(refused=0.86, over_refused=0.15, dose=1.0, left=0.06),
    SimpleNamespace(refused=0.85, over_refused=0.16, dose=4.0, left=0.10),
    SimpleNamespace(refused=0.83, over_refused=0.12, dose=NEVER, left=0.62),
    SimpleNamespace(refused=0.99, over_refused=0.71, dose=NEVER, left=0.80),
    SimpleNamespace(refused=0.88, over_refused=0.13, dose=2.0, left=0.08),
    SimpleNamespace(refused=0.84, over_refused=0.15, dose=3.0, left=0.02),
    SimpleNamespace(refused=0.97, over_refused=0.35, dose=5.0, left=0.09),
    SimpleNamespace(refused=0.84, over_refused=0.14, dose=2.0, left=0.55),
    SimpleNamespace(refused=0.60, over_refused=0.02, dose=1.0, left=0.30),
    SimpleNamespace(refused=0.93, over_refused=0.31, dose=1.0, left=0.12),
)
WORDS = ("over-refusal", "sturdier", "no sturdier")


def _sturdier(standard, defended) -> str:
    if defended.over_refused > standard.over_refused + SLACK:
        return "over-refusal"
    dearer = defended.dose >= TIMES * standard.dose
    return "sturdier" if dearer or defended.left >= LEFT else "no sturdier"


def _rule(over: bool = True, dose: bool = True, left: bool = True, both: bool = False, order: int = 1) -> Callable:
    """The rule less some of its parts. both: dearer *and* half left. order: -1 asks for over-refusal at the end."""

    def rule(standard, defended) -> str:
        parts = [dose and defended.dose >= TIMES * standard.dose, left and defended.left >= LEFT]
        good = all(parts) if both else any(parts)
        too_many = over and defended.over_refused > standard.over_refused + SLACK
        if order == 1:
            return "over-refusal" if too_many else "sturdier" if good else "no sturdier"
        return "sturdier" if good else "over-refusal" if too_many else "no sturdier"

    return rule


def _more_left(standard, defended) -> str:
    return "sturdier" if defended.left > standard.left else "no sturdier"


def _absolute(standard, defended) -> str:
    return "over-refusal" if defended.over_refused > SLACK else _rule(over=False)(standard, defended)


def _dearer_at_all(standard, defended) -> str:
    if defended.over_refused > standard.over_refused + SLACK:
        return "over-refusal"
    return "sturdier" if defended.dose > standard.dose or defended.left >= LEFT else "no sturdier"


@exercise("07.2", reference=_sturdier)
def sturdier(answer):
    """over-refusal, sturdier or no sturdier, by the rule of the text."""
    got = [answer(SimpleNamespace(**vars(STANDARD)), SimpleNamespace(**vars(one))) for one in DEFENDED]
    if odd := [word for word in got if not isinstance(word, str) or word not in WORDS]:
        return "unknown_word", {"got": repr(odd[0]), "words": ", ".join(WORDS)}
    true = [_sturdier(STANDARD, one) for one in DEFENDED]
    if got == true:
        return None
    known = {
        "left_alone": _more_left,
        "over_refusal_ignored": _rule(over=False),
        "over_refusal_last": _rule(order=-1),
        "over_refusal_absolute": _absolute,
        "dose_ignored": _rule(dose=False),
        "left_ignored": _rule(left=False),
        "both_asked": _rule(both=True),
        "dearer_at_all": _dearer_at_all,
    }
    for key, rule in known.items():
        if got == [rule(STANDARD, one) for one in DEFENDED]:
            return key
    place = next(i for i, (a, b) in enumerate(zip(got, true, strict=True)) if a != b)
    row = ", ".join(f"{name} {value:g}" for name, value in vars(DEFENDED[place]).items())
    return "other", {"row": row, "got": got[place], "wanted": true[place]}


# --- 07.3 what the monitor learns from --------------------------------------------------------------------------

PAIRS = tuple(SimpleNamespace(harmful=f"harmful {i}", harmless=f"harmless {i}") for i in range(8))
STILL_REFUSED = {"harmful 2", "harmful 5", "harmless 5"}  # the attacked model is not even consistent


def _attacked_refuses(prompt: str) -> bool:
    return prompt in STILL_REFUSED


def _training_set(pairs, refuses) -> tuple[list[str], list[int]]:
    prompts = [p.harmless for p in pairs] + [p.harmful for p in pairs]
    return prompts, [0] * len(pairs) + [1] * len(pairs)


@exercise("07.3", reference=_training_set)
def training_set(answer):
    """(prompts, labels): every prompt of the pairs, labelled by what it asks for."""
    got = answer(list(PAIRS), _attacked_refuses)
    if not isinstance(got, tuple | list) or len(got) != 2:
        return "no_pair"
    prompts, labels = got
    try:
        prompts, labels = [str(p) for p in prompts], [int(x) for x in labels]
    except (TypeError, ValueError):
        return "no_pair"
    if len(prompts) != len(labels):
        return "unequal", {"prompts": len(prompts), "labels": len(labels)}
    everything = {p.harmful for p in PAIRS} | {p.harmless for p in PAIRS}
    if set(prompts) - everything:
        return "not_of_the_pairs", {"got": min(set(prompts) - everything)}
    said = dict(zip(prompts, labels, strict=True))
    true = {p: int(p.startswith("harmful")) for p in everything}
    if said == true and len(prompts) == len(true):
        return None
    by_refusal = {p: int(_attacked_refuses(p)) for p in everything}
    if said == by_refusal:
        return "own_refusals", {"count": sum(by_refusal.values()), "harmful": len(PAIRS)}
    if said == {p: 1 - label for p, label in true.items()}:
        return "flipped"
    if said.items() <= true.items() and len(set(said.values())) == 1:
        return "one_sort"
    if said.items() <= true.items():
        missing = everything - set(said)
        dropped = all(not _attacked_refuses(p) for p in missing)
        return ("only_refused" if dropped else "left_out"), {"count": len(missing)}
    return "other", {"count": sum(said.get(p) != label for p, label in true.items())}


# --- 07.4 where the threshold is set ----------------------------------------------------------------------------


def _score_table() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    splits = {"method": -4.0, "validation": -2.0, "test": -1.0}
    return {name: np.sort(rng.normal(mean, 2.0, 50))[rng.permutation(50)] for name, mean in splits.items()}


def _threshold(scores: dict[str, np.ndarray], rate: float) -> float:
    ordered = np.sort(scores["validation"])[::-1]
    return float(ordered[int(rate * len(ordered))])


@exercise("07.4", reference=_threshold)
def threshold(answer):
    """The lowest threshold that at most `rate` of the validation split's harmless scores lie above."""
    table, rate = _score_table(), 0.05
    got = answer({name: row.copy() for name, row in table.items()}, rate)
    try:
        got = float(got)
    except (TypeError, ValueError):
        return "no_number", {"got": type(got).__name__}
    if not math.isfinite(got):
        return "no_number", {"got": f"{got}"}

    def fits(row: np.ndarray) -> bool:
        lower = row[row < got]
        return (row > got).mean() <= rate and (not len(lower) or (row > lower.max()).mean() > rate - 1e-9)

    above = (table["validation"] > got).mean()
    near = {name: abs(got - float(np.quantile(row, 1 - rate))) < 1e-6 or fits(row) for name, row in table.items()}
    if fits(table["validation"]):
        return None
    pooled = np.concatenate(list(table.values()))
    if near["test"]:
        return "chosen_on_test"
    if near["method"]:
        return "chosen_on_method"
    if abs(got - float(np.quantile(pooled, 1 - rate))) < 1e-6:
        return "pooled"
    if abs(got - table["validation"].max()) < 1e-6:
        return "the_largest", {"rate": f"{rate:.0%}"}
    if abs(got - float(np.quantile(table["validation"], rate))) < 1e-6 or above > 0.9:
        return "wrong_end", {"above": above}
    return ("too_low" if above > rate else "too_high"), {"above": above, "rate": rate}


# --- 07.5 the attacker who knows the probe ----------------------------------------------------------------------


def _evade(x: torch.Tensor, w: torch.Tensor, b: float, target: float) -> torch.Tensor:
    over = (x @ w + b - target).clamp(min=0)
    return x - over[:, None] * w / (w @ w)


@exercise("07.5", reference=_evade)
def evasion(answer):
    """Activations moved along the probe, as little as it takes, so that no score lies above the target."""
    g = torch.Generator().manual_seed(3)
    x, w, b, target = torch.randn(12, 6, generator=g) * 2, torch.randn(6, generator=g) * 1.7, 0.8, -1.0
    given = x.clone()
    got, true = answer(given, w.clone(), b, target), _evade(x, w, b, target)
    if mistake := wrong_tensor(got, shape=x.shape):
        return mistake

    def same(other: torch.Tensor) -> bool:
        return torch.allclose(got, other, atol=1e-4, rtol=1e-4)

    if same(true):
        return None if torch.equal(given, x) else "in_place"
    score = x @ w + b
    over, every = (score - target).clamp(min=0), score - target
    length = w.norm()
    known = {
        "not_normalised": x - over[:, None] * w,
        "normalised_once": x - over[:, None] * w / length,
        "all_moved": x - every[:, None] * w / length**2,
        "towards_harm": x + over[:, None] * w / length**2,
        "bias_forgotten": x - (x @ w - target).clamp(min=0)[:, None] * w / length**2,
        "target_forgotten": x - score.clamp(min=0)[:, None] * w / length**2,
        "cut_out": x - (x @ w)[:, None] * w / length**2,
        "a_fixed_step": x - w,
        "unchanged": x,
    }
    for key, wrong in known.items():
        if same(wrong):
            return key
    left = int((got @ w + b > target + 1e-3).sum())
    return (
        ("still_seen", {"count": left}) if left else ("too_far", {"times": float((got - x).norm() / (true - x).norm())})
    )
