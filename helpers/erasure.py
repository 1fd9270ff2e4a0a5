"""LEACE: take out of activations all that a linear probe could read of a label, and no more. Taught in lesson 03.

A probe shows that something can be read, not that the model reads it. So erase it and look what changes. With one
label, LEACE (Belrose et al. 2023, theorem 4.3) is a projection of rank one: along the difference of means `delta`, read
off by the whitened direction, x - delta (v . (x - mean)) with v = S^-1 delta / (delta' S^-1 delta). Afterwards both
classes have the same mean, so no linear probe does better than a constant on the data that it was fitted on.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch

from .hooks import check_site, edit
from .mean_ablation import template_places


@dataclass(frozen=True)
class Eraser:
    """x - write (read . (x - mean)), all [d]. Call it on activations [..., d]."""

    mean: torch.Tensor
    read: torch.Tensor
    write: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        mean, reader, write = (v.to(x.device, torch.float32) for v in (self.mean, self.read, self.write))
        wide = x.float()
        return (wide - ((wide - mean) @ reader)[..., None] * write).to(x.dtype)


def leace(x: torch.Tensor, labels: torch.Tensor, shrinkage: float = 0.0) -> Eraser:
    """The eraser of a binary label [prompt] from activations [prompt, d].

    shrinkage: 0 to 1, how far the covariance is drawn towards a multiple of the identity. 0 is the paper's LEACE, which
    with fewer prompts than channels moves nothing outside the span of the prompts. With any shrinkage the label is
    erased exactly; only "no more than needed" is given up, for a direction that holds on new prompts. Raises ValueError
    for one class only, unlike lengths, or a label that the activations do not carry at all.
    """
    x, y = x.double().cpu(), labels.double().cpu()
    if x.dim() != 2 or y.shape != x.shape[:1]:
        raise ValueError(f"LEACE needs x [prompt, d] and labels [prompt], not {tuple(x.shape)} and {tuple(y.shape)}.")
    if len(y.unique()) != 2:
        raise ValueError("LEACE needs prompts of both classes: give harmful and harmless ones.")
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage lies between 0 and 1; {shrinkage!r} does not.")
    one = y == y.max()
    mean, delta = x.mean(0), x[one].mean(0) - x[~one].mean(0)
    if delta.norm() <= 1e-9 * (1 + x.norm(dim=1).mean()):
        raise ValueError("Both classes have the same mean here already: there is nothing to erase.")
    centred = x - mean
    covariance = centred.T @ centred / len(x)
    eye = torch.eye(len(covariance), dtype=x.dtype)
    covariance = (1 - shrinkage) * covariance + shrinkage * covariance.trace() / len(covariance) * eye
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > 1e-9 * values.max()
    solved = vectors[:, kept] @ ((vectors[:, kept].T @ delta) / values[kept])
    return Eraser(mean.float(), (solved / (delta @ solved)).float(), delta.float())


@contextmanager
def edit_at(
    model, edits: Iterable[tuple], position: int | None, prefix: int = 0, answers: bool = False
) -> Iterator[None]:
    """While inside, edits (of `hooks.edit`) work at one position of a prompt, counted from its end (-1 is the last token), or at
    every one if position is None. answers: and at each token that is read on top of a cached prompt.

    prefix: how many tokens a `WithPrefix` has read before (`meter.prefix`): what follows them is the prompt, and no answer yet.
    Raises ValueError for a position from the front, and in the forward if an answer is read and no prompt was.
    """
    if position is None:
        with edit(model, list(edits)):
            yield
        return
    if isinstance(position, bool) or not isinstance(position, int) or position >= 0:
        raise ValueError(f"A position is counted from the prompt's end, -1 for its last token; {position!r} is not.")
    depth, prompted = -position, False
    with template_places(model, prefix, depth) as now:

        def there(function):
            def at(x: torch.Tensor) -> torch.Tensor:
                nonlocal prompted
                place = now["place"]
                prompted = prompted or bool(((place >= 0) & (place <= depth)).any())
                if not prompted and bool((place > depth).any()):
                    raise ValueError("An answer is read here, and no prompt was: give prefix=meter.prefix.")
                where = (place == depth - 1) | (answers & (place == depth + 1))
                return torch.where(where[..., None].to(x.device), function(x), x)

            return at

        with edit(model, [(site, layer, there(function)) for site, layer, function in edits]):
            yield


def erase(
    model, site: str, erasers: dict[int, Eraser], position: int | None = -1, prefix: int = 0
) -> AbstractContextManager:
    """While inside, each layer's eraser works on its activation at a site: at one position of the prompt, or at every one if
    position is None (`edit_at`). With a position, an answer that is read on top of a cached prompt is left alone. Raises
    ValueError for a site or layer that is not there."""
    for layer in erasers:
        check_site(model, site, layer)
    return edit_at(model, [(site, layer, eraser) for layer, eraser in erasers.items()], position, prefix)
