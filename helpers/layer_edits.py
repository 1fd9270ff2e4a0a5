"""Small fine-tuning edits in many places, one at a time, and what the same places' ablation does. Taught in lesson 06.

If a method says *here it sits*, one would think that here it is also best changed. Hase et al. 2023 ("Does localization
inform editing?") found for facts that it is not so. To ask this of refusal, each place gets the same few steps of
training: answer the harmful request's first token as its harmless twin would. Nothing harmful is learned by that.

Only the blocks from the place on are run, on the streams of the untouched model below; and the first step's gradients, at the same
weights for every place, are taken once for all of them. The beginning that all prompts share is
read by the untouched weights, as by a server that has cached its system prompt.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from .faithfulness import Ablator
from .finetuning import LARGEST
from .hooks import edit
from .marked_weights import MarkedWeights
from .models import layers_of, mlp_of
from .twins import SIDES, Twins


def layer_places(model, layers: Iterable[int] | None = None) -> dict[int, dict[str, torch.Tensor]]:
    """A place for each layer: all weights of its MLP, {layer: {parameter: booleans of its shape}}."""
    names = {id(p): name for name, p in model.named_parameters()}
    blocks = layers_of(model)
    return {
        layer: {names[id(p)]: torch.ones(p.shape, dtype=torch.bool) for p in mlp_of(blocks[layer]).parameters()}
        for layer in (range(len(blocks)) if layers is None else layers)
    }


def edit_places(
    train: Twins,
    test: Twins,
    places: Mapping,
    rate: float,
    steps: int,
    each: Callable[[int, int], None] | None = None,
) -> dict:
    """{place: (log-odds of refusal lost on test pairs, [pair]; mean KL on their harmless twins, nats)}, each place edited alone.

    places: {name: masks}, masks as those of `weight_masks` or `layer_places`: only what they mark is trained, by AdamW without decay.
    Both batches are of one model, which is as before afterwards, also if this is interrupted. each: called with (done, all).
    Raises ValueError for two models, an empty place, a weight outside of the blocks, 16 bits, and a large model.
    """
    model = train.model
    if test.model is not model:
        raise ValueError(
            "Both batches must be of one model: an edit is made in the first one's and tried in the second one's."
        )
    if sum(p.numel() for p in model.parameters()) > LARGEST:
        raise ValueError("The course removes refusal from its own small model only; this one is larger.")
    if any(p.dtype != torch.float32 for p in model.parameters()):
        raise ValueError("Small steps are rounded away in 16 bits: load the model with dtype=torch.float32.")
    starts = {name: _lowest(model, masks, name) for name, masks in places.items()}
    tried = [test.read(side, ["resid_pre", "resid_post"]) for side in SIDES]
    start_streams = [one["resid_pre"] for one in (train.read("harmful", ["resid_pre"]), *tried)]
    with torch.no_grad():
        wanted = train.logits("harmless").softmax(-1)
        clean = [test.head(one["resid_post"][-1][:, -1]) for one in tried]
    lowest = min(starts.values(), default=0)
    every = {name for masks in places.values() for name in masks}

    def loss(first: int) -> torch.Tensor:
        return -(wanted * train.resume(first, start_streams[0][first]).log_softmax(-1)).sum(-1).mean()

    gradients = _gradients(model, every, lambda: loss(lowest)) if steps else {}
    out = {}
    for done, (name, masks) in enumerate(places.items(), 1):
        first = starts[name]
        with _put_back(model, masks):
            trained = MarkedWeights(model, masks, rate)
            for step in range(steps):
                if step:
                    trained.step(lambda first=first: loss(first))
                else:
                    trained.follow(gradients)
            with torch.no_grad():
                now = [test.resume(first, x[first]) for x in start_streams[1:]]
        out[name] = _compared(test, clean, now)
        if each:
            each(done, len(places))
    return out


def _gradients(model, names: Iterable[str], loss: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of the loss by these parameters, {name: of its shape}."""
    named = dict(model.named_parameters())
    weights = {name: named[name] for name in sorted(names)}
    with _put_back(model, weights), torch.enable_grad():
        for weight in weights.values():
            weight.requires_grad_(True)
        return dict(zip(weights, torch.autograd.grad(loss(), list(weights.values())), strict=True))


@contextmanager
def _put_back(model, names: Iterable[str]) -> Iterator[None]:
    """What these parameters are now, and whether they need a gradient, they are again afterwards."""
    named = dict(model.named_parameters())
    before = {name: (named[name].detach().clone(), named[name].requires_grad) for name in names}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, (value, needed) in before.items():
                named[name].copy_(value)
                named[name].requires_grad_(needed)
                named[name].grad = None


def _compared(test: Twins, clean: Sequence[torch.Tensor], now: Sequence[torch.Tensor]) -> tuple[np.ndarray, float]:
    """(log-odds of refusal lost, [pair]; mean KL on the harmless twins) from logits of both sides, before and after."""
    lost = (test.odds_of(clean[0]) - test.odds_of(now[0])).cpu().numpy().astype(float)
    before, after = clean[1].log_softmax(-1), now[1].log_softmax(-1)
    return lost, float((before.exp() * (before - after)).sum(-1).mean())


def _lowest(model, masks: Mapping[str, torch.Tensor], name) -> int:
    """The first layer that holds a weight of this place, or a ValueError."""
    if not masks or not any(bool(mask.any()) for mask in masks.values()):
        raise ValueError(f"The place {name!r} holds no weights: there is nothing to train in it.")
    owner = {id(p): i for i, block in enumerate(layers_of(model)) for p in block.parameters()}
    named = dict(model.named_parameters())
    for key in masks:
        if key not in named or id(named[key]) not in owner:
            raise ValueError(f"{key!r} is no weight of a block: places lie in attention and MLPs.")
    return min(owner[id(named[key])] for key in masks)


@torch.no_grad()
def layer_ablations(
    twins: Twins,
    layers: Sequence[int],
    kinds: Sequence[str],
    each: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Log-odds of refusal lost without each layer's MLP, {kind: [layer, pair]}; kinds as in `faithfulness.ABLATIONS`.

    All kinds of a layer in one batch, from that layer on. each: called with (done, all).
    """
    with twins.remembering():  # the harmless twins are read once for all kinds
        fills = [Ablator(twins, kind).fill["neurons"] for kind in kinds]
    touched = twins.real.clone()
    if not twins.prefix:  # position 0, the attention sink, is left alone
        touched[torch.arange(len(touched)), touched.int().argmax(-1)] = False
    touched = touched[..., None].repeat(len(kinds), 1, 1).to(twins.model.device)
    before, seen = twins.odds_and_read("harmful", ["resid_pre"])
    lost = {kind: np.zeros((len(layers), len(twins))) for kind in kinds}
    for at, layer in enumerate(layers):
        put = torch.cat([fill[layer] for fill in fills])
        with edit(twins.model, [("neurons", layer, lambda x, put=put: torch.where(touched, put, x))]):
            x = twins.block(layer, seen["resid_pre"][layer].repeat(len(kinds), 1, 1))
        odds = twins.odds_of(twins.resume(layer + 1, x)).cpu().numpy().reshape(len(kinds), -1)
        for kind, row in zip(kinds, odds, strict=True):
            lost[kind][at] = before - row
        if each:
            each(at + 1, len(layers))
    return lost
