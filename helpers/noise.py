"""ROME's causal tracing beside token replacement: two ways to break a run, one way to mend it. Taught in lesson 02.

A harmful request is corrupted so that it is no longer refused: by Gaussian noise on what its tokens bring into the
first block (Meng et al. 2022: three times the standard deviation of the embeddings), or by putting its harmless twin
in its place. Then a component gets back what it had in the intact run, at one layer or in a window of layers, and the
refusal that returns is counted. Noise leads to activations that no text gives, and the two can disagree (Zhang and
Nanda 2024).
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch

from .hooks import check_site, record
from .models import body_of, layers_of
from .prompts import pad_token_id
from .refusal import RefusalScore, refusal_score_of
from .roles import roles_of
from .statistics import mean_interval
from .sweep import Patch, Sweep

CORRUPTIONS = ("noise", "twin")


def window_of(layer: int, width: int, n_layers: int) -> range:
    """The `width` layers around one, cut off at the ends of the model."""
    return range(max(0, layer - width // 2), min(n_layers, layer - width // 2 + width))


@torch.no_grad()
def trace_corrupted(
    model,
    tokenizer,
    harmful: Sequence[str],
    benign: Sequence[str],
    components: Sequence[str] = ("attn_out", "mlp_out"),
    positions: str | Sequence[int | str] = "roles",
    windows: Sequence[int] = (1,),
    layers: Iterable[int] | None = None,
    corruptions: Sequence[str] = CORRUPTIONS,
    scale: float = 3.0,
    draws: int = 3,
    score: RefusalScore | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """How much refusal comes back when one place of a corrupted run is mended from the intact harmful run.

    harmful, benign: pairs of equal length. positions: as in `roles.py`. windows: how many layers are mended at once.
    layers: the middles of the windows, all layers if None. scale: the noise in standard deviations of what the request's tokens bring into the first block. draws of noise
    for each prompt, averaged. Columns: corruption, window, layer (the middle), component, position; share_of_gap, the
    refusal log-odds that return over those that were lost, with its bootstrap interval over pairs; intact, corrupted
    and mended log-odds, means; pairs.
    Raises ValueError for unknown names, a scale or number of draws that is not positive, and unequal pairs.
    """
    if unknown := [c for c in corruptions if c not in CORRUPTIONS]:
        raise ValueError(f"There is no corruption {unknown[0]!r}: choose from {', '.join(CORRUPTIONS)}.")
    if scale <= 0 or draws < 1 or min(windows, default=0) < 1:
        raise ValueError("scale, draws and each window must be at least 1 (scale above 0).")
    n_layers = len(layers_of(model))
    middles = list(range(n_layers) if layers is None else layers)
    for component in components:
        for layer in middles or [0]:
            check_site(model, component, layer)
    if not components or not middles:
        raise ValueError("There is nothing to mend: give at least one component and one layer.")
    score = score or refusal_score_of(model, tokenizer)
    roles = roles_of(tokenizer, harmful, benign, positions)
    request = roles_of(tokenizer, harmful, benign, "roles")
    order = list(range(len(roles.rows[0])))
    batches = [batch.to(model.device) for batch in roles.batches(order, pad_token_id(tokenizer))]
    width = batches[0].input_ids.shape[1]
    columns = roles.columns(order, width)[0]
    with record(model, ["resid_pre", *components]) as seen:
        body_of(model)(**batches[0].inputs(), use_cache=False)
    where = request.columns(order, width)[0][request.labels.index("request")].to(model.device)
    rows, names = [], []
    for label, at in zip(roles.labels, columns, strict=True):
        for size in windows:
            for layer in middles:
                for site in components:
                    span = window_of(layer, size, n_layers)
                    rows.append([Patch(site, one, at, seen[site][one]) for one in span])
                    names.append({"window": size, "layer": layer, "component": site, "position": label})
    intact = Sweep(model, batches[0], score).clean
    tables = []
    for corruption in corruptions:
        runs = []
        for draw in range(draws if corruption == "noise" else 1):
            noise = _noise(seen["resid_pre"][0], where, scale, seed + draw) if corruption == "noise" else None
            sweep = Sweep(model, batches[corruption == "twin"], score, noise=noise)
            runs.append((sweep.clean.numpy(), sweep.scores(rows).numpy()))
        broken, mended = (np.mean(x, 0) for x in zip(*runs, strict=True))
        tables.append(_table(corruption, names, intact.numpy(), broken, mended))
    return pd.concat(tables, ignore_index=True)


def _noise(entering: torch.Tensor, where: torch.Tensor, scale: float, seed: int) -> torch.Tensor:
    """Gaussian noise [prompt, position, d_model] on the request's tokens, in units of their own spread."""
    sigma = float(entering[where].float().std())
    drawn = torch.randn(entering.shape, generator=torch.Generator().manual_seed(seed)).to(entering)
    return scale * sigma * drawn * where[..., None]


def _table(corruption: str, names: list[dict], intact, broken, mended) -> pd.DataFrame:
    gap = float(np.mean(intact - broken))
    lines = []
    for name, row in zip(names, mended, strict=True):
        low, high = mean_interval(row - broken)
        lines.append(
            {"corruption": corruption, **name, "share_of_gap": float(np.mean(row - broken)) / gap, "low": low / gap,
             "high": high / gap, "intact": float(intact.mean()), "corrupted": float(broken.mean()),
             "mended": float(row.mean()), "pairs": len(row)}
        )  # fmt: skip
    return pd.DataFrame(lines)
