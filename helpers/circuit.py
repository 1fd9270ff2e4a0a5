"""What `map_refusal_circuit` finds: four stages of places, the evidence for each, and the arrows between them. Lesson 04."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from .glassbox_truth import STAGES, Place

# What textbooks and blog posts draw for a model of about 30 layers: first and last layer of each stage.
TEXTBOOK = {
    "detection_heads": (5, 10),
    "evaluation_neurons": (15, 20),
    "decision_components": (20, 25),
    "production_neurons": (25, 30),
}
NAMES = {
    "detection_heads": "content detection",
    "evaluation_neurons": "safety evaluation",
    "decision_components": "refusal decision",
    "production_neurons": "refusal token",
}


@dataclass(frozen=True)
class RefusalCircuit:
    """Places, (layer, index), by stage: heads, neurons, heads, neurons; the strongest first. An empty stage is a finding too.

    evidence: a row a candidate, members or not. arrows: a row for each pair of stages that are not empty: the effect of the first that
    passes through the second, with its interval, and `drawn`. gap: refusal log-odds of harmful less harmless (mean, low, high).
    """

    detection_heads: tuple[Place, ...] = ()
    evaluation_neurons: tuple[Place, ...] = ()
    decision_components: tuple[Place, ...] = ()
    production_neurons: tuple[Place, ...] = ()
    evidence: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False, compare=False)
    arrows: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False, compare=False)
    gap: tuple[float, float, float] = field(default=(0.0, 0.0, 0.0), repr=False, compare=False)
    n_layers: int = field(default=0, repr=False, compare=False)

    @property
    def stages(self) -> dict[str, tuple[Place, ...]]:
        """{stage: places}."""
        return {stage: getattr(self, stage) for stage in STAGES}

    @property
    def empty(self) -> list[str]:
        """The stages in which nothing was found."""
        return [stage for stage, places in self.stages.items() if not places]

    def beside_textbook(self, textbook: Mapping[str, tuple[int, int]] = TEXTBOOK) -> pd.DataFrame:
        """A row a stage: the layers of the textbook picture, those found, and how many members lie within the former."""
        rows = []
        for stage, places in self.stages.items():
            low, high = textbook[stage]
            layers = sorted({layer for layer, _ in places})
            inside = sum(low <= layer <= high for layer, _ in places)
            rows.append({"stage": NAMES[stage], "textbook": f"{low} to {high}", "found in layers": ", ".join(map(str, layers)) or "none",
                         "members": len(places), "in the textbook's layers": inside})  # fmt: skip
        return pd.DataFrame(rows).set_index("stage")

    def draw(self, title: str = "") -> Figure:
        """The four stages from left to right, each member at its own layer, with the arrows that have earned it."""
        from .stage_plot import stage_graph

        return stage_graph(self, title)

    def words(self) -> str:
        """The same in sentences, for `show(fig, alt)`."""
        parts = []
        for stage, places in self.stages.items():
            layers = [layer for layer, _ in places]
            where = f"{len(places)} in layers {min(layers)} to {max(layers)}" if places else "empty"
            parts.append(f"{NAMES[stage]}: {where}")
        drawn = [] if self.arrows.empty else self.arrows[self.arrows.drawn].itertuples()
        arrows = ", ".join(
            f"{NAMES[row.source]} to {NAMES.get(row.target, row.target)} {row.effect:.2f}" for row in drawn
        )
        return f"A circuit in four stages. {'; '.join(parts)}. Arrows: {arrows or 'none'}."
