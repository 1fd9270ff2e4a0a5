"""Train the marked entries of some weights, and nothing else. Used in lessons 05 and 06.

To set the other entries' gradients to zero does not freeze them: an optimiser with weight decay shrinks what has no gradient. Here
the optimiser never sees them. It gets the marked entries, as small parameters of their own, which are written back after each step;
the rest stays the same to the last bit.
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn


class MarkedWeights:
    """AdamW without decay on the entries of a model's weights that masks mark, {parameter: booleans of its shape}."""

    def __init__(self, model: nn.Module, masks: Mapping[str, torch.Tensor], rate: float):
        named, self._weights = dict(model.named_parameters()), []
        for name, mask in masks.items():
            weight = named[name].requires_grad_(True)
            where = None if bool(mask.all()) else mask.to(weight.device).flatten().nonzero().flatten()
            own = weight if where is None else nn.Parameter(weight.detach().flatten()[where])
            self._weights.append((weight, where, own))
        self._optimiser = torch.optim.AdamW([own for _, _, own in self._weights], lr=rate, weight_decay=0.0)

    def step(self, loss: Callable[[], torch.Tensor]) -> None:
        """One step down the gradient of what `loss()` gives."""
        self._optimiser.zero_grad()
        with torch.enable_grad():
            loss().backward()
        for weight, where, own in self._weights:
            if where is not None:
                own.grad, weight.grad = weight.grad.flatten()[where], None
        self._optimiser.step()
        with torch.no_grad():
            for weight, where, own in self._weights:
                if where is not None:
                    weight.view(-1)[where] = own
