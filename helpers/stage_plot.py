"""A `RefusalCircuit` as a picture: four stages from left to right, each member at its own layer. Taught in lesson 04.

Above, a box for each stage and the arrows that have earned it (effect that passes, in log-odds). Below, the members by layer: discs
for heads, squares for neurons, the larger the stronger. An empty stage is dashed and says so. Hatched: where the textbook has it.
"""

from collections import Counter

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from .circuit import NAMES, TEXTBOOK, RefusalCircuit
from .figures import BLACK, BLUE, GREY, ORANGE, figure, style
from .glassbox_truth import STAGES, is_neuron_stage

WIDE = 0.74  # of a column, of which there is one a unit
NAMED = 3  # so many members of a layer carry their names
BOXES = 0.34  # half the width of a stage's box


def stage_graph(circuit: RefusalCircuit, title: str = "") -> Figure:
    """The picture of a circuit. Raises TypeError for what is none."""
    if not isinstance(circuit, RefusalCircuit):
        raise TypeError("stage_graph() draws a RefusalCircuit, as map_refusal_circuit returns it.")
    fig, (top, low) = figure(2, 1, size=(10.4, 7.2), height_ratios=[1.15, 2.6], sharex=True)
    with style():
        _boxes(top, circuit)
        _members(low, circuit)
        fig.suptitle(title, x=0.01, ha="left", weight="bold", size=12)
    return fig


def _boxes(ax, circuit: RefusalCircuit) -> None:
    for x, stage in enumerate(STAGES):
        count, empty = len(circuit.stages[stage]), stage in circuit.empty
        kind = "neuron" if is_neuron_stage(stage) else "head"
        look = {"fc": "white", "ec": GREY, "ls": (0, (3, 2))} if empty else {"fc": "#EEF3F8", "ec": BLACK, "ls": "-"}
        box = FancyBboxPatch(
            (x - BOXES, -0.3), 2 * BOXES, 0.6, boxstyle="round,pad=0.02,rounding_size=0.08", lw=1.3, **look
        )
        ax.add_patch(box)
        ax.text(x, 0.1, NAMES[stage], ha="center", va="center", size=11, weight="bold", color=GREY if empty else BLACK)
        note = "empty" if empty else f"{count} {kind}{'s' if count > 1 else ''}"
        ax.text(x, -0.13, note, ha="center", va="center", size=9.5, style="italic" if empty else "normal")
    drawn = [] if circuit.arrows.empty else circuit.arrows[circuit.arrows.drawn].itertuples()
    for row in drawn:
        _arrow(ax, STAGES.index(row.source), STAGES.index(row.target), row.effect, row.of)
    ax.set(xlim=(-0.6, 3.6), ylim=(-0.42, 1.75))
    ax.axis("off")


def _arrow(ax, a: int, b: int, effect: float, of: float) -> None:
    """From box a to box b: straight to the next one, in an arc over those between."""
    share, far = (effect / of if of > 0 else 0.0), b - a
    width = 1 + 4 * float(np.clip(share, 0, 1))
    start, end = ((a + BOXES + 0.02, 0), (b - BOXES - 0.02, 0)) if far == 1 else ((a + 0.08, 0.34), (b - 0.08, 0.34))
    bend = 0 if far == 1 else -0.28
    arrow = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11 + width, lw=width, color=BLUE, alpha=0.75,
                            connectionstyle=f"arc3,rad={bend}", shrinkA=0, shrinkB=0, zorder=2)  # fmt: skip
    ax.add_patch(arrow)
    height = -0.36 if far == 1 else 0.34 + {2: 0.59, 3: 0.9}[far]
    ax.text((a + b) / 2, height, f"{effect:.2f}", ha="center", va="center", size=9, zorder=4,
            bbox={"boxstyle": "square,pad=0.15", "fc": "white", "ec": "none"})  # fmt: skip


def _members(ax, circuit: RefusalCircuit) -> None:
    depth = max(circuit.n_layers, 1)
    for x, stage in enumerate(STAGES):
        low, high = TEXTBOOK[stage]
        if has_textbook(depth):
            band = Rectangle(
                (x - WIDE / 2, low - 0.5), WIDE, high - low + 1, fc="#F4F0E2", ec="#C9BC93", hatch="//", lw=0
            )
            ax.add_patch(band)
        _column(ax, x, stage, circuit)
        if stage in circuit.empty:
            ax.text(x, (depth - 1) / 2, "empty", ha="center", va="center", size=12, style="italic", color="#555555",
                    bbox={"boxstyle": "round,pad=0.4", "fc": "white", "ec": GREY, "ls": (0, (3, 2))})  # fmt: skip
    marks = {"head": ("o", BLUE), "neuron": ("s", ORANGE)}
    for name, (marker, color) in marks.items():
        ax.scatter([], [], s=70, marker=marker, c=color, edgecolors=BLACK, linewidths=0.7, label=name)
    if has_textbook(depth):
        ax.add_patch(
            Rectangle((0, 0), 0, 0, fc="#F4F0E2", ec="#C9BC93", hatch="//", lw=0, label="the textbook's layers")
        )
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=3, fontsize=9)
    step = 1 if depth <= 12 else 5
    ax.set_yticks(range(0, depth, step))
    ax.set(ylim=(-0.9, depth - 0.1), ylabel="layer", xticks=[])
    ax.grid(axis="y")


def _column(ax, x: float, stage: str, circuit: RefusalCircuit) -> None:
    places = circuit.stages[stage]
    strength = _strengths(circuit, stage)
    in_layer, seen = Counter(layer for layer, _ in places), Counter()
    for place, size in zip(places, strength, strict=True):
        layer, several = place[0], in_layer[place[0]]
        named = several <= NAMED
        slots = NAMED if named else several
        at = x - WIDE / 2 + WIDE * (seen[layer] + (0.28 if named else 0.5)) / slots
        at += (WIDE * (NAMED - several) / (2 * NAMED)) if named else 0
        at += 0.12 * (-1) ** layer if several == 1 else 0  # lone members of neighbouring layers stand apart
        seen[layer] += 1
        marker, color = ("s", ORANGE) if is_neuron_stage(stage) else ("o", BLUE)
        ax.scatter([at], [layer], s=40 + 110 * size, marker=marker, c=color, edgecolors=BLACK, linewidths=0.7, zorder=3)
        if named:
            ax.text(at + 0.045, layer, f"{place[0]}.{place[1]}", ha="left", va="center", size=7.5, zorder=4,
                    bbox={"boxstyle": "square,pad=0.05", "fc": "white", "ec": "none", "alpha": 0.75})  # fmt: skip


def _strengths(circuit: RefusalCircuit, stage: str) -> list[float]:
    """Each member's effect beside the strongest of its stage, 0 to 1; the same for all where no evidence is kept."""
    table = circuit.evidence
    if table.empty:
        return [0.4] * len(circuit.stages[stage])
    effects = table[table.stage == stage].effect.tolist()
    return [e / max(effects) for e in effects]


def has_textbook(n_layers: int) -> bool:
    """Whether the textbook's picture, drawn for about 30 layers, is about models like this one."""
    return 24 <= n_layers <= 36
