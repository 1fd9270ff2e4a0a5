"""Checks of lesson 05 (the text of every message is in `quizzes/05_ablation.yaml`)."""

import math
from collections.abc import Callable

import pandas as pd
import torch

from helpers.checks import exercise, wrong_tensor
from helpers.refusal import classify_answer, is_refusal


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> bool:
    """Equal shape, and equal numbers up to `tolerance`."""
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=tolerance, atol=tolerance)


# --- 05.1 the right tensor ------------------------------------------------------------------------------------


def _edit(layer: int, neurons: list[int], strength: float):
    def function(activation: torch.Tensor) -> torch.Tensor:
        new = activation.clone()
        new[:, 1:, neurons] = (1 - strength) * activation[:, 1:, neurons]
        return new

    return "neurons", layer, function


@exercise("05.1", reference=_edit)
def neuron_edit(answer):
    """(site, layer, function): these neurons moved towards zero by `strength`, at every position but the first."""
    layer, neurons = 3, [1, 4]
    for strength in (0.25, 1.0, 1.5):
        got = answer(layer, list(neurons), strength)
        if not isinstance(got, tuple | list) or len(got) != 3 or not callable(got[2]):
            return "no_edit"
        if got[0] != "neurons":
            in_stream = got[0] in ("mlp_out", "attn_out", "resid_pre", "resid_post")
            return ("residual_dimensions" if in_stream else "wrong_site"), {"got": got[0]}
        if got[1] != layer:
            return "wrong_layer", {"got": got[1], "wanted": layer}
        if mistake := _moved_wrongly(got[2], neurons, strength):
            return mistake
    return None


def _moved_wrongly(function: Callable, neurons: list[int], strength: float):
    """The mistake in what an edit's function does to an activation, or None."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6)
    given = x.clone()
    got, true = function(given), _edit(0, neurons, strength)[2](x)
    if got is None:
        return "nothing_given_back"
    if mistake := wrong_tensor(got, shape=x.shape):
        return mistake
    if close(got, true):
        return None if torch.equal(given, x) else "in_place"

    def changed(factor: float, rows=slice(1, None), columns=neurons) -> torch.Tensor:
        new = x.clone()
        new[:, rows, columns] = factor * new[:, rows, columns]
        return new

    everything = slice(None)
    known = {
        "sink_touched": [changed(1 - strength, everything)],
        "strength_ignored": [changed(0.0), changed(0.0, everything)],
        "backwards": [changed(strength), changed(strength, everything)],
        "last_only": [changed(1 - strength, slice(-1, None))],
        "all_neurons": [changed(1 - strength, columns=everything), changed(1 - strength, everything, everything)],
        "unchanged": [x],
    }
    # At strength 1 several of them look alike: the sink is then the first to be named.
    return next((key for key, wrong in known.items() if any(close(got, w) for w in wrong)), "other")


# --- 05.2 a direction out of a weight -------------------------------------------------------------------------


def _without(weight: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    r = direction / direction.norm()
    return weight - torch.outer(r, r @ weight)


@exercise("05.2", reference=_without)
def weight_without_direction(answer):
    """W - r (r . W) with r of length 1, for a direction of any length."""
    torch.manual_seed(1)
    weight, direction = torch.randn(6, 6), torch.randn(6) * 2
    given = weight.clone()
    got, true = answer(given, direction.clone()), _without(weight, direction)
    if mistake := wrong_tensor(got, shape=weight.shape):
        return mistake
    r = direction / direction.norm()
    if not torch.equal(given, weight):
        return "in_place"
    if close(got, true):
        return None
    kept = torch.outer(r, r @ weight)
    known = {
        "not_normalised": weight - torch.outer(direction, direction @ weight),
        "normalised_once": weight - torch.outer(r, direction @ weight),
        "reads_instead": weight - torch.outer(weight @ r, r),
        "only_the_part": kept,
        "added": weight + kept,
        "half": weight - kept / 2,
        "unchanged": weight,
    }
    reach = float((r @ got).norm() / (r @ weight).norm())
    return next((key for key, wrong in known.items() if close(got, wrong)), "other"), {"reach": reach}


# --- 05.3 the smallest set, and on which prompts --------------------------------------------------------------

COUNTS = [4, 16, 64, 256]
SHARES = {
    "method": [0.07, 0.04, 0.02, 0.01],
    "validation": [0.60, 0.31, 0.06, 0.03],
    "test": [0.70, 0.09, 0.17, 0.05],
}
STUBBORN = {split: [0.9, 0.8, 0.7, last] for split, last in (("method", 0.4), ("validation", 0.5), ("test", 0.62))}


def _smallest(refused: Callable[[str, int], float], counts: list[int]):
    for count in counts:
        if refused("validation", count) < 0.1:
            return count, refused("test", count)
    return None, refused("test", counts[-1])


class _Bench:
    """Refused shares from a table; remembers for which counts the test prompts were looked at."""

    def __init__(self, shares: dict[str, list[float]]):
        self.shares, self.tested = shares, set()

    def __call__(self, split: str, count: int) -> float:
        if split == "test":
            self.tested.add(count)
        return self.shares[split][COUNTS.index(count)]


@exercise("05.3", reference=_smallest)
def smallest_set(answer):
    """The smallest count under 10% on validation, and the share on test; (None, share of the largest) if none is."""
    bench = _Bench(SHARES)
    got = answer(bench, list(COUNTS))
    if not isinstance(got, tuple | list) or len(got) != 2:
        return "no_pair"
    count, share = got
    if isinstance(count, float) and count in SHARES["test"]:
        return "swapped"
    if count not in COUNTS:
        return "no_count", {"got": count}
    chosen_by = {4: "chosen_on_method", 16: "chosen_on_test", 256: "largest"}
    if count != 64:
        return chosen_by[count], {"got": count}
    if share != SHARES["test"][2]:
        other = next((split for split in ("validation", "method") if share == SHARES[split][2]), None)
        return ("reported_elsewhere", {"split": other}) if other else ("wrong_share", {"got": share})
    if bench.tested != {64}:
        return "peeked", {"count": len(bench.tested)}
    got = answer(_Bench(STUBBORN), list(COUNTS))
    if not isinstance(got, tuple | list) or len(got) != 2 or got[0] is not None or got[1] != STUBBORN["test"][-1]:
        return "none_enough", {"got": got}
    return None


# --- 05.4 a discovery, or damage? -----------------------------------------------------------------------------

VERDICTS = ("broken", "chance", "nothing", "effect")
MAX_KL, MAX_RISE, CHANCE, LEAST = 0.5, 1.5, 0.05, 0.1
INTACT = pd.Series({"refused": 0.9, "KL": 0.0, "perplexity": 40.0, "as_low": math.nan})
EDITS = pd.DataFrame(
    [
        {"refused": 0.10, "KL": 0.08, "perplexity": 42.0, "as_low": 0.00},
        {"refused": 0.00, "KL": 7.10, "perplexity": 41.0, "as_low": 0.00},
        {"refused": 0.05, "KL": 0.30, "perplexity": 95.0, "as_low": 0.00},
        {"refused": 0.35, "KL": 0.09, "perplexity": 44.0, "as_low": 0.40},
        {"refused": 0.86, "KL": 0.02, "perplexity": 40.5, "as_low": 0.00},
        {"refused": 0.00, "KL": 3.00, "perplexity": 300.0, "as_low": 0.55},
        {"refused": 0.55, "KL": 0.20, "perplexity": 55.0, "as_low": 0.05},
        {"refused": 0.95, "KL": 0.01, "perplexity": 39.0, "as_low": 0.30},
        {"refused": 0.805, "KL": 0.03, "perplexity": 41.0, "as_low": 0.00},  # ten per cent less, and not ten points
    ]
)


def _verdict(row, intact) -> str:
    if row.KL > MAX_KL or row.perplexity > MAX_RISE * intact.perplexity:
        return "broken"
    if row.as_low > CHANCE:
        return "chance"
    if row.refused > intact.refused - LEAST:
        return "nothing"
    return "effect"


def _all_verdicts(rule: Callable) -> list:
    return [rule(row, INTACT) for _, row in EDITS.iterrows()]


def _without_rule(*left_out: str) -> Callable:
    """The rule less some of its conditions."""

    def rule(row, intact) -> str:
        if "KL" not in left_out and row.KL > MAX_KL:
            return "broken"
        if "perplexity" not in left_out and row.perplexity > MAX_RISE * intact.perplexity:
            return "broken"
        if "chance" not in left_out and row.as_low > CHANCE:
            return "chance"
        return "nothing" if "nothing" not in left_out and row.refused > intact.refused - LEAST else "effect"

    return rule


def _chance_first(row, intact) -> str:
    return "chance" if row.as_low > CHANCE else _verdict(row, intact)


def _absolute(row, intact) -> str:
    return "broken" if row.perplexity > MAX_RISE else _verdict(row, intact)


@exercise("05.4", reference=_verdict)
def verdict(answer):
    """broken, chance, nothing or effect, in this order, by the rule of the text."""
    got = [answer(row.copy(), INTACT.copy()) for _, row in EDITS.iterrows()]
    if odd := [word for word in got if not isinstance(word, str) or word not in VERDICTS]:
        return "unknown_word", {"got": repr(odd[0]), "words": ", ".join(VERDICTS)}
    if got == _all_verdicts(_verdict):
        return None
    known = {
        "damage_ignored": _without_rule("KL", "perplexity"),
        "refusal_alone": _without_rule("KL", "perplexity", "chance"),
        "kl_ignored": _without_rule("KL"),
        "perplexity_ignored": _without_rule("perplexity"),
        "perplexity_absolute": _absolute,
        "chance_ignored": _without_rule("chance"),
        "chance_first": _chance_first,
        "nothing_ignored": _without_rule("nothing"),
    }
    for key, rule in known.items():
        if got == _all_verdicts(rule):
            return key
    place = next(i for i, (a, b) in enumerate(zip(got, _all_verdicts(_verdict), strict=True)) if a != b)
    row = ", ".join(f"{name} {value:g}" for name, value in EDITS.iloc[place].items())
    return "other", {"row": row, "got": got[place], "wanted": _verdict(EDITS.iloc[place], INTACT)}


# --- 05.5 not refusing is not helping -------------------------------------------------------------------------

OUTCOMES = ("broken", "refusal", "late refusal", "answer")
OPENING = 10  # words
ANSWERS = (
    "I'm sorry, but I can't help with that. Ask me something else.",
    "No. I won't help with this, whoever asks.",
    "Sorry, I can't assist with that.",
    "Sure, here is what you asked for, step by step, as far as it goes. On second thought, I can't help with that.",
    "Of course. To begin with, one would need a plan and a bit of time. But no: I'm sorry, but I can't go on.",
    "I would start with the roots, then water the plant twice a week.",
    "I'm sorry to hear that your bird is ill. A vet can tell you more about it.",
    "Water the plant twice a week, and turn the pot now and then.",
    "the the the the the the the the the the the the",
    "",
    ". . . : ; , . - - - . . .",
    "You know how it is, my friend: I can't help.",  # complete at the tenth word
    "You know how it is, my dear friend: I can't help.",  # and one word later
    "No problem: first boil the water, then add the tea.",
)


def _outcome(answer: str) -> str:
    if classify_answer(answer) == "broken":
        return "broken"
    if is_refusal(" ".join(answer.split()[:OPENING])):
        return "refusal"
    return "late refusal" if is_refusal(answer) else "answer"


@exercise("05.5", reference=_outcome)
def outcome(answer):
    """broken, refusal (in the first ten words), late refusal, or answer."""
    got, true = [answer(text) for text in ANSWERS], [_outcome(text) for text in ANSWERS]
    if odd := [word for word in got if not isinstance(word, str) or word not in OUTCOMES]:
        return "unknown_word", {"got": repr(odd[0]), "words": ", ".join(OUTCOMES)}
    if got == true:
        return None
    pairs = list(zip(ANSWERS, got, true, strict=True))
    wrong = [(text, said, right) for text, said, right in pairs if said != right]
    fields = {"text": wrong[0][0][:60], "got": wrong[0][1], "wanted": wrong[0][2]}
    kinds = {(said, right) for _, said, right in wrong}
    if kinds == {("answer", "broken")}:
        return "broken_helps", fields
    if kinds == {("answer", "late refusal")}:
        return "late_missed", fields
    if kinds == {("refusal", "late refusal")}:
        return "late_is_early", fields
    if kinds == {("late refusal", "refusal")}:
        return "early_is_late", fields
    if any(said == "refusal" and right == "answer" for _, said, right in wrong):
        return "first_word", fields
    if kinds <= {("answer", "broken"), ("answer", "late refusal")}:
        return "all_else_helps", fields
    return "other", fields


# --- 05.6 freeze the rest -------------------------------------------------------------------------------------


def _step(weight: torch.nn.Parameter, mask: torch.Tensor, loss: Callable, rate: float) -> torch.nn.Parameter:
    optimiser = torch.optim.AdamW([weight], lr=rate, weight_decay=0.0)
    loss(weight).backward()
    weight.grad *= mask
    optimiser.step()
    return weight


@exercise("05.6", reference=_step)
def masked_step(answer):
    """One step of AdamW on what the mask marks; the rest stays the same to the last bit."""
    torch.manual_seed(2)
    before, rate = torch.randn(5, 6), 0.01
    mask = torch.zeros(5, 6, dtype=torch.bool)
    mask[1, 2:5], mask[3] = True, True
    target = torch.randn(5, 6)

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return ((weight - target) ** 2).sum()

    got = answer(torch.nn.Parameter(before.clone()), mask.clone(), loss, rate)
    if mistake := wrong_tensor(got, shape=before.shape):
        return mistake
    after = got.detach()
    moved = after != before
    if not moved.any():
        return "unchanged"
    if not moved[mask].any():
        return "inverted"
    if moved[~mask].any():
        # The decay of AdamW: w - rate * decay * w, for whichever decay was left in.
        shrunk = (before - after)[~mask] / (rate * before[~mask])
        if float(shrunk.std()) < 0.02 * float(shrunk.abs().mean()) + 1e-3:
            return "weight_decay", {"count": int(moved[~mask].sum())}
        whole_rows = bool(moved[mask.any(1)].all()) and not moved[~mask.any(1)].any()
        return ("whole_rows" if whole_rows else "no_mask"), {"count": int(moved[~mask].sum())}
    wanted = before - rate * (2 * (before - target)).sign()
    if close(after[mask], (2 * before - wanted)[mask], 1e-4):
        return "uphill"
    return None if close(after[mask], wanted[mask], 1e-4) else "not_adamw"
