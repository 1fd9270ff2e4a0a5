"""A drawing of one transformer block with the sites that hooks can read. Shown in lesson 00."""

from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

from helpers.figures import figure

INK, SOFT, SITE = "#222222", "#F2F2F2", "#B34700"


def block_diagram() -> Figure:
    """One block, read from left to right: the residual stream below, attention and MLP above it."""
    fig, ax = figure(size=(10.4, 3.9))
    ax.set(xlim=(0, 20.8), ylim=(0, 7.4))
    ax.axis("off")
    _arrow(ax, (0.2, 1.5), (20.6, 1.5), width=3.2)
    ax.text(10.3, 0.55, "the residual stream: one vector of d_model numbers for each token", ha="center", size=10.5, style="italic")

    _branch(ax, start=2.2, end=9.4, boxes=[(2.9, 2.6, "heads look at\nearlier tokens"), (7.2, 1.5, "o_proj")], name="attention")
    _site(ax, 6.35, 4.0, "z", above=True)
    _branch(ax, start=11.4, end=18.6, boxes=[(12.1, 2.6, "gate and\nup projection"), (16.2, 1.9, "down\nprojection")], name="MLP")
    _site(ax, 15.45, 4.0, "neurons", above=True)

    _site(ax, 1.1, 1.5, "resid_pre")
    _site(ax, 9.4, 2.7, "attn_out", beside=True)
    _site(ax, 18.6, 2.7, "mlp_out", beside=True)
    _site(ax, 19.75, 1.5, "resid_post")
    return fig


def _branch(ax, start: float, end: float, boxes: list[tuple[float, float, str]], name: str) -> None:
    """A detour above the stream, from `start` to where its result is added at `end`."""
    ax.plot([start, start], [1.5, 4.0], color=INK, linewidth=1.6, solid_capstyle="round")
    _arrow(ax, (start, 4.0), (boxes[0][0], 4.0))
    _arrow(ax, (boxes[0][0] + boxes[0][1], 4.0), (boxes[1][0], 4.0))
    ax.plot([boxes[1][0] + boxes[1][1], end], [4.0, 4.0], color=INK, linewidth=1.6)
    _arrow(ax, (end, 4.0), (end, 1.85))
    for left, width, text in boxes:
        box = FancyBboxPatch((left, 3.1), width, 1.8, boxstyle="round,pad=0.02,rounding_size=0.25", fc=SOFT, ec=INK, lw=1.4)
        ax.add_patch(box)
        ax.text(left + width / 2, 4.0, text, ha="center", va="center", size=9.5, color=INK)
    left, right = start - 0.35, end + 0.35
    ax.add_patch(
        FancyBboxPatch(
            (left, 2.35), right - left, 4.0, boxstyle="round,pad=0.05,rounding_size=0.4", fc="none", ec="#9A9A9A", lw=1.2, ls="--"
        )
    )
    ax.text(left + 0.25, 6.5, name, size=11.5, weight="bold", va="bottom", color=INK)
    ax.add_patch(Circle((end, 1.5), 0.36, fc="white", ec=INK, lw=1.8, zorder=4))
    ax.text(end, 1.47, "+", ha="center", va="center", size=14, weight="bold", zorder=5)


def _arrow(ax, start, end, width: float = 1.6) -> None:
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": width, "shrinkA": 0, "shrinkB": 0})


def _site(ax, x: float, y: float, name: str, above: bool = False, beside: bool = False) -> None:
    """A place that a hook can read: a dot and its name."""
    ax.add_patch(Circle((x, y), 0.17, fc=SITE, ec="white", lw=1.2, zorder=6))
    style = {"color": SITE, "size": 10.5, "weight": "bold", "family": "monospace", "zorder": 6}
    if above:
        ax.plot([x, x], [y, 5.25], color=SITE, linewidth=1.1, linestyle=":")
        ax.text(x, 5.35, name, ha="center", va="bottom", **style)
    elif beside:
        ax.text(x - 0.3, y + 0.02, name, ha="right", va="center", **style)
    else:
        ax.text(x, y + 0.4, name, ha="center", va="bottom", **style)
