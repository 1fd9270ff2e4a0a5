"""Which weights belong to a circuit: its neurons' rows and columns, its heads' queries and outputs. Taught in lesson 05.

A *neuron* owns a row of each map into the MLP (gate and up, where there are two) and a column of the down projection. A
*head* owns its query rows and its columns of the output projection. Keys and values are shared by several heads in most
models, norms and embeddings by everything: they belong to nobody here. (OLMo 2 and 3 scale all queries of a layer
together: there the rows of one head move the others a little.)
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .ablation import heads_by_layer
from .glassbox_truth import STAGES, is_neuron_stage
from .matched import random_alike
from .mean_ablation import Place, neurons_by_layer
from .models import UnknownArchitecture, attention_of, dims_of, down_projection_of, layers_of, mlp_of, out_projection_of


@dataclass(frozen=True)
class Circuit:
    """A circuit as a list of places, (layer, index), by stage: heads, neurons, heads, neurons."""

    detection_heads: tuple[Place, ...] = ()
    evaluation_neurons: tuple[Place, ...] = ()
    decision_components: tuple[Place, ...] = ()
    production_neurons: tuple[Place, ...] = ()


def places_of_circuit(model, circuit) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """({layer: heads}, {layer: neurons}) of a circuit: a `Circuit`, a box's `Truth`, or anything with these four fields.

    A place is (layer, index) or a `Node`. Raises ValueError if there is nothing in it, or something the model has not.
    """
    missing = [stage for stage in STAGES if not hasattr(circuit, stage)]
    if missing:
        raise ValueError(
            f"This is no circuit, for it lacks {missing[0]}: give a Circuit, a box's truth, or what map_refusal_circuit returns."
        )
    parts: dict[str, list] = {"head": [], "neuron": []}
    for stage in STAGES:
        for place in getattr(circuit, stage) or ():
            kind, pair = _kind_and_place(place, "neuron" if is_neuron_stage(stage) else "head")
            parts[kind].append(pair)
    if not any(parts.values()):
        raise ValueError("This circuit is empty: there is nothing to train in it.")
    return heads_by_layer(model, parts["head"]), neurons_by_layer(model, parts["neuron"])


def _kind_and_place(place, usual: str) -> tuple[str, Place]:
    """A place's kind and (layer, index); a `Node` says its kind itself."""
    if hasattr(place, "kind"):
        if place.kind not in ("head", "neuron"):
            raise ValueError(f"A circuit's parts are heads and neurons here; {tuple(place)} is neither.")
        return place.kind, (place.layer, place.index)
    return usual, place


def weight_masks(model: nn.Module, circuit) -> dict[str, torch.Tensor]:
    """{name of a parameter: what of it belongs to the circuit}, booleans of its shape. Others belong to it not at all."""
    heads, neurons = places_of_circuit(model, circuit)
    names = {id(p): name for name, p in model.named_parameters()}
    masks: dict[str, torch.Tensor] = {}

    def mark(module: nn.Module, index: list[int], side: str) -> None:
        """Mark rows ("out") or columns ("in") of a linear map, and with its rows the biases."""
        mask = masks.setdefault(names[id(module.weight)], torch.zeros(module.weight.shape, dtype=torch.bool))
        wide = mask.T if type(module).__name__ == "Conv1D" else mask  # GPT-2 stores its maps the other way round
        if side == "in":
            wide[:, index] = True
            return
        wide[index] = True
        if module.bias is not None:
            name = names[id(module.bias)]
            masks.setdefault(name, torch.zeros(module.bias.shape, dtype=torch.bool))[index] = True

    layers = layers_of(model)
    for layer, members in neurons.items():
        for module, rows in _mlp_rows(layers[layer], members):
            mark(module, rows, "out")
        mark(down_projection_of(layers[layer]), members, "in")
    for layer, members in heads.items():
        module, rows = _query_rows(layers[layer], members, dims_of(model))
        mark(module, rows, "out")
        d_head = dims_of(model).d_head
        mark(out_projection_of(layers[layer]), [h * d_head + i for h in members for i in range(d_head)], "in")
    return masks


def _mlp_rows(layer: nn.Module, members: list[int]) -> list[tuple[nn.Module, list[int]]]:
    """The maps into a block's MLP, and the rows of each that make these neurons."""
    mlp = mlp_of(layer)
    if hasattr(mlp, "gate_up_proj"):  # Phi-3: both in one, the gates first
        half = mlp.gate_up_proj.weight.shape[0] // 2
        return [(mlp.gate_up_proj, [*members, *(half + n for n in members)])]
    for names in (("gate_proj", "up_proj"), ("fc1",), ("dense_h_to_4h",), ("c_fc",)):
        if all(hasattr(mlp, name) for name in names):
            return [(getattr(mlp, name), members) for name in names]
    raise UnknownArchitecture(f"The maps into a {type(mlp).__name__} are not known: no weight of it can be told apart.")


def _query_rows(layer: nn.Module, heads: list[int], dims) -> tuple[nn.Module, list[int]]:
    """The map that makes a block's queries, and the rows of it that make those of these heads."""
    attention, d = attention_of(layer), dims.d_head
    if hasattr(attention, "query_key_value"):  # GPT-NeoX: query, key and value of one head side by side
        return attention.query_key_value, [3 * h * d + i for h in heads for i in range(d)]
    for name in ("q_proj", "qkv_proj", "c_attn"):  # the last two: all queries first
        if hasattr(attention, name):
            return getattr(attention, name), [h * d + i for h in heads for i in range(d)]
    raise UnknownArchitecture(f"The queries of a {type(attention).__name__} are not known: nothing of it is trained.")


def parameters_in(masks: dict[str, torch.Tensor]) -> int:
    """How many single weights the masks hold."""
    return sum(int(mask.sum()) for mask in masks.values())


def random_circuit(model, circuit, seed: int = 0) -> Circuit:
    """As many other heads and neurons in the same layers, at random: a control with as many weights, to the last one.

    Where a layer has too few others, the rest come from the nearest layers. Raises ValueError if there are too few in all.
    """
    heads, neurons = places_of_circuit(model, circuit)
    dims, rng = dims_of(model), np.random.default_rng(seed)
    drawn = [
        tuple(sorted(random_alike([(layer, i) for layer in part for i in part[layer]], (dims.n_layers, width), rng)))
        for part, width in ((neurons, dims.d_mlp), (heads, dims.n_heads))
    ]
    return Circuit(evaluation_neurons=drawn[0], decision_components=drawn[1])
