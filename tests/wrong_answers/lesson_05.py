"""Wrong answers to the exercises of lesson 05, one for each message, and other right ones."""

import torch

from helpers.checks import lesson_05 as course
from helpers.refusal import classify_answer, is_refusal


def context(exercise_id):
    """The keyword arguments that the lesson gives to check(): none in this lesson."""
    return {}


# --- 05.1 ---------------------------------------------------------------------------------------------------


def _edit(site="neurons", shift=0, rows=slice(1, None), columns=None, factor=lambda s: 1 - s, copy=True):
    """An answer that multiplies these neurons by factor(strength), at these rows."""

    def answer(layer, neurons, strength):
        chosen = neurons if columns is None else columns

        def function(activation):
            new = activation.clone() if copy else activation
            new[:, rows, chosen] = factor(strength) * new[:, rows, chosen]
            return new

        return site, layer + shift, function

    return answer


def _silent(layer, neurons, strength):
    def function(activation):
        activation[:, 1:, neurons] *= 1 - strength

    return "neurons", layer, function


def _by_a_mask(layer, neurons, strength):
    def function(activation):
        goal = torch.ones_like(activation)
        goal[:, 1:, neurons] = 1 - strength
        return activation * goal

    return "neurons", layer, function


# --- 05.3 ---------------------------------------------------------------------------------------------------


def _smallest(choose="validation", report="test", turn=lambda count, share: (count, share), order=1):
    def answer(refused, counts):
        for count in counts[::order]:
            if refused(choose, count) < 0.1:
                return turn(count, refused(report, count))
        return None, refused(report, counts[-1])

    return answer


def _measured_all(refused, counts):
    shares = {count: (refused("validation", count), refused("test", count)) for count in counts}
    fine = [count for count in counts if shares[count][0] < 0.1]
    return (fine[0], shares[fine[0]][1]) if fine else (None, shares[counts[-1]][1])


def _always_some(refused, counts):
    fine = [count for count in counts if refused("validation", count) < 0.1] or counts[-1:]
    return fine[0], refused("test", fine[0])


def _by_comprehension(refused, counts):
    count = next((count for count in counts if refused("validation", count) < 0.1), None)
    return count, refused("test", count or counts[-1])


# --- 05.5 ---------------------------------------------------------------------------------------------------


def _first_word(answer):
    if classify_answer(answer) == "broken":
        return "broken"
    return "refusal" if answer.split()[0].strip(",.:") in ("I", "I'm", "Sorry", "No") else "answer"


def _outcome(broken="broken", late="late refusal", words=10):
    def answer(text):
        if classify_answer(text) == "broken":
            return broken
        if is_refusal(" ".join(text.split()[:words])):
            return "refusal"
        return late if is_refusal(text) else "answer"

    return answer


# --- 05.6 ---------------------------------------------------------------------------------------------------


def _step(decay=0.0, gradient=lambda grad, mask: grad * mask, optimiser=torch.optim.AdamW, **options):
    if optimiser is torch.optim.AdamW:
        options["weight_decay"] = decay

    def answer(weight, mask, loss, rate):
        chosen = optimiser([weight], lr=rate, **options)
        loss(weight).backward()
        weight.grad = gradient(weight.grad, mask)
        chosen.step()
        return weight

    return answer


def _put_back(weight, mask, loss, rate):
    before = weight.detach().clone()
    optimiser = torch.optim.AdamW([weight], lr=rate, weight_decay=0.0)
    loss(weight).backward()
    optimiser.step()
    with torch.no_grad():
        weight.copy_(torch.where(mask, weight, before))
    return weight


WRONG = {
    "05.1": {
        "residual_dimensions": lambda c: _edit("mlp_out", rows=slice(None), factor=lambda s: 0.0, copy=False),
        "no_edit": lambda c: lambda layer, neurons, strength: lambda activation: activation,
        "wrong_site": lambda c: _edit("z"),
        "wrong_layer": lambda c: _edit(shift=1),
        "nothing_given_back": lambda c: _silent,
        "in_place": lambda c: _edit(copy=False),
        "sink_touched": lambda c: _edit(rows=slice(None)),
        "strength_ignored": lambda c: _edit(factor=lambda s: 0.0),
        "backwards": lambda c: _edit(factor=lambda s: s),
        "last_only": lambda c: _edit(rows=slice(-1, None)),
        "all_neurons": lambda c: _edit(columns=slice(None)),
        "unchanged": lambda c: _edit(factor=lambda s: 1.0),
        "other": lambda c: _edit(factor=lambda s: 1 + s),
    },
    "05.2": {
        "not_normalised": lambda c: lambda w, d: w - torch.outer(d, d @ w),
        "normalised_once": lambda c: lambda w, d: w - torch.outer(d / d.norm(), d @ w),
        "reads_instead": lambda c: lambda w, d: w - torch.outer(w @ (d / d.norm()), d / d.norm()),
        "only_the_part": lambda c: lambda w, d: torch.outer(d, d @ w) / d.norm() ** 2,
        "added": lambda c: lambda w, d: w + torch.outer(d, d @ w) / d.norm() ** 2,
        "half": lambda c: lambda w, d: w - torch.outer(d, d @ w) / d.norm() ** 2 / 2,
        "in_place": lambda c: lambda w, d: w.sub_(torch.outer(d, d @ w) / d.norm() ** 2),
        "unchanged": lambda c: lambda w, d: w.clone(),
        "other": lambda c: lambda w, d: w - w.mean(0),
    },
    "05.3": {
        "no_pair": lambda c: lambda refused, counts: 64,
        "swapped": lambda c: _smallest(turn=lambda count, share: (share, count)),
        "no_count": lambda c: _smallest(turn=lambda count, share: (count + 1, share)),
        "chosen_on_test": lambda c: _smallest("test"),
        "chosen_on_method": lambda c: _smallest("method"),
        "largest": lambda c: _smallest(order=-1),
        "reported_elsewhere": lambda c: _smallest(report="validation"),
        "wrong_share": lambda c: _smallest(turn=lambda count, share: (count, 1 - share)),
        "peeked": lambda c: _measured_all,
        "none_enough": lambda c: _always_some,
    },
    "05.4": {
        "unknown_word": lambda c: lambda row, intact: row.refused < 0.5,
        "refusal_alone": lambda c: course._without_rule("KL", "perplexity", "chance"),
        "damage_ignored": lambda c: course._without_rule("KL", "perplexity"),
        "kl_ignored": lambda c: course._without_rule("KL"),
        "perplexity_ignored": lambda c: course._without_rule("perplexity"),
        "perplexity_absolute": lambda c: course._absolute,
        "chance_ignored": lambda c: course._without_rule("chance"),
        "chance_first": lambda c: course._chance_first,
        "nothing_ignored": lambda c: course._without_rule("nothing"),
        "other": lambda c: lambda row, intact: "effect",
    },
    "05.5": {
        "unknown_word": lambda c: lambda answer: is_refusal(answer),
        "first_word": lambda c: _first_word,
        "broken_helps": lambda c: _outcome(broken="answer"),
        "late_missed": lambda c: _outcome(late="answer"),
        "late_is_early": lambda c: _outcome(words=1000),
        "early_is_late": lambda c: _outcome(words=2),
        "all_else_helps": lambda c: _outcome(broken="answer", late="answer"),
        "other": lambda c: lambda answer: "answer",
    },
    "05.6": {
        "weight_decay": lambda c: _step(decay=0.01),
        "no_mask": lambda c: _step(gradient=lambda grad, mask: grad),
        "inverted": lambda c: _step(gradient=lambda grad, mask: grad * ~mask),
        "whole_rows": lambda c: _step(gradient=lambda grad, mask: grad * mask.any(1, keepdim=True)),
        "unchanged": lambda c: _step(gradient=lambda grad, mask: grad * 0),
        "uphill": lambda c: _step(gradient=lambda grad, mask: -grad * mask),
        "not_adamw": lambda c: _step(optimiser=torch.optim.SGD),
    },
}

RIGHT = {
    "05.1": [lambda c: _edit(), lambda c: _by_a_mask],
    "05.2": [
        lambda c: lambda w, d: w - torch.outer(d, d @ w) / (d @ d),
        lambda c: lambda w, d: (torch.eye(len(d)) - torch.outer(d, d) / d.norm() ** 2) @ w,
    ],
    "05.3": [lambda c: _smallest(), lambda c: _by_comprehension],
    "05.4": [lambda c: course._without_rule()],
    "05.5": [lambda c: _outcome()],
    "05.6": [lambda c: _step(), lambda c: _put_back],
}
