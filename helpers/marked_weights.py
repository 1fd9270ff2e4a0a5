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
        named, self._weights = dict(model.named_parameters()), {}
        for name, mask in masks.items():
            weight = named[name].requires_grad_(True)
            where = None if bool(mask.all()) else mask.to(weight.device).flatten().nonzero().flatten()
            own = weight if where is None else nn.Parameter(weight.detach().flatten()[where])
            self._weights[name] = weight, where, own
        self._optimiser = torch.optim.AdamW([own for *_, own in self._weights.values()], lr=rate, weight_decay=0.0)

    def step(self, loss: Callable[[], torch.Tensor]) -> None:
        """One step down the gradient of what `loss()` gives."""
        with torch.enable_grad():
            loss().backward()
        self.follow({name: weight.grad for name, (weight, *_) in self._weights.items()})

    def follow(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """One step down gradients that are known already, {parameter: of its shape}."""
        for name, (_, where, own) in self._weights.items():
            own.grad = gradients[name] if where is None else gradients[name].flatten()[where]
        self._optimiser.step()
        for weight, where, own in self._weights.values():
            if where is not None:
                with torch.no_grad():
                    weight.view(-1)[where] = own
            weight.grad = None
