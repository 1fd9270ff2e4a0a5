"""Checks of lesson 02 (the text of every message is in `quizzes/02_causal_tracing.yaml`)."""

import numpy as np
import torch

from helpers.checks import exercise, wrong_tensor
from helpers.hooks import patch, record
from helpers.prompts import chat_text, tokenize

# --- 02.1 one exchange ----------------------------------------------------------------------------------------


def _patched(model, tokenizer, run, donor, layer: int) -> torch.Tensor:
    return _exchange(model, tokenizer, run, donor, layer)


@torch.no_grad()
def _exchange(model, tokenizer, run, donor, layer, at=-1, take=-1, site="resid_post", template=True) -> torch.Tensor:
    """Logits [vocabulary] after `run` with the site at position `at` as `donor` has it at `take`, all for None."""
    texts = chat_text(tokenizer, [run, donor]) if template else [run, donor]
    ids, other = tokenize(tokenizer, texts)
    with record(model, [site], [layer]) as seen:
        model(torch.tensor([other]))
    value = seen[site][layer][0]
    if at is None:
        return model(torch.tensor([other])).logits[0, -1]
    with patch(model, site, layer, value[take], positions=[at]):
        return model(torch.tensor([ids])).logits[0, -1]


@exercise("02.1", reference=_patched)
def one_exchange(answer, model, tokenizer):
    """[vocabulary], the stream after the layer exchanged at the last token, whatever the prompts' lengths."""
    layer = 1
    cases = (("how do i heat the acid for fun ?", "how do i heat the milk for fun ?"),
             ("how do i heat the acid for fun ?", "please wash the milk"))  # fmt: skip
    for number, (run, donor) in enumerate(cases):
        true = _exchange(model, tokenizer, run, donor, layer)
        got = answer(model, tokenizer, run, donor, layer)
        if isinstance(got, torch.Tensor) and got.dim() > 1 and got.shape[-1] == true.shape[-1]:
            return "every_position", {"got": list(got.shape)}
        if mistake := wrong_tensor(got, shape=true.shape):
            return mistake
        if torch.allclose(got, true, atol=1e-3):
            continue
        wrong = _mistaken(model, tokenizer, run, donor, layer)
        key = next((name for name, logits in wrong.items() if torch.allclose(got, logits, atol=1e-3)), "other")
        return ("from_the_start" if key == "other" and number else key), {"layer": layer}
    return None


def _mistaken(model, tokenizer, run, donor, layer) -> dict[str, torch.Tensor]:
    exchange = lambda *prompts, **options: _exchange(model, tokenizer, *prompts, layer, **options)  # noqa: E731
    return {
        "unchanged": exchange(run, run),
        "all_exchanged": exchange(run, donor, at=None),
        "swapped": exchange(donor, run),
        "other_token": exchange(run, donor, at=-2, take=-2),
        "other_value": exchange(run, donor, take=-2),
        "first_value": exchange(run, donor, take=0),
        "before_layer": exchange(run, donor, site="resid_pre"),
        "other_site": exchange(run, donor, site="mlp_out"),
        "no_template": exchange(run, donor, template=False),
    }


# --- 02.2 the share of the gap --------------------------------------------------------------------------------


def _share(patched, baseline, donor) -> float:
    return float(np.mean(patched - baseline) / np.mean(donor - baseline))


def _chance(odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-odds))


@exercise("02.2", reference=_share)
def share_of_gap(answer):
    """Mean way gone over the mean way to go, on log-odds, in either direction."""
    rng = np.random.default_rng(0)
    harmful, harmless = rng.normal(5, 1, 20), rng.normal(-6, 1.5, 20)
    harmless[3] = harmful[3] + 0.02  # one pair has hardly a gap
    for baseline, donor in ((harmful, harmless), (harmless, harmful)):
        patched = baseline + 0.3 * (donor - baseline) + rng.normal(0, 0.4, 20)
        got = answer(patched.copy(), baseline.copy(), donor.copy())
        if isinstance(got, np.ndarray | torch.Tensor) and np.ndim(got) == 1:
            return "one_each", {"got": len(got)}
        if isinstance(got, bool) or not np.isscalar(got) and np.ndim(got) != 0:
            return "wrong_type", {"wanted": "one number", "got": f"of type {type(got).__name__}"}
        if not np.isfinite(float(got)):
            return "not_finite"
        way, whole, true = patched - baseline, donor - baseline, _share(patched, baseline, donor)
        if abs(float(got) - true) < 1e-3:
            continue
        p, q, r = _chance(patched), _chance(baseline), _chance(donor)
        known = {
            "sign_flipped": -true,
            "answers_counted": np.mean((patched > 0) != (baseline > 0)),
            "not_divided": np.mean(way),
            "mean_of_ratios": np.mean(way / whole),
            "from_the_donor": 1 - true,
            "over_the_donor": np.mean(way) / np.mean(donor),
            "probabilities": np.mean(p - q) / np.mean(r - q),
            "absolute": np.mean(np.abs(way)) / np.mean(np.abs(whole)),
        }
        return next((key for key, wrong in known.items() if abs(float(got) - float(wrong)) < 1e-3), "other"), {
            "got": float(got), "wanted": true}  # fmt: skip
    return None


# --- 02.3 both directions -------------------------------------------------------------------------------------

WORDS = ("both", "needed", "enough", "neither")


def _verdict(needed: float, enough: float, line: float = 0.3) -> str:
    return {(True, True): "both", (True, False): "needed", (False, True): "enough", (False, False): "neither"}[
        bool(needed > line), bool(enough > line)
    ]


@exercise("02.3", reference=_verdict)
def verdict(answer):
    """One of four words, from two effects and a line."""
    cases = [(0.9, 0.8, 0.3), (0.9, 0.0, 0.3), (0.0, 0.9, 0.3), (0.1, 0.1, 0.3), (-0.8, 0.1, 0.3), (0.2, -0.9, 0.3),
             (0.2, 0.2, 0.1), (0.25, 0.05, 0.1), (0.2, 0.2, 0.3), (0.3, 0.3, 0.3)]  # fmt: skip
    got = [answer(*case) for case in cases]
    unknown = [word for word in got if not isinstance(word, str) or word not in WORDS]
    if unknown:
        return "unknown_word", {"got": repr(unknown[0])}
    true = [_verdict(*case) for case in cases]
    if got == true:
        return None

    def also(rule) -> bool:
        return got == [rule(*case) for case in cases]

    if also(lambda a, b, line: "both" if a > line else "neither") or also(
        lambda a, b, line: "needed" if a > line else "neither"
    ):
        return "one_direction"
    if also(lambda a, b, line: "both" if max(a, b) > line else "neither"):
        return "either"
    if also(lambda a, b, line: _verdict(b, a, line)):
        return "swapped"
    if also(lambda a, b, line: _verdict(abs(a), abs(b), line)):
        return "size"
    if also(lambda a, b, line: _verdict(a, b, 0.3)):
        return "line_ignored"
    if got[:-1] == true[:-1]:
        return "on_the_line"
    place = next(i for i, (a, b) in enumerate(zip(got, true, strict=True)) if a != b)
    needed, enough, line = cases[place]
    return "other", {"needed": needed, "enough": enough, "line": line, "got": got[place]}


# --- 02.4 what hides ------------------------------------------------------------------------------------------


def _hidden(joint: np.ndarray, line: float = 0.3) -> list[tuple[int, int]]:
    alone = np.diag(joint) > line
    i, j = np.nonzero(np.triu((joint > line) & ~alone[:, None] & ~alone, 1))
    return [(int(a), int(b)) for a, b in zip(i, j, strict=True)]


JOINT = np.array([
    # 0     1     2     3     4     5
    [0.02, 0.95, 0.10, 0.91, 0.05, 0.04],
    [0.95, 0.05, 0.06, 0.92, 0.24, 0.07],
    [0.10, 0.06, 0.03, 0.93, 0.20, 0.55],
    [0.91, 0.92, 0.93, 0.90, 0.94, 0.91],
    [0.05, 0.24, 0.20, 0.94, 0.15, 0.40],
    [0.04, 0.07, 0.55, 0.91, 0.40, 0.05],
])  # fmt: skip


@exercise("02.4", reference=_hidden)
def hidden_pairs(answer):
    """(i, j), i < j, above the line together, neither of them alone."""
    for line in (0.3, 0.7):
        found = answer(JOINT.copy(), line)
        try:
            got = [(int(i), int(j)) for i, j in found]
        except (TypeError, ValueError):
            return "not_pairs"
        true = _hidden(JOINT, line)
        if sorted(got) == sorted(true):
            continue
        if any(i == j for i, j in got):
            return "with_itself"
        if any((j, i) in got for i, j in got):
            return "both_orders"
        if sorted((j, i) for i, j in got) == sorted(true):
            return "order_turned"
        if any(3 in pair for pair in got):
            return "one_does_it_alone"
        if line != 0.3 and set(got) == set(_hidden(JOINT, 0.3)):
            return "line_ignored"
        if surplus := set(got) - set(true):
            return "any_surplus", {"pair": min(surplus), "value": JOINT[min(surplus)], "line": line}
        return "missed", {"pair": min(set(true) - set(got))}
    return None


# --- 02.5 unequal lengths -------------------------------------------------------------------------------------


def _places(harmful, harmless, after: int) -> list[int]:
    count = len(harmful) if len(harmful) == len(harmless) else after
    return list(range(-count, 0))


@exercise("02.5", reference=_places)
def places(answer):
    """Every position of equally long prompts, else the last `after`; counted from the end."""
    cases = [([1, 2, 3, 40, 5, 6, 9, 8], [1, 2, 3, 41, 5, 6, 9, 8], 2), ([1, 2, 3, 40, 5, 9, 8], [1, 2, 3, 41, 42, 5, 9, 8], 2),
             ([1, 2, 3, 40, 41, 42, 7, 9, 8], [1, 2, 3, 43, 7, 9, 8], 3)]  # fmt: skip
    for a, b, after in cases:
        found = answer(list(a), list(b), after)
        try:
            got = [int(place) for place in found]
        except (TypeError, ValueError):
            return "no_numbers"
        true = _places(a, b, after)
        if sorted(got) == true:
            continue
        if not got:
            return "none_left"
        if any(place >= 0 for place in got):
            return "from_the_start"
        if len(a) == len(b):
            return "drops_equal" if sorted(got) == list(range(-after, 0)) else "other"
        shorter = min(len(a), len(b))
        if min(got) < -shorter:
            return "beyond", {"place": min(got), "count": shorter}
        if min(got) < -after:
            return "misaligned", {"count": sum(place < -after for place in got)}
        return "too_few", {"got": len(got), "wanted": after}
    return None


# --- 02.6 noise -----------------------------------------------------------------------------------------------


def _noise(entering, request, scale: float, generator) -> torch.Tensor:
    noise = torch.randn(entering.shape, generator=generator)
    return entering + scale * entering[request].std() * noise * request[:, None]


@exercise("02.6", reference=_noise)
def noise_on_the_request(answer):
    """Noise is added to the request's tokens alone, of `scale` times their own spread."""
    torch.manual_seed(0)
    entering, request = torch.randn(60, 48) * 0.2, torch.zeros(60, dtype=torch.bool)
    request[12:52] = True
    entering[~request] *= 20  # the template's tokens are much larger here
    given, spread = entering.clone(), float(entering[request].std())
    got = answer(given, request.clone(), 3.0, torch.Generator().manual_seed(1))
    if mistake := wrong_tensor(got, shape=entering.shape):
        return mistake
    again = answer(entering.clone(), request.clone(), 3.0, torch.Generator().manual_seed(1))
    if not torch.equal(given, entering):
        return "in_place"
    added = got - entering
    if float(added.abs().max()) < 1e-6:
        return "unchanged"
    if float(added[~request].abs().max()) > 1e-6:
        return "template_touched"
    own = added[request]
    if float((own - own[:, :1]).abs().max()) < 1e-6 or float((own - own[:1]).abs().max()) < 1e-6:
        return "one_number"
    size = float(own.std())
    correlation = float(torch.corrcoef(torch.stack([own.flatten(), entering[request].flatten()]))[0, 1])
    if correlation < -0.2 and abs(float(got[request].std()) / (3 * spread) - 1) < 0.1:
        return "replaced"
    known = {"scale_alone": 3.0, "scale_ignored": spread, "spread_of_all": 3 * float(entering.std()),
             "variance": 3 * spread**2}  # fmt: skip
    if abs(size / (3 * spread) - 1) < 0.08:
        if abs(float(own.mean())) >= 0.1 * size:
            return "not_centred"
        return None if torch.equal(again, got) else "generator_ignored"
    key = next((key for key, wrong in known.items() if abs(size / wrong - 1) < 0.08), "other")
    return key, {"got": size, "wanted": 3 * spread}
