"""Pairs of equal length, run side by side: the ground that patching, attribution and circuits stand on.

A harmful request and its harmless twin of as many tokens: whatever a part does at one place on the one can be put
in at the same place on the other. The beginning that all prompts share is read once (its activations are the same in
both twins). Blocks can be run one at a time, and from any layer on. Taught in lesson 04.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from .hooks import edit, forward_as, record
from .models import body_of, final_norm_of, layers_of, unembedding_of
from .prompts import CACHE, LAST, chat_text, check_prompts, pad, pad_token_id, tokenize
from .refusal import refusal_score_of
from .roles import members
from .shared_prefix import shared_prefix

SIDES = ("harmful", "harmless")
KEPT = ("resid_pre", "z", "neurons", "resid_post")  # of a run that is remembered


class _FixedLayer(DynamicLayer):
    """Keys and values of the shared beginning, for any number of rows; it never grows."""

    def update(self, key_states, value_states, *args, **kwargs):
        rows = len(key_states)
        both = ((self.keys, key_states), (self.values, value_states))
        return tuple(torch.cat([kept.expand(rows, -1, -1, -1), new], -2) for kept, new in both)


def _fixed_cache(model, prefix: Sequence[int]) -> DynamicCache:
    ids = torch.tensor([list(prefix)], device=model.device)
    with torch.no_grad():
        seen = model(input_ids=ids, use_cache=True, logits_to_keep=1)[CACHE]
    cache = DynamicCache()
    for kept in seen.layers:
        layer = _FixedLayer()
        layer.lazy_initialization(kept.keys, kept.values)
        layer.keys, layer.values = kept.keys, kept.values
        cache.layers.append(layer)
    return cache


def swapped(pairs: Sequence, seed: int = 0) -> list[tuple[str, str]]:
    """The pairs with the labels of half of them, drawn at random, exchanged: on these there is nothing to find."""
    rng = np.random.default_rng(seed)
    turn = set(rng.permutation(len(pairs))[: len(pairs) // 2].tolist())
    return [members(p)[::-1] if i in turn else members(p) for i, p in enumerate(pairs)]


class Twins:
    """A batch of pairs on one model: [pair, position, ...], padded at the left, without the shared beginning.

    The measure is the log-odds that the answer's *first token* is one that a refusal may begin with: one forward, and
    a gradient. tokens: these tokens; None for those of the model's refusal openings. Raises ValueError for fewer than
    two pairs and for pairs of unequal length.
    """

    def __init__(self, model, tokenizer, pairs: Sequence, tokens: Iterable[int] | None = None):
        layers_of(model)  # an unknown architecture is refused first
        self.model, self.tokenizer = model, tokenizer
        self.pairs = [members(p) for p in pairs]
        if len(self.pairs) < 2:
            raise ValueError("One pair tells nothing of the spread: give at least two (harmful, harmless) pairs.")
        texts = [check_prompts([p[i] for p in self.pairs]) for i in (0, 1)]
        rows = [tokenize(tokenizer, chat_text(tokenizer, side)) for side in texts]
        unequal = [i for i, (a, b) in enumerate(zip(*rows, strict=True)) if len(a) != len(b)]
        if unequal:
            raise ValueError(
                f"{len(unequal)} of {len(self.pairs)} pairs have members of unequal length, the first is pair {unequal[0]}: "
                "their places do not match. Keep the others, by pairs = equal_length(tokenizer, pairs)."
            )
        self.tokens = _first_tokens(model, tokenizer) if tokens is None else sorted(set(tokens))
        prefix = shared_prefix(tokenizer, [*texts[0], *texts[1]])
        self.prefix = len(prefix)
        self._cache = _fixed_cache(model, prefix) if prefix else None
        batches = [
            pad([r[self.prefix :] for r in side], list(range(len(side))), pad_token_id(tokenizer)) for side in rows
        ]
        self.real = batches[0].attention_mask.bool()  # [pair, position]: what is no padding
        self.ids = {side: b.input_ids.to(model.device) for side, b in zip(SIDES, batches, strict=True)}
        self.changed = (batches[0].input_ids != batches[1].input_ids) & self.real  # where the twins' words differ
        ahead = torch.ones(len(self.pairs), self.prefix, dtype=torch.long)
        self._mask = torch.cat([ahead, batches[0].attention_mask], -1).to(model.device)
        self._positions = (batches[0].position_ids + self.prefix * batches[0].attention_mask).to(model.device)
        self._blocks = self._capture()  # at once: later, hooks may hang on the model
        self._kept: dict | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def shape(self) -> tuple[int, int]:
        """(pairs, positions) of a batch."""
        return tuple(self.real.shape)

    def logits(self, side: str = "harmful", edits: Iterable = (), times: int = 1) -> torch.Tensor:
        """Of the answer's first token, [times * pair, vocabulary], with these edits (of `hooks.edit`); the batch is
        repeated `times`, so that an edit may treat its copies apart."""
        with edit(self.model, list(edits)):
            out = self.model(**self.inputs(side, times), logits_to_keep=LAST)
        return out.logits[:, -1].float()

    def inputs(self, side: str, times: int = 1) -> dict:
        """What the model is called with: one side's tokens behind the shared beginning, the batch repeated `times`."""
        return {
            "input_ids": self.ids[side].repeat(times, 1),
            "attention_mask": self._mask.repeat(times, 1),
            "position_ids": self._positions.repeat(times, 1),
            **({CACHE: self._cache, "use_cache": True} if self._cache else {"use_cache": False}),
        }

    def odds_of(self, logits: torch.Tensor) -> torch.Tensor:
        """Log-odds of a refusal's first token, [...], from logits [..., vocabulary]."""
        chosen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        chosen[self.tokens] = True
        yes = logits.masked_fill(~chosen, -torch.inf).logsumexp(-1)
        return yes - logits.masked_fill(chosen, -torch.inf).logsumexp(-1)

    @torch.no_grad()
    def odds(self, side: str = "harmful", edits: Iterable = ()) -> np.ndarray:
        """Log-odds of a refusal's first token, [pair]."""
        return self.odds_and_read(side, (), edits)[0]

    @torch.no_grad()
    def read(self, side: str, sites: Sequence[str], edits: Iterable = ()) -> dict[str, list[torch.Tensor]]:
        """Activations at these sites, a list over layers of [pair, position, width]; {site: list}."""
        return self._run(side, sites, edits)[1]

    @torch.no_grad()
    def odds_and_read(self, side: str, sites: Sequence[str], edits: Iterable = ()):
        """`odds` and `read`, from one run."""
        logits, seen = self._run(side, sites, edits)
        return self.odds_of(logits).cpu().numpy().astype(float), seen

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """While inside, the untouched run of a side is made once and kept, and an edited one begins at its lowest edit.

        For work that asks the same model again and again: its weights must not change meanwhile, nor may hooks of others
        come or go. Takes some 10 MB a pair for a model like ours.
        """
        self._kept = {}
        try:
            yield
        finally:
            self._kept = None

    def _run(
        self, side: str, sites: Sequence[str], edits: Iterable
    ) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
        """Logits of the answer's first token, and activations at these sites, of a run under edits."""
        edits = list(edits)
        if self._kept is None or not set(sites) <= set(KEPT):
            return self._whole_run(side, sites, edits)
        if side not in self._kept:
            self._kept[side] = self._whole_run(side, KEPT, ())
        logits, known = self._kept[side]
        if not edits:
            return logits, {site: known[site] for site in sites}
        layers, lowest = range(len(layers_of(self.model))), min(layer for _, layer, _ in edits)
        with self._noting(sites, layers[lowest:]) as seen, edit(self.model, edits):
            logits = self.resume(lowest, known["resid_pre"][lowest])
        return logits, {site: known[site][:lowest] + [seen[site][layer] for layer in layers[lowest:]] for site in sites}

    def _whole_run(self, side: str, sites: Sequence[str], edits: Iterable):
        """The same, from the first block on."""
        layers = range(len(layers_of(self.model)))
        with self._noting(sites, layers) as seen:
            logits = self.logits(side, edits)
        return logits, {site: [seen[site][layer] for layer in layers] for site in sites}

    def _noting(self, sites: Sequence[str], layers: Iterable[int]):
        """`record`, also of nothing."""
        return record(self.model, sites, layers) if sites else nullcontext({})

    # --- blocks, one at a time ---------------------------------------------------------------------------------

    def block(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """What block `layer` makes of a stream x [times * pair, position, d_model]: the stream behind it."""
        args, kwargs = self._arguments(layer, len(x) // len(self.pairs))
        out = layers_of(self.model)[layer](x, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def resume(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Logits [times * pair, vocabulary] when the stream before `layer` is x [times * pair, position, d_model]."""
        for at in range(layer, len(layers_of(self.model))):
            x = self.block(at, x)
        return self.head(x[:, -1])

    def head(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [..., vocabulary] from the stream behind the last block, [..., d_model]."""
        logits = unembedding_of(self.model)(final_norm_of(self.model)(x)).float()
        cap = getattr(body_of(self.model).config.get_text_config(), "final_logit_softcapping", None)  # Gemma 2 caps
        return cap * torch.tanh(logits / cap) if cap else logits

    def _arguments(self, layer: int, times: int) -> tuple[tuple, dict]:
        """What the model hands to a block beside the stream, for `times` copies of the batch."""
        args, kwargs = self._blocks[layer]
        return _tiled(args, len(self.pairs), times), _tiled(kwargs, len(self.pairs), times)

    @torch.no_grad()
    def _capture(self) -> list[tuple[tuple, dict]]:
        """What the model hands to each block beside the stream. Only the first block is run, to see in what form a block
        answers; the others hand on what they are given."""
        seen: list[tuple[tuple, dict]] = []
        form: list = []

        def first(forward):
            def run(x, *args, **kwargs):
                seen.append((args, kwargs))
                form.append(forward(x, *args, **kwargs))
                return form[0]

            return run

        def other(x, *args, **kwargs):
            seen.append((args, kwargs))
            return (x, *form[0][1:]) if isinstance(form[0], tuple) else x

        blocks = layers_of(self.model)
        with forward_as((block, other if at else first(block.forward)) for at, block in enumerate(blocks)):
            self.logits()
        return seen


def _tiled(value: Any, rows: int, times: int) -> Any:
    """Tensors with one row a pair, `times` one after the other; everything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.repeat(times, *[1] * (value.dim() - 1)) if value.dim() and len(value) == rows > 1 else value
    if isinstance(value, tuple | list):
        return type(value)(_tiled(v, rows, times) for v in value)
    if isinstance(value, dict):
        return {key: _tiled(v, rows, times) for key, v in value.items()}
    return value


def _first_tokens(model, tokenizer) -> list[int]:
    return sorted({opening[0] for opening in refusal_score_of(model, tokenizer).openings})


@contextmanager
def eager_attention(model):
    """While inside, attention weights can be asked for (`output_attentions=True`)."""
    config = model.config
    before = config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def attention_weights(twins: Twins, side: str = "harmful", keep: Callable | None = None) -> list[torch.Tensor]:
    """Attention of every layer, [pair, head, query, key]; keys begin with the shared beginning.

    keep: takes one layer's weights and returns the part to keep. The edits of `hooks.edit` around this call hold here too.
    """
    with eager_attention(twins.model):
        out = body_of(twins.model)(**twins.inputs(side), output_attentions=True)
    return [weights.float() if keep is None else keep(weights.float()) for weights in out.attentions]
