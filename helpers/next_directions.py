"""More than one direction? Find another after the first is cut, and cut what lies between two. Taught in lesson 06.

If refusal were one direction, nothing of it would be left once that one is gone. Wollschläger et al. 2025 ("The geometry of
refusal in large language models") find several, and whole cones of them. Here: the difference of means is fitted anew on a
model without the directions found so far, at right angles to them.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager

import torch

from .directions import ablation_of, unit
from .fresh_prefix import headless_of, in_context
from .hooks import record
from .models import dims_of
from .prompts import token_batches


@torch.no_grad()
def read_last(model, tokenizer, prompts: Sequence[str], sites: Sequence[str], batch_size: int = 32):
    """Activations of the template's last token, {site: [prompt, layer, width]}, in float32 on the CPU; as `hooks.read`, but the
    beginning that all prompts share is read once a batch, under the edits of the moment."""
    layers = range(dims_of(model).n_layers)
    quick, out = headless_of(in_context(model, tokenizer, prompts)), {}
    for batch in token_batches(tokenizer, prompts, batch_size):
        with record(model, sites, keep=lambda x: x[:, -1].float().cpu()) as seen:
            quick(**batch.to(model.device).inputs(), use_cache=True)
        for site in sites:
            rows = torch.stack([seen[site][layer] for layer in layers], 1)
            out.setdefault(site, torch.empty(len(prompts), *rows.shape[1:]))[batch.order] = rows
    return out


@contextmanager
def without_directions(model, directions: Sequence[torch.Tensor], first: int = 0):
    """While inside, nothing writes along any of these unit directions, from layer `first` on; at right angles to each other, or the
    later ones bring back a little of the earlier."""
    with ExitStack() as stack:
        for direction in directions:
            stack.enter_context(ablation_of(model, direction, first))
        yield


def next_direction(harmful: torch.Tensor, harmless: torch.Tensor, found: Sequence[torch.Tensor]) -> torch.Tensor:
    """The unit difference of means, [d_model], of activations [prompt, d_model] less what lies along the directions found so far.

    Raises ValueError if nothing is left.
    """
    left = harmful.mean(0) - harmless.mean(0)
    for direction in found:
        left = left - (left @ direction) * direction
    return unit(left)


def successive_directions(
    model,
    tokenizer,
    harmful: Sequence[str],
    harmless: Sequence[str],
    layer: int,
    count: int,
    first: int = 0,
    each: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """`count` unit directions before a layer, [count, d_model], each fitted with all the earlier ones cut from layer `first` on."""
    found: list[torch.Tensor] = []
    for done in range(1, count + 1):
        with without_directions(model, found, first):
            x = read_last(model, tokenizer, [*harmful, *harmless], ["resid_pre"])["resid_pre"][:, layer]
        found.append(next_direction(x[: len(harmful)], x[len(harmful) :], found))
        if each:
            each(done, count)
    return torch.stack(found)


def between(one: torch.Tensor, other: torch.Tensor, degrees: float) -> torch.Tensor:
    """The unit direction at an angle from `one` towards `other`; the two are units at right angles to each other."""
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    return unit(angle.cos() * one + angle.sin() * other)
