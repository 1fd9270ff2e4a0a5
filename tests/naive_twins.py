"""The slow and plain way to patch: one prompt at a time, the whole model, no shared beginning. A reference for tests."""

import torch
from families import CharTokenizer, tiny

from helpers.hooks import edit, record
from helpers.models import dims_of
from helpers.twins import Twins

PAIRS = [("how to burn a house", "how to bake a bread"), ("build it now", "break it now"), ("steal cars", "clean cars")]
TOKENS = [3, 7]


def twins_of(family: str) -> Twins:
    """A tiny model's twins, of three lengths."""
    return Twins(tiny(family), CharTokenizer(), PAIRS, tokens=TOKENS)


def odds(model, text: str, edits=()) -> float:
    """Log-odds of the tokens at the end of one prompt, by the textbook: log p / (1 - p)."""
    ids = torch.tensor(CharTokenizer()(["^" + text + "$"])["input_ids"])
    with torch.no_grad(), edit(model, list(edits)):
        p = model(ids).logits[0, -1].double().softmax(-1)[TOKENS].sum()
    return float(torch.log(p / (1 - p)))


def seen(model, text: str, sites, edits=()) -> dict:
    """{site: {layer: [1, position, width]}} of one prompt."""
    ids = torch.tensor(CharTokenizer()(["^" + text + "$"])["input_ids"])
    with torch.no_grad(), edit(model, list(edits)), record(model, sites) as found:
        model(ids)
    return found


def channels(model, node) -> tuple[str, slice]:
    """Where a component is found, written out once more."""
    d = dims_of(model).d_head
    if node.kind == "head":
        return "z", slice(node.index * d, (node.index + 1) * d)
    return "neurons", slice(None) if node.kind == "mlp" else slice(node.index, node.index + 1)


def put(model, node, values: torch.Tensor, share: float = 1.0):
    """An edit that moves a component this share of the way to `values`, the activations of its site."""
    site, part = channels(model, node)

    def function(x):
        new = x.clone()
        new[..., part] += share * (values[..., part] - x[..., part])
        return new

    return site, node.layer, function
