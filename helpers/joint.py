"""Two places at once: what a backup hides from any patch of a single place. Taught in lesson 02.

If either of two parts can do the job alone, exchanging one of them changes nothing: the other one steps in. Only both
together show it. So all pairs of heads are patched, each pair in one row of the sweep.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from .hooks import check_site, record
from .models import body_of, dims_of
from .prompts import pad_token_id
from .refusal import RefusalScore, refusal_score_of
from .roles import roles_of
from .sweep import Patch, Sweep
from .tracing import DIRECTIONS, refusal_change


@torch.no_grad()
def joint_changes(
    model,
    tokenizer,
    harmful: Sequence[str],
    benign: Sequence[str],
    heads: Sequence[tuple[int, int]],
    direction: str = DIRECTIONS[0],
    positions: str | Sequence[int | str] = "last",
    score: RefusalScore | None = None,
) -> np.ndarray:
    """Mean refusal change for every two heads exchanged together, [head, head]; the diagonal is each one alone.

    heads: (layer, head). direction: one of `tracing.DIRECTIONS`. positions: a single place of `roles.py`. Raises
    ValueError for an unknown direction, a head that is not there, fewer than two heads, and more than one place.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"There is no direction {direction!r}: choose from {', '.join(DIRECTIONS)}.")
    heads, dims = [tuple(map(int, head)) for head in heads], dims_of(model)
    for layer, head in heads:
        check_site(model, "z", layer)
        if not 0 <= head < dims.n_heads:
            raise ValueError(f"There is no head {head} in layer {layer}: its heads are 0 to {dims.n_heads - 1}.")
    roles = roles_of(tokenizer, harmful, benign, positions)
    if len(heads) < 2 or len(roles.labels) != 1:
        raise ValueError("Give at least two heads, and one place, such as positions='last'.")
    order, run = list(range(len(roles.rows[0]))), DIRECTIONS.index(direction)
    batches = [batch.to(model.device) for batch in roles.batches(order, pad_token_id(tokenizer))]
    columns = roles.columns(order, batches[0].input_ids.shape[1])[run][0]
    with record(model, ["z"], sorted({layer for layer, _ in heads})) as seen:
        body_of(model)(**batches[1 - run].inputs(), use_cache=False)
    patches = []
    for layer, head in heads:
        own = slice(head * dims.d_head, (head + 1) * dims.d_head)
        patches.append(Patch("z", layer, columns, seen["z"][layer][..., own], own))
    sweep = Sweep(model, batches[run], score or refusal_score_of(model, tokenizer))
    both = list(itertools.combinations_with_replacement(range(len(heads)), 2))
    odds = sweep.scores([(patches[i],) if i == j else (patches[i], patches[j]) for i, j in both]).numpy()
    change = refusal_change(odds, sweep.clean.numpy(), direction).mean(-1)
    out = np.empty((len(heads), len(heads)))
    for (i, j), value in zip(both, change, strict=True):
        out[i, j] = out[j, i] = value
    return out
