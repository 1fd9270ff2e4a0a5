"""The truth of a box, read off its parts: places by role, and edges by what one part writes and another reads."""

import numpy as np
import torch

from helpers.glassbox import INPUT, OUTPUT, Node, Truth
from helpers.glassbox_language import language

from .assemble import Assembly
from .parts import Head, Neuron
from .space import axis

CIRCUIT = (
    "detection",
    "evaluation",
    "decision",
    "production",
    "backup:detection",
    "backup:evaluation",
    "backup:decision",
)


def truth_of(kind: str, assembly: Assembly, direction: np.ndarray) -> Truth:
    """Everything that the builder knows, by layer and index."""
    roles: dict[tuple[type, str], list] = {}
    for i, part in enumerate(assembly.parts):
        roles.setdefault((type(part), part.role), []).append(assembly.where[i])

    def places(sort: type, *names: str) -> tuple:
        return tuple(sorted(p for (s, role), at in roles.items() if s is sort and role.startswith(names) for p in at))

    evaluation = places(Neuron, "evaluation")
    return Truth(
        kind=kind,
        detection_heads=places(Head, "detection"),
        evaluation_neurons=evaluation,
        decision_components=places(Head, "decision"),
        production_neurons=places(Neuron, "production"),
        backup_heads=places(Head, "backup"),
        backup_neurons=places(Neuron, "backup"),
        decoy_heads=places(Head, "decoy"),
        decoy_neurons=places(Neuron, "decoy"),
        dormant_heads=places(Head, "dormant"),
        dormant_neurons=places(Neuron, "dormant"),
        capability_heads=places(Head, "capability"),
        capability_neurons=evaluation if kind == "entangled" else places(Neuron, "fact"),
        edges=edges_of(assembly),
        labels=labels_of(assembly),
        direction=torch.tensor(direction, dtype=torch.float32),
    )


def node_of(assembly: Assembly, i: int) -> Node:
    return Node("head" if isinstance(assembly.parts[i], Head) else "neuron", *assembly.where[i])


def labels_of(assembly: Assembly) -> dict[Node, str]:
    """A word for each known part: the flag that a head finds, the domain of a neuron, the sort of a decoy."""
    domains, labels = list(language()["domains"]), {}
    for i, part in enumerate(assembly.parts):
        if part.role.endswith("detection"):
            text = next(
                name for name in ("verb", "object", "permit") if any(f[0] == f"is_{name}" for f in part.keys[0])
            )
        elif part.role.startswith("decoy"):
            text = part.role.partition(":")[2] or "head"
        elif part.role.endswith("evaluation"):
            text = domains[next(flag[1] for flag in part.reads if flag[0].startswith("verb"))]
        elif part.role == "fact":
            text = " ".join(part.serves.split(":")[1:])
        else:
            continue
        labels[node_of(assembly, i)] = text
    return labels


def edges_of(assembly: Assembly) -> tuple[tuple[Node, Node], ...]:
    """Direct influences between parts of the circuit: one writes a flag that the other, later one, reads."""
    parts = [(i, p) for i, p in enumerate(assembly.parts) if p.role in CIRCUIT]
    edges = []
    for i, a in parts:
        if a.role.endswith("detection"):
            edges.append((INPUT, node_of(assembly, i)))
        if a.role == "production":
            edges.append((node_of(assembly, i), OUTPUT))
        written = a.write if isinstance(a, Neuron) else sum(np.abs(w) for _, w in a.values)
        for j, b in parts:
            read = b.reads if isinstance(b, Neuron) else {f: w for row in b.queries for f, w in row.items()}
            meets = any(abs(written @ axis(*flag)) > 1e-6 for flag in read if flag[0] not in ("const", "end"))
            if meets and _time(a) < _time(b):
                edges.append((node_of(assembly, i), node_of(assembly, j)))
    return tuple(sorted(edges))


def _time(part: Head | Neuron) -> int:
    return 2 * part.layer + isinstance(part, Neuron)
