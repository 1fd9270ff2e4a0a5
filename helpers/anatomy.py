"""Two drawings for lesson 00: a transformer block with the sites that hooks read, and a glass box's circuit."""

from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from helpers.figures import BLUE, GREEN, ORANGE, PURPLE, figure
from helpers.glassbox import INPUT, OUTPUT, Node, Truth

INK, SOFT, SITE = "#222222", "#F2F2F2", "#B34700"
# What a stage is called, its colour, and its marker: heads are square, neurons round.
STAGES = {
    "detection_heads": ("heads that\ndetect", BLUE, "s"),
    "evaluation_neurons": ("neurons that\nevaluate", ORANGE, "o"),
    "decision_components": ("the head\nthat decides", PURPLE, "s"),
    "production_neurons": ("neurons that\nspeak", GREEN, "o"),
}


def box_diagram(truth: Truth) -> Figure:
    """The refusal circuit of a glass box, layer by layer from left to right, as it was built."""
    stage = {
        Node("neuron" if name.endswith("neurons") else "head", *place): name
        for name in STAGES
        for place in getattr(truth, name)
    }
    place = {INPUT: (-1.0, 0.0), OUTPUT: (6.0, 0.0)}
    for layer in range(6):
        here = sorted(node for node in stage if node.layer == layer)
        place |= {node: (float(layer), (len(here) - 1) / 2 - i) for i, node in enumerate(here)}
    fig, ax = figure(size=(9.6, 4.4))
    ax.set(xlim=(-1.7, 6.7), ylim=(-2.45, 3.35))
    ax.axis("off")
    for one, other in truth.edges:
        (x0, y0), (x1, y1) = place[one], place[other]
        ax.plot([x0, x1], [y0, y1], color="#777777", linewidth=0.9, alpha=0.55, marker="none", linestyle="-", zorder=1)
    for name, (_, color, marker) in STAGES.items():
        x, y = zip(*(place[node] for node in stage if stage[node] == name), strict=True)
        ax.scatter(x, y, s=330, c=color, marker=marker, edgecolors=INK, linewidths=1.2, zorder=3)
    for node, text in truth.labels.items():
        if node in stage:
            x, y = place[node]
            ax.text(x, y - 0.3, text, ha="center", va="top", size=8.5, color=INK, zorder=4)
    for node, text in ((INPUT, "the words of\nthe request"), (OUTPUT, "sorry, …\nor sure!")):
        ax.text(*place[node], text, ha="center", va="center", size=9.5, zorder=4,
                bbox={"boxstyle": "round,pad=0.4", "fc": SOFT, "ec": INK, "lw": 1.2})  # fmt: skip
    for name, (text, _, _) in STAGES.items():
        layers = [node.layer for node in stage if stage[node] == name]
        ax.text((min(layers) + max(layers)) / 2, 2.55, text, ha="center", size=10, weight="bold", color=INK)
    for layer in range(6):
        ax.text(layer, -2.4, f"layer {layer}", ha="center", size=9, color="#555555")
    return fig


def block_diagram() -> Figure:
    """One block, read from left to right: the residual stream below, attention and MLP above it."""
    fig, ax = figure(size=(10.4, 3.7))
    ax.set(xlim=(0, 21.4), ylim=(0.2, 7.2))
    ax.axis("off")
    _arrow(ax, (0.2, 1.5), (21.2, 1.5), width=3.2)
    note = "the residual stream: one vector of d_model numbers for each token"
    ax.text(10.3, 0.55, note, ha="center", size=10.5, style="italic")
    _branch(ax, "attention", 2.2, 9.4, [(2.9, 2.6, "heads look at\nearlier tokens"), (7.2, 1.5, "o_proj")])
    _branch(ax, "MLP", 11.4, 18.6, [(12.1, 2.6, "gate and\nup projection"), (16.2, 1.9, "down\nprojection")])
    _site(ax, 6.35, 4.0, "z", above=True)
    _site(ax, 15.45, 4.0, "neurons", above=True)
    _site(ax, 1.1, 1.5, "resid_pre")
    _site(ax, 9.4, 2.7, "attn_out", beside=True)
    _site(ax, 18.6, 2.7, "mlp_out", beside=True)
    _site(ax, 20.1, 1.5, "resid_post")
    return fig


def _branch(ax, name: str, start: float, end: float, boxes: list[tuple[float, float, str]]) -> None:
    """A detour above the stream, from `start` to where its result is added at `end`."""
    plain = {"color": INK, "linewidth": 1.6, "marker": "none", "linestyle": "-"}
    ax.plot([start, start], [1.5, 4.0], **plain)
    _arrow(ax, (start, 4.0), (boxes[0][0], 4.0))
    _arrow(ax, (boxes[0][0] + boxes[0][1], 4.0), (boxes[1][0], 4.0))
    ax.plot([boxes[1][0] + boxes[1][1], end], [4.0, 4.0], **plain)
    _arrow(ax, (end, 4.0), (end, 1.85))
    for left, width, text in boxes:
        shape = "round,pad=0.02,rounding_size=0.25"
        ax.add_patch(FancyBboxPatch((left, 3.1), width, 1.8, boxstyle=shape, fc=SOFT, ec=INK, lw=1.4))
        ax.text(left + width / 2, 4.0, text, ha="center", va="center", size=9.5, color=INK)
    left, width, shape = start - 0.35, end - start + 0.7, "round,pad=0.05,rounding_size=0.4"
    ax.add_patch(FancyBboxPatch((left, 2.2), width, 4.1, boxstyle=shape, fc="none", ec="#9A9A9A", lw=1.2, ls="--"))
    ax.text(left + 0.25, 6.45, name, size=11.5, weight="bold", va="bottom", color=INK)
    ax.add_patch(Circle((end, 1.5), 0.36, fc="white", ec=INK, lw=1.8, zorder=4))
    ax.text(end, 1.47, "+", ha="center", va="center", size=14, weight="bold", zorder=5)


def _arrow(ax, start, end, width: float = 1.6) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": width, "shrinkA": 0, "shrinkB": 0})


def _site(ax, x: float, y: float, name: str, above: bool = False, beside: bool = False) -> None:
    """A place that a hook can read: a dot and its name."""
    ax.add_patch(Circle((x, y), 0.17, fc=SITE, ec="white", lw=1.2, zorder=6))
    style = {"color": SITE, "size": 10.5, "weight": "bold", "family": "monospace", "zorder": 6}
    if above:
        ax.plot([x, x], [y, 5.25], color=SITE, linewidth=1.1, linestyle=":", marker="none")
        ax.text(x, 5.35, name, ha="center", va="bottom", **style)
    elif beside:
        ax.text(x - 0.3, y + 0.02, name, ha="right", va="center", **style)
    else:
        ax.text(x, y + 0.4, name, ha="center", va="bottom", **style)
