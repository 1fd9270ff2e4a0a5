"""What an edit cannot touch is not computed again: blocks below the lowest edit give what they gave before.

An edit in layer 12 changes nothing in layers 0 to 11. For the same batch their outputs, and the keys and values that
they leave in the cache, are the same each time: they are kept when they are first seen, and handed out afterwards. Exact
for every edit that is made by hooks (all of `hooks.edit`), since the hooks themselves say where the lowest one
is; not for a model whose weights change meanwhile. Used from lesson 01 on, for speed.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import Cache

from .hooks import forward_as
from .models import layers_of
from .prompts import CACHE
from .shared_prefix import WithPrefix, hooked


class Replaying:
    """A model that remembers the batches it has read. Call it as the model; it goes wherever a model is only called.

    Give it the model itself, and put the shared beginning around it: `FreshPrefix(Replaying(model), prefix)`.
    """

    def __init__(self, model):
        self.model, self._blocks = model, list(layers_of(model))
        self._kept: dict[tuple, list[tuple]] = {}  # of each batch: (output, keys, values) of the lowest blocks

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def bare(self):
        """The model itself."""
        return self.model

    @torch.no_grad()
    def __call__(self, input_ids, attention_mask=None, **options):
        key = _key(input_ids, attention_mask, options.get(CACHE))
        known, clean = self._kept.setdefault(key, []), self._untouched()
        count = min(len(known), clean)
        with self._replayed(known[:count]), self._seen(count, clean) as outputs:
            out = self.model(input_ids=input_ids, attention_mask=attention_mask, **options)
        cache = getattr(out, CACHE, None)
        if cache is None:
            del self._kept[key]  # nothing to hand out to those who read on
            return out
        if len(known) < clean:
            width = input_ids.shape[1]
            for at, output in enumerate(outputs, count):
                kept = cache.layers[at]
                known.append((output, kept.keys[:, :, -width:].clone(), kept.values[:, :, -width:].clone()))
        cache.read = key  # a copy of the cache takes it along
        return out

    def _untouched(self) -> int:
        """How many blocks, from the lowest one up, no hook hangs on."""
        for at, block in enumerate(self._blocks):
            if hooked(block):
                return at
        return len(self._blocks)

    def _replayed(self, known: list[tuple]):
        """While inside, the lowest blocks hand out what is known of them."""

        def handing_out(at: int, output, keys, values):
            def forward(*args, **kwargs):
                cache = next((x for x in (*args, *kwargs.values()) if isinstance(x, Cache)), None)
                if cache is not None:
                    cache.update(keys, values, at)
                return output

            return forward

        return forward_as((self._blocks[at], handing_out(at, *one)) for at, one in enumerate(known))

    @contextmanager
    def _seen(self, start: int, stop: int) -> Iterator[list]:
        """While inside, the outputs of these blocks are noted."""
        outputs: list = []
        handles = [
            block.register_forward_hook(lambda _, __, out: outputs.append(out)) for block in self._blocks[start:stop]
        ]
        try:
            yield outputs
        finally:
            for handle in handles:
                handle.remove()


def replaying(meter):
    """A cost meter like this one that replays; what it reads once, or anew each time, it goes on reading so."""
    new = copy.copy(meter)
    if isinstance(meter.model, WithPrefix):
        new.model = copy.copy(meter.model)
        new.model.model = Replaying(meter.model.model)
    else:
        new.model = Replaying(meter.model)
    return new


def _key(ids: torch.Tensor, mask: torch.Tensor | None, cache) -> tuple:
    """What a forward reads: its tokens, behind which beginning, and what is padding."""
    before = (getattr(cache, "read", None) or cache.get_seq_length()) if cache is not None else 0
    padding = None if mask is None else mask.cpu().numpy().tobytes()
    return before, tuple(ids.shape), ids.cpu().numpy().tobytes(), padding
