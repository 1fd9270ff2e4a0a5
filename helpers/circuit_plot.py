"""A glass box's circuit as a graph in four stages, with what a method found, missed and got wrong.

Shapes tell the verdicts apart without colour: a filled disc for found, an empty ring with a dashed edge for missed, a
cross for wrong (a hollow one for a decoy), a square for a stage that nobody looked for. Taught in lesson 04, used
wherever a method is scored.
"""

from collections import Counter
from collections.abc import Mapping

from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from helpers.figures import BLACK, BLUE, GREY, VERMILION, figure, style
from helpers.glassbox_score import places_of
from helpers.glassbox_truth import STAGES, Node, Place, SealedTruth, Truth, is_neuron_stage

TITLES = {
    "detection_heads": "detection\nheads",
    "evaluation_neurons": "evaluation\nneurons",
    "decision_components": "decision\nheads",
    "production_neurons": "production\nneurons",
}
LOOKS = {
    "true": {"marker": "o", "facecolor": BLUE, "edgecolor": BLACK, "linewidth": 0.8},
    "found": {"marker": "o", "facecolor": BLUE, "edgecolor": BLACK, "linewidth": 0.8},
    "missed": {"marker": "o", "facecolor": "white", "edgecolor": BLACK, "linewidth": 1.4, "linestyle": (0, (2, 1.2))},
    "wrong": {"marker": "x", "color": VERMILION, "linewidth": 2.0},
    "wrong, a decoy": {"marker": "X", "facecolor": "white", "edgecolor": VERMILION, "linewidth": 1.4},
    "not looked for": {"marker": "s", "facecolor": "#DDDDDD", "edgecolor": GREY, "linewidth": 0.8},
    "backup": {"marker": "D", "facecolor": "white", "edgecolor": GREY, "linewidth": 1.2},
    "backup, found": {"marker": "D", "facecolor": BLUE, "edgecolor": BLACK, "linewidth": 0.8},
}
FEW = 14  # so many places of a stage stand in one line and carry names; more stand in a grid of small marks
WRONG_SHOWN = 12
LOW_ROWS = {"backup": -0.74, "wrong": -1.0}  # the heights of the rows below the circuit


def circuit_graph(truth: Truth, found=None, *, title: str = "") -> Figure:
    """The four stages of a circuit from left to right, with edges between the places that influence each other.

    truth: an open `Truth`. found: a mapping from stages to lists of places (or an object with the stages as
    attributes), as `score` takes it; a stage that is left out, or None, was not looked for. At most 12 wrong places of
    a stage are drawn, the rest are counted. The backup of `redundant` stands below the circuit, in rhombs.

    Raises TypeError for a sealed truth, ValueError for places that no box has.
    """
    listed, where, counts = _listed(truth, found), {}, Counter()
    fig, ax = figure(size=(10.6, 5.6))
    with style():
        for column, stage in enumerate(STAGES):
            marks = _stage(ax, truth, stage, listed[stage], 3.0 * column, where, found is None)
            for verdict, points in marks.items():
                x, y, size = zip(*points, strict=True)
                ax.scatter(x, y, s=size, zorder=3, **LOOKS[verdict])
            counts += Counter(verdicts(truth, stage, listed[stage], found is None).values())
        _edges(ax, truth, where)
        if truth.backup_heads:
            ax.text(-1.45, LOW_ROWS["backup"], "backup", ha="left", va="center", size=9, style="italic")
        for verdict in (name for name in LOOKS if counts[name]):
            ax.scatter([], [], s=70, label=f"{verdict} ({counts[verdict]})", **LOOKS[verdict])
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=6, fontsize=9, handletextpad=0.2)
        ax.text(10.4, -1.36, "named: layer.index", ha="right", va="center", size=8.5, color="#444444")
        ax.set(xlim=(-1.5, 10.5), ylim=(-1.42, 1.42))
        ax.set_title(title)
        ax.axis("off")
    return fig


def circuit_words(truth: Truth, found=None) -> str:
    """The same in a sentence, for `show(fig, alt)`. Raises as `circuit_graph` does."""
    parts, listed = [], _listed(truth, found)
    for stage in STAGES:
        name, right = TITLES[stage].replace("\n", " "), getattr(truth, stage)
        if listed[stage] is None:
            parts.append(f"{name}: {len(right)}")
            continue
        count = Counter(verdicts(truth, stage, listed[stage]).values())
        wrong = count["wrong"] + count["wrong, a decoy"]
        parts.append(f"{name}: {count['found']} of {len(right)} found, {wrong} wrong")
    return "The refusal circuit as a graph in four stages, from left to right. " + "; ".join(parts) + "."


def verdicts(truth: Truth, stage: str, listed: list[Place] | None, plain: bool = False) -> dict[Place, str]:
    """What each place of a stage is: {place: a key of LOOKS}. listed: what was found, None if nobody looked; plain:
    nothing is judged at all. True places come first, then the backup's, then the wrong ones in the order found."""
    neurons = is_neuron_stage(stage)
    backup, decoys = _backup(truth, stage), truth.decoy_neurons if neurons else truth.decoy_heads
    unseen = "true" if plain else "not looked for" if listed is None else "missed"
    seen = set(listed or ())
    out = {place: "found" if place in seen else unseen for place in getattr(truth, stage)}
    out |= {place: "backup, found" if place in seen else "backup" for place in backup}
    spared = {*out, *(truth.backup_neurons if neurons else truth.backup_heads)}  # a backup is scored apart
    return out | {p: "wrong, a decoy" if p in decoys else "wrong" for p in listed or () if p not in spared}


def _listed(truth: Truth, found) -> dict[str, list[Place] | None]:
    if not isinstance(truth, Truth):
        hint = ": call truth.unseal() first, or use score()" if isinstance(truth, SealedTruth) else ""
        raise TypeError(f"The circuit is drawn from the open truth of a glass box{hint}.")
    get = found.get if isinstance(found, Mapping) else lambda stage: getattr(found, stage, None)
    return {stage: None if get(stage) is None else places_of(get(stage), stage) for stage in STAGES}


def _stage(ax, truth: Truth, stage: str, listed, x: float, where: dict, plain: bool) -> dict[str, list]:
    """Writes a stage's heading and names around `x`; returns its marks, {verdict: [(x, y, size)]}."""
    kind = "neuron" if is_neuron_stage(stage) else "head"
    judged = verdicts(truth, stage, listed, plain)
    right, backup = len(getattr(truth, stage)), len(_backup(truth, stage))
    wrong = [place for place, verdict in judged.items() if verdict.startswith("wrong")]
    hits = sum(verdict == "found" for verdict in judged.values())
    note = f"{right}" if listed is None else f"{hits} of {right} found, {len(wrong)} wrong"
    ax.text(x, 1.18, TITLES[stage], ha="center", va="bottom", size=11, weight="bold")
    ax.text(x, 1.1, note, ha="center", va="center", size=9, color="#444444")
    spots = _spots(right, x, 0.98, -0.55 if not plain or truth.backup_heads else -0.95)
    spots += [
        (x + 0.2 * (i - (backup - 1) / 2), LOW_ROWS["backup"] + 0.05 * (-1) ** i * (backup > 1), 55)
        for i in range(backup)
    ]
    shown = min(len(wrong), WRONG_SHOWN)
    spots += [
        (x + 0.34 * (i % 4 - min(3, shown - 1) / 2), LOW_ROWS["wrong"] - 0.13 * (i // 4), 55) for i in range(shown)
    ]
    marks: dict[str, list] = {}
    for (place, verdict), spot in zip(judged.items(), spots, strict=False):  # what is too much has no spot
        marks.setdefault(verdict, []).append(spot)
        if verdict.startswith("wrong"):
            continue
        where[Node(kind, *place)] = spot[:2]
        if right <= FEW and not verdict.startswith("backup"):
            _name(ax, *spot[:2], place, truth.labels.get(Node(kind, *place), ""))
    if len(wrong) > shown:
        ax.text(x, -1.38, f"and {len(wrong) - shown} more", ha="center", va="center", size=8.5, color="#444444")
    return marks


def _backup(truth: Truth, stage: str) -> list[Place]:
    """The backup's places that do the work of a stage: its last head decides, its other heads detect."""
    heads = sorted(truth.backup_heads)
    parts = {
        "detection_heads": heads[:-1],
        "evaluation_neurons": truth.backup_neurons,
        "decision_components": heads[-1:],
    }
    return list(parts.get(stage, ()))


def _spots(n: int, x: float, top: float, low: float) -> list[tuple[float, float, float]]:
    """n places (x, y, size of the mark): one line, or as many columns as a crowd needs."""
    columns = 1 if n <= FEW else -(-n // 16)
    rows = -(-n // columns)
    step, width, middle = (top - low) / max(rows, 6), min(0.2, 1.7 / columns), (top + low) / 2
    return [
        (
            x + width * (i % columns - (columns - 1) / 2),
            middle + step * ((rows - 1) / 2 - i // columns),
            150 if columns == 1 else 48,
        )
        for i in range(n)
    ]


def _name(ax, x: float, y: float, place: Place, label: str) -> None:
    box = {"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75}
    text = f"{place[0]}.{place[1]} {label}".strip()
    ax.text(x + 0.17, y, text, ha="left", va="center", size=8, zorder=4, bbox=box)


def _edges(ax, truth: Truth, where: dict[Node, tuple[float, float]]) -> None:
    """Lines between drawn places, the fainter the more there are; dashed where the backup is one of the two."""
    spare = {Node("head", *p) for p in truth.backup_heads} | {Node("neuron", *p) for p in truth.backup_neurons}
    drawn = [(a, b) for a, b in truth.edges if a in where and b in where]
    faint = max(0.012, min(0.5, 50 / max(len(drawn), 1)))
    for dashed in (False, True):
        lines = [(where[a], where[b]) for a, b in drawn if bool({a, b} & spare) == dashed]
        look = {"linestyles": "--" if dashed else "-", "colors": "#666666", "alpha": faint, "linewidths": 0.8}
        ax.add_collection(LineCollection(lines, zorder=1, **look))
