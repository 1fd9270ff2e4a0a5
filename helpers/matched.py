"""Random neurons that are like the chosen ones in all but the reason for choosing. Taught in lesson 01.

A ranking by activation picks large neurons, and taking large neurons out does damage of any sort. So the control is
drawn from neurons of the same layer *and* of a like activation. Where the chosen ones are the largest of their layer
there are no equals left: `mean_activity` says how good the match is, and belongs beside every control.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

Place = tuple[int, int]  # (layer, neuron)


def matched_random_sets(
    neurons: Iterable[Place], activity: torch.Tensor, count: int = 20, nearest: int = 10, seed: int = 0
) -> list[list[Place]]:
    """`count` random sets, each as large as `neurons`, none of them sharing a neuron with it.

    activity: how active each neuron is, [layer, d_mlp] (the mean absolute activation, say). For each chosen neuron
    one of the `nearest` free neurons of its layer is drawn, near in activity, none twice in a set; the most active
    choose first, since they have the fewest equals. Raises ValueError if more than half of a layer is chosen.
    """
    activity = np.asarray(torch.as_tensor(activity).float().cpu())
    if activity.ndim != 2:
        raise ValueError(f"activity needs one number for each [layer, neuron], not the shape {activity.shape}.")
    chosen: dict[int, list[int]] = {}
    for layer, neuron in dict.fromkeys(tuple(map(int, place)) for place in neurons):
        chosen.setdefault(layer, []).append(neuron)
    width, rng = activity.shape[1], np.random.default_rng(seed)
    for layer, members in chosen.items():
        if 2 * len(members) > width:
            raise ValueError(
                f"{len(members)} of the {width} neurons of layer {layer} are chosen: no set of others is as large. "
                "Choose fewer neurons."
            )
    sets: list[list[Place]] = [[] for _ in range(count)]
    for layer, members in sorted(chosen.items()):
        free = np.setdiff1d(np.arange(width), members)
        free = free[np.argsort(activity[layer, free], kind="stable")]
        order = sorted(members, key=lambda neuron: -activity[layer, neuron])
        targets = np.searchsorted(activity[layer, free], activity[layer, order])
        for drawn in sets:
            left = list(free)
            for target in targets:
                target = min(int(target), len(left))
                start = max(0, min(target - nearest // 2, len(left) - nearest))
                window = range(start, min(start + nearest, len(left)))
                place = window[int(rng.integers(len(window)))]
                drawn.append((layer, int(left.pop(place))))
    return sets


def mean_activity(neurons: Sequence[Place], activity: torch.Tensor) -> float:
    """The mean activity of a set of neurons, to stand beside that of its matched sets."""
    layers, members = zip(*neurons, strict=True)
    return float(torch.as_tensor(activity)[list(layers), list(members)].mean())
