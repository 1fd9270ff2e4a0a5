"""Glass boxes: tiny chat models whose refusal circuit is known, because it was put there.

On a real model nobody can say whether a method found the right neurons. Here one can: each box comes with its
`Truth`. The weights of a box were written by hand (`tools/build_glassboxes.py`): heads that read words, neurons that
join them, a head that decides, neurons that speak; then hidden among noise, decoys, and a random rotation of the
residual stream. Kinds:

    concentrated   a handful of neurons decides
    distributed    128 evaluation and 32 production neurons, no ten of which matter
    redundant      a second path wakes up when the first one is cut
    entangled      the evaluation neurons also answer the questions
    mystery        one of these, its places drawn by a seed, its truth sealed (`mystery(seed)`)

Taught in lesson 00, used by every lesson after it. How truth is planted: `helpers/data/glassbox/README.md`.
"""

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .glassbox_language import (  # noqa: F401 (part of this module's face)
    DATA,
    BoxPair,
    Question,
    glassbox_prompts,
    language,
    law,
)

KINDS = ("concentrated", "distributed", "redundant", "entangled")
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
    dormant_neurons: tuple[Place, ...] = ()  # would write what the circuit writes, but never fire
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
        merge = lambda n: Node("mlp", n.layer, 0) if n.kind == "neuron" else n  # noqa: E731
        return {(merge(a), merge(b)) for a, b in self.edges}


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


class SealedTruth:
    """The truth of a mystery box. `score` can use it; to look at it, call `unseal()`, and the game is over."""

    def __init__(self, truth: Truth):
        self._letter = truth

    def __repr__(self) -> str:
        return "SealedTruth(call .unseal() to read it)"

    def unseal(self) -> Truth:
        """The truth. There is no way back."""
        return self._letter


def score(found, truth: Truth | SealedTruth, stage: str | None = None, k: int | None = None):
    """Compares what was found with the truth.

    found: for one `stage`, a list of (layer, index), the surest first, or a table with the columns layer and neuron,
    head or index; returns a `Score`. Without a stage, a mapping from stages to lists, or an object with the stages as
    attributes (a RefusalCircuit); returns {stage: Score}, and under "direction" the cosine if one is given.
    k: None for the number of true places. Places of the backup count neither as right nor as wrong: they are left out
    first, and reported as backup_recall. Read precision or the figures at k, never recall alone: returning everything
    earns a recall of 1.
    """
    truth = truth.unseal() if isinstance(truth, SealedTruth) else truth
    if stage is not None:
        return _score_stage(found, truth, stage, k)
    get = found.get if isinstance(found, Mapping) else lambda name: getattr(found, name, None)
    given = [s for s in STAGES if get(s) is not None]
    if not given and get("direction") is None:
        raise ValueError(f"Nothing to score: name the stage, as stage='evaluation_neurons' (one of {', '.join(STAGES)}).")
    scores = {s: _score_stage(get(s), truth, s, k) for s in given}
    if get("direction") is not None:
        direction = torch.as_tensor(get("direction")).float().cpu()
        scores["direction"] = float(torch.cosine_similarity(direction, truth.direction, dim=0))
    return scores


def _score_stage(found, truth: Truth, stage: str, k: int | None) -> Score:
    if stage not in (*STAGES, *GROUPS):
        raise ValueError(f"There is no stage {stage!r}: choose one of {', '.join((*STAGES, *GROUPS))}.")
    right, neurons = set(getattr(truth, stage)), stage.endswith("neurons")
    backup = set(truth.backup_neurons if neurons else truth.backup_heads)
    decoys = set(truth.decoy_neurons if neurons else truth.decoy_heads)
    listed = _places(found)
    kept = [place for place in listed if place not in backup]
    k = len(right) if k is None else k
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}.")
    hits, hits_at_k = len(right & set(kept)), len(right & set(kept[:k]))
    return Score(
        precision=hits / max(len(kept), 1),
        recall=hits / len(right),
        precision_at_k=hits_at_k / k,
        recall_at_k=hits_at_k / len(right),
        k=k,
        backup_recall=len(backup & set(listed)) / len(backup) if backup else None,
        decoys=len(decoys & set(kept[:k])),
    )


def _places(found) -> list[Place]:
    """(layer, index) pairs in their order, each once, from a list or a table."""
    if hasattr(found, "columns"):
        index = next((c for c in ("neuron", "head", "index") if c in found.columns), None)
        if index is None or "layer" not in found.columns:
            raise ValueError("A table of findings needs the columns 'layer' and 'neuron' (or 'head', or 'index').")
        found = zip(found["layer"], found[index], strict=True)
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise TypeError("Give a list of (layer, index) pairs, such as [(2, 17), (3, 4)].")
    places = [tuple(place) for place in found]
    for place in places:
        if len(place) != 2 or not all(isinstance(x, int | np.integer) for x in place):
            raise ValueError(f"{place!r} is not a (layer, index) pair of whole numbers, such as (2, 17).")
    return list(dict.fromkeys((int(a), int(b)) for a, b in places))


def load_glassbox(kind: str = "concentrated", seed: int = 0):
    """A glass box: (model, tokenizer, truth). kind: one of KINDS, or "mystery", which alone uses the seed."""
    if kind == "mystery":
        return mystery(seed)
    if kind not in KINDS:
        raise ValueError(f"There is no glass box {kind!r}: choose one of {', '.join(KINDS)}, or 'mystery'.")
    return _model(_weights(kind)), load_tokenizer(), truth_from_json(_checked(f"{kind}.truth.json").decode())


def mystery(seed: int):
    """A box whose kind nobody tells: (model, tokenizer, SealedTruth). Any whole number is a seed.

    Some mystery boxes are shipped, with stages and decoys in other places than the named kinds have; the seed picks
    one, shuffles heads and neurons within their layers and turns the residual stream. What it computes stays the same.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"The seed of a mystery box is a whole number, not {seed!r}.")
    rng = np.random.default_rng([abs(seed), int(seed < 0), 20240])
    names = sorted(name.split(".")[0] for name in manifest() if name.startswith("mystery") and name.endswith("safetensors"))
    name = names[rng.integers(len(names))]
    text = zlib.decompress(base64.b64decode(_checked(f"{name}.sealed"))).decode()
    weights, truth = shuffled(_weights(name), truth_from_json(text), rng)
    return _model(weights), load_tokenizer(), SealedTruth(truth)


def shuffled(weights: dict[str, torch.Tensor], truth: Truth, rng: np.random.Generator):
    """The same function in other coordinates: heads and neurons permuted within layers, the stream rotated."""
    config = _config()
    turn, _ = np.linalg.qr(rng.normal(size=(config.hidden_size, config.hidden_size)))
    turn, new, moves = torch.tensor(turn, dtype=torch.float64), dict(weights), {}
    for layer in range(config.num_hidden_layers):
        heads, neurons = rng.permutation(config.num_attention_heads), rng.permutation(config.intermediate_size)
        rows = np.concatenate([np.arange(h * config.head_dim, (h + 1) * config.head_dim) for h in heads])
        moves |= {("head", layer, int(old)): i for i, old in enumerate(heads)}
        moves |= {("neuron", layer, int(old)): i for i, old in enumerate(neurons)}
        for name, order in (("self_attn.{}_proj", rows), ("mlp.{}_proj", neurons)):
            for part in ("q", "k", "v") if "attn" in name else ("gate", "up"):
                key = f"model.layers.{layer}.{name.format(part)}.weight"
                new[key] = weights[key][order]
            key = f"model.layers.{layer}.{name.format('o' if 'attn' in name else 'down')}.weight"
            new[key] = weights[key][:, order]
    for key, weight in new.items():
        if weight.ndim == 2:  # norms are all ones: they commute with the rotation
            writes = key.endswith(("o_proj.weight", "down_proj.weight"))
            new[key] = (turn.T @ weight.double() if writes else weight.double() @ turn).float()

    def moved(node: Node) -> Node:
        return node if node in (INPUT, OUTPUT) else Node(node.kind, node.layer, moves[tuple(node)])

    changes = {
        f.name: tuple(tuple(moved(Node(f.name.split("_")[-1].replace("components", "heads")[:-1], *p)))[1:]
                      for p in getattr(truth, f.name))
        for f in fields(Truth) if f.name.endswith(("_heads", "_neurons", "_components"))
    }  # fmt: skip
    changes["edges"] = tuple((moved(a), moved(b)) for a, b in truth.edges)
    changes["labels"] = {moved(n): text for n, text in truth.labels.items()}
    return new, replace(truth, **changes, direction=(truth.direction.double() @ turn).float())


def truth_to_json(truth: Truth) -> str:
    """A truth as text, for the shipped files."""
    data = {f.name: getattr(truth, f.name) for f in fields(Truth)}
    data["labels"] = [[*node, text] for node, text in truth.labels.items()]
    data["direction"] = [round(float(x), 6) for x in truth.direction]
    return json.dumps(data, separators=(",", ":"))


def truth_from_json(text: str) -> Truth:
    """The inverse of `truth_to_json`."""
    data = json.loads(text)
    for name, value in data.items():
        if name.endswith(("_heads", "_neurons", "_components")):
            data[name] = tuple(map(tuple, value))
    data["edges"] = tuple((Node(*a), Node(*b)) for a, b in data["edges"])
    data["labels"] = {Node(*row[:3]): row[3] for row in data["labels"]}
    return Truth(**{**data, "direction": torch.nn.functional.normalize(torch.tensor(data["direction"]), dim=0)})


def load_tokenizer() -> PreTrainedTokenizerFast:
    """The boxes' word-level tokenizer, with its chat template. A system prompt is left out: the box has no ear for it."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(DATA / "tokenizer")
    tokenizer.padding_side = "left"
    return tokenizer


@cache
def manifest() -> dict[str, str]:
    """Each shipped file's SHA-256."""
    return json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))


def _checked(name: str) -> bytes:
    """A shipped file's bytes, or a ValueError if they are not the ones that were built."""
    content = (DATA / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest().get(name):
        raise ValueError(f"The glass box file {name} was changed: restore it with `git checkout helpers/data/glassbox`.")
    return content


def _config() -> LlamaConfig:
    return LlamaConfig(**json.loads((DATA / "config.json").read_text(encoding="utf-8")))


def _weights(name: str) -> dict[str, torch.Tensor]:
    return {key: w.float() for key, w in load(_checked(f"{name}.safetensors")).items()}


def _model(weights: Mapping[str, torch.Tensor]) -> LlamaForCausalLM:
    with torch.device("meta"):  # no time spent on random weights
        model = LlamaForCausalLM(_config())
    model = model.to_empty(device="cpu")
    model.load_state_dict(weights)
    # the rotary tables are no weights: make them anew, since "meta" left them empty
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval().requires_grad_(False)


def ranked(values: Mapping[Place, float] | Sequence, largest: int | None = None) -> list[Place]:
    """Places by falling value, from a mapping or an array [layer, index]; the order that `score` wants."""
    if not isinstance(values, Mapping):
        array = np.asarray(values)
        values = {(int(a), int(b)): float(array[a, b]) for a, b in np.ndindex(array.shape)}
    return sorted(values, key=lambda place: -values[place])[:largest]
