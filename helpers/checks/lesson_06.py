"""Checks of lesson 06 (the text of every message is in `quizzes/06_localization.yaml`)."""

import numpy as np
import torch

from helpers.checks import exercise, wrong_tensor
from helpers.localization import count_interval, ranks

# --- 06.1 a control that is matched ---------------------------------------------------------------------------

NEAREST = 10


def _twin_set(chosen, activity, rng):
    taken, out = set(chosen), []
    for layer, neuron in chosen:
        free = [n for n in range(activity.shape[1]) if (layer, n) not in taken]
        free.sort(key=lambda n, layer=layer, neuron=neuron: abs(activity[layer, n] - activity[layer, neuron]))
        drawn = (layer, int(rng.choice(free[:NEAREST])))
        taken.add(drawn)
        out.append(drawn)
    return out


def _bench() -> tuple[list, np.ndarray]:
    """Ten ranked neurons in three of eight layers, five to twelve times as active as most; and all activities, [layer, neuron]."""
    rng = np.random.default_rng(6)
    activity = rng.exponential(0.3, (8, 200))
    activity[:, 150:] = rng.uniform(3, 5, (8, 50))  # the loud quarter of each layer
    return [(2, n) for n in (150, 151, 152)] + [(4, n) for n in (160, 161, 162, 163)] + [
        (5, 170),
        (5, 171),
        (5, 172),
    ], activity


def _places(answer) -> list[tuple[int, int]] | None:
    try:
        return [(int(a), int(b)) for a, b in answer]
    except (TypeError, ValueError):
        return None


@exercise("06.1", reference=_twin_set)
def matched_control(answer):
    """As many other neurons, each of the same layer and of a like activity as its partner; another set at each draw."""
    chosen, activity = _bench()
    draws = [_places(answer(list(chosen), activity.copy(), np.random.default_rng(seed))) for seed in range(6)]
    if any(one is None for one in draws):
        return "no_places"
    if any(len(one) != len(chosen) for one in draws):
        return "wrong_count", {"got": len(draws[0]), "wanted": len(chosen)}
    if any(not (0 <= a < activity.shape[0] and 0 <= b < activity.shape[1]) for one in draws for a, b in one):
        return "not_there"
    if shared := max(len(set(one) & set(chosen)) for one in draws):
        return "chosen_again", {"count": shared}
    if any(len(set(one)) < len(one) for one in draws):
        return "drawn_twice"
    layers = sorted(a for a, _ in chosen)
    if any(sorted(a for a, _ in one) != layers for one in draws):
        return "other_layers"
    target = float(np.mean([activity[p] for p in chosen]))
    got = float(np.mean([[activity[p] for p in one] for one in draws]))
    if abs(got - target) > 0.15 * target:
        return "not_alike", {"got": got, "wanted": target}
    if len({tuple(sorted(one)) for one in draws}) == 1:
        return "always_the_same"
    return None


# --- 06.2 an interval for a count -----------------------------------------------------------------------------

COUNTS = [10, 100, 1000, 10000]


def _refused() -> np.ndarray:
    """[count, topic]: with 10,000 neurons out just under a tenth is refused, so that some draws find no count enough."""
    table = np.ones((4, 24))
    table[1, :14], table[2, :20], table[3, :22] = 0, 0, 0
    return table


def _interval(refused, counts, rng):
    return count_interval(refused, counts, seed=int(rng.integers(1 << 30)))


@exercise("06.2", reference=_interval)
def interval_of_a_count(answer):
    """(low, high) of the smallest count under 10%, over topics; a draw in which none is enough counts as infinity."""
    seen = []
    for table, wanted in ((_refused(), (1000.0, np.inf)), (_sure(), (1000.0, 10000.0))):
        got = answer(table.copy(), list(COUNTS), np.random.default_rng(0))
        try:
            low, high = map(float, got)
        except (TypeError, ValueError):
            return "no_pair"
        seen.append((low, high, *wanted))
    (low, high, *_), (sure_low, sure_high, true_low, true_high) = seen
    if low > high or sure_low > sure_high:
        return "swapped"
    if any(np.isnan(x) for x in (low, high, sure_low, sure_high)):
        return "undefined"
    if low == high and sure_low == sure_high:
        return "not_drawn"
    if (sure_low, sure_high) == (true_low, true_high):
        if high == 10000.0:
            return "dropped"
        flat = np.zeros((4, 24))
        flat[:, 0] = 1  # every count fails on the same topic: only the same topics for all counts see that
        end = tuple(map(float, answer(flat, list(COUNTS), np.random.default_rng(0))))
        if end != (float(COUNTS[0]), np.inf):
            return "other", {"low": end[0], "high": end[1]}
        return None if (low, high) == (1000.0, np.inf) else ("other", {"low": low, "high": high})
    if any(x not in (*COUNTS, np.inf) for x in (sure_low, sure_high)):
        return "no_count", {"got": sure_low if sure_low not in COUNTS else sure_high}
    if sure_low < true_low or sure_high > true_high:
        return "too_wide", {"low": sure_low, "high": sure_high}
    return "other", {"low": sure_low, "high": sure_high}


def _sure() -> np.ndarray:
    """[count, topic]: always settled by 10,000; 1,000 is enough in most of the draws, 100 in very few."""
    table = np.ones((4, 24))
    table[1, :16], table[2, :22], table[3] = 0, 0, 0
    return table


# --- 06.3 compact, of what? -----------------------------------------------------------------------------------

WEIGHTS = {"embedding": 400, "a": 30, "b": 50, "c": 20, "d": 100, "e": 60, "f": 140, "g": 200}
SEARCHED, KEPT = ["a", "b", "c", "d"], ["a", "c"]


def _share(weights, searched, kept):
    cut = sum(weights[part] for part in searched if part not in kept)
    return 1 - cut / sum(weights.values())


@exercise("06.3", reference=_share)
def compact_of_what(answer):
    """The share of the model's weights that ran on harmful requests: all but the searched parts that were cut."""
    got = answer(dict(WEIGHTS), list(SEARCHED), list(KEPT))
    try:
        got = float(got)
    except (TypeError, ValueError):
        return "no_number"
    total, searched, kept = (sum(WEIGHTS[p] for p in part) for part in (WEIGHTS, SEARCHED, KEPT))
    known = {
        "of_the_searched": kept / searched,
        "kept_of_all": kept / total,
        "the_cut": (searched - kept) / total,
        "unsearched_only": (total - searched) / total,
        "parts_counted": (len(WEIGHTS) - len(SEARCHED) + len(KEPT)) / len(WEIGHTS),
        "no_share": float(total - searched + kept),
    }
    if abs(got - _share(WEIGHTS, SEARCHED, KEPT)) < 1e-6:
        all_kept = float(answer(dict(WEIGHTS), list(WEIGHTS), list(KEPT)))
        return None if abs(all_kept - kept / total) < 1e-6 else ("other", {"got": all_kept})
    return next((key for key, value in known.items() if abs(got - value) < 1e-6), "other"), {"got": got}


# --- 06.4 one layer makes a correlation -----------------------------------------------------------------------

ABLATED = [0.3, 0.9, 0.2, 0.6, 0.1, 0.5, 0.4, 0.7, 0.35, 9.0]
EDITED = [0.9, 0.4, 1.5, 0.3, 0.8, 1.1, 0.5, 0.6, 1.2, 1.9]


def _pearson(x, y) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def _spearman(x, y) -> float:
    return _pearson(ranks(x), ranks(y))


def _with_each_left_out(measure, x, y) -> tuple[float, float, float]:
    left = [measure(np.delete(x, i), np.delete(y, i)) for i in range(len(x))]
    return measure(x, y), min(left), max(left)


def _correlation(x, y):
    return _with_each_left_out(_spearman, x, y)


@exercise("06.4", reference=_correlation)
def correlation_over_layers(answer):
    """(rank correlation, its least, its most with one layer left out)."""
    got = answer(np.array(ABLATED), np.array(EDITED))
    try:
        got = tuple(map(float, got))
    except (TypeError, ValueError):
        return "no_three"
    if len(got) != 3:
        return "no_three"
    x, y = np.array(ABLATED), np.array(EDITED)
    true, by_values = _correlation(x, y), _with_each_left_out(_pearson, x, y)
    without = _spearman(x[:-1], y[:-1])

    def same(wanted) -> bool:
        return np.allclose(got, wanted, atol=1e-6)

    fields = {"got": got[0], "rho": true[0]}
    if same(true):
        return None
    if same((true[0], true[2], true[1])):
        return "turned_round"
    if same(by_values) or abs(got[0] - by_values[0]) < 1e-6:
        return "by_values", fields
    if abs(got[0] - without) < 1e-6 or abs(got[0] - _pearson(x[:-1], y[:-1])) < 1e-6:
        return "outlier_dropped", fields
    if abs(got[0] - true[0]) < 1e-6 and abs(got[1] - got[2]) < 1e-6:
        return "nothing_left_out"
    if abs(got[0] + true[0]) < 1e-6:
        return "sign_flipped"
    return "other", fields


# --- 06.5 a second direction ----------------------------------------------------------------------------------


def _second(stream, first):
    harmful, harmless = stream([first])
    left = harmful.mean(0) - harmless.mean(0)
    left = left - (left @ first) * first
    return left / left.norm()


def _stream(cut):
    """Activations [prompt, 6] of a model that writes otherwise once its first direction is cut; half of that was written below the cut."""
    torch.manual_seed(4)
    noise = 0.02 * torch.randn(2, 12, 6)
    first, other, second = FIRST, torch.eye(6)[1], torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0]) / 2**0.5
    gap = 4 * first + 1.5 * other + 0.5 * second
    if any(abs(float(c @ first)) > 0.9 for c in cut):
        gap = 2 * first + 3 * second  # what is written later has changed
    return noise[0] + gap, noise[1]


FIRST = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])


@exercise("06.5", reference=_second)
def second_direction(answer):
    """The unit difference of means with the first direction cut, at right angles to it."""
    got, true = answer(_stream, FIRST.clone()), _second(_stream, FIRST)
    if mistake := wrong_tensor(got, shape=true.shape):
        return mistake
    got = got.float()
    if torch.allclose(got, true, atol=1e-3):
        return None
    length = float(got.norm())
    if length < 1e-6:
        return "no_length"
    one, along = got / length, float(got @ FIRST) / length
    intact = torch.stack([x.mean(0) for x in _stream([])])
    first_again = intact[0] - intact[1]
    if torch.allclose(one, -true, atol=1e-3):
        return "sign_flipped"
    if torch.allclose(one, true, atol=1e-3):
        return "not_unit", {"length": length}
    if torch.allclose(one, first_again / first_again.norm(), atol=1e-3):
        return "first_again", {"cosine": along}
    if abs(along) > 0.05:
        return "not_at_right_angles", {"cosine": along}
    rest = first_again - (first_again @ FIRST) * FIRST
    if torch.allclose(one, rest / rest.norm(), atol=1e-3):
        return "intact_model"
    return "other", {"cosine": along}


# --- 06.6 no role? --------------------------------------------------------------------------------------------


def _role(lost, part, others):
    return max(lost([*given, part]) - lost(given) for given in ([], *([other] for other in others)))


def _two_paths(parts) -> float:
    """Either of a and b is enough; c adds 2 by itself, and less beside others; d does nothing; without a path the rest is worth less."""
    parts = set(parts)
    return (
        10.0 * ({"a", "b"} <= parts)
        + 2.0 * ("c" in parts)
        - 3.0 * ({"c", "b"} <= parts)
        - ("a" in parts)
        - ("c" in parts and len(parts) > 1)
    )


@exercise("06.6", reference=_role)
def role(answer):
    """The most that a part adds to what is lost: by itself, or with any one of the others cut already."""
    others = {"a": ["b", "c", "d"], "c": ["a", "b", "d"], "d": ["a", "b", "c"]}
    got = []
    for part, rest in others.items():
        value = answer(_two_paths, part, list(rest))
        try:
            got.append(float(value))
        except (TypeError, ValueError):
            return "no_number"
    true = [_role(_two_paths, part, rest) for part, rest in others.items()]
    if np.allclose(got, true):
        return None

    def each(rule):
        return [rule(part, rest) for part, rest in others.items()]

    known = {
        "alone_only": each(lambda p, rest: _two_paths([p])),
        "not_subtracted": each(lambda p, rest: max(_two_paths([*g, p]) for g in ([], *([o] for o in rest)))),
        "averaged": each(
            lambda p, rest: np.mean([_two_paths([*g, p]) - _two_paths(g) for g in ([], *([o] for o in rest))])
        ),
        "least": each(lambda p, rest: min(_two_paths([*g, p]) - _two_paths(g) for g in ([], *([o] for o in rest)))),
        "all_at_once": each(lambda p, rest: _two_paths([*rest, p]) - _two_paths(rest)),
        "alone_forgotten": each(lambda p, rest: max(_two_paths([o, p]) - _two_paths([o]) for o in rest)),
        "alone_subtracted": each(lambda p, rest: max(_two_paths([o, p]) - _two_paths([p]) for o in rest)),
    }
    for key, values in known.items():
        if np.allclose(got, values):
            return key, {"got": got[0], "true": true[0]}
    return "other", {"got": got[0], "true": true[0]}
