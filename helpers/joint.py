"""Several heads at once: what a backup hides from any patch of a single place. Taught in lesson 02.

If either of two parts can do the job alone, exchanging one of them changes nothing: the other one steps in. Only both
together show it. So heads are exchanged in groups, each group in one row of the sweep.
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
from .tracing import DIRECTIONS, Place, Traced, refusal_change

Head = tuple[int, int]  # (layer, head)


@torch.no_grad()
def trace_head_groups(
    model,
    tokenizer,
    harmful: Sequence[str],
    benign: Sequence[str],
    groups: Sequence[Sequence[Head]],
    direction: str = DIRECTIONS[0],
    position: str | int = "last",
    score: RefusalScore | None = None,
) -> Traced:
    """All heads of a group exchanged together, at one place of the prompts; a `Traced` with a place for each group.

    groups: lists of (layer, head). direction: one of `tracing.DIRECTIONS`. position: "last", "all", a number from the
    end, or a label of `roles.py`. All pairs go in one batch. Raises ValueError for an unknown direction, a head that is
    not there, an empty group, and what `roles_of` refuses; before anything is computed.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"There is no direction {direction!r}: choose from {', '.join(DIRECTIONS)}.")
    groups = [[(int(layer), int(head)) for layer, head in group] for group in groups]
    if not groups or not all(groups):
        raise ValueError("A group holds no head: give lists of (layer, head), each with at least one.")
    for layer, head in itertools.chain(*groups):
        check_site(model, "z", layer)
        if not 0 <= head < dims_of(model).n_heads:
            raise ValueError(f"There is no head {head} in layer {layer}: 0 to {dims_of(model).n_heads - 1} are.")
    roles = roles_of(tokenizer, harmful, benign, position if position in ("last", "all") else [position])
    order, run = list(range(len(roles.rows[0]))), DIRECTIONS.index(direction)
    batches = [batch.to(model.device) for batch in roles.batches(order, pad_token_id(tokenizer))]
    columns = roles.columns(order, batches[0].input_ids.shape[1])[run][0]
    with record(model, ["z"], sorted({layer for group in groups for layer, _ in group})) as seen:
        body_of(model)(**batches[1 - run].inputs(), use_cache=False)
    width, patches = dims_of(model).d_head, {}
    for layer, head in set(itertools.chain(*groups)):
        own = slice(head * width, (head + 1) * width)
        patches[layer, head] = Patch("z", layer, columns, seen["z"][layer][..., own], own)
    score = score or refusal_score_of(model, tokenizer)
    sweeps = [Sweep(model, batch, score) for batch in batches]
    odds = sweeps[run].scores([[patches[head] for head in dict.fromkeys(group)] for group in groups]).numpy()
    places = [Place(min(layer for layer, _ in group), "heads", roles.labels[0], str(group)) for group in groups]
    none = np.empty((0, *odds.shape))
    return Traced(direction, places, odds, sweeps[run].clean.numpy(), sweeps[1 - run].clean.numpy(), none)


def joint_changes(model, tokenizer, harmful, benign, heads: Sequence[Head], direction: str = DIRECTIONS[0], **options):
    """Mean refusal change for every two heads exchanged together, [head, head]; the diagonal is each one alone.

    Further arguments as in `trace_head_groups`.
    """
    both = list(itertools.combinations_with_replacement(range(len(heads)), 2))
    groups = [[heads[i], heads[j]] for i, j in both]
    traced = trace_head_groups(model, tokenizer, harmful, benign, groups, direction, **options)
    change, out = refusal_change(traced.patched, traced.baseline, direction).mean(-1), np.empty((len(heads),) * 2)
    for (i, j), value in zip(both, change, strict=True):
        out[i, j] = out[j, i] = value
    return out
