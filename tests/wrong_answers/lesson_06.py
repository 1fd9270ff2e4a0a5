"""Wrong answers to the exercises of lesson 06, one for each message, and other right ones."""

import numpy as np

from helpers.checks import lesson_06 as course
from helpers.localization import smallest_count


def context(exercise_id):
    """The keyword arguments that the lesson gives to check(): none in this lesson."""
    return {}


# --- 06.1 ---------------------------------------------------------------------------------------------------


def _anywhere(chosen, activity, rng):
    free = [(a, b) for a in range(activity.shape[0]) for b in range(activity.shape[1]) if (a, b) not in set(chosen)]
    return [free[i] for i in rng.permutation(len(free))[: len(chosen)]]


def _same_layers(chosen, activity, rng, without_chosen=True):
    taken, out = set(chosen) if without_chosen else set(), []
    for layer, _ in chosen:
        free = [n for n in range(activity.shape[1]) if (layer, n) not in taken]
        out.append((layer, int(rng.choice(free))))
        taken.add(out[-1])
    return out


def _with_replacement(chosen, activity, rng):
    out = []
    for layer, neuron in chosen:
        free = [n for n in range(activity.shape[1]) if (layer, n) not in set(chosen)]
        free.sort(key=lambda n, layer=layer, neuron=neuron: abs(activity[layer, n] - activity[layer, neuron]))
        out.append((layer, free[int(rng.integers(2))]))
    return out


def _the_nearest(chosen, activity, rng):
    return course._twin_set(chosen, activity, np.random.default_rng(0))


def _shuffled_order(chosen, activity, rng):
    return course._twin_set([chosen[i] for i in rng.permutation(len(chosen))], activity, rng)


# --- 06.2 ---------------------------------------------------------------------------------------------------


def _interval(tails=(2.5, 97.5), drop=False, paired=True, none=np.inf, resample=True, turn=lambda a, b: (a, b)):
    def answer(refused, counts, rng):
        found, topics = [], refused.shape[1]
        for _ in range(400):
            if paired:
                drawn = refused[:, rng.integers(0, topics, topics)] if resample else refused
            else:
                drawn = np.stack([row[rng.integers(0, topics, topics)] for row in refused])
            count = smallest_count(drawn, counts)
            if count < np.inf or not drop:
                found.append(count if count < np.inf else none)
        return turn(*np.percentile(found, tails, method="inverted_cdf"))

    return answer


def _half_way(refused, counts, rng):
    topics = refused.shape[1]
    found = [smallest_count(refused[:, rng.integers(0, topics, topics)], counts) for _ in range(400)]
    found = [1.1 * x for x in found]
    return np.percentile(found, [2.5, 97.5], method="inverted_cdf")


# --- 06.4 ---------------------------------------------------------------------------------------------------


def _by_pandas(x, y):
    import pandas as pd

    def rho(a, b):
        return pd.Series(a).rank().corr(pd.Series(b).rank())

    left = [rho(np.delete(x, i), np.delete(y, i)) for i in range(len(x))]
    return rho(x, y), min(left), max(left)


def _turned(x, y):
    rho, least, most = course._correlation(x, y)
    return rho, most, least


# --- 06.6 ---------------------------------------------------------------------------------------------------


def _over(choose, given=lambda others: [[], *([o] for o in others)], value=lambda lost, g, p: lost([*g, p]) - lost(g)):
    return lambda lost, part, others: choose([value(lost, g, part) for g in given(others)])


# --- 06.5 ---------------------------------------------------------------------------------------------------


def _second(cut=True, project=True, unit=True, sign=1):
    def answer(stream, first):
        harmful, harmless = stream([first] if cut else [])
        left = sign * (harmful.mean(0) - harmless.mean(0))
        if project:
            left = left - (left @ first) * first
        return left / left.norm() if unit else left

    return answer


WRONG = {
    "06.1": {
        "no_places": lambda c: lambda chosen, activity, rng: len(chosen),
        "wrong_count": lambda c: lambda chosen, activity, rng: course._twin_set(chosen, activity, rng)[:-1],
        "not_there": lambda c: lambda chosen, activity, rng: [(layer, 5000) for layer, _ in chosen],
        "chosen_again": lambda c: lambda chosen, activity, rng: list(chosen),
        "drawn_twice": lambda c: _with_replacement,
        "other_layers": lambda c: _anywhere,
        "not_alike": lambda c: _same_layers,
        "always_the_same": lambda c: _the_nearest,
    },
    "06.2": {
        "no_pair": lambda c: lambda refused, counts, rng: smallest_count(refused, counts),
        "swapped": lambda c: _interval(turn=lambda a, b: (b, a)),
        "undefined": lambda c: _interval(none=np.nan, turn=lambda a, b: (a, np.nan)),
        "not_drawn": lambda c: _interval(resample=False),
        "dropped": lambda c: _interval(drop=True),
        "no_count": lambda c: _half_way,
        "too_wide": lambda c: _interval(tails=(0, 100)),
        "other": lambda c: _interval(tails=(50, 97.5)),
    },
    "06.3": {
        "no_number": lambda c: lambda weights, searched, kept: kept,
        "of_the_searched": lambda c: lambda w, s, k: sum(w[p] for p in k) / sum(w[p] for p in s),
        "kept_of_all": lambda c: lambda w, s, k: sum(w[p] for p in k) / sum(w.values()),
        "the_cut": lambda c: lambda w, s, k: 1 - course._share(w, s, k),
        "unsearched_only": lambda c: lambda w, s, k: 1 - sum(w[p] for p in s) / sum(w.values()),
        "parts_counted": lambda c: lambda w, s, k: (len(w) - len(s) + len(k)) / len(w),
        "no_share": lambda c: lambda w, s, k: course._share(w, s, k) * sum(w.values()),
        "other": lambda c: lambda w, s, k: 0.5,
    },
    "06.4": {
        "no_three": lambda c: lambda x, y: course._spearman(x, y),
        "turned_round": lambda c: _turned,
        "by_values": lambda c: lambda x, y: course._with_each_left_out(course._pearson, x, y),
        "outlier_dropped": lambda c: lambda x, y: course._correlation(x[:-1], y[:-1]),
        "nothing_left_out": lambda c: lambda x, y: (course._spearman(x, y),) * 3,
        "sign_flipped": lambda c: lambda x, y: course._correlation(-x, y),
        "other": lambda c: lambda x, y: (0.5, 0.4, 0.6),
    },
    "06.6": {
        "no_number": lambda c: lambda lost, part, others: [lost([part])],
        "alone_only": lambda c: _over(max, given=lambda others: [[]]),
        "not_subtracted": lambda c: _over(max, value=lambda lost, g, p: lost([*g, p])),
        "averaged": lambda c: _over(np.mean),
        "least": lambda c: _over(min),
        "all_at_once": lambda c: _over(max, given=lambda others: [others]),
        "alone_forgotten": lambda c: _over(max, given=lambda others: [[o] for o in others]),
        "alone_subtracted": lambda c: _over(
            max, given=lambda others: [[o] for o in others], value=lambda lost, g, p: lost([*g, p]) - lost([p])
        ),
        "other": lambda c: lambda lost, part, others: 0.5,
    },
    "06.5": {
        "first_again": lambda c: _second(cut=False, project=False),
        "not_at_right_angles": lambda c: _second(project=False),
        "intact_model": lambda c: _second(cut=False),
        "not_unit": lambda c: _second(unit=False),
        "sign_flipped": lambda c: _second(sign=-1),
        "no_length": lambda c: lambda stream, first: 0 * first,
        "other": lambda c: lambda stream, first: 0 * first + first.roll(5),
    },
}

RIGHT = {
    "06.1": [lambda c: _shuffled_order],
    "06.2": [lambda c: _interval()],
    "06.3": [lambda c: lambda w, s, k: sum(w[p] for p in w if p not in s or p in k) / sum(w.values())],
    "06.4": [lambda c: _by_pandas],
    "06.6": [lambda c: _over(max)],
    "06.5": [lambda c: _second()],
}
