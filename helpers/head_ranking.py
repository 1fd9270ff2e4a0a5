"""Rank attention heads by taking out one at a time. Taught in lesson 05.

As in SHIPS (Zhou et al. 2025, "On the role of attention heads in large language model safety"): how far does the first
answer token's distribution move on *harmful* prompts when the head is silenced? A large move is not yet a loss of
refusal, so the refusal log-odds stand beside it, and the move on *harmless* prompts: a head that everything needs moves
both.
"""

from collections.abc import Callable, Iterable, Sequence

import pandas as pd
import torch

from .ablation import heads_scaled
from .directions import kl_divergence, next_token_log_probs
from .mean_ablation import Place
from .models import dims_of
from .packed_score import packed
from .prompts import check_prompts
from .refusal import RefusalScore, refusal_score_of
from .shared_prefix import WithPrefix, shared_prefix

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
    heads = every if heads is None else list(heads)
    prefix = shared_prefix(tokenizer, [*harmful, *harmless])
    quick = WithPrefix(model, prefix) if prefix else model
    n, prompts = len(harmful), [*harmful, *harmless]
    clean, rows = next_token_log_probs(quick, tokenizer, prompts), []
    for done, (layer, head) in enumerate(heads, 1):
        with heads_scaled(model, [(layer, head)]):
            moved = kl_divergence(clean, next_token_log_probs(quick, tokenizer, prompts))
        rows.append((layer, head, float(moved[:n].mean()), float(moved[n:].mean()), float("nan")))
        if each:
            each(done, len(heads))
    table = pd.DataFrame(rows, columns=COLUMNS).sort_values("kl_harmful", ascending=False, ignore_index=True)
    score = packed(score or refusal_score_of(model, tokenizer))
    before = score.log_odds(quick, tokenizer, harmful).mean()
    for row in table.index[:most]:
        with heads_scaled(model, [(int(table.layer[row]), int(table["head"][row]))]):
            table.loc[row, "refusal_change"] = score.log_odds(quick, tokenizer, harmful).mean() - before
    return table


def head_map(table: pd.DataFrame, model, column: str = "kl_harmful") -> torch.Tensor:
    """One column of the table as a map, [layer, head]; nan for heads that were not tried."""
    dims = dims_of(model)
    found = torch.full((dims.n_layers, dims.n_heads), float("nan"))
    found[table.layer.tolist(), table["head"].tolist()] = torch.tensor(table[column].tolist())
    return found
