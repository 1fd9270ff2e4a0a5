"""Wrong answers to the exercises of lesson 01, one for each message, and other right ones."""

import random
from functools import cache

import numpy as np
import torch

from helpers.glassbox import glassbox_prompts, load_glassbox
from helpers.hooks import record
from helpers.prompts import chat_text, token_batches, tokenize


@cache
def box():
    return load_glassbox("concentrated")


def context(exercise_id):
    """The keyword arguments that the lesson gives to check()."""
    return {"model": box()[0], "tokenizer": box()[1]} if exercise_id == "01.1" else {}


# --- 01.1 ---------------------------------------------------------------------------------------------------


def _one_by_one(site="neurons", at=lambda x: x[-1], template=True, shift=0):
    def answer(model, tokenizer, prompts, layer):
        out = []
        for row in tokenize(tokenizer, chat_text(tokenizer, prompts) if template else prompts):
            with record(model, [site], [layer + shift]) as seen:
                model(torch.tensor([row]))
            out.append(at(seen[site][layer + shift][0]))
        return torch.stack(out)

    return answer


def _longest_first(model, tokenizer, prompts, layer):
    (batch,) = token_batches(tokenizer, prompts)
    with record(model, ["neurons"], [layer]) as seen:
        model(**batch.inputs())
    return seen["neurons"][layer][:, -1]


def _in_order(model, tokenizer, prompts, layer):
    (batch,) = token_batches(tokenizer, prompts)
    out = torch.empty(len(prompts), 256)
    out[batch.order] = _longest_first(model, tokenizer, prompts, layer)
    return out


def _every_position(model, tokenizer, prompts, layer):
    (batch,) = token_batches(tokenizer, prompts)
    with record(model, ["neurons"], [layer]) as seen:
        model(**batch.inputs())
    return seen["neurons"][layer]


# --- 01.2 ---------------------------------------------------------------------------------------------------


def _lists(split="train", test="test", n=96, tests=32, turn=lambda lists: lists):
    def answer():
        choose, tested = glassbox_prompts("pairs", n=n, split=split), glassbox_prompts("pairs", n=tests, split=test)
        return turn({
            "unsafe": [p.harmful for p in choose], "safe": [p.harmless for p in choose],
            "test_unsafe": [p.harmful for p in tested], "test_safe": [p.harmless for p in tested],
        })  # fmt: skip

    return answer


def _questions(lists):
    return lists | {"safe": [q.question for q in glassbox_prompts("capability", n=96)]}


def _shuffled(lists):
    return lists | {"safe": random.Random(0).sample(lists["safe"], len(lists["safe"]))}


def _swapped(lists):
    return lists | {"unsafe": lists["safe"], "safe": lists["unsafe"]}


# --- 01.3 ---------------------------------------------------------------------------------------------------


def _over(spread, sign=1):
    return lambda a, b: sign * (a.mean(0) - b.mean(0)) / spread(a, b)


def _within(a, b):
    return ((a.var(0) + b.var(0)) / 2).sqrt()


# --- 01.4 ---------------------------------------------------------------------------------------------------


def _fine(table, n, kl=True, induce=True, layer=True):
    keep = table.bypass < np.inf
    keep &= (table.kl <= 0.1) | (not kl)
    keep &= (table.induce > 0) | (not induce)
    return table[keep & ((table.layer < 0.8 * n) | (not layer))]


# --- 01.6 ---------------------------------------------------------------------------------------------------


def _written(values, first=True, copy=True):
    """values(means, positions) -> [position, neuron], written everywhere, or everywhere but at the first position."""

    def answer(activation, means):
        new = activation.clone() if copy else activation
        start = 0 if first else 1
        new[:, start:] = values(means, activation.shape[1])[start:]
        return new

    return answer


def _from_end(means, length):
    return means[:length].flip(0)


def _in_a_loop(activation, means):
    new = activation.clone()
    for position in range(1, activation.shape[1]):
        new[:, position] = means[activation.shape[1] - 1 - position]
    return new


# --- 01.7 ---------------------------------------------------------------------------------------------------


def _drawn(pool, replace=False):
    """pool(activity, layer, neuron, chosen) -> candidates (layer, neuron); one is drawn for each chosen neuron."""

    def answer(chosen, activity, rng):
        drawn = []
        for layer, neuron in chosen:
            free = [p for p in pool(activity, layer, neuron, set(chosen)) if replace or p not in drawn]
            drawn.append(free[rng.integers(len(free))])
        return drawn

    return answer


def _layer(activity, layer, neuron, chosen):
    return [(layer, n) for n in range(activity.shape[1]) if (layer, n) not in chosen]


def _near(activity, layer, neuron, chosen, width=20):
    free = sorted(_layer(activity, layer, neuron, chosen), key=lambda p: abs(activity[p] - activity[layer, neuron]))
    return free[:width]


def _any_layer(activity, layer, neuron, chosen):
    free = [(at, n) for at in range(len(activity)) for n in range(activity.shape[1]) if (at, n) not in chosen]
    return sorted(free, key=lambda p: abs(activity[p] - activity[layer, neuron]))[:40]


def _always(chosen, activity, rng):
    return _drawn(lambda *a: _near(*a, width=21))(chosen, activity, np.random.default_rng(0))


WRONG = {
    "01.1": {
        "residual_dimensions": lambda c: _one_by_one("mlp_out", lambda x: x.mean(0), template=False),
        "every_position": lambda c: _every_position,
        "order_lost": lambda c: _longest_first,
        "mean_over_tokens": lambda c: _one_by_one(at=lambda x: x.mean(0)),
        "first_position": lambda c: _one_by_one(at=lambda x: x[0]),
        "no_template": lambda c: _one_by_one(template=False),
        "mean_without_template": lambda c: _one_by_one(at=lambda x: x.mean(0), template=False),
        "wrong_layer": lambda c: _one_by_one(shift=-1),
        "other": lambda c: _one_by_one(at=lambda x: x[-1].abs() + 0.1),
    },
    "01.2": {
        "wrong_keys": lambda c: lambda: (["boil acid"], ["boil milk"]),
        "no_texts": lambda c: _lists(turn=lambda x: x | {"safe": glassbox_prompts("pairs", n=96, split="train")}),
        "swapped": lambda c: _lists(turn=_swapped),
        "unmatched": lambda c: _lists(turn=_questions),
        "order_lost": lambda c: _lists(turn=_shuffled),
        "topics_seen": lambda c: _lists(split=None),
        "too_few": lambda c: _lists(n=8),
        "too_few_tests": lambda c: _lists(tests=2),
    },
    "01.3": {
        "sign_flipped": lambda c: _over(_within, -1),
        "not_standardised": lambda c: lambda a, b: a.mean(0) - b.mean(0),
        "variance": lambda c: _over(lambda a, b: _within(a, b) ** 2),
        "standard_error": lambda c: _over(lambda a, b: _within(a, b) * (2 / len(a)) ** 0.5),
        "all_together": lambda c: _over(lambda a, b: torch.cat([a, b]).std(0)),
        "one_group": lambda c: _over(lambda a, b: b.std(0)),
        "absolute": lambda c: lambda a, b: ((a.mean(0) - b.mean(0)) / _within(a, b)).abs(),
        "mean_of_spreads": lambda c: _over(lambda a, b: (a.std(0) + b.std(0)) / 2),
        "spreads_added": lambda c: _over(lambda a, b: a.std(0) + b.std(0)),
        "other": lambda c: _over(lambda a, b: 1 + _within(a, b)),
    },
    "01.4": {
        "row": lambda c: lambda t, n: t.loc[_fine(t, n).bypass.idxmin()],
        "several": lambda c: lambda t, n: _fine(t, n),
        "damage_ignored": lambda c: lambda t, n: _fine(t, n, kl=False).bypass.idxmin(),
        "induce_ignored": lambda c: lambda t, n: _fine(t, n, induce=False).bypass.idxmin(),
        "late_layer": lambda c: lambda t, n: _fine(t, n, layer=False).bypass.idxmin(),
        "highest": lambda c: lambda t, n: _fine(t, n).bypass.idxmax(),
        "least_damage": lambda c: lambda t, n: _fine(t, n, kl=False).kl.idxmin(),
        "strongest_induce": lambda c: lambda t, n: _fine(t, n).induce.idxmax(),
        "position_for_label": lambda c: lambda t, n: list(t.index).index(_fine(t, n).bypass.idxmin()),
        "layer_for_label": lambda c: lambda t, n: int(t.layer[_fine(t, n).bypass.idxmin()]),
        "other": lambda c: lambda t, n: 34,
    },
    "01.5": {
        "not_projected": lambda c: lambda d, w, r: d[..., None] * w,
        "summed": lambda c: lambda d, w, r: (d * (w @ r)).sum(-1),
        "sign_flipped": lambda c: lambda d, w, r: -d * (w @ r),
        "no_difference": lambda c: lambda d, w, r: w @ r,
        "column_length": lambda c: lambda d, w, r: d * w.norm(dim=-1),
        "cosine": lambda c: lambda d, w, r: d * torch.cosine_similarity(w, r, dim=-1),
        "absolute": lambda c: lambda d, w, r: (d * (w @ r)).abs(),
        "size_of_difference": lambda c: lambda d, w, r: d.abs() * (w @ r),
        "size_of_write": lambda c: lambda d, w, r: d * (w @ r).abs(),
        "difference_alone": lambda c: lambda d, w, r: d,
        "other": lambda c: lambda d, w, r: d + w @ r,
    },
    "01.6": {
        "last_everywhere": lambda c: lambda activation, means: means[0].expand_as(activation),
        "sink_touched": lambda c: _written(_from_end),
        "from_the_start": lambda c: _written(lambda means, length: means[:length], first=False),
        "shifted": lambda c: _written(
            lambda means, length: torch.cat([means[:1], means[1:length].flip(0)]), first=False
        ),
        "pooled": lambda c: _written(lambda means, length: means.mean(0).expand(length, -1), first=False),
        "zero": lambda c: lambda activation, means: torch.zeros_like(activation),
        "in_place": lambda c: _written(_from_end, first=False, copy=False),
        "unchanged": lambda c: lambda activation, means: activation.clone(),
        "other": lambda c: _written(lambda means, length: -means[:length].flip(0), first=False),
    },
    "01.7": {
        "no_places": lambda c: lambda chosen, activity, rng: [3, 4, 5],
        "wrong_number": lambda c: lambda chosen, activity, rng: _drawn(_near)(chosen, activity, rng)[:-1],
        "twice": lambda c: lambda chosen, activity, rng: [_drawn(_near)(chosen, activity, rng)[0]] * len(chosen),
        "chosen_again": lambda c: lambda chosen, activity, rng: list(chosen),
        "other_layers": lambda c: _drawn(_any_layer),
        "not_matched": lambda c: _drawn(_layer),
        "always_the_same": lambda c: _always,
    },
}

RIGHT = {
    "01.1": [lambda c: _one_by_one(), lambda c: _in_order],
    "01.2": [lambda c: _lists(), lambda c: _lists("method", "validation", n=64)],
    "01.3": [
        lambda c: _over(_within),
        lambda c: _over(lambda a, b: ((a.var(0, correction=0) + b.var(0, correction=0)) / 2) ** 0.5),
    ],
    "01.4": [lambda c: lambda t, n: _fine(t, n).sort_values("bypass").index[0]],
    "01.5": [lambda c: lambda d, w, r: torch.einsum("ln,lnd,d->ln", d, w, r)],
    "01.6": [lambda c: _written(_from_end, first=False), lambda c: _in_a_loop],
    "01.7": [lambda c: _drawn(_near), lambda c: _drawn(lambda *a: _near(*a, width=21))],
}
