"""Pictures of causal tracing: both directions always beside each other. Used in lesson 02.

They take the tables of `CausalTracer.trace_safety_circuit` and draw them; nothing is computed here.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .figures import BLACK, BLUE, DASHES, DIVERGING, MARKERS, ORANGE, PALETTE, figure, style
from .tracing import DIRECTIONS

TITLES = {DIRECTIONS[0]: "harmless into harmful: is it needed?", DIRECTIONS[1]: "harmful into harmless: is it enough?"}
NAMES = {"share_of_gap": "share of the gap in log-odds", "refusal_change": "change of the probability of refusing",
         "log_odds_change": "change of log-odds (nats)"}  # fmt: skip
COMPONENTS = {"attn_out": "attention", "mlp_out": "MLP", "heads": "head", "resid_pre": "residual stream, before", "resid_post": "residual stream"}  # fmt: skip


def grid_of(table: pd.DataFrame, direction: str, value: str, columns: str = "position") -> pd.DataFrame:
    """One direction of a table as a grid, layers down and `columns` ("position" or "unit") across, in their order."""
    one = table[table.direction == direction]
    return one.pivot(index="layer", columns=columns, values=value)[list(dict.fromkeys(one[columns]))]


def lines_by_layer(table: pd.DataFrame, value: str = "share_of_gap", components: Sequence[str] | None = None) -> Figure:
    """Lines over the layers with their intervals, one for each component, a panel for each direction.

    A place in the table must be told by its layer and component alone. value: "share_of_gap" or "refusal_change".
    """
    limits = {"share_of_gap": ("share_low", "share_high"), "refusal_change": ("low", "high")}[value]
    fig, axes = figure(1, 2, size=(10.5, 3.9), sharey=True)
    with style():
        for ax, direction in zip(axes, DIRECTIONS, strict=True):
            for place, component in enumerate(components or list(dict.fromkeys(table.component))):
                one = table[(table.direction == direction) & (table.component == component)].sort_values("layer")
                color = (BLUE, ORANGE, BLACK)[place]
                ax.plot(one.layer, one[value], color=color, marker=MARKERS[place], linestyle=DASHES[place],
                        label=COMPONENTS.get(component, component), markeredgecolor="#333333", markeredgewidth=0.6)  # fmt: skip
                ax.fill_between(one.layer, one[limits[0]], one[limits[1]], color=color, alpha=0.2, linewidth=0)
            ax.axhline(0, color="#777777", linewidth=1, zorder=0)
            ax.set(xlabel="layer", title=TITLES[direction])
        axes[0].set_ylabel(NAMES[value])
        axes[0].legend(loc="upper left")
    return fig


def two_maps(
    maps: Mapping[str, np.ndarray],
    *,
    xlabel: str,
    colorbar: str,
    xticks: Sequence[str] | None = None,
    yticks: Sequence[int] | None = None,
    sure: Mapping[str, np.ndarray] | None = None,
    reach: float = 1.0,
    title: str = "",
) -> Figure:
    """Two maps [layer, place] on one scale from -reach to reach, layer 0 at the bottom; maps: {title: values}.

    sure: bool of the same shapes; those cells get a dot, so that the map can be read in grey. Cells below a tenth of
    -reach get a minus. A nan cell stays grey.
    """
    rows, columns = next(iter(maps.values())).shape
    size = (min(13, 4.2 + 0.36 * 2 * columns), min(8.2, 2.6 + 0.16 * rows))
    fig, axes = figure(1, len(maps), size=size, sharey=True, squeeze=False)
    with style():
        for ax, (name, values) in zip(axes[0], maps.items(), strict=True):
            values = np.asarray(values, dtype=float)
            ax.set_facecolor("#DDDDDD")
            image = ax.imshow(values, cmap=DIVERGING, vmin=-reach, vmax=reach, aspect="auto", origin="lower")
            for row, column in np.argwhere(values < -0.1 * reach):
                ax.text(column, row, "\u2212", ha="center", va="center", size=9)
            if sure is not None:
                row, column = np.nonzero(sure[name])
                ax.scatter(column, row, s=26, c="white", edgecolors="black", linewidths=1.1)
            ax.set(xlabel=xlabel, title=name.replace(": ", ":\n"))
            ticks = range(columns) if xticks is None else xticks
            turn = 90 if max(len(str(tick)) for tick in ticks) > 3 else 0
            ax.set_xticks(range(columns), ticks, rotation=turn, size=9)
        step = max(1, -(-rows // 16))
        layers = list(range(rows) if yticks is None else yticks)
        axes[0, 0].set_yticks(range(0, rows, step), layers[::step])
        axes[0, 0].set_ylabel("layer")
        fig.colorbar(image, ax=axes[0].tolist(), label=colorbar, pad=0.01)
        if title:
            fig.suptitle(title, x=0.01, ha="left", weight="bold")
    return fig


def corner(
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    names: Mapping[str, Sequence[str]],
    value: str,
    bars: Mapping[str, np.ndarray] | None = None,
    line: float | None = None,
) -> Figure:
    """Every place by both of its effects: across, is it needed; up, is it enough.

    points: {group: (needed, enough)}. names: {group: what is written beside each point, "" for nothing}. bars: for
    each group the intervals, [4, point]: needed low and high, enough low and high. line: where "critical" begins.
    """
    fig, ax = figure(size=(6.4, 5.2))
    with style():
        for place, (group, (across, up)) in enumerate(points.items()):
            color, marker = PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)]
            if bars is not None:
                low_x, high_x, low_y, high_y = bars[group]
                ax.hlines(up, low_x, high_x, color=color, alpha=0.5, linewidth=1.2)
                ax.vlines(across, low_y, high_y, color=color, alpha=0.5, linewidth=1.2)
            ax.scatter(across, up, s=52, c=color, marker=marker, edgecolors="#222222", linewidths=0.7, label=group, zorder=3)  # fmt: skip
            for x, y, text in zip(across, up, names[group], strict=True):
                ax.annotate(text, (x, y), (6, (4, -12)[place % 2]), textcoords="offset points", size=9)
        if line is not None:
            ax.axhline(line, color="#555555", linestyle=":", linewidth=1.4)
            ax.axvline(line, color="#555555", linestyle=":", linewidth=1.4)
        ax.axhline(0, color="#888888", linewidth=1, zorder=0)
        ax.axvline(0, color="#888888", linewidth=1, zorder=0)
        ax.set(xlabel=f"harmless into harmful (needed): {value}", ylabel=f"harmful into harmless (enough): {value}")
        if len(points) > 1:
            ax.legend()
    return fig


def lines_of_groups(
    sizes: Sequence[int],
    groups: Mapping[str, tuple[Sequence[float], Sequence[float], np.ndarray]],
    *,
    ylabel: str,
    xlabel: str = "heads exchanged",
) -> Figure:
    """Groups of growing size exchanged together, beside their members added up and beside random groups.

    groups: {title: (together [size], added up [some of the first sizes], random [size, draw])}.
    """
    fig, axes = figure(1, len(groups), size=(10.5, 3.9), sharey=True, squeeze=False)
    with style():
        for ax, (name, (together, added, chance)) in zip(axes[0], groups.items(), strict=True):
            chance = np.asarray(chance)
            ax.fill_between(sizes, chance.min(1), chance.max(1), facecolor="#E4E4E4", edgecolor="#AAAAAA", hatch="..",
                            linewidth=0, label=f"{chance.shape[1]} random groups")  # fmt: skip
            for place, (row, label) in enumerate(((together, "together"), (added, "one at a time, added up"))):
                ax.plot(sizes[: len(row)], row, color=PALETTE[place], marker=MARKERS[place], linestyle=DASHES[place], label=label)  # fmt: skip
            ax.set(xscale="log", xlabel=xlabel, title=name)
            ax.set_xticks(sizes, sizes)
            ax.minorticks_off()
        axes[0, 0].set_ylabel(ylabel)
        axes[0, 0].legend(loc="upper left")
    return fig


def mended_panels(table: pd.DataFrame, ylim: tuple[float, float] = (-0.3, 1.35)) -> Figure:
    """The table of `noise.trace_corrupted`: a row of panels for each component, a panel for each place.

    Colour and marker tell noise from the twin, dots from lines single layers from windows, which carry their interval.
    """
    components, places = list(dict.fromkeys(table.component)), list(dict.fromkeys(table.position))
    fig, axes = figure(len(components), len(places), size=(11.5, 5.6), sharex=True, sharey=True, squeeze=False)
    with style():
        for (row, column), ax in np.ndenumerate(axes):
            here = table[(table.component == components[row]) & (table.position == places[column])]
            for (corruption, size), one in here.groupby(["corruption", "window"]):
                color, marker = {"noise": (ORANGE, "s"), "twin": (BLUE, "o")}[corruption]
                label = f"{corruption}, {size} layer{'s' * (size > 1)}"
                ax.plot(one.layer, one.share_of_gap, color=color, marker=marker, linestyle="-" if size > 1 else ":", label=label)  # fmt: skip
                if size > 1:
                    ax.fill_between(one.layer, one.low, one.high, color=color, alpha=0.15, linewidth=0)
            ax.axhline(0, color="#777777", linewidth=1, zorder=0)
            if row == 0:
                ax.set_title("last token" if places[column] == -1 else places[column])
            if row == len(components) - 1:
                ax.set_xlabel("layer (middle of the window)")
            if column == 0:
                ax.set_ylabel(f"{COMPONENTS.get(components[row], components[row])}:\nshare that returns")
        axes[0, 0].set_ylim(*ylim)
        axes[0, 0].legend(fontsize=8, loc="upper right")
    return fig
