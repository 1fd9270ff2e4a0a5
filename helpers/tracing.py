"""Causal tracing: exchange activations between a harmful request and its harmless twin. Taught in lesson 02.

Each request of a pair runs once. Then one place of the one run gets what the other had there, and the refusal log-odds
say how much of the behaviour came along. Both directions are needed:

    benign_into_harmful   can the rest refuse without this place?  A backup hides it.
    harmful_into_benign   is this place enough to refuse here?     A place that needs a partner looks idle.

Sources: Meng et al. 2022 (ROME); Zhang and Nanda 2024 (token replacement, log-odds); Heimersheim and Nanda 2024 (what
each direction can and cannot show). The work is done by `sweep.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from .hooks import check_site, record
from .models import body_of, dims_of, layers_of
from .prompts import Batch, check_prompts, pad_token_id
from .refusal import RefusalScore, refusal_score_of
from .roles import Roles, roles_of
from .sweep import Patch, Sweep, first_tokens

DIRECTIONS = ("benign_into_harmful", "harmful_into_benign")
COMPONENTS = ("attn_out", "mlp_out", "resid_pre", "resid_post", "heads", "neurons")
CRITICAL = 0.3  # a refusal change above this is called safety-critical


@dataclass(frozen=True)
class Place:
    """What is exchanged in one patch. unit: a head's index or the name of a group of neurons, else None.
    layer: the (lowest) layer. position: a label from `roles.py`, such as -1 or "request"."""

    layer: int
    component: str
    position: str | int
    unit: int | str | None = None


@dataclass(frozen=True)
class Traced:
    """Refusal log-odds of one direction: patched [place, pair], baseline [pair] (the untouched run), donor [pair].

    A place that a pair has no tokens for holds nan. control: [draw, place, pair], donors of the run's own class.
    """

    direction: str
    places: list[Place]
    patched: np.ndarray
    baseline: np.ndarray
    donor: np.ndarray
    control: np.ndarray


class CausalTracer:
    """Traces refusal between harmful requests and their harmless twins.

    score: the refusal score, the model's own if None. quick: only the openings' first tokens, for maps of many patches.
    """

    def __init__(self, model, tokenizer, score: RefusalScore | None = None, quick: bool = False, batch_size: int = 16):
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        score = score or refusal_score_of(model, tokenizer)
        self.score = first_tokens(score) if quick else score

    def trace_safety_circuit(
        self,
        harmful_prompt: str | Sequence[str],
        benign_prompt: str | Sequence[str],
        components: Sequence[str] = ("attn_out", "mlp_out"),
        positions: str | Sequence[int | str] = "last",
        layers: Iterable[int] | None = None,
        directions: Sequence[str] = DIRECTIONS,
        neurons: Mapping[str, Sequence[tuple[int, int]]] | None = None,
        controls: int = 0,
    ) -> pd.DataFrame:
        """A table of places, each layer's in turn, for one pair or a set of pairs (prompt i of both is pair i).

        components: of COMPONENTS; "heads" gives a row for each head, "neurons" one for each group in `neurons`, named
        lists of (layer, neuron). positions: "last"; "end", each token of the template's end; "roles", the template's
        beginning, the request and the template's end, each exchanged whole; "map", finer; "all"; or numbers such as
        (-1, -2). Columns: layer, component, unit, position, direction;
        refusal_change, how far the probability of a refusal moves towards the donor's, 0 to 1 (and below 0), with its
        bootstrap interval over pairs `low`, `high`; baseline_refusal and patched_refusal, mean probabilities;
        log_odds_change and share_of_gap, the same on the log-odds scale; is_safety_critical, refusal_change > 0.3;
        pairs. With controls: the mean, least and greatest refusal_change of so many draws in which the donor is
        another prompt of the run's own class.

        Raises ValueError for lists of unequal length, twins of unequal length where positions within the request are
        asked for, and unknown components, layers, positions or directions; before anything is computed.
        """
        traced = self.trace(harmful_prompt, benign_prompt, components, positions, layers, directions, neurons, controls)
        return pd.concat([table_of(one) for one in traced], ignore_index=True)

    def trace(
        self,
        harmful: str | Sequence[str],
        benign: str | Sequence[str],
        components: Sequence[str] = ("attn_out", "mlp_out"),
        positions: str | Sequence[int | str] = "last",
        layers: Iterable[int] | None = None,
        directions: Sequence[str] = DIRECTIONS,
        neurons: Mapping[str, Sequence[tuple[int, int]]] | None = None,
        controls: int = 0,
    ) -> list[Traced]:
        """The log-odds themselves, one `Traced` a direction. Arguments as in `trace_safety_circuit`."""
        sides = _sides(harmful, benign)
        unknown = sorted(set(directions) - set(DIRECTIONS))
        if unknown or not directions:
            raise ValueError(f"There is no direction {unknown[:1]}: choose from {', '.join(DIRECTIONS)}.")
        roles = roles_of(self.tokenizer, *sides, positions)
        units = self._units(components, layers, neurons)
        places = [Place(layer, c, label, unit) for label in roles.labels for layer, c, unit, _ in units]
        order = sorted(range(len(sides[0])), key=lambda i: -len(roles.rows[0][i]))
        found = {d: [] for d in directions}
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            for direction, pieces in self._trace_batch(roles, part, units, directions, controls).items():
                found[direction].append(pieces)
        back = np.argsort(order)
        out = []
        for direction, pieces in found.items():
            patched, baseline, donor, control = (np.concatenate(x, -1)[..., back] for x in zip(*pieces, strict=True))
            out.append(Traced(direction, places, patched, baseline, donor, control))
        return out

    # --- which places ---------------------------------------------------------------------------------------

    def _units(self, components, layers, neurons) -> list[tuple[int, str, int | str | None, list]]:
        """(lowest layer, component, unit, [(site, layer, channels)]) of everything that is exchanged."""
        if isinstance(components, str):
            raise ValueError(f"Give a list of components, not one string: write [{components!r}].")
        if unknown := [c for c in components if c not in COMPONENTS]:
            raise ValueError(f"There is no component {unknown[0]!r}: choose from {', '.join(COMPONENTS)}.")
        if ("neurons" in components) != bool(neurons):
            raise ValueError("For groups of neurons give components=['neurons'] and neurons={'name': [(layer, i)]}.")
        layers, dims = list(range(len(layers_of(self.model))) if layers is None else layers), dims_of(self.model)
        for layer in layers:
            check_site(self.model, "attn_out", layer)
        units: list = []
        for layer in layers:
            for component in components:
                if component == "heads":
                    for head in range(dims.n_heads):
                        channels = slice(head * dims.d_head, (head + 1) * dims.d_head)
                        units.append((layer, component, head, [("z", layer, channels)]))
                elif component != "neurons":
                    units.append((layer, component, None, [(component, layer, None)]))
        for name, members in (neurons or {}).items():
            units.append(_group(self.model, name, members))
        if not units:
            raise ValueError("There is nothing to trace: give at least one component and one layer.")
        return units

    # --- one batch of pairs ---------------------------------------------------------------------------------

    def _trace_batch(self, roles: Roles, part: list[int], units, directions, controls: int) -> dict:
        """{direction: (patched [place, pair], baseline [pair], donor [pair], control [draw, place, pair])}."""
        batches = roles.batches(part, pad_token_id(self.tokenizer))
        columns = roles.columns(part, batches[0].input_ids.shape[1])
        sites = sorted({site for *_, places in units for site, _, _ in places})
        layers = sorted({layer for *_, places in units for _, layer, _ in places})
        runs = [self._record(batch, sites, layers) for batch in batches]
        sweeps = [Sweep(self.model, batch, self.score) for batch in batches]
        out = {}
        for direction in directions:
            run = DIRECTIONS.index(direction)  # 0: the harmful run is patched, 1: the benign one
            patched = self._patched(sweeps[run], columns[run], runs[1 - run], units)
            draws = [
                self._patched(sweeps[run], columns[run] & (swap >= 0)[:, None], _reordered(runs[run], swap), units)
                for swap in roles.swaps(run, part, controls)
            ]
            control = np.stack(draws) if draws else np.empty((0, *patched.shape))
            out[direction] = patched, sweeps[run].clean.numpy(), sweeps[1 - run].clean.numpy(), control
        return out

    @torch.no_grad()
    def _record(self, batch: Batch, sites: list[str], layers: list[int]) -> dict:
        """What every prompt has at these sites, {(site, layer): [prompt, position, channel]}."""
        with record(self.model, sites, layers) as seen:
            body_of(self.model)(**batch.to(self.model.device).inputs(), use_cache=False)
        return {(site, layer): seen[site][layer] for site in sites for layer in layers}

    def _patched(self, sweep: Sweep, columns: torch.Tensor, donor: dict, units) -> np.ndarray:
        """[place, pair] for columns [role, pair, position]; nan where a pair has no such tokens."""
        rows, kept = [], []
        out = np.full((len(columns) * len(units), columns.shape[1]), np.nan)
        for r, where in enumerate(columns):
            if not bool(where.any()):
                continue
            for u, (*_, places) in enumerate(units):
                kept.append(r * len(units) + u)
                rows.append(
                    tuple(
                        Patch(s, layer, where, donor[s, layer][..., slice(None) if c is None else c], c)
                        for s, layer, c in places
                    )
                )
        if rows:
            scores = sweep.scores(rows).numpy()
            has = columns.any(-1).numpy()[[place // len(units) for place in kept]]
            out[kept] = np.where(has, scores, np.nan)
        return out


def _sides(harmful, benign) -> tuple[list[str], list[str]]:
    sides = tuple([side] if isinstance(side, str) else check_prompts(side) for side in (harmful, benign))
    if len(sides[0]) != len(sides[1]):
        raise ValueError(
            f"There are {len(sides[0])} harmful and {len(sides[1])} benign prompts: prompt i of both must be one pair."
        )
    return sides


def _group(model, name: str, members: Sequence[tuple[int, int]]):
    dims, by_layer = dims_of(model), {}
    for layer, neuron in members:
        check_site(model, "neurons", layer)
        if not 0 <= neuron < dims.d_mlp:
            raise ValueError(f"There is no neuron {neuron} in layer {layer}: its neurons are 0 to {dims.d_mlp - 1}.")
        by_layer.setdefault(layer, []).append(neuron)
    if not by_layer:
        raise ValueError(f"The group of neurons {name!r} is empty.")
    return min(by_layer), "neurons", name, [("neurons", layer, torch.tensor(at)) for layer, at in by_layer.items()]


def _reordered(run: dict, swap: torch.Tensor) -> dict:
    return {key: x[swap.clamp(min=0).to(x.device)] for key, x in run.items()}


# --- from log-odds to a table -------------------------------------------------------------------------------


def probability(log_odds: np.ndarray) -> np.ndarray:
    """The probability of a refusal opening."""
    return 1 / (1 + np.exp(-np.asarray(log_odds, dtype=float)))


def refusal_change(patched: np.ndarray, baseline: np.ndarray, direction: str) -> np.ndarray:
    """How far the probability of a refusal moved towards the donor's, for each pair: down for the harmful run, up for
    the benign one. Takes log-odds."""
    moved = probability(patched) - probability(baseline)
    return -moved if direction == "benign_into_harmful" else moved


def _intervals(values: np.ndarray, draws: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """95% bootstrap intervals over pairs of many places at once, (low [place], high [place]); nan counts as absent.

    The draws are those of `bootstrap_interval`, as counts of each pair, so that one product serves all places.
    """
    low, high = np.full((2, len(values)), np.nan)
    present = ~np.isnan(values)
    for has in np.unique(present[present.any(1)], axis=0):
        rows, count = (present == has).all(1), int(has.sum())
        drawn = np.random.default_rng(0).integers(0, count, (draws, count))
        times = (drawn[..., None] == np.arange(count)).sum(1) / count  # [draw, pair]
        low[rows], high[rows] = np.percentile(times @ values[rows][:, has].T, [2.5, 97.5], axis=0)
    return low, high


def table_of(traced: Traced) -> pd.DataFrame:
    """The table that `trace_safety_circuit` returns, of one direction."""
    sign = -1 if traced.direction == "benign_into_harmful" else 1
    gaps = sign * (traced.donor - traced.baseline)
    change = refusal_change(traced.patched, traced.baseline, traced.direction)
    odds = sign * (traced.patched - traced.baseline)
    (low, high), (odds_low, odds_high) = _intervals(change), _intervals(odds)
    lines = []
    for i, place in enumerate(traced.places):
        has = ~np.isnan(traced.patched[i])
        if not has.any():
            continue
        gap = float(gaps[has].mean())  # of the pairs that have this place
        mean, share = float(change[i, has].mean()), float(odds[i, has].mean()) / gap
        line = {
            "layer": place.layer, "component": place.component, "unit": place.unit, "position": place.position,
            "direction": traced.direction, "refusal_change": mean, "low": low[i], "high": high[i],
            "baseline_refusal": float(probability(traced.baseline[has]).mean()),
            "patched_refusal": float(probability(traced.patched[i, has]).mean()),
            "is_safety_critical": mean > CRITICAL, "log_odds_change": float(odds[i, has].mean()),
            "share_of_gap": share, "share_low": odds_low[i] / gap, "share_high": odds_high[i] / gap, "pairs": int(has.sum()),
        }  # fmt: skip
        if len(traced.control):
            draws = np.nanmean(refusal_change(traced.control[:, i], traced.baseline, traced.direction), -1)
            line |= {
                "control_change": draws.mean(),
                "control_low": draws.min(),
                "control_high": draws.max(),
                "controls": len(draws),
            }
        lines.append(line)
    return pd.DataFrame(lines)
