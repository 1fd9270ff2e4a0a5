"""What is known about a glass box: the places of its circuit, its decoys, its direction; open or sealed.

`Truth` is what `load_glassbox` hands out, `SealedTruth` what `mystery` does. Taught in lesson 00.
"""

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import NamedTuple

import torch

from .glassbox_language import DATA

STAGES = ("detection_heads", "evaluation_neurons", "decision_components", "production_neurons")
GROUPS = ("heads", "neurons")  # stages taken together: all heads, all neurons of the circuit
Place = tuple[int, int]  # (layer, index of the head or the neuron)


class Node(NamedTuple):
    """A component of a circuit: kind "head" or "neuron"; "input" and "output" have layer and index -1."""

    kind: str
    layer: int
    index: int


INPUT, OUTPUT = Node("input", -1, -1), Node("output", -1, -1)


@dataclass(frozen=True)
class Truth:
    """Where a box's refusal circuit is. Places are (layer, index); all of them are exact, by construction."""

    kind: str
    detection_heads: tuple[Place, ...]
    evaluation_neurons: tuple[Place, ...]
    decision_components: tuple[Place, ...]  # heads
    production_neurons: tuple[Place, ...]
    backup_heads: tuple[Place, ...] = ()  # the second path of `redundant`; scored apart
    backup_neurons: tuple[Place, ...] = ()
    decoy_heads: tuple[Place, ...] = ()  # react to harm, cause nothing
    decoy_neurons: tuple[Place, ...] = ()
    dormant_heads: tuple[Place, ...] = ()  # would write what the circuit writes, but never wake
    dormant_neurons: tuple[Place, ...] = ()
    capability_heads: tuple[Place, ...] = ()
    capability_neurons: tuple[Place, ...] = ()  # in `entangled` these are the evaluation neurons
    edges: tuple[tuple[Node, Node], ...] = field(default=(), repr=False)  # direct influences, input to output
    labels: Mapping[Node, str] = field(default_factory=dict, repr=False)  # what each reads, fires for, or is (a decoy)
    direction: torch.Tensor = field(default=None, compare=False, repr=False)  # refusal direction, unit, [d_model]

    @property
    def heads(self) -> tuple[Place, ...]:
        """All heads of the circuit, without the backup."""
        return self.detection_heads + self.decision_components

    @property
    def neurons(self) -> tuple[Place, ...]:
        """All neurons of the circuit, without the backup."""
        return self.evaluation_neurons + self.production_neurons

    def coarse_edges(self) -> set[tuple[Node, Node]]:
        """The edges with the neurons of a layer taken together, as Node("mlp", layer, 0)."""

        def merged(node: Node) -> Node:
            return Node("mlp", node.layer, 0) if node.kind == "neuron" else node

        return {(merged(a), merged(b)) for a, b in self.edges}


PLACES = tuple(f.name for f in fields(Truth) if f.name.endswith(("_heads", "_neurons", "_components")))


class SealedTruth:
    """The truth of a mystery box. `score` can use it; to look at it, call `unseal()`, and the game is over."""

    def __init__(self, truth: Truth):
        self._letter = truth

    def __repr__(self) -> str:
        return "SealedTruth(call .unseal() to read it)"

    def unseal(self) -> Truth:
        """The truth. There is no way back."""
        return self._letter


def is_neuron_stage(stage: str) -> bool:
    """Whether a stage, or another field of a `Truth`, holds neurons; the others hold heads."""
    return stage.endswith("neurons")


@cache
def box_sizes() -> dict[str, int]:
    """How many layers a box has, how wide its stream is, how many heads and neurons a layer has; the same in all."""
    config = json.loads((DATA / "config.json").read_text(encoding="utf-8"))
    return {
        "layers": config["num_hidden_layers"],
        "d_model": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "neurons": config["intermediate_size"],
    }


def truth_to_json(truth: Truth) -> str:
    """A truth as text, for the shipped files."""
    data = {f.name: getattr(truth, f.name) for f in fields(Truth)}
    data["labels"] = [[*node, text] for node, text in truth.labels.items()]
    data["direction"] = [round(float(x), 6) for x in truth.direction]
    return json.dumps(data, separators=(",", ":"))


def seal(text: str) -> bytes:
    """A truth's text packed so that nobody reads it by chance."""
    return base64.b64encode(zlib.compress(text.encode(), 9))


def truth_text(content: bytes) -> str:
    """The text of a truth's file, sealed or not."""
    return content.decode() if content.startswith(b"{") else zlib.decompress(base64.b64decode(content)).decode()


def truth_from_json(text: str) -> Truth:
    """The inverse of `truth_to_json`."""
    data = json.loads(text)
    for name in PLACES:
        data[name] = tuple(map(tuple, data[name]))
    data["edges"] = tuple((Node(*a), Node(*b)) for a, b in data["edges"])
    data["labels"] = {Node(*row[:3]): row[3] for row in data["labels"]}
    return Truth(**{**data, "direction": torch.nn.functional.normalize(torch.tensor(data["direction"]), dim=0)})
