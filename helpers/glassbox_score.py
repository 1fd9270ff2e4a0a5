"""How good a list of found heads or neurons is, against the truth of a glass box.

Recall alone is earned by returning everything, so the figures to read are those *at k*: among the first k places of
the list, k being the number of true ones. Taught in lesson 00.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .glassbox_truth import GROUPS, STAGES, Place, SealedTruth, Truth, box_sizes, is_neuron_stage


@dataclass(frozen=True)
class Score:
    """How good a list of found places is. `k` is the length at which the two figures *at k* are taken."""

    precision: float
    recall: float
    precision_at_k: float
    recall_at_k: float
    k: int
    backup_recall: float | None  # share of the backup that was found; None where there is none
    decoys: int  # how many decoys are among the first k

    def __str__(self) -> str:
        return (
            f"recall at {self.k}: {self.recall_at_k:.2f} (precision {self.precision_at_k:.2f}, {self.decoys} decoys); "
            f"of the whole list: recall {self.recall:.2f}, precision {self.precision:.2f}"
        )


def score(found, truth: Truth | SealedTruth, stage: str | None = None, k: int | None = None):
    """Compares what was found with the truth.

    found: for one `stage`, a list of (layer, index), the surest first, or a table with the columns layer and neuron,
    head or index; returns a `Score`. Without a stage, a mapping from stages to lists, or an object with the stages as
    attributes (a RefusalCircuit); returns {stage: Score}, and under "direction" the cosine if one [d_model] is given.
    k: None for the number of true places. Places of the backup count neither as right nor as wrong: they are left out
    first, and reported as backup_recall. Read precision or the figures at k, never recall alone: returning everything
    earns a recall of 1.

    Raises ValueError for an unknown stage, a k below 1, or a place that no box has; TypeError for what is no list of
    places or no truth.
    """
    if not isinstance(truth, Truth | SealedTruth):
        raise TypeError("score() needs the findings first and then the truth that came with the box.")
    truth = truth.unseal() if isinstance(truth, SealedTruth) else truth
    if stage is not None:
        return _score_stage(found, truth, stage, k)
    get = found.get if isinstance(found, Mapping) else lambda name: getattr(found, name, None)
    given = [s for s in STAGES if get(s) is not None]
    if not given and get("direction") is None:
        raise ValueError(
            f"Nothing to score: name the stage, as stage='evaluation_neurons' (one of {', '.join(STAGES)})."
        )
    scores = {s: _score_stage(get(s), truth, s, k) for s in given}
    if get("direction") is not None:
        scores["direction"] = _cosine(get("direction"), truth)
    return scores


def _cosine(direction, truth: Truth) -> float:
    direction = torch.as_tensor(direction).detach().float().cpu()
    if direction.shape != truth.direction.shape:
        raise ValueError(
            f"A direction of this box is one vector of {len(truth.direction)} numbers, not {tuple(direction.shape)}."
        )
    return float(torch.cosine_similarity(direction, truth.direction, dim=0))


def _score_stage(found, truth: Truth, stage: str, k: int | None) -> Score:
    if stage not in (*STAGES, *GROUPS):
        raise ValueError(f"There is no stage {stage!r}: choose one of {', '.join((*STAGES, *GROUPS))}.")
    right, neurons = set(getattr(truth, stage)), is_neuron_stage(stage)
    backup = set(truth.backup_neurons if neurons else truth.backup_heads)
    decoys = set(truth.decoy_neurons if neurons else truth.decoy_heads)
    listed = places_of(found, stage)
    kept = [place for place in listed if place not in backup]
    k = len(right) if k is None else k
    if not isinstance(k, int | np.integer) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k must be a whole number of at least 1, not {k!r}.")
    hits, hits_at_k = len(right & set(kept)), len(right & set(kept[:k]))
    return Score(
        precision=hits / max(len(kept), 1),
        recall=hits / len(right),
        precision_at_k=hits_at_k / k,
        recall_at_k=hits_at_k / len(right),
        k=int(k),
        backup_recall=len(backup & set(listed)) / len(backup) if backup else None,
        decoys=len(decoys & set(kept[:k])),
    )


def places_of(found, stage: str) -> list[Place]:
    """(layer, index) pairs in their order, each once, from a list, an array [n, 2] or a table.

    Raises ValueError or TypeError, in a sentence, for anything else and for places that no box has.
    """
    if hasattr(found, "columns"):
        index = next((c for c in ("neuron", "head", "index") if c in found.columns), None)
        if index is None or "layer" not in found.columns:
            raise ValueError("A table of findings needs the columns 'layer' and 'neuron' (or 'head', or 'index').")
        found = zip(found["layer"], found[index], strict=True)
    found = found.tolist() if isinstance(found, torch.Tensor | np.ndarray) else found
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise TypeError("Give a list of (layer, index) pairs, such as [(2, 17), (3, 4)].")
    sizes, places = box_sizes(), []
    what = "neurons" if is_neuron_stage(stage) else "heads"
    for place in found:
        pair = tuple(place) if isinstance(place, Iterable) and not isinstance(place, str) else ()
        if len(pair) != 2 or not all(isinstance(x, int | np.integer) for x in pair):
            raise ValueError(f"{place!r} is not a (layer, index) pair of whole numbers, such as (2, 17).")
        layer, index = map(int, pair)
        if not (0 <= layer < sizes["layers"] and 0 <= index < sizes[what]):
            raise ValueError(
                f"({layer}, {index}) is no place for {stage}: give (layer, index), layers from 0 to "
                f"{sizes['layers'] - 1}, {what} from 0 to {sizes[what] - 1}."
            )
        places.append((layer, index))
    return list(dict.fromkeys(places))


def ranked(values: Mapping[Place, float] | Sequence, largest: int | None = None) -> list[Place]:
    """Places by falling value, from a mapping or an array [layer, index]; the order that `score` wants."""
    if not isinstance(values, Mapping):
        array = np.asarray(values)
        if array.ndim != 2:
            raise ValueError(f"ranked() wants one value for each [layer, index], not an array of shape {array.shape}.")
        values = {(int(a), int(b)): float(array[a, b]) for a, b in np.ndindex(array.shape)}
    return sorted(values, key=lambda place: -values[place])[:largest]
