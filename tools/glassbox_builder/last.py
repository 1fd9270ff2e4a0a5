"""Ablations at the last position only, thousands of them in a second: keys and values before it are kept.

Exact for components that act nowhere else, as evaluation and production neurons and decision heads do.
"""

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from helpers.hooks import edit, record
from helpers.prompts import CACHE

from .bench import Bench
from .calibrate import batch


class LastToken:
    """Some prompts whose last token is run again and again with something cut."""

    @torch.no_grad()
    def __init__(self, bench: Bench, texts: Sequence[str]):
        self.bench, self.texts = bench, list(texts)
        self.ids, self.mask = batch(self.texts)
        out = bench.model(self.ids[:, :-1], attention_mask=self.mask[:, :-1], use_cache=True)
        self.cache = [(layer.keys, layer.values) for layer in out[CACHE].layers]
        with record(bench.model, ["z", "neurons"]) as seen:
            bench.model(self.ids, attention_mask=self.mask, logits_to_keep=1)
        self.clean = {
            s: torch.stack([seen[s][i][:, -1] for i in range(len(seen[s]))]) for s in seen
        }  # [layer, prompt, w]

    @torch.no_grad()
    def log_odds(
        self, cuts: Sequence[list], frozen_heads: Sequence[int] = (), rows_at_once: int = 2048
    ) -> torch.Tensor:
        """[cut, prompt]: with each list of nodes zeroed. frozen_heads: layers whose heads keep their clean outputs."""
        n, out = len(self.texts), []
        step = max(rows_at_once // n, 1)
        for start in range(0, len(cuts), step):
            some = cuts[start : start + step]
            rows = torch.arange(n).repeat(len(some))
            masks = self.bench.masks([c for c in some for _ in range(n)], len(rows)) if any(some) else {}
            out.append(self._run(rows, masks, frozen_heads).view(len(some), n))
        return torch.cat(out)

    def _run(self, rows, masks, frozen_heads):
        edits = []
        for site, mask in masks.items():
            for layer in range(mask.shape[1]):
                if mask[:, layer].any():
                    edits.append((site, layer, lambda x, cut=mask[:, layer]: x * ~cut[:, None]))
        for layer in frozen_heads:
            edits.append(("z", layer, lambda x, kept=self.clean["z"][layer][rows]: kept[:, None].clone()))
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.cache):
            cache.update(keys[rows], values[rows], layer)
        with edit(self.bench.model, edits):
            logits = self.bench.model(
                self.ids[rows, -1:],
                attention_mask=self.mask[rows],
                **{CACHE: cache},
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        return self.bench.odds(logits.log_softmax(-1))

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Neurons at the last position and the log-odds' gradient with respect to them, [layer, prompt, d_mlp] each."""
        kept: dict[int, torch.Tensor] = {}

        def watch(layer):
            def function(x):
                x = x.detach().requires_grad_() if not x.requires_grad else x
                x.retain_grad()
                kept[layer] = x
                return x

            return function

        layers = range(self.bench.dims.n_layers)
        with torch.enable_grad(), edit(self.bench.model, [("neurons", i, watch(i)) for i in layers]):
            logits = self.bench.model(self.ids, attention_mask=self.mask, logits_to_keep=1).logits[:, -1]
            self.bench.odds(logits.log_softmax(-1)).sum().backward()
        value = torch.stack([kept[i].detach()[:, -1] for i in layers])
        return value, torch.stack([kept[i].grad[:, -1] for i in layers])
