"""Wrong answers to the exercises of lesson 02, one for each message, and other right ones."""

from functools import cache

import numpy as np
import torch

from helpers.glassbox import load_glassbox
from helpers.hooks import edit, patch, record
from helpers.prompts import chat_text, tokenize


@cache
def box():
    return load_glassbox("concentrated")


def context(exercise_id):
    """The keyword arguments that the lesson gives to check()."""
    return {"model": box()[0], "tokenizer": box()[1]} if exercise_id == "02.1" else {}


# --- 02.1 ---------------------------------------------------------------------------------------------------


def _carry(at=-1, take=-1, site="resid_post", template=True, turn=False, keep=lambda logits: logits[-1]):
    def answer(model, tokenizer, run, donor, layer):
        run, donor = (donor, run) if turn else (run, donor)
        ids, other = tokenize(tokenizer, chat_text(tokenizer, [run, donor]) if template else [run, donor])
        with record(model, [site], [layer]) as seen:
            model(torch.tensor([other]))
        value = seen[site][layer][0]
        with patch(model, site, layer, value[take], positions=[at]):
            return keep(model(torch.tensor([ids])).logits[0])

    return answer


def _whole(model, tokenizer, run, donor, layer):
    return model(torch.tensor(tokenize(tokenizer, chat_text(tokenizer, [donor])))).logits[0, -1]


def _counted_from_the_start(model, tokenizer, run, donor, layer):
    ids, other = tokenize(tokenizer, chat_text(tokenizer, [run, donor]))
    with record(model, ["resid_post"], [layer]) as seen:
        model(torch.tensor([other]))
    place = min(len(ids), len(other)) - 1
    with patch(model, "resid_post", layer, seen["resid_post"][layer][0, place], positions=[place]):
        return model(torch.tensor([ids])).logits[0, -1]


def _by_an_edit(model, tokenizer, run, donor, layer):
    ids, other = tokenize(tokenizer, chat_text(tokenizer, [run, donor]))
    with record(model, ["resid_post"], [layer], keep=lambda x: x[0, -1]) as seen:
        model(torch.tensor([other]))

    def put(x):
        new = x.clone()
        new[0, len(ids) - 1] = seen["resid_post"][layer]
        return new

    with edit(model, [("resid_post", layer, put)]):
        return model(torch.tensor([ids])).logits[0, -1]


# --- 02.2 ---------------------------------------------------------------------------------------------------


def _p(odds):
    return 1 / (1 + np.exp(-odds))


# --- 02.3 ---------------------------------------------------------------------------------------------------


def _words(needed, enough, line=0.3):
    if needed > line:
        return "both" if enough > line else "needed"
    return "enough" if enough > line else "neither"


# --- 02.4 ---------------------------------------------------------------------------------------------------


def _pairs(rule, start=1):
    """Pairs (i, j) with j >= i + start that fulfil the rule."""

    def answer(joint, line=0.3):
        n = len(joint)
        return [(i, j) for i in range(n) for j in range(i + start, n) if rule(joint, i, j, line)]

    return answer


def _fits(joint, i, j, line):
    return joint[i, j] > line and joint[i, i] <= line and joint[j, j] <= line


# --- 02.5 ---------------------------------------------------------------------------------------------------


def _last(count):
    return lambda a, b, after: list(range(-count(a, b, after), 0))


def _by_cases(a, b, after):
    return [-i for i in range(1, (len(a) if len(a) == len(b) else after) + 1)]


# --- 02.6 ---------------------------------------------------------------------------------------------------


def _added(size, where=lambda x, request: request[:, None], centre=0.0, shape=lambda x: x.shape):
    def answer(x, request, scale, generator):
        noise = torch.randn(shape(x), generator=generator) + centre
        return x + size(x, request, scale) * noise * where(x, request)

    return answer


def _size(x, request, scale):
    return scale * x[request].std()


def _replaced(x, request, scale, generator):
    new = x.clone()
    new[request] = _size(x, request, scale) * torch.randn(x[request].shape, generator=generator)
    return new


def _in_place(x, request, scale, generator):
    x += _size(x, request, scale) * torch.randn(x.shape, generator=generator) * request[:, None]
    return x


def _masked(x, request, scale, generator):
    new = x.clone()
    new[request] += _size(x, request, scale) * torch.randn(x[request].shape, generator=generator)
    return new


WRONG = {
    "02.1": {
        "every_position": lambda c: _carry(keep=lambda logits: logits),
        "unchanged": lambda c: _carry(at=0, take=0),
        "all_exchanged": lambda c: _whole,
        "swapped": lambda c: _carry(turn=True),
        "other_token": lambda c: _carry(at=-2, take=-2),
        "other_value": lambda c: _carry(take=-2),
        "first_value": lambda c: _carry(take=0),
        "before_layer": lambda c: _carry(site="resid_pre"),
        "other_site": lambda c: _carry(site="mlp_out"),
        "no_template": lambda c: _carry(template=False),
        "from_the_start": lambda c: _counted_from_the_start,
        "other": lambda c: _carry(keep=lambda logits: -logits[-1]),
    },
    "02.2": {
        "one_each": lambda c: lambda p, b, d: (p - b) / (d - b),
        "sign_flipped": lambda c: lambda p, b, d: np.mean(b - p) / np.mean(d - b),
        "answers_counted": lambda c: lambda p, b, d: np.mean((p > 0) != (b > 0)),
        "not_divided": lambda c: lambda p, b, d: np.mean(p - b),
        "mean_of_ratios": lambda c: lambda p, b, d: np.mean((p - b) / (d - b)),
        "from_the_donor": lambda c: lambda p, b, d: np.mean(d - p) / np.mean(d - b),
        "over_the_donor": lambda c: lambda p, b, d: np.mean(p - b) / np.mean(d),
        "probabilities": lambda c: lambda p, b, d: np.mean(_p(p) - _p(b)) / np.mean(_p(d) - _p(b)),
        "absolute": lambda c: lambda p, b, d: np.mean(np.abs(p - b)) / np.mean(np.abs(d - b)),
        "other": lambda c: lambda p, b, d: np.mean(p) / np.mean(d) + 3.0,
    },
    "02.3": {
        "unknown_word": lambda c: lambda needed, enough, line=0.3: needed > line,
        "one_direction": lambda c: lambda needed, enough, line=0.3: "both" if needed > line else "neither",
        "either": lambda c: lambda needed, enough, line=0.3: "both" if max(needed, enough) > line else "neither",
        "swapped": lambda c: lambda needed, enough, line=0.3: _words(enough, needed, line),
        "size": lambda c: lambda needed, enough, line=0.3: _words(abs(needed), abs(enough), line),
        "line_ignored": lambda c: lambda needed, enough, line=0.3: _words(needed, enough),
        "on_the_line": lambda c: lambda needed, enough, line=0.3: _words(needed, enough, line - 1e-9),
        "other": lambda c: lambda needed, enough, line=0.3: "neither",
    },
    "02.4": {
        "not_pairs": lambda c: lambda joint, line=0.3: [0, 1, 2],
        "with_itself": lambda c: _pairs(lambda joint, i, j, line: joint[i, j] > line, start=0),
        "both_orders": lambda c: (
            lambda joint, line=0.3: [(i, j) for i in range(6) for j in range(6) if i != j and _fits(joint, i, j, line)]
        ),
        "order_turned": lambda c: lambda joint, line=0.3: [(j, i) for i, j in _pairs(_fits)(joint, line)],
        "one_does_it_alone": lambda c: _pairs(lambda joint, i, j, line: joint[i, j] > line),
        "line_ignored": lambda c: _pairs(lambda joint, i, j, line: _fits(joint, i, j, 0.3)),
        "any_surplus": lambda c: _pairs(
            lambda joint, i, j, line: joint[i, j] > joint[i, i] + joint[j, j] and max(joint[i, i], joint[j, j]) <= line
        ),
        "missed": lambda c: lambda joint, line=0.3: _pairs(_fits)(joint, line)[:-1],
    },
    "02.5": {
        "no_numbers": lambda c: lambda a, b, after: list(zip(a, b, strict=False)),
        "none_left": lambda c: lambda a, b, after: list(range(-len(a), 0)) if len(a) == len(b) else [],
        "from_the_start": lambda c: lambda a, b, after: list(range(min(len(a), len(b)))),
        "drops_equal": lambda c: _last(lambda a, b, after: after),
        "misaligned": lambda c: _last(lambda a, b, after: min(len(a), len(b))),
        "beyond": lambda c: _last(lambda a, b, after: max(len(a), len(b))),
        "too_few": lambda c: _last(lambda a, b, after: len(a) if len(a) == len(b) else after - 1),
        "other": lambda c: _last(lambda a, b, after: len(a) - 1 if len(a) == len(b) else after),
    },
    "02.6": {
        "in_place": lambda c: _in_place,
        "unchanged": lambda c: lambda x, request, scale, generator: x.clone(),
        "template_touched": lambda c: _added(lambda x, r, scale: scale, where=lambda x, r: 1.0),
        "one_number": lambda c: _added(_size, shape=lambda x: (len(x), 1)),
        "replaced": lambda c: _replaced,
        "scale_alone": lambda c: _added(lambda x, r, scale: scale),
        "scale_ignored": lambda c: _added(lambda x, r, scale: x[r].std()),
        "spread_of_all": lambda c: _added(lambda x, r, scale: scale * x.std()),
        "variance": lambda c: _added(lambda x, r, scale: scale * x[r].var()),
        "not_centred": lambda c: _added(_size, centre=1.0),
        "generator_ignored": lambda c: lambda x, r, scale, generator: _added(_size)(x, r, scale, None),
        "other": lambda c: _added(lambda x, r, scale: 2 * scale * x[r].std()),
    },
}

RIGHT = {
    "02.1": [lambda c: _carry(), lambda c: _by_an_edit],
    "02.2": [lambda c: lambda p, b, d: (p.mean() - b.mean()) / (d.mean() - b.mean())],
    "02.3": [lambda c: _words],
    "02.4": [lambda c: _pairs(_fits), lambda c: lambda joint, line=0.3: _pairs(_fits)(joint, line)[::-1]],
    "02.5": [lambda c: _by_cases],
    "02.6": [lambda c: _added(_size), lambda c: _masked],
}
