"""Wrong answers to the exercises of lesson 07, one for each message, and other right ones."""

import numpy as np
import torch

from helpers.checks import lesson_07 as course


def context(exercise_id):
    """The keyword arguments that the lesson gives to check(): none in this lesson."""
    return {}


# --- 07.1 ---------------------------------------------------------------------------------------------------


def _left(fit_on="defended", fit_split="method", attacked="defended", report="test"):
    def answer(find, refused, standard, defended):
        models = {"standard": standard, "defended": defended}
        return refused(models[attacked], find(models[fit_on], fit_split), report)

    return answer


# --- 07.2 ---------------------------------------------------------------------------------------------------


def _by_words(standard, defended):
    if defended.over_refused - standard.over_refused > 0.05:
        return "over-refusal"
    if defended.dose / standard.dose >= 3:
        return "sturdier"
    return "no sturdier" if defended.left < 0.5 else "sturdier"


def _strict(standard, defended):
    """The line at three times drawn a little too high."""
    if defended.over_refused > standard.over_refused + 0.05:
        return "over-refusal"
    return "sturdier" if defended.dose > 3 * standard.dose or defended.left >= 0.5 else "no sturdier"


# --- 07.3 ---------------------------------------------------------------------------------------------------


def _set(label, keep=lambda prompt, refuses: True):
    def answer(pairs, refuses):
        prompts = [q for p in pairs for q in (p.harmful, p.harmless) if keep(q, refuses)]
        return prompts, [label(q, refuses) for q in prompts]

    return answer


def _true(prompt, refuses=None):
    return int(prompt.startswith("harmful"))


# --- 07.4 ---------------------------------------------------------------------------------------------------


def _quantile(split, rate=None):
    return lambda scores, r: np.quantile(scores[split], 1 - (r if rate is None else rate))


def _counting(scores, rate):
    for value in np.sort(scores["validation"]):
        if np.mean(scores["validation"] > value) <= rate:
            return value


# --- 07.5 ---------------------------------------------------------------------------------------------------


def _evade(part, step):
    """part(score, x @ w, target) is what is taken away, step(w) along which vector."""

    def answer(x, w, b, target):
        along = x @ w
        return x - part(along + b, along, target)[:, None] * step(w)

    return answer


def _over(score, along, target):
    return (score - target).clamp(min=0)


def _unit_squared(w):
    return w / (w @ w)


def _in_place(x, w, b, target):
    x -= (x @ w + b - target).clamp(min=0)[:, None] * w / (w @ w)
    return x


def _row_by_row(x, w, b, target):
    rows = []
    for row in x:
        score = float(row @ w + b)
        rows.append(row - (score - target) / float(w @ w) * w if score > target else row)
    return torch.stack(rows)


WRONG = {
    "07.1": {
        "not_refitted": lambda c: _left(fit_on="standard"),
        "wrong_model": lambda c: _left(fit_on="standard", attacked="standard"),
        "fitted_on_test": lambda c: _left(fit_split="test"),
        "reported_on_method": lambda c: _left(report="method"),
        "no_share": lambda c: lambda find, refused, standard, defended: find(defended, "method"),
    },
    "07.2": {
        "unknown_word": lambda c: lambda standard, defended: defended.left >= 0.5,
        "left_alone": lambda c: course._more_left,
        "over_refusal_ignored": lambda c: course._rule(over=False),
        "over_refusal_last": lambda c: course._rule(order=-1),
        "over_refusal_absolute": lambda c: course._absolute,
        "dose_ignored": lambda c: course._rule(dose=False),
        "left_ignored": lambda c: course._rule(left=False),
        "both_asked": lambda c: course._rule(both=True),
        "dearer_at_all": lambda c: course._dearer_at_all,
        "other": lambda c: _strict,
    },
    "07.3": {
        "own_refusals": lambda c: _set(lambda q, refuses: int(refuses(q))),
        "no_pair": lambda c: lambda pairs, refuses: [p.harmful for p in pairs],
        "unequal": lambda c: lambda pairs, refuses: ([p.harmful for p in pairs], [1, 0]),
        "not_of_the_pairs": lambda c: lambda pairs, refuses: (["what is harm?"], [1]),
        "flipped": lambda c: _set(lambda q, refuses: 1 - _true(q)),
        "one_sort": lambda c: _set(_true, lambda q, refuses: _true(q)),
        "only_refused": lambda c: _set(_true, lambda q, refuses: refuses(q) or not _true(q)),
        "left_out": lambda c: _set(_true, lambda q, refuses: not refuses(q)),
        "other": lambda c: _set(lambda q, refuses: int(_true(q) and not refuses(q))),
    },
    "07.4": {
        "chosen_on_test": lambda c: _quantile("test"),
        "chosen_on_method": lambda c: _quantile("method"),
        "pooled": lambda c: lambda scores, rate: np.quantile(np.concatenate(list(scores.values())), 1 - rate),
        "the_largest": lambda c: lambda scores, rate: scores["validation"].max(),
        "wrong_end": lambda c: lambda scores, rate: np.quantile(scores["validation"], rate),
        "too_low": lambda c: _quantile("validation"),
        "too_high": lambda c: lambda scores, rate: np.sort(scores["validation"])[-2],
        "no_number": lambda c: lambda scores, rate: scores["validation"],
    },
    "07.5": {
        "not_normalised": lambda c: _evade(_over, lambda w: w),
        "normalised_once": lambda c: _evade(_over, lambda w: w / w.norm()),
        "all_moved": lambda c: _evade(lambda s, a, t: s - t, _unit_squared),
        "towards_harm": lambda c: _evade(lambda s, a, t: -_over(s, a, t), _unit_squared),
        "bias_forgotten": lambda c: _evade(lambda s, a, t: (a - t).clamp(min=0), _unit_squared),
        "target_forgotten": lambda c: _evade(lambda s, a, t: s.clamp(min=0), _unit_squared),
        "cut_out": lambda c: _evade(lambda s, a, t: a, _unit_squared),
        "a_fixed_step": lambda c: lambda x, w, b, target: x - w,
        "unchanged": lambda c: lambda x, w, b, target: x.clone(),
        "in_place": lambda c: _in_place,
        "still_seen": lambda c: _evade(lambda s, a, t: 0.5 * _over(s, a, t), _unit_squared),
        "too_far": lambda c: _evade(lambda s, a, t: 2 * _over(s, a, t), _unit_squared),
    },
}  # fmt: skip

RIGHT = {
    "07.1": [lambda c: lambda find, refused, standard, defended: refused(defended, find(defended, "method"), "test")],
    "07.2": [lambda c: _by_words],
    "07.3": [lambda c: _set(_true), lambda c: lambda pairs, refuses: tuple(map(np.array, _set(_true)(pairs, refuses)))],
    "07.4": [lambda c: _counting, lambda c: lambda scores, rate: np.quantile(scores["validation"], 1 - rate, method="higher")],
    "07.5": [lambda c: _row_by_row],
}  # fmt: skip
