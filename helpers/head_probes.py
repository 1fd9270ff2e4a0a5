"""Probes on single heads, and steering along what they find: inference-time intervention. Taught in lesson 03.

ITI (Li et al. 2023) probes each head's output (the input of the output projection, head by head), keeps the heads that
read best, and pushes each along its own direction by alpha standard deviations. What reads best need not write
anything, so the same is done with random heads as a control.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from .erasure import edit_at
from .hooks import check_site, read
from .logistic import fit_logistic
from .models import dims_of
from .probing import held_out_decisions, topic_folds

Head = tuple[int, int]  # (layer, head)


@dataclass(frozen=True)
class HeadProbes:
    """accuracy: on held-out topics, [layer, head]. direction: unit, from harmless to harmful, [layer, head, d_head].
    sigma: standard deviation of the activations along it, [layer, head]."""

    accuracy: torch.Tensor
    direction: torch.Tensor
    sigma: torch.Tensor

    def top(self, count: int) -> list[Head]:
        """The heads that read best, the best first. Raises ValueError for a count that is not there."""
        heads = self.accuracy.shape[1]
        if not 1 <= count <= self.accuracy.numel():
            raise ValueError(f"There are {self.accuracy.numel()} heads: {count} cannot be chosen.")
        order = self.accuracy.flatten().argsort(descending=True, stable=True)[:count].tolist()
        return [divmod(i, heads) for i in order]


def read_heads(model, tokenizer, prompts: Sequence[str], position: int = -1) -> torch.Tensor:
    """Every head's output at one position, [prompt, layer, head, d_head], from one forward a batch."""
    dims = dims_of(model)
    z = read(model, tokenizer, prompts, ["z"], positions=position)["z"]
    return z.view(*z.shape[:2], dims.n_heads, dims.d_head)


def probe_heads(
    z: torch.Tensor, labels: torch.Tensor, topics: Sequence, folds: int = 5, C: float = 0.1, by: str = "means"
) -> HeadProbes:
    """A probe for each head on z [prompt, layer, head, d_head], labels [prompt] (1: harmful).

    by: the direction to steer along, "means" (the difference of means, which works best in ITI's table 3) or "probe".
    """
    if by not in ("means", "probe"):
        raise ValueError(f'There is no direction by {by!r}: choose "means" or "probe".')
    n, layers, heads, width = z.shape
    x = z.permute(1, 2, 0, 3).reshape(layers * heads, n, width)
    held = held_out_decisions(x, labels.float(), topic_folds(topics, folds), C)
    accuracy = ((held > 0) == labels.bool()).float().mean(-1)
    if by == "means":
        direction = x[:, labels.bool()].mean(1) - x[:, ~labels.bool()].mean(1)
    else:
        direction = fit_logistic(x, labels[None].float(), torch.ones(1, n), C).weights[0, :, 0]
    direction = direction / direction.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    sigma = torch.einsum("snd,sd->sn", x, direction).std(-1)
    return HeadProbes(
        accuracy.view(layers, heads), direction.view(layers, heads, width), sigma.view(layers, heads)
    )  # fmt: skip


def steer_heads(
    model, probes: HeadProbes, heads: Sequence[Head], alpha: float, position: int | None = -1, prefix: int = 0
) -> AbstractContextManager:
    """While inside, alpha * sigma * direction is added to each of these heads' outputs.

    position: counted from the prompt's end, or None for every position. ITI steers each token that is generated; -1 does so: the
    prompt's last one, and all tokens of an answer read on top of a cached prompt (prefix as in `erasure.edit_at`). Raises
    ValueError for a head that is not there.
    """
    count, width = probes.direction.shape[1:]
    pushes: Mapping[int, torch.Tensor] = {}
    for layer, head in heads:
        check_site(model, "z", layer)
        if not 0 <= head < count:
            raise ValueError(f"There is no head {head}: heads are 0 to {count - 1}.")
        push = pushes.setdefault(layer, torch.zeros(count, width))
        push[head] = alpha * probes.sigma[layer, head] * probes.direction[layer, head]

    def work(push: torch.Tensor):
        return lambda x: x + push.flatten().to(x)

    edits = [("z", layer, work(push)) for layer, push in pushes.items()]
    return edit_at(model, edits, position, prefix, answers=True)
