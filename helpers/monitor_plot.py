"""Pictures of a monitor: its score at every token, and its alarms beside each other. Taught in lesson 07.

Makers only, as in `helpers/plots.py`: they draw what they are given and compute nothing.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .figures import BLACK, CONTROL, DIVERGING, HARMFUL, HARMLESS, VERMILION, figure, style
from .plots import visible

REACH = 8.0  # log-odds at which a colour is full


def token_view(tokens: Sequence[str], scores: Sequence[float], start: int, threshold: float, title: str = "") -> Figure:
    """A text as the monitor read it, token by token: orange above the threshold, violet below, the score beneath.

    tokens, scores: [token], of the request and the answer; start: the answer's first token, in front of which stands the
    framed token whose score counts. A triangle marks each score above the threshold.
    """
    per_row, scores = 10, np.asarray(scores, dtype=float)
    rows = -(-len(tokens) // per_row)
    grid = np.full((rows, per_row), np.nan)
    grid.ravel()[: len(tokens)] = scores - threshold
    fig, ax = figure(size=(11, 1.0 + 0.62 * rows))
    with style():
        # Orange lies at the lower end of this map, so it is turned round.
        image = ax.imshow(np.ma.masked_invalid(grid), cmap=f"{DIVERGING}_r", vmin=-REACH, vmax=REACH, aspect="auto")
        fig.colorbar(image, ax=ax, label="score less threshold", pad=0.01)
        for place, (token, score) in enumerate(zip(tokens, scores, strict=True)):
            row, column = divmod(place, per_row)
            ink = "white" if abs(score - threshold) > 0.7 * REACH else "black"
            weight = "bold" if place < start else "normal"
            ax.text(column, row - 0.15, visible(token, 11), ha="center", va="center", size=9, color=ink, weight=weight)
            mark = "\u25b2 " if score > threshold else ""
            ax.text(column, row + 0.24, f"{mark}{score:.1f}", ha="center", va="center", size=8, color=ink)
        row, column = divmod(start - 1, per_row)
        for color, width in ((BLACK, 4.5), ("white", 1.6)):
            ax.add_patch(_frame(column, row, color, width))
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
        ax.set_title(title)
    return fig


def _frame(column: int, row: int, color: str, width: float):
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, ec=color, lw=width)


def score_rows(groups: Mapping[str, Sequence[float]], threshold: float, harmful: Sequence[str] = ()) -> Figure:
    """A row of points a group of prompts: each one's score, and the threshold as a line; the share above it at the right.

    harmful: the names of the groups where an alarm is right; they are drawn as discs, the others as crosses.
    """
    fig, ax = figure(size=(9.5, 1.4 + 0.42 * len(groups)))
    rng = np.random.default_rng(0)
    with style():
        for place, (name, scores) in enumerate(groups.items()):
            scores = np.asarray(scores, dtype=float)
            bad = name in harmful
            look = (
                {"c": HARMFUL, "marker": "o", "edgecolors": "#222222", "linewidths": 0.5}
                if bad
                else {"c": HARMLESS, "marker": "x"}
            )
            ax.scatter(scores, place + rng.uniform(-0.22, 0.22, len(scores)), s=26, **look)
            ax.plot([np.median(scores)] * 2, [place - 0.36, place + 0.36], color=BLACK, marker="", linestyle="-")
            ax.text(1.01, place, f"{(scores > threshold).mean():.0%}", transform=ax.get_yaxis_transform(), va="center")
        ax.axvline(threshold, color=VERMILION, linestyle="--", linewidth=1.6)
        ax.axhline(-0.5, color=CONTROL, linewidth=0)
        ax.set_yticks(range(len(groups)), list(groups))
        ax.invert_yaxis()
        ax.set(xlabel="the monitor's log-odds of harm (discs: harmful requests)")
        ax.text(1.01, 1.02, "alarms", transform=ax.transAxes, va="bottom")
    return fig
