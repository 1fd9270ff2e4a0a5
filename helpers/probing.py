"""Probes: can harm be read from the residual stream, where, and would we know if it could not? Taught in lesson 03.

`probe_for_safety` reads all layers in one forward and fits all layers' folds in one call. Folds are grouped by topic, so
that a probe is judged on topics it has never seen. Beside each accuracy stand its interval over topics, AUROC, what
a probe of the same sort gets on a control task (Hewitt and Liang 2019), and a permutation test that swaps the labels
within pairs.
"""

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score

from .batching import in_batches
from .control_tasks import control_labels, surface_types
from .hooks import check_site, read, record
from .logistic import fit_logistic
from .models import layers_of
from .prompts import chat_text, check_prompts, pad, pad_token_id, tokenize
from .shared_prefix import reader
from .statistics import bootstrap_interval


def topic_folds(topics: Sequence[Hashable], count: int = 5, seed: int = 0) -> np.ndarray:
    """The fold of each prompt, [prompt], 0 to count - 1. Prompts of one topic share a fold; folds are of like size.

    Raises ValueError for fewer than two folds, or fewer topics than folds.
    """
    names = list(dict.fromkeys(topics))
    if count < 2 or len(names) < count:
        raise ValueError(f"{len(names)} topics cannot fill {count} folds: give more topics, or 2 folds at least.")
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {names[i]: place % count for place, i in enumerate(order)}
    return np.array([fold[topic] for topic in topics])


def held_out_decisions(
    x: torch.Tensor, labels: torch.Tensor, folds: Sequence[int], C: float = 0.01, keep: torch.Tensor | None = None
) -> torch.Tensor:
    """Log-odds of each prompt from the probe that did not see its fold, [labelling, site, prompt].

    x: [site, prompt, d]; labels: [labelling, prompt], or [prompt] for a single one, which is then left out of the
    result's shape; keep: which prompts may be learned from, [prompt].
    """
    single, folds = labels.dim() == 1, torch.as_tensor(folds)
    names = folds.unique()
    train = folds[None] != names[:, None]
    if keep is not None:
        train = train & keep
    fits = fit_logistic(x, labels[None] if single else labels, train, C, weights=False)
    own = torch.searchsorted(names, folds)
    held = fits.decisions[:, :, own, torch.arange(len(folds))]
    return held[0] if single else held


def auroc(decisions: np.ndarray, labels: np.ndarray, folds: np.ndarray | None = None) -> float:
    """Mean of the folds' areas under the ROC curve; pooled, scores of different probes would be compared."""
    names = [None] if folds is None else np.unique(folds)
    rows = [slice(None) if name is None else folds == name for name in names]
    return float(np.mean([roc_auc_score(labels[r], decisions[r]) for r in rows if len(set(labels[r])) == 2]))


def swapped_labels(labels: torch.Tensor, topics: Sequence[Hashable], count: int, seed: int = 0) -> torch.Tensor:
    """Labels of `count` permutations, [permutation, prompt]: within each topic all are swapped, or none.

    That keeps what pairs share (their frame, their topic) where it is, and breaks only what tells twins apart. Raises
    ValueError if some topic has prompts of one class only: nothing can be swapped there.
    """
    names = {topic: i for i, topic in enumerate(dict.fromkeys(topics))}
    index = torch.tensor([names[topic] for topic in topics])
    for i, topic in enumerate(names):
        if len(labels[index == i].unique()) < 2:
            raise ValueError(f"Topic {topic!r} has prompts of one class only, so labels cannot be swapped within it.")
    flips = torch.randint(0, 2, (count, len(names)), generator=torch.Generator().manual_seed(seed))
    return (labels[None].long() ^ flips[:, index]).to(labels.dtype)


def request_span(tokenizer, prompt: str) -> tuple[int, int]:
    """How many tokens of the template stand before the request, and how many after it."""
    text = chat_text(tokenizer, [prompt])[0]
    start = text.rfind(prompt.strip())
    if start < 0:
        raise ValueError("This chat template changes the request, so its tokens cannot be told from the template's.")
    before, after = text[:start], text[start + len(prompt.strip()) :]
    return tuple(len(tokenize(tokenizer, [part])[0]) if part else 0 for part in (before, after))


@torch.no_grad()
def read_request_mean(model, tokenizer, prompts: Sequence[str], site: str = "resid_pre", batch_size: int = 32):
    """The mean activation over the request's own tokens, without the template's, [prompt, layer, width]."""
    prompts = check_prompts(prompts)
    check_site(model, site, 0)
    rows, spans = tokenize(tokenizer, chat_text(tokenizer, prompts)), [request_span(tokenizer, p) for p in prompts]
    call, already = reader(model, rows, min(start for start, _ in spans))

    def run(part: list[int]) -> list[torch.Tensor]:
        batch = pad([rows[i] for i in part], part, pad_token_id(tokenizer), "right").to(model.device)
        place = torch.arange(batch.input_ids.shape[1])
        inside = torch.stack([(place >= spans[i][0]) & (place < len(rows[i]) - spans[i][1]) for i in part])
        share = (inside / inside.sum(-1, keepdim=True).clamp(min=1)).float()[:, already:]

        def keep(x: torch.Tensor) -> torch.Tensor:
            return torch.einsum("bp,bpd->bd", share.to(x.device), x.float()).cpu()

        with record(model, [site], None, keep) as seen:
            call(**batch.inputs())
        return list(torch.stack([seen[site][layer] for layer in range(len(layers_of(model)))], 1))

    return torch.stack(in_batches(run, list(range(len(rows))), batch_size))


def read_at(model, tokenizer, prompts: Sequence[str], position: int | str = -1, site: str = "resid_pre"):
    """Activations [prompt, layer, width] at a position counted from the end; "mean": over the request's tokens;
    "request": at the request's last token. Raises ValueError for another word."""
    if position == "mean":
        return read_request_mean(model, tokenizer, prompts, site)
    if position == "request":
        position = -1 - request_span(tokenizer, check_prompts(prompts)[0])[1]
    if not isinstance(position, int):
        raise ValueError(f'There is no position {position!r}: give a number such as -1, or "mean", or "request".')
    return read(model, tokenizer, prompts, [site], positions=position)[site]


def probe_table(
    x: torch.Tensor,
    labels: torch.Tensor,
    topics: Sequence[Hashable],
    types: Sequence[Hashable] | None = None,
    *,
    folds: int = 5,
    C: float = 0.01,
    controls: int = 5,
    permutations: int = 39,
    level: float = 0.05,
) -> pd.DataFrame:
    """A row for each site of x [site, prompt, d]: `layer`, `accuracy` with its interval over topics (`low`, `high`),
    `auroc`, `control_accuracy`, `selectivity`, `p_value`, `above_chance`.

    types: each prompt's surface type, for the control task; needed if controls > 0. above_chance: the permutation
    test's p-value is below `level`. With `permutations` draws it can be no smaller than 1 / (permutations + 1).
    """
    if controls and types is None:
        raise ValueError("A control task needs types, one for each prompt; or give controls=0.")
    fold, y = topic_folds(topics, folds), labels.bool()
    control, keep = control_labels(types, topics, controls) if controls else (None, None)
    shuffled = swapped_labels(labels.long(), topics, permutations) if permutations else None
    decisions = held_out_decisions(x, labels.float(), fold, C)
    right = ((decisions > 0) == y).double().numpy()
    accuracy = right.mean(-1)
    members = [np.array([t == name for t in topics]) for name in dict.fromkeys(topics)]
    limits = [_interval(row, members) for row in right]
    table = pd.DataFrame({"layer": range(len(x)), "accuracy": accuracy})
    table["low"], table["high"] = zip(*limits, strict=True)
    table["auroc"] = [auroc(d, y.numpy(), fold) for d in decisions.numpy()]
    table["control_accuracy"] = _control_accuracy(x, control, keep, fold, C) if controls else np.nan
    table["selectivity"] = table.accuracy - table.control_accuracy
    table["p_value"] = np.nan
    if permutations:
        by_chance = ((held_out_decisions(x, shuffled, fold, C) > 0) == shuffled[:, None]).double().mean(-1).numpy()
        table["p_value"] = (1 + (by_chance >= accuracy[None] - 1e-9).sum(0)) / (permutations + 1)
    table["above_chance"] = table.p_value < level
    return table


def _interval(right: np.ndarray, members: list[np.ndarray]) -> tuple[float, float]:
    """Bootstrap over topics of the share that is right; a topic with more prompts weighs more."""
    rows = np.array([[right[m].sum(), m.sum()] for m in members])
    return bootstrap_interval(rows, lambda r: r[:, 0].sum() / r[:, 1].sum(), draws=1000)


def _control_accuracy(x, control, keep, fold, C) -> np.ndarray:
    held = held_out_decisions(x[:, keep], control[:, keep], fold[keep.numpy()], C)
    return ((held > 0) == control[:, None, keep].bool()).double().mean((0, 2)).numpy()


def probe_for_safety(
    model,
    tokenizer,
    safe_prompts: Sequence[str],
    unsafe_prompts: Sequence[str],
    *,
    position: int | str = -1,
    topics: Sequence[Hashable] | None = None,
    types: Sequence[Hashable] | None = None,
    site: str = "resid_pre",
    **options,
) -> pd.DataFrame:
    """Can a linear probe tell unsafe from safe prompts? The table of `probe_table`, a row a layer.

    Prompt i of both lists is a pair of one topic, topics[i] (by default a topic of its own). types: surface types of the
    safe, then of the unsafe prompts; by default their frames. options: folds, C, controls, permutations. Raises
    ValueError for lists of unlike length, or a prompt that stands in both, before the model runs.
    """
    safe, unsafe = check_prompts(safe_prompts), check_prompts(unsafe_prompts)
    if len(safe) != len(unsafe):
        raise ValueError(
            f"Probing needs pairs: prompt i of both lists is one topic. These are {len(safe)} safe and {len(unsafe)} "
            "unsafe prompts; give each its twin, or read and fit them yourself with read_at and probe_table."
        )
    if both := set(safe) & set(unsafe):
        raise ValueError(f"{min(both)!r} stands among the safe and the unsafe prompts: take it out of one list.")
    topics = list(range(len(safe)) if topics is None else topics)
    if len(topics) != len(safe):
        raise ValueError(f"There are {len(safe)} pairs but {len(topics)} topics: give one topic for each pair.")
    topics = [*topics, *topics]
    check_site(model, site, 0)
    topic_folds(topics, options.get("folds", 5))
    types = surface_types([*safe, *unsafe]) if types is None else list(types)
    if options.get("controls", 5):
        control_labels(types, topics, 1)
    labels = torch.cat([torch.zeros(len(safe)), torch.ones(len(unsafe))])
    x = read_at(model, tokenizer, [*safe, *unsafe], position, site).transpose(0, 1)
    return probe_table(x, labels, topics, types, **options)


def fit_probe(x: torch.Tensor, labels: torch.Tensor, C: float = 0.01) -> tuple[torch.Tensor, torch.Tensor]:
    """One probe a site on all prompts, in raw units: directions [site, d] and biases [site]; x is [site, prompt, d]."""
    fits = fit_logistic(x, labels[None].float(), torch.ones(1, x.shape[1]), C)
    return fits.weights[0, :, 0], fits.bias[0, :, 0]


def mean_difference_probe(x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The difference of means as a probe, its threshold half way: directions [site, d] and biases [site]."""
    if len(labels.unique()) != 2:
        raise ValueError("A difference of means needs prompts of both classes.")
    one, other = x[:, labels.bool()].mean(1), x[:, ~labels.bool()].mean(1)
    direction = one - other
    return direction, -(direction * (one + other) / 2).sum(-1)
