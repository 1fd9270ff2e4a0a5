"""Pictures of edits: dose and response, the plane of costs, what answers turn into. Taught in lesson 05.

Makers only, as in `helpers/plots.py`: they draw what they are given and compute nothing.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .figures import BLACK, BLUE, CONTROL, GREEN, HARMFUL, HATCHES, ORANGE, PURPLE, SKY, VERMILION, figure, style

VERDICTS = {"effect": (GREEN, "o"), "chance": (PURPLE, "^"), "nothing": (BLUE, "s"), "broken": (VERMILION, "X")}
OUTCOMES = {"refusal": ORANGE, "late refusal": SKY, "answer": BLUE, "broken": BLACK}


def dose_panels(
    tables: Mapping[str, pd.DataFrame], *, xlabel: str, threshold: float = 0.0, shown: Sequence[int] = ()
) -> Figure:
    """A panel for each table of `dose_response`: the ranked places with their interval, and the range of random sets.

    Doses stand at equal distances, whatever their sizes. shown: the doses that are named; all if none is.
    """
    fig, axes = figure(1, len(tables), size=(min(13, 3.4 + 2.9 * len(tables)), 4.0), sharey=True, squeeze=False)
    with style():
        for ax, (name, table) in zip(axes[0], tables.items(), strict=True):
            at, counts = np.arange(len(table)), table["count"].tolist()
            ax.fill_between(at, table.random_low, table.random_high, facecolor="#E4E4E4", edgecolor="#AAAAAA",
                            hatch="..", linewidth=0, label="random sets, lowest to highest")  # fmt: skip
            ax.plot(at, table.random, color=CONTROL, linestyle="--", marker="", label="random sets, mean")
            ax.fill_between(at, table.low, table.high, color=HARMFUL, alpha=0.25, linewidth=0)
            ax.plot(at, table.odds, color=HARMFUL, marker="o", linestyle="-", label="ranked, with 95% interval")
            ax.axhline(threshold, color="#555555", linestyle=":", linewidth=1.4)
            named = [i for i, count in enumerate(counts) if not shown or count in shown]
            ax.set_xticks(named, [f"{counts[i]:,}" for i in named])
            ax.set(title=name, xlabel=xlabel)
        axes[0, 0].set(ylabel="refusal log-odds, harmful")
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def cost_plane(table: pd.DataFrame, *, most_kl: float, intact: float) -> Figure:
    """Edits as points: harmful requests refused, over the KL on harmless ones and over the facts still known.

    table: a row an edit, its index the names; columns refused, KL, facts known, verdict (one of VERDICTS). The number
    beside a point is its row in the list at the right. most_kl: the damage that is allowed. intact: the untouched
    model's refused share. A KL under 0.001 stands at 0.001.
    """
    fig, axes = figure(1, 2, size=(12.4, 4.8), sharey=True)
    with style():
        labels = {"KL": "KL on harmless prompts (nats)", "facts known": "facts known"}
        for ax, (column, label) in zip(axes, labels.items(), strict=True):
            x = table[column].clip(lower=1e-3) if column == "KL" else table[column]
            for verdict, (color, marker) in VERDICTS.items():
                own = (table.verdict == verdict).to_numpy()
                ax.scatter(
                    x[own], table.refused[own], s=70, c=color, marker=marker, edgecolors="#222222", label=verdict
                )
            along = np.log10(x) / 4.3 if column == "KL" else x / 1.12  # in widths of the panel
            for place, across in enumerate(_apart(along.to_numpy(), table.refused.to_numpy())):
                spot = (x.iloc[place], table.refused.iloc[place])
                ax.annotate(str(place + 1), spot, (across, 7), textcoords="offset points", size=9, ha="center")
            ax.axhline(intact, color="#555555", linestyle=":", linewidth=1.4)
            ax.set(xlabel=label, ylim=(-0.06, 1.1))
        axes[0].axvspan(
            most_kl, max(3, 2 * table.KL.max()), facecolor="#EEEEEE", hatch="//", edgecolor="#CCCCCC", zorder=0
        )
        axes[0].set(xscale="log", xlim=(7e-4, max(3, 2 * table.KL.max())), ylabel="harmful requests refused")
        axes[0].xaxis.set_major_formatter("{x:g}")
        axes[1].set(xlim=(-0.04, 1.08))
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(VERDICTS))
        words = "\n".join(f"{place:\u2007>2}  {name}" for place, name in enumerate(table.index, 1))
        axes[1].text(1.04, 1, words, transform=axes[1].transAxes, va="top", size=9, linespacing=1.5)
    return fig


def _apart(x: np.ndarray, y: np.ndarray) -> list[int]:
    """How far right of its point each label stands, in typographic points: labels at one place stand side by side."""
    offsets, seen = [], []
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        near = sum(abs(a - c) < 0.025 and abs(b - d) < 0.04 for c, d in seen)
        offsets.append(14 * near)
        seen.append((a, b))
    return offsets


def outcome_bars(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """A stacked bar a model: how many answers are refusals, late refusals, answers, broken; numbers within."""
    fig, ax = figure(size=(9, 1.5 + 0.5 * len(counts)))
    with style():
        left = np.zeros(len(counts))
        for (outcome, color), hatch in zip(OUTCOMES.items(), HATCHES, strict=False):
            row = np.array([counts[name].get(outcome, 0) for name in counts])
            edge = "white" if color == BLACK else "#222222"
            ax.barh(range(len(counts)), row, left=left, color=color, hatch=hatch, edgecolor=edge, label=outcome)
            for place, (start, value) in enumerate(zip(left, row, strict=True)):
                if value:
                    ax.text(start + value / 2, place, str(value), ha="center", va="center", size=10,
                            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # fmt: skip
            left = left + row
        ax.set_yticks(range(len(counts)), list(counts))
        ax.invert_yaxis()
        ax.set(xlabel="answers")
        fig.legend(loc="outside lower center", ncols=len(OUTCOMES))
    return fig
