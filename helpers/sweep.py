"""Many patches at once, exactly: only what a patch can touch is computed again. Taught in lesson 02.

A patch puts a donor's activation into one place of a clean run. Below its layer, and at the tokens before its first
position, nothing can change. So the clean run is kept (what enters each block, and each block's keys and values), and
a patch is a copy of the tokens from its first position on, which joins at its own layer and climbs from there. All
patches climb together, side by side behind the clean keys and values: each layer's weights are read once.

What is scored are the refusal log-odds of `refusal.py`: its openings hang behind the prompt as a tree, in which each
token sees the prompt and its own ancestors, so that one pass scores them all. Equal to one full forward a patch,
prompt and opening, by test (tests/test_sweep.py), for every site and family. Sources: the idea of patching,
Vig et al. 2020 and Meng et al. 2022; the tree, Miao et al. 2023 (SpecInfer).
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import DynamicCache

from .answer_tree import MASKABLE, AnswerTree
from .hooks import check_site, edit, width_of
from .models import body_of, final_norm_of, layers_of, sliding_window_of, unembedding_of
from .prompts import CACHE, Batch
from .refusal import RefusalScore

SIDE_BY_SIDE = 256  # tokens of one prompt's copies in a sequence: more, and attention among the blind costs too much


@dataclass(frozen=True)
class Patch:
    """One change, made in every prompt of a batch.

    columns: where, bool [prompt, position]. values: what stands there instead, [prompt, position, channel], of which
    only the chosen positions are read. channels: which of the site's channels (a head's, say, or indices of neurons);
    None for all.
    """

    site: str
    layer: int
    columns: torch.Tensor
    values: torch.Tensor
    channels: slice | torch.Tensor | None = None

    @property
    def start(self) -> int:
        """The first position that changes in any prompt."""
        return int(self.columns.any(0).nonzero()[0])


class _Spliced:
    """Stands in for a cache: the clean keys and values before `start`, and behind them those of this pass."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        self.before = keys, values

    def update(self, keys, values, *_, **__):
        self.now = keys, values
        return tuple(torch.cat([a.to(b), b], -2) for a, b in zip(self.before, self.now, strict=True))


class Sweep:
    """The clean runs of one batch of prompts, padded at either side, and what patches do to their refusal log-odds.

    noise: added to what enters the first block, [prompt, position, d_model], for ROME's tracing: then the run that is
    patched is the noisy one. clean: its log-odds without a patch, [prompt]. Raises ValueError for attention that takes
    no mask of ours (load the model with attn_implementation="sdpa"), and for prompts longer than a model's sliding
    window.
    """

    @torch.no_grad()
    def __init__(
        self, model, batch: Batch, score: RefusalScore, noise: torch.Tensor | None = None, max_tokens: int = 4096
    ):
        self.model, self.score, self.max_tokens = model, score, max_tokens
        self.batch = batch = batch.to(model.device)
        self.layers, self.width, self.count = layers_of(model), batch.input_ids.shape[1], len(batch.input_ids)
        self.tree = AnswerTree.of(score.openings)
        self.nodes = self.tree.nodes
        self._check()
        self._whole = self.tree.behind(batch)
        self._allowed, self._masks = self.tree.sees(self._whole.attention_mask), {}
        self._run_prompts(noise)
        self._run_tree()
        self.clean = self._read(self.ends)[0]

    # --- the clean run --------------------------------------------------------------------------------------

    def _check(self) -> None:
        config = body_of(self.model).config.get_text_config()
        how = getattr(config, "_attn_implementation", "sdpa")
        if how not in MASKABLE:
            raise ValueError(f"A sweep cannot mask {how!r} attention: load the model with attn_implementation='sdpa'.")
        window, longest = sliding_window_of(self.model), self.width + len(self.nodes)
        if window and longest > window:
            raise ValueError(
                f"These prompts take {longest} positions, more than this model's sliding window of {window}: "
                "give shorter prompts."
            )

    def _run_prompts(self, noise: torch.Tensor | None) -> None:
        """Run prompts and tree once as a plain text, and keep what every block was given.

        The prompts' part is right; of the tree's, only what does not depend on other tokens (embeddings, positions).
        """
        self._given: list[dict] = []
        cache = DynamicCache()

        def disturb(x: torch.Tensor) -> torch.Tensor:
            return x + torch.nn.functional.pad(noise, (0, 0, 0, len(self.nodes))).to(x)

        with edit(self.model, [] if noise is None else [("resid_pre", 0, disturb)]):
            handles = [layer.register_forward_pre_hook(self._keep, with_kwargs=True) for layer in self.layers]
            try:
                body_of(self.model)(**self._whole.inputs(), **{CACHE: cache}, use_cache=True)
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
        """The tree's tokens on top of the prompts, each seeing its own ancestors only; and what the top layer gives."""
        hidden = self._given[0]["hidden_states"][:, None, self.width :]
        for layer in range(len(self.layers)):
            before = self._given[layer]["hidden_states"][:, : self.width]
            self._given[layer]["hidden_states"] = torch.cat([before, hidden[:, 0].to(before)], 1)
            if self.nodes:
                hidden, cache = self._climb(layer, hidden, self.width)
                for kept, new in ((self._keys, cache.now[0]), (self._values, cache.now[1])):
                    kept[layer] = torch.cat([kept[layer][:, :, : self.width], new], -2)
        top, start = len(self.layers) - 1, int(self.batch.last.min())
        out, _ = self._climb(top, self._given[top]["hidden_states"][:, None, start:], start)
        self.ends = self._ends(out, start)

    # --- climbing -------------------------------------------------------------------------------------------

    def _climb(self, layer: int, hidden: torch.Tensor, start: int):
        """One block over copies of the tokens from `start` on; returns its output and the stand-in for its cache.

        hidden: [prompt, copy, position, d_model], and so is the output. The copies of a prompt stand side by side in
        one sequence, blind to each other, so that all of them read the clean keys and values where they are.
        """
        given, copies, total = dict(self._given[layer]), hidden.shape[1], self.width + len(self.nodes)

        def part(value):
            """Of what belongs to tokens (positions, rotary tables), the tokens from `start` on, for every copy."""
            if isinstance(value, tuple):
                return tuple(map(part, value))
            if not isinstance(value, torch.Tensor) or value.dim() < 2 or value.shape[1] != total:
                return value
            return value[:, start:].repeat(1, copies, *[1] * (value.dim() - 2))

        cache = _Spliced(self._keys[layer][:, :, :start], self._values[layer][:, :, :start])
        given = {name: cache if value is self._cache else part(value) for name, value in given.items()}
        given |= {"hidden_states": hidden.flatten(1, 2), "attention_mask": self._mask_of(copies, start).to(hidden)}
        out = self.layers[layer](**given)
        return (out[0] if isinstance(out, tuple) else out).view(hidden.shape), cache

    def _mask_of(self, copies: int, start: int) -> torch.Tensor:
        """What is added to the attention scores: 0 for those before `start` and of one's own copy, else very little."""
        if (copies, start) not in self._masks:
            seen = self._allowed[:, start:]
            own = (
                torch.eye(copies, dtype=torch.bool, device=seen.device)[:, None, :, None]
                & seen[:, None, :, None, start:]
            )
            before = seen[:, None, :, :start].expand(-1, copies, -1, -1).flatten(1, 2)
            seen = torch.cat([before, own.flatten(3, 4).flatten(1, 2)], -1)[:, None]
            least = torch.finfo(self.model.dtype).min
            self._masks = {(copies, start): torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, least)}
        return self._masks[copies, start]

    def _edits(self, rows: Sequence[Sequence[Patch]], layer: int, start: int):
        """What the patches of one layer do to the copies, copy i being that of rows[i]: one edit for each site."""
        here: dict[str, list] = {}
        for place, row in enumerate(rows):
            for patch in row:
                if patch.layer == layer:
                    here.setdefault(patch.site, []).append((place, patch))

        def change(entries):
            def function(activation: torch.Tensor) -> torch.Tensor:
                new = activation.clone()
                for place, patch in entries:
                    own = new.unflatten(1, (len(rows), -1))[:, place, : self.width - start]  # a view
                    channels = slice(None) if patch.channels is None else patch.channels
                    columns = patch.columns[:, start:, None].to(new.device)
                    own[..., channels] = torch.where(columns, patch.values[:, start:].to(new), own[..., channels])
                return new

            return function

        return [(site, layer, change(entries)) for site, entries in here.items()]

    @torch.no_grad()
    def scores(self, rows: Sequence[Patch | Sequence[Patch]]) -> torch.Tensor:
        """Refusal log-odds of every prompt under every patch, [row, prompt], float32 on the CPU.

        A row is one patch, or several that are made together (a window of layers, a group of neurons). Raises
        ValueError, before anything is computed, for a patch of another shape, without a position, or at a site, layer
        or channel that is not there. After two seconds a bar shows how far it is.
        """
        rows = [(row,) if isinstance(row, Patch) else tuple(row) for row in rows]
        for patch in {id(patch): patch for row in rows for patch in row}.values():
            self._check_patch(patch)
        if not all(rows):
            raise ValueError("A row of the sweep holds no patch.")
        out = torch.empty(len(rows), self.count)
        by_start: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            by_start.setdefault(min(patch.start for patch in row), []).append(i)
        with tqdm(total=len(rows), desc="patches", delay=2, leave=False) as bar:
            for start, members in by_start.items():
                members.sort(key=lambda i: _lowest(rows[i]))
                tokens = self.width + len(self.nodes) - start
                many = max(1, min(self.max_tokens // self.count, SIDE_BY_SIDE) // tokens)
                for first in range(0, len(members), many):
                    some = members[first : first + many]
                    out[some] = self._score_chunk([rows[i] for i in some], start)
                    bar.update(len(some))
        return out

    def _score_chunk(self, rows: list[tuple[Patch, ...]], start: int) -> torch.Tensor:
        """[row, prompt] for rows in the order of their lowest layers, all from one first position on."""
        d_model = self._given[0]["hidden_states"].shape[-1]
        hidden = torch.empty(self.count, 0, self.width + len(self.nodes) - start, d_model)
        for layer in range(_lowest(rows[0]), len(self.layers)):
            clean = self._given[layer]["hidden_states"][:, None, start:]
            joined = sum(_lowest(row) <= layer for row in rows)
            fresh = clean.expand(-1, joined - hidden.shape[1], -1, -1)
            hidden = torch.cat([hidden.to(clean), fresh], 1)
            with edit(self.model, self._edits(rows[:joined], layer, start)):
                hidden, _ = self._climb(layer, hidden, start)
        return self._read(self._ends(hidden, start))

    def _check_patch(self, patch: Patch) -> None:
        check_site(self.model, patch.site, patch.layer)
        shape = (self.count, self.width)
        width = width_of(self.model, patch.site)
        every = torch.arange(width)
        if isinstance(patch.channels, torch.Tensor) and not bool(torch.isin(patch.channels.cpu(), every).all()):
            raise ValueError(f"{patch.site} has the channels 0 to {width - 1}: a patch names others.")
        channels = len(every if patch.channels is None else every[patch.channels])
        if tuple(patch.columns.shape) != shape or tuple(patch.values.shape) != (*shape, channels):
            raise ValueError(
                f"A patch of these {shape[0]} prompts of {shape[1]} positions at {patch.site} needs columns {shape} and "
                f"values {(*shape, channels)}, not {tuple(patch.columns.shape)} and {tuple(patch.values.shape)}."
            )
        if not bool(patch.columns.any()):
            raise ValueError(f"The patch at {patch.site} of layer {patch.layer} names no position.")

    # --- the score ------------------------------------------------------------------------------------------

    def _ends(self, hidden: torch.Tensor, start: int) -> torch.Tensor:
        """What the score needs of a top layer's output: last token and tree, [prompt, copy, 1 + node, d_model]."""
        last = (self.batch.last - start).to(hidden.device)
        tokens = hidden[torch.arange(self.count, device=hidden.device), :, last]
        return torch.cat([tokens[:, :, None], hidden[:, :, self.width - start :]], 2)

    def _read(self, ends: torch.Tensor, rows: int = 256) -> torch.Tensor:
        """Log-odds of a refusal opening, [copy, prompt], from the top layer's output [prompt, copy, 1 + node, d]."""
        after = {(): 0} | {node: i + 1 for i, node in enumerate(self.nodes)}
        steps = [[(after[o[:i]], o[i]) for i in range(len(o))] for o in self.score.openings]
        out = []
        for part in ends.flatten(0, 1).split(max(1, rows // ends.shape[2])):  # a vocabulary is wide
            log_p = log_probs(self.model, part, sorted({token for path in steps for _, token in path}))
            terms = [sum(log_p[token][:, place] for place, token in path) for path in steps]
            total = torch.stack(terms, -1).logsumexp(-1).clamp(max=-1e-6)  # p < 1, so that the odds are finite
            out.append(total - torch.log(-torch.expm1(total)))
        return torch.cat(out).float().cpu().view(self.count, -1).T


def _lowest(row: Sequence[Patch]) -> int:
    return min(patch.layer for patch in row)


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
    # Relative to the largest, and in 64 bits from there: where p is near 1, its odds hang on the last digits of log p.
    top = logits.max(-1, keepdim=True)
    logits = logits - top.values
    fine = torch.float32 if logits.device.type == "mps" else torch.float64
    norm = logits.exp().scatter(-1, top.indices, 0).sum(-1).to(fine).log1p()
    return {token: logits[..., token].to(fine) - norm for token in tokens}
