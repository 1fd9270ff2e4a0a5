"""What the robust adapters are attacked with while they train: cut directions and ablated neurons, with gradients.

The directions are the model's own, found anew as they move: the difference of means of harmful and harmless requests,
then the difference that is left when the first one is cut, and so on. All requests are from the "adapter" split.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from helpers import prompts as P
from helpers.hooks import edit, record
from helpers.models import body_of, dims_of, down_projection_of, layers_of, weight_of
from tools.refusal_examples import Example, shared_start

FIRSTS = (10, 12, 14)  # the layers from which on a training attack cuts
LAYERS = range(12, 21)  # the layers whose difference of means is cut


def cut(model, basis: torch.Tensor, first: int):
    """While inside, no layer from `first` on can write into the span of orthonormal rows [k, d_model]."""

    def remove(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):  # in 16 bits the rows would not have length 1
            wide = x.float()
            return wide - (wide @ basis.T) @ basis

    layers = range(first, len(layers_of(model)))
    return edit(model, [(site, layer, remove) for layer in layers for site in ("attn_out", "mlp_out")])


def drop_neurons(model, rng: random.Random, directions: torch.Tensor, share: float, first: int = 8):
    """While inside, a random share of each layer's neurons holds its mean over the batch; those that write strongly
    onto a direction [d_model] are likelier to be drawn."""
    generator, edits = torch.Generator().manual_seed(rng.randrange(2**31)), []
    for layer in range(first, len(layers_of(model))):
        loud = (directions @ weight_of(down_projection_of(layers_of(model)[layer])).float()).abs()
        drawn = torch.multinomial(loud + loud.mean(), int(share * len(loud)), generator=generator)

        def hold(x: torch.Tensor, drawn=drawn) -> torch.Tensor:
            new = x.clone()
            new[..., drawn] = x[..., drawn].detach().mean((0, 1), keepdim=True).expand(*x.shape[:2], -1)
            return new

        edits.append(("neurons", layer, hold))
    return edit(model, edits)


@contextmanager
def worst_case(
    model, loss: Callable[[], torch.Tensor], rows: int, layers: Sequence[int], size: float
) -> Iterator[None]:
    """While inside, the stream before these layers is pushed to where `loss` is larger: latent adversarial training.

    One step of gradient ascent from no push at all. Each of the batch's `rows` is pushed by `size` times the length of its own
    stream, most where its gradient is largest; the beginning that they share (one row) is left alone. Casper et al. 2024.
    """
    pushes: dict[int, torch.Tensor] = {}

    def push(layer: int):
        def function(x: torch.Tensor) -> torch.Tensor | None:
            if len(x) != rows:
                return None
            if layer not in pushes:
                pushes[layer] = torch.zeros_like(x).requires_grad_()
            lengths[layer] = x.detach().flatten(1).norm(dim=1)
            return x + pushes[layer]

        return function

    lengths: dict[int, torch.Tensor] = {}
    with edit(model, [("resid_pre", layer, push(layer)) for layer in layers]):
        slopes = torch.autograd.grad(loss(), list(pushes.values()))
        for layer, slope in zip(pushes, slopes, strict=True):
            way = slope / slope.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]
            pushes[layer] = size * lengths[layer][:, None, None] * way
        yield


@torch.no_grad()
def residuals(model, tokenizer, prompts: Sequence[str]) -> torch.Tensor:
    """The stream before each layer at the template's last token, [prompt, layer, d_model]; the shared start is read once."""
    rows = P.tokenize(tokenizer, P.chat_text(tokenizer, prompts))
    start = shared_start(rows)
    batch = P.pad([row[start:] for row in rows], [], P.pad_token_id(tokenizer))
    body, n = body_of(model), len(rows)
    cache = body(torch.tensor([rows[0][:start]]), use_cache=True)[P.CACHE]
    cache.batch_repeat_interleave(n)
    mask = torch.cat([torch.ones(n, start, dtype=torch.long), batch.attention_mask], 1)
    with record(model, ["resid_pre"], keep=lambda x: x[:, -1].float()) as seen:
        body(batch.input_ids, attention_mask=mask, position_ids=batch.position_ids + start, **{P.CACHE: cache})
    return torch.stack(list(seen["resid_pre"].values()), 1)


class Directions:
    """A model's own refusal directions, nested: each is the difference that is left when those before it are cut."""

    def __init__(self, model, tokenizer, examples: Sequence[Example], rng: random.Random, count: int = 12):
        self.model, self.tokenizer, self.rng, self.count = model, tokenizer, rng, count
        usual = [e for e in examples if e.system is None and not e.prefill]
        self.pools = [[e.prompt for e in usual if e.harmful is harmful] for harmful in (True, False)]

    def difference(self, layer: int) -> torch.Tensor:
        """The unit difference of means before a layer, [d_model], under whatever is switched on by now."""
        harmful, harmless = (self.rng.sample(pool, self.count) for pool in self.pools)
        seen = residuals(self.model, self.tokenizer, [*harmful, *harmless])[:, layer]
        difference = seen[: self.count].mean(0) - seen[self.count :].mean(0)
        return difference / difference.norm()

    def nested(self, depth: int, layers: Sequence[int] = LAYERS, first: int = 12) -> torch.Tensor:
        """Orthonormal rows [depth, d_model], the first one found uncut."""
        basis = torch.zeros(0, dims_of(self.model).d_model)
        for _ in range(depth):
            basis = self.behind(basis, layers, first)
        return basis

    def behind(self, basis: torch.Tensor, layers: Sequence[int] = LAYERS, first: int = 12) -> torch.Tensor:
        """The orthonormal rows with one more: what is left of the difference of means when they are cut."""
        with cut(self.model, basis, first):
            new = self.difference(self.rng.choice(layers))
        new = new - (new @ basis.T) @ basis
        return torch.cat([basis, new[None] / new.norm()])
