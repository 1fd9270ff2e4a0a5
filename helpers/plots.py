"""Figures of the course: makers that draw what they are given, and `show`, the only way a lesson shows one.

A maker computes nothing and returns a matplotlib figure; `show(fig, alt)` displays it. Colours come from
`helpers/figures.py`; every maker adds a second cue (markers, line styles, hatches, numbers in the cells),
because a page may also be printed in grey.
"""

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from helpers.figures import (  # noqa: F401 (lessons take colours and show from here)
    BLACK,
    BLUE,
    CONTROL,
    DASHES,
    DIVERGING,
    GREEN,
    GREY,
    HARMFUL,
    HARMLESS,
    HATCHES,
    MARKERS,
    ORANGE,
    PALETTE,
    PURPLE,
    SEQUENTIAL,
    SKY,
    VERMILION,
    figure,
    show,
    style,
)


def lines_with_band(
    x: Sequence[float],
    series: Mapping[str, tuple],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    band: tuple[str, Sequence[float], Sequence[float]] | None = None,
    colors: Mapping[str, str] | None = None,
    ylim: tuple[float, float] | None = None,
) -> Figure:
    """Lines over `x`, each with its interval; markers and dashes tell them apart without colour.

    `series` maps a name to `(middle, low, high)`, each [len(x)], or to `(middle,)`. `band` is `(name, low,
    high)`, drawn hatched in grey behind the lines: the range of random controls, say.
    """
    fig, ax = figure()
    with style():
        if band:
            name, low, high = band
            ax.fill_between(x, low, high, facecolor="#E4E4E4", edgecolor="#AAAAAA", hatch="..", linewidth=0, label=name)
        for place, (name, (middle, *interval)) in enumerate(series.items()):
            color = (colors or {}).get(name, PALETTE[place % len(PALETTE)])
            cue = {"marker": MARKERS[place % len(MARKERS)], "linestyle": DASHES[place % len(DASHES)]}
            ax.plot(x, middle, color=color, label=name, markeredgecolor="#333333", markeredgewidth=0.6, **cue)
            if interval:
                ax.fill_between(x, *interval, color=color, alpha=0.2, linewidth=0)
        _finish(ax, xlabel, ylabel, title, ylim)
        if len(series) + bool(band) > 1:
            ax.legend()
    return fig


def bars(
    labels: Sequence[str],
    values: Sequence[float] | Mapping[str, Sequence[float]],
    *,
    ylabel: str,
    intervals: Mapping[str, tuple] | tuple | None = None,
    title: str = "",
    fmt: str = "{:.0%}",
    colors: Mapping[str, str] | None = None,
    ylim: tuple[float, float] | None = None,
) -> Figure:
    """Bars with their values written above them, grouped if `values` maps series names to rows.

    `intervals` is `(low, high)`, or maps series names to it. Series differ by hatch as well as by colour.
    """
    groups = values if isinstance(values, Mapping) else {"": values}
    limits = intervals if isinstance(intervals, Mapping) else {"": intervals} if intervals is not None else {}
    places, width = np.arange(len(labels)), 0.8 / len(groups)
    fig, ax = figure(size=(min(10, max(3.6, 1.4 + 0.55 * len(labels) * (len(groups) + 1))), 3.8))
    with style():
        for order, (name, row) in enumerate(groups.items()):
            at = places + (order - (len(groups) - 1) / 2) * width
            row, tops = np.asarray(row, dtype=float), np.asarray(row, dtype=float)
            color = (colors or {}).get(name, PALETTE[order % len(PALETTE)])
            hatch = HATCHES[order % len(HATCHES)] if len(groups) > 1 else ""
            edge = "white" if color == BLACK else "#222222"
            ax.bar(at, row, width * 0.92, color=color, hatch=hatch, edgecolor=edge, linewidth=0.8, label=name)
            if name in limits:
                low, high = (np.asarray(limit, dtype=float) for limit in limits[name])
                ax.errorbar(at, row, [row - low, high - row], fmt="none", ecolor="#222222", capsize=3, linewidth=1.3)
                tops = high
            for x, value, top in zip(at, row, tops, strict=True):
                text = "-" if np.isnan(value) else fmt.format(value)
                ax.annotate(
                    text,
                    (x, max(np.nan_to_num(top), 0)),
                    (0, 3),
                    textcoords="offset points",
                    ha="center",
                    size=9,
                )
        ax.set_xticks(places, [textwrap.fill(str(label), 14) for label in labels])
        ax.tick_params(axis="x", length=0)
        _finish(ax, "", ylabel, title, ylim)
        slanted = _slant_if_crowded(fig, ax)
        if len(groups) > 1:
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3 if slanted else -0.12), ncols=min(len(groups), 4))
    return fig


def _slant_if_crowded(fig: Figure, ax, apart: float = 6) -> bool:
    """Turn the labels below the axis if two of them stand closer than `apart` pixels. Returns whether they were."""
    fig.canvas.draw()  # nobody knows their widths before
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    crowded = any(left.x1 + apart > right.x0 for left, right in pairwise(boxes))
    if crowded:
        plt.setp(ax.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    return crowded


def heatmap(
    values: np.ndarray,
    *,
    xlabel: str,
    ylabel: str,
    colorbar: str,
    title: str = "",
    xticks: Sequence[str] | None = None,
    yticks: Sequence[str] | None = None,
    center: float | None = None,
    limits: tuple[float, float] | None = None,
    marked: Sequence[tuple[int, int]] = (),
    fmt: str | None = None,
) -> Figure:
    """A map of `values` [rows, columns], row 0 at the bottom; with `center`, in diverging colours.

    The second cue: numbers in the cells (`fmt`, by itself for up to 120 cells), else a minus in cells well below
    `center`; and a white and black frame
    around each `(row, column)` in `marked`.
    """
    values = np.asarray(values, dtype=float)
    rows, columns = values.shape
    low, high = limits or (np.nanmin(values), np.nanmax(values))
    if center is not None:
        reach = max(abs(high - center), abs(low - center)) or 1.0
        low, high = center - reach, center + reach
    fig, ax = figure(size=(min(11, max(4.5, 1.6 + 0.36 * columns)), min(9, max(2.6, 1.2 + 0.26 * rows))))
    with style():
        cmap = SEQUENTIAL if center is None else DIVERGING
        image = ax.imshow(
            values, cmap=cmap, vmin=low, vmax=high, aspect="auto", origin="lower", interpolation="nearest"
        )
        fig.colorbar(image, ax=ax, label=colorbar)
        _ticks(
            ax.set_xticks,
            columns,
            xticks,
            rotation=90 if xticks and max(map(len, map(str, xticks))) > 3 else 0,
        )
        _ticks(ax.set_yticks, rows, yticks)
        numbers = fmt or ("{:.2g}" if values.size <= 120 else None)
        for (row, column), value in np.ndenumerate(values):
            text = "" if np.isnan(value) or not numbers else numbers.format(value)
            if center is not None and not numbers and value < center - (high - center) / 4:
                text = "\u2212"  # in grey both ends of a diverging map are dark
            ax.text(column, row, text, ha="center", va="center", size=8, color=_ink(image, value))
        for row, column in marked:
            for color, width in (("black", 4.0), ("white", 1.6)):
                ax.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=color, lw=width))
        _finish(ax, xlabel, ylabel, title, None, grid=False)
    return fig


def logit_lens_grid(
    tokens: Sequence[Sequence[str]],
    probabilities: np.ndarray,
    *,
    positions: Sequence[str],
    layers: Sequence[int] | None = None,
    title: str = "",
    marked: Sequence[tuple[int, int]] = (),
) -> Figure:
    """What each layer would say next, at each position: the top token as text, its probability as colour.

    `tokens` and `probabilities` are [layer, position], the first layer at the bottom; `positions` are the
    prompt's own tokens. A bold token has a probability over one half.
    """
    probabilities = np.asarray(probabilities, dtype=float)
    rows, columns = probabilities.shape
    layers = list(range(rows)) if layers is None else list(layers)
    fig, ax = figure(size=(min(14, 1.9 + 0.92 * columns), min(12, 1.5 + 0.27 * rows)))
    with style():
        image = ax.imshow(probabilities, cmap=SEQUENTIAL, vmin=0, vmax=1, aspect="auto", origin="lower")
        fig.colorbar(image, ax=ax, label="probability of the token shown", pad=0.01)
        for (row, column), value in np.ndenumerate(probabilities):
            weight = "bold" if value > 0.5 else "normal"
            token = visible(tokens[row][column], 9)
            ax.text(column, row, token, ha="center", va="center", size=8, weight=weight, color=_ink(image, value))
        for row, column in marked:
            ax.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=VERMILION, lw=2.5))
        ax.set_xticks(range(columns), [visible(token, 11) for token in positions], rotation=45, ha="right", size=9)
        ax.set_yticks(range(rows), layers, size=8)
        _finish(ax, "token at this position", "layer", title, None, grid=False)
    return fig


def token_strip(
    tokens: Sequence[str],
    values: Sequence[float],
    *,
    label: str,
    limits: tuple[float, float] | None = None,
    title: str = "",
    per_row: int = 12,
    fmt: str = "{:.2f}",
) -> Figure:
    """A text, token by token, coloured by a value that is also written under each token."""
    values = np.asarray(values, dtype=float)
    rows = -(-len(tokens) // per_row)
    grid = np.full((rows, per_row), np.nan)
    grid.ravel()[: len(tokens)] = values
    low, high = limits or (np.nanmin(values), np.nanmax(values))
    fig, ax = figure(size=(min(11, 1.2 + 0.85 * min(per_row, len(tokens))), 0.9 + 0.62 * rows))
    with style():
        shown = grid[:, : min(per_row, len(tokens))]
        image = ax.imshow(np.ma.masked_invalid(shown), cmap=SEQUENTIAL, vmin=low, vmax=high, aspect="auto")
        fig.colorbar(image, ax=ax, label=label, pad=0.01)
        for place, (token, value) in enumerate(zip(tokens, values, strict=True)):
            row, column = divmod(place, per_row)
            ink = _ink(image, value)
            ax.text(
                column,
                row - 0.13,
                visible(token, 10),
                ha="center",
                va="center",
                size=9,
                color=ink,
                weight="bold",
            )
            ax.text(column, row + 0.24, fmt.format(value), ha="center", va="center", size=7.5, color=ink)
        ax.set_xticks([])
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
        ax.set_title(title)
    return fig


def visible(token: str, longest: int = 12) -> str:
    """A token as a figure can show it: space as `␣`, line end as `↵`, cut to `longest` characters."""
    text = str(token).replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _finish(ax, xlabel: str, ylabel: str, title: str, ylim: tuple[float, float] | None, grid: bool = True) -> None:
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    if grid:
        ax.grid(axis="y", linestyle="-")
    if ylim:
        ax.set_ylim(*ylim)


def _ticks(setter, count: int, names: Sequence[str] | None, rotation: int = 0) -> None:
    """Every tick that fits: named ones all, numbers in steps."""
    if names is not None:
        # Only a token begins with a space that matters; within a name (`effect size`) it is just a space.
        shown = [visible(name, 14) for name in map(str, names)]
        shown = [text if text.startswith("␣") else text.replace("␣", " ") for text in shown]
        setter(range(count), shown, rotation=rotation, size=9)
    else:
        step = max(1, -(-count // 16))
        setter(range(0, count, step))


def _ink(image, value: float) -> str:
    """Black or white, whichever reads better on the cell's colour."""
    red, green, blue, _ = image.cmap(image.norm(value))
    return "black" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 else "white"
