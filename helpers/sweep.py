"""Many patches at once, exactly: only what a patch can touch is computed again. Taught in lesson 02.

A patch puts a donor's activation into one place of a clean run. Below its layer, and at the tokens before its first
position, nothing can change. So the clean run is kept (what enters each block, and each block's keys and values), and
a patch is a row of a batch that joins at its own layer, with the tokens from its first position on, and climbs from
there. All patches climb together: each layer's weights are read once.

What is scored are the refusal log-odds of `refusal.py`: its openings hang behind the prompt as a tree, in which each
token sees the prompt and its own ancestors, so that one pass scores them all. Equal to one full forward a patch,
prompt and opening, by test (tests/test_sweep.py), for every site and family. Sources: the idea of patching,
Vig et al. 2020 and Meng et al. 2022; the tree, Miao et al. 2023 (SpecInfer).
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from .hooks import check_site, edit, width_of
from .models import body_of, final_norm_of, layers_of, unembedding_of
from .prompts import Batch
from .refusal import RefusalScore


@dataclass(frozen=True)
class Patch:
    """One change, made in every prompt of a batch.

    columns: where, bool [prompt, position]. values: what stands there instead, [prompt, position, channel], of which
    only the chosen positions are read. channels: which of the site's channels (a head's, say); None for all.
    """

    site: str
    layer: int
    columns: torch.Tensor
    values: torch.Tensor
    channels: slice | None = None

    @property
    def start(self) -> int:
        """The first position that changes in any prompt."""
        return int(self.columns.any(0).nonzero()[0])


class _Spliced:
    """Stands in for a cache: the clean keys and values before `start`, and behind them those of this pass."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, copies: int):
        self.before = tuple(x.repeat(copies, 1, 1, 1) for x in (keys, values))

    def update(self, keys, values, *_, **__):
        self.now = keys, values
        return tuple(torch.cat([a.to(b), b], -2) for a, b in zip(self.before, self.now, strict=True))


class Sweep:
    """The clean runs of one batch of prompts, padded at either side, and what patches do to their refusal log-odds.

    clean: the log-odds without a patch, [prompt]. Raises ValueError for attention that takes no mask of ours (load the
    model with attn_implementation="sdpa"), and for prompts longer than a model's sliding window.
    """

    @torch.no_grad()
    def __init__(self, model, batch: Batch, score: RefusalScore, max_tokens: int = 8192):
        self.model, self.score, self.max_tokens = model, score, max_tokens
        self.batch = batch = batch.to(model.device)
        self.layers, self.width, self.count = layers_of(model), batch.input_ids.shape[1], len(batch.input_ids)
        self.nodes = sorted({o[:i] for o in score.openings for i in range(1, len(o))}, key=lambda n: (len(n), n))
        self._check()
        self._allowed = self._mask()
        self._run_prompts()
        self._run_tree()
        self.clean = self._read(self.ends, 1)[:, 0]

    # --- the clean run --------------------------------------------------------------------------------------

    def _check(self) -> None:
        config = body_of(self.model).config.get_text_config()
        how = getattr(config, "_attn_implementation", "sdpa")
        if how not in ("sdpa", "eager"):
            raise ValueError(f"A sweep cannot mask {how!r} attention: load the model with attn_implementation='sdpa'.")
        window, longest = getattr(config, "sliding_window", None), self.width + len(self.nodes)
        if window and getattr(config, "use_sliding_window", True) and longest > window:
            raise ValueError(
                f"These prompts take {longest} positions, more than this model's sliding window of {window}: "
                "give shorter prompts."
            )

    def _mask(self) -> torch.Tensor:
        """Who sees whom, bool [prompt, position, position]: earlier real tokens; in the tree, its own ancestors."""
        total, real = self.width + len(self.nodes), self.batch.attention_mask.bool()
        sees = torch.ones(total, total, dtype=torch.bool, device=real.device).tril()
        for i, node in enumerate(self.nodes):
            for j, other in enumerate(self.nodes[:i]):
                sees[self.width + i, self.width + j] = node[: len(other)] == other
        keys = torch.cat([real, real.new_ones(self.count, len(self.nodes))], 1)
        return sees & keys[:, None]

    def _run_prompts(self) -> None:
        """Run prompts and tree once as a plain text, and keep what every block was given.

        The prompts' part is right; of the tree's, only what does not depend on other tokens (embeddings, positions).
        """
        device = self.batch.input_ids.device
        tree = torch.tensor([node[-1] for node in self.nodes], dtype=torch.long, device=device)
        depth = torch.tensor([len(node) for node in self.nodes], dtype=torch.long, device=device)
        last = self.batch.position_ids.gather(1, self.batch.last[:, None])
        self._given: list[dict] = []
        cache = DynamicCache()
        handles = [layer.register_forward_pre_hook(self._keep, with_kwargs=True) for layer in self.layers]
        try:
            body_of(self.model)(
                input_ids=torch.cat([self.batch.input_ids, tree.expand(self.count, -1)], 1),
                attention_mask=torch.cat([self.batch.attention_mask, torch.ones_like(tree.expand(self.count, -1))], 1),
                position_ids=torch.cat([self.batch.position_ids, last + depth], 1),
                past_key_values=cache,
                use_cache=True,
            )
        finally:
            for handle in handles:
                handle.remove()
        self._keys = [layer.keys for layer in cache.layers]
        self._values = [layer.values for layer in cache.layers]
        self._cache = cache

    def _keep(self, layer, args, kwargs) -> None:
        given = inspect.signature(layer.forward).bind(*args, **kwargs).arguments
        self._given.append(given | given.pop("kwargs", {}))

    def _run_tree(self) -> None:
        """The tree's tokens on top of the prompts, each seeing its own ancestors only; and where all rows end."""
        hidden = self._given[0]["hidden_states"][:, self.width :]
        for layer in range(len(self.layers)):
            before = self._given[layer]["hidden_states"][:, : self.width]
            self._given[layer]["hidden_states"] = torch.cat([before, hidden.to(before)], 1)
            if self.nodes:
                hidden, cache = self._climb(layer, hidden, self.width)
                for kept, new in ((self._keys, cache.now[0]), (self._values, cache.now[1])):
                    kept[layer] = torch.cat([kept[layer][:, :, : self.width], new], -2)
        top = len(self.layers) - 1
        at = int(self.batch.last.min())  # from the first last token on, for the clean score
        out, _ = self._climb(top, self._given[top]["hidden_states"][:, at:], at)
        self.ends = self._ends(out, at)

    # --- climbing -------------------------------------------------------------------------------------------

    def _climb(self, layer: int, hidden: torch.Tensor, start: int):
        """One block over rows [copies * prompt, position from start on, d_model]; returns its output and its cache."""
        given, copies, total = dict(self._given[layer]), len(hidden) // self.count, self.width + len(self.nodes)

        def part(value):
            """Of what belongs to tokens (positions, rotary tables), the tokens from `start` on, for every copy."""
            if isinstance(value, tuple):
                return tuple(map(part, value))
            if not isinstance(value, torch.Tensor) or value.dim() < 2 or value.shape[1] != total:
                return value
            value = value[:, start:]
            return value if len(value) == 1 else value.repeat(copies, *[1] * (value.dim() - 1))

        cache = _Spliced(self._keys[layer][:, :, :start], self._values[layer][:, :, :start], copies)
        given = {name: cache if value is self._cache else part(value) for name, value in given.items()}
        mask = torch.zeros(self.count, 1, total - start, total, dtype=hidden.dtype, device=hidden.device)
        hide = ~self._allowed[:, None, start:].to(mask.device)
        mask = mask.masked_fill(hide, torch.finfo(hidden.dtype).min).repeat(copies, 1, 1, 1)
        out = self.layers[layer](**given | {"hidden_states": hidden, "attention_mask": mask})
        return (out[0] if isinstance(out, tuple) else out), cache

    def _joining(self, patches: Sequence[Patch], start: int):
        """For each site an edit of the last rows of the batch, those of the patches that join at this layer."""
        edits = {}
        for place, patch in enumerate(patches):
            edits.setdefault(patch.site, []).append((place - len(patches), patch))

        def change(entries):
            def function(activation: torch.Tensor) -> torch.Tensor:
                new = activation.clone()
                for place, patch in entries:
                    end = len(new) + (place + 1) * self.count
                    rows = new[end - self.count : end, : self.width - start, patch.channels or slice(None)]
                    columns = patch.columns[:, start:, None].to(new.device)
                    rows.copy_(torch.where(columns, patch.values[:, start:].to(new), rows))
                return new

            return function

        return [(site, patches[0].layer, change(entries)) for site, entries in edits.items()]

    @torch.no_grad()
    def scores(self, patches: Sequence[Patch]) -> torch.Tensor:
        """Refusal log-odds of every prompt under every patch, [patch, prompt], float32 on the CPU.

        Raises ValueError, before anything is computed, for a patch of another shape, without a position, or at a site,
        layer or channel that is not there.
        """
        patches = list(patches)
        for patch in patches:
            self._check_patch(patch)
        out = torch.empty(len(patches), self.count)
        by_start: dict[int, list[int]] = {}
        for i, patch in enumerate(patches):
            by_start.setdefault(patch.start, []).append(i)
        for start, members in by_start.items():
            members.sort(key=lambda i: patches[i].layer)
            many = max(1, self.max_tokens // (self.count * (self.width + len(self.nodes) - start)))
            for first in range(0, len(members), many):
                some = members[first : first + many]
                out[some] = self._score_chunk([patches[i] for i in some], start)
        return out

    def _score_chunk(self, patches: list[Patch], start: int) -> torch.Tensor:
        """[patch, prompt] for patches in the order of their layers, all from one first position on."""
        hidden = None
        for layer in range(patches[0].layer, len(self.layers)):
            here = [patch for patch in patches if patch.layer == layer]
            fresh = self._given[layer]["hidden_states"][:, start:]
            rows = [] if hidden is None else [hidden.to(fresh)]
            hidden = torch.cat([*rows, fresh.repeat(len(here), 1, 1)])
            with edit(self.model, self._joining(here, start)):
                hidden, _ = self._climb(layer, hidden, start)
        return self._read(self._ends(hidden, start), len(patches)).T

    def _check_patch(self, patch: Patch) -> None:
        check_site(self.model, patch.site, patch.layer)
        shape = (self.count, self.width)
        channels = len(range(width_of(self.model, patch.site))[patch.channels or slice(None)])
        if tuple(patch.columns.shape) != shape or tuple(patch.values.shape) != (*shape, channels):
            raise ValueError(
                f"A patch of these {shape[0]} prompts of {shape[1]} positions at {patch.site} needs columns {shape} and "
                f"values {(*shape, channels)}, not {tuple(patch.columns.shape)} and {tuple(patch.values.shape)}."
            )
        if not bool(patch.columns.any()):
            raise ValueError(f"The patch at {patch.site} of layer {patch.layer} names no position.")

    # --- the score ------------------------------------------------------------------------------------------

    def _ends(self, hidden: torch.Tensor, start: int) -> torch.Tensor:
        """What the score needs of a top layer's output: the last token and the tree, [row, 1 + node, d_model]."""
        last = (self.batch.last - start).to(hidden.device).repeat(len(hidden) // self.count)
        tokens = hidden[torch.arange(len(hidden), device=hidden.device), last]
        return torch.cat([tokens[:, None], hidden[:, self.width - start :]], 1)

    def _read(self, ends: torch.Tensor, copies: int, rows: int = 256) -> torch.Tensor:
        """Log-odds of a refusal opening, [prompt, copy], from the top layer's output [copy * prompt, 1 + node, d]."""
        after = {(): 0} | {node: i + 1 for i, node in enumerate(self.nodes)}
        steps = [[(after[o[:i]], o[i]) for i in range(len(o))] for o in self.score.openings]
        out = []
        for part in ends.split(max(1, rows // ends.shape[1])):  # a vocabulary is wide: a few hundred rows at a time
            log_p = log_probs(self.model, part, sorted({token for path in steps for _, token in path}))
            terms = [sum(log_p[token][:, place] for place, token in path) for path in steps]
            total = torch.stack(terms, -1).logsumexp(-1).clamp(max=-1e-6)  # p < 1, so that the odds are finite
            out.append(total - torch.log(-torch.expm1(total)))
        return torch.cat(out).cpu().view(copies, self.count).T


def first_tokens(score: RefusalScore) -> RefusalScore:
    """The same openings, cut after their first token: a tenth of the work, and blind to what comes next.

    An answer that begins with `I` may go either way, so this is for maps of many patches, whose peaks are then
    measured with the whole tree.
    """
    return RefusalScore(tuple(sorted({opening[:1] for opening in score.openings})), score.threshold)


def log_probs(model, hidden: torch.Tensor, tokens: Sequence[int]) -> dict[int, torch.Tensor]:
    """Log-probabilities of some next tokens, each [row, position], from the top layer's output [row, position, d]."""
    head = unembedding_of(model)
    logits = head(final_norm_of(model)(hidden).to(head.weight.device)).float()
    cap = getattr(body_of(model).config.get_text_config(), "final_logit_softcapping", None)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    norm = logits.logsumexp(-1)
    return {token: logits[..., token] - norm for token in tokens}
