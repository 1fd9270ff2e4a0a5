"""Random neurons and heads that are like the chosen ones in all but the reason for choosing. Taught in lesson 01.

A ranking by activation picks large neurons, and taking large neurons out does damage of any sort. So the control is
drawn from neurons of the same layer *and* of a like activation. Where the chosen ones are the largest of their layer
there are no equals left: `mean_activity` says how good the match is, and belongs beside every control.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

Place = tuple[int, int]  # (layer, neuron)


def matched_random_sets(
    neurons: Iterable[Place],
    activity: torch.Tensor,
    count: int = 20,
    nearest: int = 10,
    seed: int = 0,
    spill: bool = False,
) -> list[list[Place]]:
    """`count` random sets, each as large as `neurons`, none of them sharing a neuron with it.

    activity: how active each neuron is, [layer, d_mlp] (the mean absolute activation, say). For each chosen neuron
    one of the `nearest` free neurons of its layer is drawn, near in activity, none twice in a set; the most active
    choose first, since they have the fewest equals. spill: where more than half of a layer is chosen, the partners of
    its quietest come from the next layers that have room. Raises ValueError for such a layer without spill, for
    neurons that are not there, and if more than half of all neurons are chosen.
    """
    activity = np.asarray(torch.as_tensor(activity).float().cpu())
    if activity.ndim != 2:
        raise ValueError(f"activity needs one number for each [layer, neuron], not the shape {activity.shape}.")
    chosen = list(dict.fromkeys(tuple(map(int, place)) for place in neurons))
    depth, width = activity.shape
    if outside := [p for p in chosen if not (0 <= p[0] < depth and 0 <= p[1] < width)]:
        raise ValueError(f"There is no neuron {outside[0]}: activity has {depth} layers of {width} neurons.")
    wanted = {layer: sorted((activity[p] for p in chosen if p[0] == layer), reverse=True) for layer in range(depth)}
    full = [layer for layer in wanted if 2 * len(wanted[layer]) > width]
    if 2 * len(chosen) > activity.size or full and not spill:
        where = f"layer {full[0]}" if full else "all layers"
        raise ValueError(
            f"More than half of the neurons of {where} are chosen, so no set of others is as large. Choose fewer "
            "neurons, or let partners come from other layers by spill=True."
        )
    free = {layer: _free(activity, layer, [n for at, n in chosen if at == layer]) for layer in wanted}
    _spill(wanted, free)
    rng = np.random.default_rng(seed)
    return [_one_set(wanted, free, activity, nearest, rng) for _ in range(count)]


def _free(activity: np.ndarray, layer: int, members: list[int]) -> np.ndarray:
    """The layer's neurons that are not chosen, the quietest first."""
    free = np.setdiff1d(np.arange(activity.shape[1]), members)
    return free[np.argsort(activity[layer, free], kind="stable")]


def _spill(wanted: dict[int, list[float]], free: dict[int, np.ndarray]) -> None:
    """Move what a layer has no room for, its quietest, to the nearest layers that have. Changes `wanted`."""
    for layer in wanted:
        for other in sorted(wanted, key=lambda at, layer=layer: abs(at - layer)):
            surplus, room = len(wanted[layer]) - len(free[layer]), len(free[other]) - len(wanted[other])
            if surplus > 0 and room > 0:
                moved = min(surplus, room)
                wanted[other] = sorted(wanted[other] + wanted[layer][-moved:], reverse=True)
                wanted[layer] = wanted[layer][:-moved]


def _one_set(wanted: dict, free: dict, activity: np.ndarray, nearest: int, rng: np.random.Generator) -> list[Place]:
    drawn: list[Place] = []
    for layer, values in wanted.items():
        left = list(free[layer])
        for place in np.searchsorted(activity[layer, free[layer]], values):
            place = min(int(place), len(left))
            start = max(0, min(place - nearest // 2, len(left) - nearest))
            window = range(start, min(start + nearest, len(left)))
            drawn.append((layer, int(left.pop(window[int(rng.integers(len(window)))]))))
    return drawn


def random_alike(chosen: Iterable[Place], shape: tuple[int, int], rng: np.random.Generator) -> list[Place]:
    """As many other (layer, index) places of the same layers, at random, none twice: heads, or neurons of any activity.

    shape: (layers, heads or neurons of a layer). Where a layer has too few others, the rest come from the nearest layers.
    Raises ValueError for a place that is not there, and if there are too few others in all.
    """
    chosen, (depth, width) = list(dict.fromkeys(tuple(map(int, place)) for place in chosen)), shape
    if outside := [p for p in chosen if not (0 <= p[0] < depth and 0 <= p[1] < width)]:
        raise ValueError(f"There is no place {outside[0]}: there are {depth} layers of {width}.")
    if 2 * len(chosen) > depth * width:
        raise ValueError("More than half of the model is in this set: no other set is as large.")
    own = set(chosen)
    free = {layer: [n for n in range(width) if (layer, n) not in own] for layer in range(depth)}
    drawn: list[Place] = []
    for layer in dict.fromkeys(at for at, _ in chosen):
        wanted = sum(at == layer for at, _ in chosen)
        for other in sorted(free, key=lambda at, layer=layer: abs(at - layer)):
            taken = rng.permutation(free[other])[:wanted].tolist()
            drawn += [(other, int(n)) for n in taken]
            free[other] = sorted(set(free[other]) - set(taken))
            wanted -= len(taken)
            if not wanted:
                break
    return drawn


def random_sets(chosen: Iterable[Place], shape: tuple[int, int], count: int = 20, seed: int = 0) -> list[list[Place]]:
    """`count` of `random_alike`: the control of a set of heads."""
    chosen, rng = list(chosen), np.random.default_rng(seed)
    return [random_alike(chosen, shape, rng) for _ in range(count)]


def mean_activity(neurons: Sequence[Place], activity: torch.Tensor) -> float:
    """The mean activity of a set of neurons, to stand beside that of its matched sets."""
    layers, members = zip(*neurons, strict=True)
    return float(torch.as_tensor(activity)[list(layers), list(members)].mean())
