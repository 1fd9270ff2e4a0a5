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

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

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
from .glassbox_score import Score, ranked, score  # noqa: F401
from .glassbox_truth import (  # noqa: F401
    GROUPS,
    INPUT,
    OUTPUT,
    PLACES,
    STAGES,
    Node,
    Place,
    SealedTruth,
    Truth,
    is_neuron_stage,
    truth_from_json,
    truth_text,
    truth_to_json,
)
from .refusal import RefusalScore

KINDS = ("concentrated", "distributed", "redundant", "entangled")


def load_glassbox(kind: str = "concentrated", seed: int | None = None):
    """A glass box: (model, tokenizer, truth). kind: one of KINDS, or "mystery", which alone takes a seed.

    Raises ValueError for an unknown kind, for a seed with a named kind, and for a shipped file that was changed.
    """
    if kind == "mystery":
        return mystery(0 if seed is None else seed)
    if kind not in KINDS:
        raise ValueError(f"There is no glass box {kind!r}: choose one of {', '.join(KINDS)}, or 'mystery'.")
    if seed is not None:
        raise ValueError(
            f"There is one box of the kind {kind!r}: leave the seed out, or ask for mystery(seed={seed!r})."
        )
    weights, truth = read_box(kind)
    return *_ready(weights), truth


def _ready(weights: Mapping[str, torch.Tensor]):
    """The model with its refusal score, and the tokenizer. The score is the box's own: it knows one opening only."""
    model, tokenizer = model_of(weights), load_tokenizer()
    opening = tokenizer(" ".join(language()["refusal"][:2]), add_special_tokens=False)["input_ids"]
    model.refusal_score = RefusalScore((tuple(opening),))
    return model, tokenizer


def mystery(seed: int):
    """A box whose kind nobody tells: (model, tokenizer, SealedTruth). Any whole number is a seed.

    Some mystery boxes are shipped, with stages and decoys in other places than the named kinds have; the seed picks
    one, shuffles heads and neurons within their layers and turns the residual stream. What it computes stays the same.
    The truth comes sealed: `score(found, truth)` reads it, a person has to call `truth.unseal()`.

    Raises TypeError if the seed is no whole number, ValueError if a shipped file was changed.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"The seed of a mystery box is a whole number, not {seed!r}.")
    rng = np.random.default_rng([abs(int(seed)), int(seed < 0), 20240])
    names = sorted(name.removesuffix(".sealed") for name in manifest() if name.endswith(".sealed"))
    name = names[rng.integers(len(names))]
    weights, truth = shuffled(*read_box(name), rng)
    return *_ready(weights), SealedTruth(truth)


def read_box(name: str) -> tuple[dict[str, torch.Tensor], Truth]:
    """The weights (in float32) and the truth of a shipped box, by the name of its files; nothing stays sealed here.

    Raises ValueError if one of the files is missing or was changed.
    """
    weights = {key: w.float() for key, w in load(_checked(f"{name}.safetensors")).items()}
    letter = f"{name}.sealed" if f"{name}.sealed" in manifest() else f"{name}.truth.json"
    return weights, truth_from_json(truth_text(_checked(letter)))


def shuffled(weights: dict[str, torch.Tensor], truth: Truth, rng: np.random.Generator):
    """The same function in other coordinates: heads and neurons permuted within layers, the stream rotated.

    Returns (weights, truth), new ones of the same names and shapes.
    """
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

    changes = {}
    for name in PLACES:
        kind = "neuron" if is_neuron_stage(name) else "head"
        changes[name] = tuple(sorted(moved(Node(kind, *place))[1:] for place in getattr(truth, name)))
    changes["edges"] = tuple(sorted((moved(a), moved(b)) for a, b in truth.edges))
    changes["labels"] = {moved(n): text for n, text in truth.labels.items()}
    return new, replace(truth, **changes, direction=(truth.direction.double() @ turn).float())


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
    path = DATA / name
    content = path.read_bytes() if path.exists() else b""
    if hashlib.sha256(content).hexdigest() != manifest().get(name):
        raise ValueError(
            f"The glass box file {name} is missing or was changed: restore it with "
            "`git checkout helpers/data/glassbox`, or download the course again."
        )
    return content


def _config() -> LlamaConfig:
    return LlamaConfig(**json.loads((DATA / "config.json").read_text(encoding="utf-8")))


def model_of(weights: Mapping[str, torch.Tensor]) -> LlamaForCausalLM:
    """A box's model from its weights, in evaluation mode, without gradients for its parameters."""
    with torch.device("meta"):  # no time spent on random weights
        model = LlamaForCausalLM(_config())
    model = model.to_empty(device="cpu")
    model.load_state_dict(weights)
    # the rotary tables are no weights: make them anew, since "meta" left them empty
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return model.eval().requires_grad_(False)
