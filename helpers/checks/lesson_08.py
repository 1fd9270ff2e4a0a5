"""Checks of lesson 08 (the text of every message is in `quizzes/08_capstone.yaml`)."""

import numpy as np
import torch

from helpers.capstone_solver import by_domain, cut_ranking, kind_of
from helpers.checks import exercise, wrong_tensor
from helpers.glassbox import KINDS
from helpers.monitor import threshold_at


def _number(got) -> bool:
    return isinstance(got, int | float | np.integer | np.floating) and not isinstance(got, bool)


def _named(got: list, known: dict[str, list]) -> str:
    """The first known mistake that gives these numbers."""
    return next((key for key, wrong in known.items() if np.allclose(got, wrong)), "other")


# --- 08.1 what does it cost? ----------------------------------------------------------------------------------

RUNS = [(48, 6, 6, False), (12, 2, 6, False), (16, 6, 6, True), (8, 3, 6, True)]


def _passes(prompts: int, blocks: int, n_blocks: int, backward: bool) -> float:
    return prompts * blocks / n_blocks * (3 if backward else 1)


@exercise("08.1", reference=_passes)
def passes(answer):
    """prompts x the share of the blocks, three times as much with a backward."""
    got = [answer(*run) for run in RUNS]
    if odd := [x for x in got if not _number(x)]:
        return "no_number", {"got": type(odd[0]).__name__}
    if np.allclose(got, [_passes(*run) for run in RUNS]):
        return None
    known = {
        "calls_counted": [1 for _ in RUNS],
        "rows_only": [p for p, *_ in RUNS],
        "blocks_ignored": [p * (3 if back else 1) for p, _, _, back in RUNS],
        "backward_free": [p * b / n for p, b, n, _ in RUNS],
        "backward_as_forward": [p * b / n * (2 if back else 1) for p, b, n, back in RUNS],
        "blocks_for_passes": [p * b * (3 if back else 1) for p, b, n, back in RUNS],
    }
    return _named(got, known)


# --- 08.2 where to cut ----------------------------------------------------------------------------------------

RANKINGS = [
    ([5.0, 4.8, 4.6, 0.6, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], 1),
    ([3.0] + [2.0] * 3 + [1.2] * 30 + [0.8] * 60 + [0.1] * 50, 4),
    ([3.0, 2.9, 2.8, 2.7, 2.6, 2.5, 2.4, 2.3, 0.4, 0.01, 0.01, 0.001], 4),
    ([0.9, 0.2, 0.1, 0.1], 2),
    ([9.0] + [1.0] * 3 + [0.7] * 5 + [0.1] * 3, 4),  # the mean of the first four is no median
]


def _gap(values: list[float], start: int) -> int:
    values = np.asarray(values)
    return int(np.argmax(values[:-1] / values[1:])) + 1


def _once(values: list[float], start: int) -> int:
    return max(start, int((np.asarray(values) >= np.median(values[:start]) / 2).sum()))


@exercise("08.2", reference=cut_ranking)
def cut(answer):
    """How many of the largest reach half the median of those kept so far, until nothing changes."""
    got = [answer(list(values), start) for values, start in RANKINGS]
    if odd := [x for x in got if not _number(x) or x != int(x)]:
        return "no_count", {"got": repr(odd[0])[:40]}
    if got == [cut_ranking(values, start) for values, start in RANKINGS]:
        return None
    known = {
        "always_ten": [min(10, len(values)) for values, _ in RANKINGS],
        "largest_gap": [_gap(values, start) for values, start in RANKINGS],
        "half_of_the_first": [max(s, int((np.asarray(v) >= v[0] / 2).sum())) for v, s in RANKINGS],
        "only_once": [_once(values, start) for values, start in RANKINGS],
        "start_only": [start for _, start in RANKINGS],
    }
    fields = {"got": got, "wanted": [cut_ranking(values, start) for values, start in RANKINGS]}
    return _named(got, known), fields


# --- 08.3 a watch over one domain -----------------------------------------------------------------------------


@exercise("08.3", reference=by_domain)
def watch(answer):
    """The largest of the domains' means, [layer, neuron]."""
    torch.manual_seed(0)
    domains = ["locks", "papers", "locks", "secrets", "papers", "locks"]
    x = torch.randn(6, 2, 4)
    got, true = answer(x.clone(), list(domains)), by_domain(x, domains)
    if mistake := wrong_tensor(got, shape=true.shape):
        return mistake
    means = torch.stack([x[[i for i, d in enumerate(domains) if d == name]].mean(0) for name in sorted(set(domains))])
    known = {
        "over_all": x.mean(0),
        "loudest_pair": x.amax(0),
        "mean_of_means": means.mean(0),
        "sums": torch.stack([x[[i for i, d in enumerate(domains) if d == n]].sum(0) for n in set(domains)]).amax(0),
        "absolute": means.abs().amax(0),
        "smallest": means.amin(0),
    }
    if torch.allclose(got.float(), true, atol=1e-5):
        return None
    return next((key for key, wrong in known.items() if torch.allclose(got.float(), wrong, atol=1e-5)), "other")


# --- 08.4 which kind? -----------------------------------------------------------------------------------------

NAMES = ("refused_intact", "refused_without_ten", "refused_without_all", "known_intact", "known_without_all")
CASES = [
    dict(zip(NAMES, row, strict=True))
    for row in (
        (1.0, 0.0, 0.0, 1.0, 1.0),
        (1.0, 1.0, 0.0, 1.0, 0.9),
        (1.0, 1.0, 1.0, 1.0, 1.0),
        (1.0, 0.8, 0.0, 1.0, 0.0),
        (1.0, 0.0, 0.1, 0.9, 0.2),
        (0.9, 0.1, 0.0, 0.4, 0.4),
        (1.0, 0.9, 0.9, 1.0, 0.2),
    )
]


def _verdicts(rule) -> list[str]:
    return [rule(dict(one)) for one in CASES]


def _refusal_alone(one):
    if one["refused_without_all"] > 0.5:
        return "redundant"
    return "distributed" if one["refused_without_ten"] > 0.5 else "concentrated"


def _ten_only(one):
    return "distributed" if one["refused_without_ten"] > 0.5 else "concentrated"


def _ten_first(one):
    if one["refused_without_ten"] > 0.5:
        return "distributed"
    return kind_of(one)


def _no_backup(one):
    if one["known_without_all"] < one["known_intact"] / 2:
        return "entangled"
    return "distributed" if one["refused_without_ten"] > 0.5 else "concentrated"


def _absolute(one):
    return kind_of(one | {"known_intact": 1.0})


@exercise("08.4", reference=kind_of)
def kind(answer):
    """redundant, entangled, distributed or concentrated, from five shares."""
    got, true = _verdicts(answer), _verdicts(kind_of)
    if odd := [word for word in got if word not in KINDS]:
        return "unknown_word", {"got": repr(odd[0])[:40], "words": ", ".join(KINDS)}
    if got == true:
        return None
    rules = {
        "refusal_alone": _refusal_alone,
        "ten_only": _ten_only,
        "ten_first": _ten_first,
        "no_backup": _no_backup,
        "knowledge_absolute": _absolute,
        "always_the_same": lambda one: got[0],
    }
    for key, rule in rules.items():
        if got == _verdicts(rule):
            return key
    place = next(i for i, (a, b) in enumerate(zip(got, true, strict=True)) if a != b)
    row = ", ".join(f"{name} {value:.0%}" for name, value in CASES[place].items())
    return "other", {"row": row, "got": got[place], "wanted": true[place]}


# --- 08.5 when does the guard fire? ---------------------------------------------------------------------------

RATE = 0.05


@exercise("08.5", reference=threshold_at)
def threshold(answer):
    """The lowest of the calm scores that at most a share `rate` of them is above."""
    for seed, count, rate in ((0, 100, RATE), (1, 40, 0.1), (2, 30, RATE)):
        calm = np.random.default_rng(seed).normal(size=count).round(3) + np.arange(count) * 1e-6
        got, ordered = answer(calm.tolist(), rate), np.sort(calm)
        if not _number(got):
            return "no_number", {"got": type(got).__name__}
        over, allowed = int((calm > got).sum()), int(rate * count)
        if over == allowed and got < ordered[len(ordered) - allowed]:
            continue  # any cut in the right gap will do
        fields = {"over": over, "count": count, "allowed": allowed}
        if np.isclose(got, calm.mean()) or np.isclose(got, np.median(calm)):
            return "middle", fields
        if over == 0:
            return "never", fields
        if abs(over - (1 - rate) * count) <= 1.01:
            return "other_end", fields
        return ("too_low" if over > allowed else "too_high"), fields
    return None
