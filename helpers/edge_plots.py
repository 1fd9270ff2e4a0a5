"""Pictures of effects and edges: an estimate against the truth, ROC curves, and a circuit of edges. Taught in lesson 04."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .figures import BLACK, BLUE, DASHES, GREY, MARKERS, PALETTE, VERMILION, figure, style
from .glassbox_truth import INPUT, OUTPUT, Node
from .wiring import Edge, acts_at


def agreement(
    groups: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, xlabel: str, ylabel: str, title: str = ""
) -> Figure:
    """Estimates against true effects, {name: (true, estimate)}, with the diagonal on which the two are equal."""
    fig, ax = figure(size=(5.8, 4.8))
    with style():
        values = np.concatenate([np.asarray(x, float) for pair in groups.values() for x in pair])
        low, high = values.min(), values.max()
        margin = 0.05 * (high - low or 1.0)
        ends = (low - margin, high + margin)
        ax.plot(ends, ends, color=GREY, lw=1.2, ls="--", marker="", zorder=1)
        at = ends[0] + 0.62 * (ends[1] - ends[0])
        ax.annotate("equal", (at, at), (6, -6), textcoords="offset points", va="top", size=8.5, color="#555555")
        for i, (name, (true, estimate)) in enumerate(groups.items()):
            ax.scatter(true, estimate, s=34, marker=MARKERS[i], c=PALETTE[i], edgecolors=BLACK, linewidths=0.5, alpha=0.85, label=name)  # fmt: skip
        ax.set(xlabel=xlabel, ylabel=ylabel, title=title, xlim=ends, ylim=ends)
        ax.grid()
        if len(groups) > 1:
            ax.legend()
    return fig


def roc_plot(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    points: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    *,
    title: str = "",
) -> Figure:
    """ROC curves (false and true positive rates), and single searches beside them as points. The x axis is stretched near 0,
    since wrong edges outnumber true ones by far."""
    fig, ax = figure(size=(6.0, 4.6))
    with style():
        for i, (name, (wrong, right)) in enumerate(curves.items()):
            ax.step(wrong, right, where="post", color=PALETTE[i], ls=DASHES[i], marker="", label=name)
        for i, (name, found) in enumerate((points or {}).items()):
            marker = MARKERS[(i + 2) % len(MARKERS)]
            ax.scatter(*zip(*found, strict=True), s=60, marker=marker, c=VERMILION, edgecolors=BLACK, linewidths=0.7, zorder=3, label=name)  # fmt: skip
        ax.plot(np.linspace(0, 1, 200), np.linspace(0, 1, 200), color=GREY, lw=1, ls=":", marker="", label="chance")
        ax.set_xscale("symlog", linthresh=0.01)
        ax.set_xticks([0, 0.01, 0.1, 1], ["0", "0.01", "0.1", "1"])
        ax.set(xlabel="share of the wrong edges kept", ylabel="share of the true edges kept", title=title)
        ax.set(xlim=(-0.0008, 1.05), ylim=(-0.03, 1.05))
        ax.grid()
        ax.legend(fontsize=9, loc="lower right")
    return fig


def edge_graph(
    edges: Collection[Edge],
    weights: Mapping[Edge, float] | None = None,
    true: Collection[Edge] | None = None,
    *,
    title: str = "",
) -> Figure:
    """A circuit of edges, from the input below to the output above: heads as discs, MLPs as squares, named a layer.head, m layer.

    weights: what passes along an edge, for the widths; dashed where it is negative. true: with the truth of a box, wrong edges are
    drawn dotted in another colour, and missing ones are not drawn. Raises ValueError for no edges.
    """
    edges = list(edges)
    if not edges:
        raise ValueError("There is no edge to draw: this circuit is empty.")
    weights = weights or {}
    where = _places({n for edge in edges for n in edge})
    widest = max((abs(weights.get(e, 1.0)) for e in edges), default=1.0) or 1.0
    height = 1.6 + 0.62 * len({y for _, y in where.values()})
    fig, ax = figure(size=(6.6, min(9.5, max(3.6, height))))
    with style():
        for a, b in edges:
            value, wrong = weights.get((a, b), widest), true is not None and (a, b) not in true
            look = {"color": VERMILION, "ls": ":"} if wrong else {"color": BLUE, "ls": "-" if value >= 0 else "--"}
            (x0, y0), (x1, y1) = where[a], where[b]
            ax.annotate("", (x1, y1), (x0, y0), zorder=1, arrowprops={
                "arrowstyle": "-|>", "lw": 0.8 + 2.8 * abs(value) / widest, "alpha": 0.7, "shrinkA": 13, "shrinkB": 14,
                "connectionstyle": f"arc3,rad={0.12 if abs(y1 - y0) > 1.01 else 0}", **look})  # fmt: skip
        for node, (x, y) in where.items():
            marker, color = {"head": ("o", "#CFE3F2"), "mlp": ("s", "#F7E3B5")}.get(node.kind, ("h", "#E4E4E4"))
            ax.scatter([x], [y], s=760, marker=marker, c=color, edgecolors=BLACK, linewidths=0.9, zorder=2)
            ax.text(x, y, name_of(node), ha="center", va="center", size=8, zorder=3)
        for marker, color, name in (("o", "#CFE3F2", "head"), ("s", "#F7E3B5", "MLP")):
            ax.scatter([], [], s=80, marker=marker, c=color, edgecolors=BLACK, label=name)
        if true is not None:
            ax.plot([], [], color=BLUE, marker="", label="true edge")
            ax.plot([], [], color=VERMILION, ls=":", marker="", label="wrong edge")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4, fontsize=9)
        ys = [y for _, y in where.values()]
        ax.set(xlim=(-1.25, 1.25), ylim=(min(ys) - 0.7, max(ys) + 0.7), title=title)
        ax.axis("off")
    return fig


def name_of(node: Node) -> str:
    """Short, for pictures and tables: `a3.2` a head (attention), `m3` an MLP, `n3.40` a neuron, `in`, `out`."""
    if node in (INPUT, OUTPUT):
        return "in" if node == INPUT else "out"
    return {"head": f"a{node.layer}.{node.index}", "mlp": f"m{node.layer}"}.get(
        node.kind, f"n{node.layer}.{node.index}"
    )


def _places(nodes: Collection[Node]) -> dict[Node, tuple[float, float]]:
    """A row for each time at which components act; within a row side by side."""
    rows: dict[tuple, list[Node]] = {}
    for node in sorted(nodes, key=acts_at):
        rows.setdefault((-1,) if node == INPUT else acts_at(node)[:1], []).append(node)
    out = {}
    for y, key in enumerate(sorted(rows)):
        row = rows[key]
        for i, node in enumerate(row):
            shift = (
                0.0 if len(row) > 1 or node in (INPUT, OUTPUT) else 0.35 * (-1) ** y
            )  # or lines would hide each other
            out[node] = (shift + (0 if len(row) == 1 else -0.9 + 1.8 * i / (len(row) - 1)), float(y))
    return out
