"""The beginning that all prompts share, read once. Used from lesson 01 on, for speed.

Every prompt of one template begins with the same tokens (the system prompt, the marks of the user's turn). A token
never sees what comes after it, so the activations there are the same in every prompt: their keys and values are
computed once and kept. Exact, as long as nothing edits the model *within* the shared beginning; `mean_ablated`
leaves it alone for the same reason, and so goes with it.
"""

import copy
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import DynamicCache

from .models import body_of, sliding_window_of
from .prompts import CACHE, Batch, chat_text, check_prompts, tokenize

PROBES = ("A", "b", "7", "?")
SHORTEST, FEWEST = 8, 4  # tokens of a beginning, and rows, below which reading it apart gains nothing


def shared_prefix(tokenizer, prompts: Sequence[str], system: str | None = None) -> list[int]:
    """The token ids with which these prompts, and any others, begin in their template.

    What the prompts happen to share beyond the template (`How do I`) is not counted: a few short ones are put beside
    them. At least one token of each prompt is left over.
    """
    rows = tokenize(tokenizer, chat_text(tokenizer, [*check_prompts(prompts), *PROBES], system))
    shared = list(os.path.commonprefix(rows))  # works on any sequences
    return shared[: min(map(len, rows)) - 1]


class WithPrefix:
    """A model that has read the shared beginning already; call it with the same batches, padded at the left.

    It takes what `Batch.inputs()` gives, drops the shared tokens, and runs the rest on their keys and values. Goes
    wherever a model is only called: `score.log_odds(WithPrefix(model, prefix), tokenizer, prompts)`. Exact for prompts
    shorter than a model's sliding window. Raises ValueError if a batch does not begin with the prefix.
    """

    def __init__(self, model, prefix: Sequence[int]):
        if not len(prefix):
            raise ValueError("The prefix is empty: these prompts share no beginning, so call the model itself.")
        self.model, self.prefix = model, list(prefix)
        ids = torch.tensor([self.prefix], device=model.device)
        with torch.no_grad():
            self._cache = model(input_ids=ids, use_cache=True, logits_to_keep=1)[CACHE]

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def bare(self):
        """The model itself."""
        return getattr(self.model, "bare", self.model)

    def held(self) -> AbstractContextManager:
        """While inside, the beginning is read once. (Here it is anyway.)"""
        return nullcontext()

    def headless(self) -> "WithPrefix":
        """The same without the unembedding, for those who read activations and no logits."""
        new = copy.copy(self)
        new.model = body_of(self.model)
        return new

    @torch.no_grad()
    def __call__(self, input_ids, attention_mask, position_ids, **options):
        length, kept = len(self.prefix), self._kept_columns(attention_mask)
        if options.get(CACHE) is None:
            self._check(input_ids, attention_mask)
            options[CACHE] = self._copies(len(input_ids))
            input_ids, position_ids = input_ids[:, length:], position_ids[:, length:]
        return self.model(
            input_ids=input_ids,
            attention_mask=kept,
            position_ids=position_ids,
            **options,
        )

    def behind(self, batch: Batch) -> dict:
        """What `generate` takes beside the token ids of a batch, so that it goes on from the beginning."""
        self._check(batch.input_ids, batch.attention_mask)
        kept, cache = self._kept_columns(batch.attention_mask), self._copies(len(batch.input_ids))
        # Also where the model's own config says no, or asks for a cache of another kind.
        return {"attention_mask": kept, CACHE: cache, "use_cache": True, "cache_implementation": None}

    def _kept_columns(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """The mask with the cached beginning in the first columns of every row, and then what is left of the row behind it."""
        kept = attention_mask * (attention_mask.cumsum(-1) > len(self.prefix))
        kept[:, : len(self.prefix)] = 1
        return kept

    def _check(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        first = attention_mask.argmax(-1)
        columns = first[:, None] + torch.arange(len(self.prefix), device=input_ids.device)
        begins = input_ids.gather(1, columns.clamp(max=input_ids.shape[1] - 1))
        if not bool((begins == torch.tensor(self.prefix, device=input_ids.device)).all()):
            raise ValueError("These prompts do not begin with the shared tokens: make the prefix from all the prompts.")

    def _copies(self, count: int) -> DynamicCache:
        """The prefix's keys and values for `count` rows; the cache itself must not grow."""
        copy = DynamicCache()
        for layer, kept in enumerate(self._cache.layers):
            # One row for all; or one for each part of a batch (`side_by_side.py`), as many as were read.
            rows = (tensor.repeat_interleave(count // len(tensor), 0) for tensor in (kept.keys, kept.values))
            copy.update(*rows, layer)
        return copy


def held(model) -> AbstractContextManager:
    """While inside, a beginning that the model reads apart is read once: for several measurements under the same edits."""
    return model.held() if isinstance(model, WithPrefix) else nullcontext()


def hooked(model) -> bool:
    """Whether anything hangs on the model, which may ask where in a forward it is. (What transformers leaves there, once attention
    weights were asked for, only looks.)"""
    hooks = (h for m in model.modules() for some in (m._forward_hooks, m._forward_pre_hooks) for h in some.values())
    return any(getattr(hook, "__name__", "") != "output_capturing_hook" for hook in hooks)


def read_ahead(
    model, tokenizer, prompts: Sequence[str], system: str | None = None, further: int = 8
) -> WithPrefix | None:
    """The model with the beginning of these prompts read, for those who read up to `further` tokens behind them.

    None where that gains nothing, has been done, or would not be exact: hooks are on the model, the texts are longer than a sliding
    window, or the model asks for a cache of another kind.
    """
    if len(prompts) < FEWEST or not isinstance(model, torch.nn.Module) or hooked(model):
        return None
    if getattr(getattr(model, "generation_config", None), "cache_implementation", None) not in (None, "hybrid"):
        return None
    if window := sliding_window_of(model):
        longest = max(map(len, tokenize(tokenizer, chat_text(tokenizer, prompts, system))))
        if longest + further > window:
            return None
    prefix = shared_prefix(tokenizer, prompts, system)
    return WithPrefix(model, prefix) if len(prefix) >= SHORTEST else None


def reader(model, rows: Sequence[Sequence[int]], furthest: int):
    """(what to call with a batch of these rows of token ids to read activations, how many tokens of each it has read already).

    No logits are computed. What all rows share is read once, but for what stands at position `furthest` or later. Few rows, and a model
    with hooks on it (which may ask where they are), are read whole.
    """
    shared = len(os.path.commonprefix([list(row) for row in rows]))
    length = min(shared, furthest, min(map(len, rows)) - 1)
    if length < SHORTEST or len(rows) < FEWEST or hooked(model):
        return lambda **inputs: body_of(model)(**inputs, use_cache=False), 0
    quick = WithPrefix(model, rows[0][:length]).headless()
    return lambda **inputs: quick(**inputs, use_cache=True), length
