"""The beginning that all prompts share, read once for each batch: for edits that reach into it. Used in lesson 05.

`WithPrefix` reads the shared beginning once and for all, and so before any edit: exact only for edits that leave it
alone. A direction that is ablated, or the attention sink, does not. Here the beginning is read anew at each call, under
whatever is switched on by then, for one row instead of all: exact for every edit that treats all positions alike, or finds its
places by `template_places`, and nearly as fast. (Not for `patch(positions=...)`, which counts in the tokens of one forward.)
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import DynamicCache

from .costs import ASKED, CostMeter
from .models import body_of
from .prompts import CACHE
from .replay import replaying
from .shared_prefix import WithPrefix, shared_prefix
from .side_by_side import parts, rows_of


class FreshPrefix(WithPrefix):
    """As `WithPrefix`, but the beginning is read under the edits of the moment."""

    _no_logits = {"logits_to_keep": 1}  # of the beginning, as far as the model's forward can be told
    _kept: dict[int, DynamicCache] | None = None  # {parts of a batch: the beginning}, while it is held

    def headless(self) -> "FreshPrefix":
        new = super().headless()
        new._no_logits = {}
        return new

    @contextmanager
    def held(self) -> Iterator[None]:
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def _copies(self, count: int) -> DynamicCache:
        rows_of((0, parts()), count)  # refuses what does not fall into equal parts
        kept = {} if self._kept is None else self._kept
        if parts() not in kept:
            rows = [self.prefix] * parts()  # one for each part of the batch that has edits of its own
            ids = torch.tensor(rows, device=self.model.device)
            kept[parts()] = self.model(input_ids=ids, use_cache=True, **self._no_logits)[CACHE]
        self._cache = kept[parts()]
        return super()._copies(count)


def in_context(model, tokenizer, prompts: Sequence[str], system: str | None = None):
    """The model with the beginning that all these prompts share read once a batch, under whatever edits are on by then."""
    prefix = shared_prefix(tokenizer, prompts, system)
    return FreshPrefix(model, prefix) if prefix else model


def headless_of(model):
    """The same, model or `in_context`, without the unembedding: for those who read activations and no logits."""
    return model.headless() if isinstance(model, WithPrefix) else body_of(model)


def fresh(meter: CostMeter, replay: bool = True) -> CostMeter:
    """A meter like this one that reads the shared beginning once for each batch. One that is quick is left as it is.

    replay: blocks below the lowest edit are not run again (`replay.py`). That takes memory: some megabytes a prompt.
    """
    if isinstance(meter.model, WithPrefix):
        return meter
    new = copy.copy(meter)
    new.model = in_context(meter.model, meter.tokenizer, [*meter.harmful, *meter.harmless, ASKED])
    return replaying(new) if replay else new
