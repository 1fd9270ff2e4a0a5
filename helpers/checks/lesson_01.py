"""Checks of lesson 01 (the text of every message is in `quizzes/01_activation_differences.yaml`)."""

import numpy as np
import pandas as pd
import torch

from helpers.checks import exercise, wrong_tensor
from helpers.directions import LAST_SHARE, MAX_KL
from helpers.glassbox import glassbox_prompts, language, law
from helpers.hooks import read, record
from helpers.models import dims_of
from helpers.prompts import chat_text, tokenize


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-3) -> bool:
    """Equal shape, and equal numbers up to `tolerance` of their size."""
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=tolerance, atol=tolerance)


# --- 01.1 the neurons at the last token of the template -------------------------------------------------------


def _neurons(model, tokenizer, prompts, layer: int) -> torch.Tensor:
    return read(model, tokenizer, prompts, ["neurons"], [layer])["neurons"][:, 0]


def _variants(model, tokenizer, prompts, layer: int) -> dict[str, torch.Tensor]:
    """What the usual mistakes give, from one forward a prompt: {name: [prompt, width]}."""
    texts = {"template": chat_text(tokenizer, prompts), "bare": list(prompts)}
    found: dict[str, list] = {}
    for form, rows in texts.items():
        for row in tokenize(tokenizer, rows):
            with torch.no_grad(), record(model, ["neurons"]) as seen:
                model(torch.tensor([row]))
            for name, x in (("", seen["neurons"][layer][0]), ("next", seen["neurons"][layer - 1][0])):
                for how, value in (("last", x[-1]), ("mean", x.mean(0)), ("first", x[0]), ("no_sink", x[1:].mean(0))):
                    found.setdefault(f"{form} {how} {name}".strip(), []).append(value)
    return {name: torch.stack(values) for name, values in found.items()}


@exercise("01.1", reference=_neurons)
def neurons_at_the_last_token(answer, model, tokenizer):
    """[prompt, d_mlp] of one layer, in the chat template, at its last token, in the order of the prompts."""
    layer, width = 3, dims_of(model).d_mlp
    prompts = ["wash milk", *glassbox_prompts("harmful", n=6, split="validation")]
    got, true = answer(model, tokenizer, list(prompts), layer), _neurons(model, tokenizer, prompts, layer)
    if isinstance(got, torch.Tensor) and got.dim() and got.shape[-1] == dims_of(model).d_model:
        return "residual_dimensions", {"got": got.shape[-1], "wanted": width}
    if isinstance(got, torch.Tensor) and got.dim() == 3 and got.shape[0] == len(prompts):
        return "every_position", {"got": list(got.shape)}
    if mistake := wrong_tensor(got, shape=true.shape):
        return mistake
    if close(got, true):
        return None
    if close(got.sort(0).values, true.sort(0).values):
        return "order_lost"
    kinds = _variants(model, tokenizer, prompts, layer)
    messages = {
        "template mean": "mean_over_tokens",
        "template no_sink": "mean_over_tokens",
        "template first": "first_position",
        "template last next": "wrong_layer",
    }
    for name, wrong in kinds.items():
        if close(got, wrong):
            bare = "mean_without_template" if name in ("bare mean", "bare no_sink") else "no_template"
            return messages.get(name, bare if name.startswith("bare") else "other")
    return "other"


# --- 01.2 which prompts ---------------------------------------------------------------------------------------

LISTS = ("unsafe", "safe", "test_unsafe", "test_safe")


def _experiment() -> dict[str, list[str]]:
    choose, test = glassbox_prompts("pairs", n=96, split="train"), glassbox_prompts("pairs", n=32, split="test")
    return {
        "unsafe": [p.harmful for p in choose],
        "safe": [p.harmless for p in choose],
        "test_unsafe": [p.harmful for p in test],
        "test_safe": [p.harmless for p in test],
    }


def topic(request: str) -> tuple[str, ...]:
    """The marked words of a box's request."""
    marked = {w for d in language()["domains"].values() for w in (*d["verbs"], *d["objects"])}
    return tuple(word for word in request.split() if word in marked)


def _twins(one: str, other: str) -> bool:
    a, b = one.split(), other.split()
    return len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1


@exercise("01.2", reference=_experiment)
def experiment(answer):
    """Four lists: matched pairs to choose by, and others, of topics never seen, to test on."""
    got = answer()
    if not isinstance(got, dict) or set(got) != set(LISTS):
        return "wrong_keys", {"wanted": ", ".join(LISTS)}
    for name in LISTS:
        if not isinstance(got[name], list | tuple) or not got[name] or not all(isinstance(p, str) for p in got[name]):
            return "no_texts", {"name": name}
    for unsafe, safe in (("unsafe", "safe"), ("test_unsafe", "test_safe")):
        if not any(map(law, got[unsafe])) and any(map(law, got[safe])):
            return "swapped", {"name": unsafe}
        pairs = list(zip(got[unsafe], got[safe], strict=False))
        matched = sum(_twins(a, b) for a, b in pairs) / max(len(got[unsafe]), len(got[safe]))
        if matched < 1:
            anywhere = sum(any(_twins(a, b) for b in got[safe]) for a in got[unsafe]) / len(got[unsafe])
            return ("order_lost" if anywhere == 1 else "unmatched"), {"share": matched, "name": unsafe}
    seen = {topic(request) for request in got["unsafe"]}
    again = sorted({topic(request) for request in got["test_unsafe"]} & seen)
    if again:
        return "topics_seen", {"count": len(again), "example": " ".join(again[0])}
    if len(got["unsafe"]) < 64:
        return "too_few", {"count": len(got["unsafe"])}
    if len(got["test_unsafe"]) < 32:
        return "too_few_tests", {"count": len(got["test_unsafe"])}
    return None


# --- 01.3 standardised effect ---------------------------------------------------------------------------------


def _effect_size(unsafe: torch.Tensor, safe: torch.Tensor) -> torch.Tensor:
    within = ((unsafe.var(0) + safe.var(0)) / 2).sqrt().clamp(min=1e-6)
    return (unsafe.mean(0) - safe.mean(0)) / within


@exercise("01.3", reference=_effect_size)
def effect_size(answer):
    """The difference in standard deviations within the groups, [layer, d_mlp]."""
    torch.manual_seed(0)
    scale = torch.logspace(-1, 1.5, 7)
    unsafe = torch.randn(64, 3, 7) * scale + torch.linspace(1, 3, 7) * scale
    safe = torch.randn(64, 3, 7) * scale * 3  # so that it shows how the two spreads are brought together
    safe[:, 0] += 6 * scale  # in one layer the safe prompts lie higher
    got, true = answer(unsafe.clone(), safe.clone()), _effect_size(unsafe, safe)
    if mistake := wrong_tensor(got, shape=true.shape):
        return mistake
    if close(got, true, 0.04):
        return None
    difference, within = unsafe.mean(0) - safe.mean(0), (unsafe.var(0) + safe.var(0)) / 2
    known = {
        "sign_flipped": -true,
        "not_standardised": difference,
        "variance": difference / within,
        "standard_error": difference / (within * 2 / 64).sqrt(),
        "all_together": difference / torch.cat([unsafe, safe]).std(0),
        "one_group": difference / safe.std(0),
        "one_group_unsafe": difference / unsafe.std(0),
        "absolute": true.abs(),
        "mean_of_spreads": 2 * difference / (unsafe.std(0) + safe.std(0)),
        "spreads_added": difference / (unsafe.std(0) + safe.std(0)),
    }
    key = next((key for key, wrong in known.items() if close(got, wrong, 0.04)), "other")
    return "one_group" if key == "one_group_unsafe" else key


# --- 01.4 which candidate direction ---------------------------------------------------------------------------


def _choice(table: pd.DataFrame, n_layers: int):
    fine = table[(table.kl <= MAX_KL) & (table.induce > 0) & (table.layer < LAST_SHARE * n_layers)]
    return fine.bypass.idxmin()


TABLE = pd.DataFrame(
    {
        "layer": [2, 4, 6, 8, 9, 5, 7],
        "position": [-1] * 7,
        "bypass": [3.0, -3.0, -6.0, -9.0, -7.0, -8.0, 2.5],
        "kl": [0.03, 0.01, 0.09, 0.06, 0.03, 2.40, 0.02],
        "induce": [0.5, 1.5, 2.5, 3.0, 2.0, 1.0, 3.5],
    },
    index=[30, 31, 32, 33, 34, 35, 36],
)
TABLE.loc[37] = [3, -1, -6.5, 0.05, -2.0]


@exercise("01.4", reference=_choice)
def choice_of_direction(answer):
    """The label of the row with the lowest bypass among those that pass all three conditions."""
    n_layers = 10
    got, true = answer(TABLE.copy(), n_layers), _choice(TABLE, n_layers)
    if isinstance(got, pd.Series) and got.name in TABLE.index:
        return "row"
    if isinstance(got, pd.DataFrame | pd.Series | pd.Index | np.ndarray) and len(got) != 1:
        return "several", {"got": len(got)}
    if isinstance(got, bool) or not isinstance(got, int | np.integer | float | np.floating):
        return "wrong_type", {"wanted": "the label of one row", "got": f"of type {type(got).__name__}"}
    if got == true:
        return None
    small, induces, early = TABLE.kl <= MAX_KL, TABLE.induce > 0, TABLE.layer < LAST_SHARE * n_layers
    known = {
        "damage_ignored": TABLE[induces & early].bypass.idxmin(),
        "induce_ignored": TABLE[small & early].bypass.idxmin(),
        "late_layer": TABLE[small & induces].bypass.idxmin(),
        "highest": TABLE[small & induces & early].bypass.idxmax(),
        "least_damage": TABLE[induces & early].kl.idxmin(),
        "strongest_induce": TABLE[small & early].induce.idxmax(),
    }
    if got == list(TABLE.index).index(true):
        return "position_for_label"
    if got == TABLE.layer[true]:
        return "layer_for_label"
    return next((key for key, wrong in known.items() if got == wrong), "other"), {"got": got}


# --- 01.5 who is heard ----------------------------------------------------------------------------------------


def _heard(difference: torch.Tensor, columns: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    return difference * (columns @ direction)


@exercise("01.5", reference=_heard)
def heard(answer):
    """Difference times what the neuron's column writes onto the direction, [layer, d_mlp]."""
    torch.manual_seed(1)
    difference, columns = torch.randn(3, 5), torch.randn(3, 5, 8) * 2
    direction = torch.nn.functional.normalize(torch.randn(8), dim=0)
    got = answer(difference.clone(), columns.clone(), direction.clone())
    true, length = _heard(difference, columns, direction), columns.norm(dim=-1)
    if isinstance(got, torch.Tensor):
        if got.shape == columns.shape:
            return "not_projected", {"got": list(got.shape)}
        if got.shape == (3,) or got.dim() == 0:
            return "summed", {"got": list(got.shape)}
    if mistake := wrong_tensor(got, shape=true.shape):
        return mistake
    if close(got, true):
        return None
    known = {
        "sign_flipped": -true,
        "no_difference": columns @ direction,
        "column_length": difference * length,
        "cosine": true / length,
        "absolute": true.abs(),
        "size_of_difference": difference.abs() * (columns @ direction),
        "size_of_write": difference * (columns @ direction).abs(),
        "difference_alone": difference,
    }
    return next((key for key, wrong in known.items() if close(got, wrong)), "other")


# --- 01.6 a mean for each place -------------------------------------------------------------------------------


def _replaced(activation: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    new = activation.clone()
    new[:, 1:] = means[: activation.shape[1] - 1].flip(0)
    return new


@exercise("01.6", reference=_replaced)
def own_mean(answer):
    """Every position but 0 holds the mean of its own distance from the end."""
    torch.manual_seed(2)
    activation, means = torch.randn(3, 6, 4), torch.randn(9, 4) * 2
    given = activation.clone()
    got, true = answer(given, means.clone()), _replaced(activation, means)
    if mistake := wrong_tensor(got, shape=true.shape):
        return mistake
    if not torch.equal(given, activation):
        return "in_place"
    if close(got, true):
        return None

    def with_sink(new: torch.Tensor) -> torch.Tensor:
        new = new.clone()
        new[:, 0] = activation[:, 0]
        return new

    everywhere = means[0].expand_as(activation)
    from_end, from_start = (x.expand_as(activation) for x in (means[:6].flip(0), means[:6]))
    pooled = means.mean(0).expand_as(activation)
    shifted = activation.clone()
    shifted[:, 1:] = means[1:6].flip(0)
    known = {
        "last_everywhere": everywhere,
        "last_everywhere_but_first": with_sink(everywhere),
        "sink_touched": from_end,
        "from_the_start": with_sink(from_start),
        "from_the_start_and_sink": from_start,
        "shifted": shifted,
        "pooled": with_sink(pooled),
        "pooled_and_sink": pooled,
        "zero": torch.zeros_like(activation),
        "zero_but_first": with_sink(torch.zeros_like(activation)),
        "unchanged": activation,
    }
    same = {
        "last_everywhere_but_first": "last_everywhere",
        "from_the_start_and_sink": "from_the_start",
        "pooled_and_sink": "pooled",
        "zero_but_first": "zero",
    }
    key = next((key for key, wrong in known.items() if close(got, wrong)), "other")
    return same.get(key, key)


# --- 01.7 a fair control --------------------------------------------------------------------------------------


def _control(chosen: list[tuple[int, int]], activity: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    taken, drawn = set(chosen), []
    for layer, neuron in chosen:
        free = [n for n in range(activity.shape[1]) if (layer, n) not in taken]
        near = sorted(free, key=lambda n: abs(activity[layer, n] - activity[layer, neuron]))[:10]
        drawn.append((layer, near[rng.integers(len(near))]))
        taken.add(drawn[-1])
    return drawn


def _log_distance(drawn, chosen, activity: np.ndarray) -> float:
    """Mean distance in log activity between two sets of one size, the quietest beside the quietest."""
    a, b = (sorted(activity[layer, neuron] for layer, neuron in places) for places in (drawn, chosen))
    return float(np.abs(np.log(a) - np.log(b)).mean())


@exercise("01.7", reference=_control)
def fair_control(answer):
    """As many neurons of the same layers and a like activity, none chosen, none twice, another set at each draw."""
    activity = np.exp(np.random.default_rng(0).normal(0, 1.2, (4, 120)))
    activity[2] *= 4
    order = np.argsort(activity, axis=1)
    chosen = [(0, int(n)) for n in order[0, 70:106:3]] + [(2, int(n)) for n in order[2, 60:90:4]]
    draws = [answer(list(chosen), activity.copy(), np.random.default_rng(seed)) for seed in range(12)]
    for drawn in draws:
        try:
            places = [(int(layer), int(neuron)) for layer, neuron in drawn]
        except (TypeError, ValueError):
            return "no_places"
        if len(places) != len(chosen):
            return "wrong_number", {"got": len(places), "wanted": len(chosen)}
        if len(set(places)) < len(places):
            return "twice", {"count": len(places) - len(set(places))}
        if both := set(places) & set(chosen):
            return "chosen_again", {"count": len(both)}
        if sorted(layer for layer, _ in places) != sorted(layer for layer, _ in chosen):
            return "other_layers"
    if len({tuple(map(tuple, drawn)) for drawn in draws}) == 1:
        return "always_the_same"

    def mean(places) -> float:
        return float(np.mean([activity[layer, neuron] for layer, neuron in places]))

    wanted, got = mean(chosen), float(np.mean([mean(drawn) for drawn in draws]))
    spread = float(np.mean([_log_distance(drawn, chosen, activity) for drawn in draws]))
    if abs(np.log(got / wanted)) > 0.2 or spread > 0.35:
        return "not_matched", {"got": got, "wanted": wanted}
    return None
