"""Rank attention heads by taking out one at a time. Taught in lesson 05.

As in SHIPS (Zhou et al. 2025, "On the role of attention heads in large language model safety"): how far does the first
answer token's distribution move on *harmful* prompts when the head is silenced? A large move is not yet a loss of
refusal, so the refusal log-odds stand beside it, and the move on *harmless* prompts: a head that everything needs moves
both. A head can change nothing below its own layer, so the blocks there are not run again.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import pandas as pd
import torch

from .ablation import heads_by_layer, heads_scaled
from .directions import first_token_log_probs, kl_divergence
from .hooks import forward_as
from .mean_ablation import Place
from .models import dims_of, layers_of
from .packed_score import packed
from .prompts import Batch, check_prompts, token_batches
from .refusal import RefusalScore, refusal_score_of
from .shared_prefix import WithPrefix, shared_prefix
from .side_by_side import side_by_side

AT_ONCE = 5  # heads of a layer that share a batch
COLUMNS = ("layer", "head", "kl_harmful", "kl_harmless", "refusal_change")


def rank_heads(
    model,
    tokenizer,
    harmful: Sequence[str],
    harmless: Sequence[str],
    heads: Iterable[Place] | None = None,
    score: RefusalScore | None = None,
    most: int = 10,
    each: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """A row a head, COLUMNS, the largest `kl_harmful` first.

    Each head is zeroed behind the beginning that all prompts share. heads: None for all. refusal_change: of the mean log-odds on
    the harmful prompts; it costs more, so only the first `most` rows have it, the others nan. each: called with (done, all)
    after every head. Raises ValueError for empty lists and heads that are not there.
    """
    harmful, harmless, dims = check_prompts(harmful), check_prompts(harmless), dims_of(model)
    every = [(layer, head) for layer in range(dims.n_layers) for head in range(dims.n_heads)]
    heads = heads_by_layer(model, every if heads is None else heads)
    prefix = shared_prefix(tokenizer, [*harmful, *harmless])
    quick = WithPrefix(model, prefix) if prefix else model
    n, count, rows = len(harmful), sum(map(len, heads.values())), []
    runs = [_CleanRun(model, quick, batch) for batch in token_batches(tokenizer, [*harmful, *harmless])]
    parts = [(layer, own[i : i + AT_ONCE]) for layer, own in heads.items() for i in range(0, len(own), AT_ONCE)]
    for layer, part in parts:
        moved = torch.empty(len(part), n + len(harmless))
        with side_by_side([partial(heads_scaled, model, [(layer, head)]) for head in part]):
            for run in runs:
                moved[:, run.batch.order] = run.moved(layer, len(part))
        for head, row in zip(part, moved, strict=True):
            rows.append((layer, head, float(row[:n].mean()), float(row[n:].mean()), float("nan")))
            if each:
                each(len(rows), count)
    table = pd.DataFrame(rows, columns=COLUMNS).sort_values("kl_harmful", ascending=False, ignore_index=True)
    score = packed(score or refusal_score_of(model, tokenizer))
    before = score.log_odds(quick, tokenizer, harmful).mean()
    for row in table.index[:most]:
        with heads_scaled(model, [(int(table.layer[row]), int(table["head"][row]))]):
            table.loc[row, "refusal_change"] = score.log_odds(quick, tokenizer, harmful).mean() - before
    return table


class _CleanRun:
    """One batch of prompts as the untouched model reads it, to be read again from some layer on."""

    @torch.inference_mode()
    def __init__(self, model, quick, batch: Batch):
        self.quick, self.batch, self.blocks = quick, batch.to(model.device), layers_of(model)
        self._left: list = []  # what each block gave, as it gave it
        handles = [block.register_forward_hook(lambda _, __, out: self._left.append(out)) for block in self.blocks]
        try:
            self.log_probs = self._read()
        finally:
            for handle in handles:
                handle.remove()

    def _read(self, copies: int = 1) -> torch.Tensor:
        """Log-probabilities of the first answer token, [copy after copy of the batch, vocabulary], on the CPU."""
        return first_token_log_probs(self.quick, self.batch.times(copies)).cpu()

    @torch.inference_mode()
    def moved(self, layer: int, copies: int) -> torch.Tensor:
        """KL of the clean first answer token from what it is now, [copy, batch]; nothing below `layer` may have changed."""
        with self._from(layer, copies):
            return kl_divergence(self.log_probs, self._read(copies).unflatten(0, (copies, -1)))

    def _from(self, layer: int, copies: int):
        """While inside, the blocks below the layer are not run: each gives what it gave before, for every copy."""
        below = list(self._left[:layer])
        if below:  # only what the last of them gives is read
            first = below[-1][0] if isinstance(below[-1], tuple) else below[-1]
            wide = first.repeat(copies, 1, 1)
            below[-1] = (wide, *below[-1][1:]) if isinstance(below[-1], tuple) else wide
        givers = (lambda *_, left=left, **__: left for left in below)
        return forward_as(zip(self.blocks[:layer], givers, strict=True))


def head_map(table: pd.DataFrame, model, column: str = "kl_harmful") -> torch.Tensor:
    """One column of the table as a map, [layer, head]; nan for heads that were not tried."""
    dims = dims_of(model)
    found = torch.full((dims.n_layers, dims.n_heads), float("nan"))
    found[table.layer.tolist(), table["head"].tolist()] = torch.tensor(table[column].tolist())
    return found
