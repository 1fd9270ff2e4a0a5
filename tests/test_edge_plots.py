"""Pictures of edges: all that is given is drawn, and a second cue stands beside colour."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from helpers.edge_plots import agreement, edge_graph, name_of, roc_plot
from helpers.glassbox_truth import INPUT, OUTPUT, Node

matplotlib.use("Agg")
A, B, M = Node("head", 0, 1), Node("head", 0, 5), Node("mlp", 2, 0)
EDGES = [(INPUT, A), (INPUT, B), (A, M), (B, M), (M, OUTPUT)]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_every_estimate_is_a_mark_within_the_axes():
    ax = agreement({"plain": ([0, 5, 18], [0, 1, 30]), "integrated": ([0, 5], [-2, 5])}, xlabel="x", ylabel="y").axes[0]
    points = np.concatenate([c.get_offsets() for c in ax.collections])
    assert len(points) == 5 and ax.get_xlim() == ax.get_ylim()
    assert points.min() > ax.get_xlim()[0] and points.max() < ax.get_xlim()[1]


def test_curves_and_points_are_all_there():
    fig = roc_plot({"EAP": ([0, 0.1, 1], [0, 0.9, 1])}, {"ACDC": [(0.0, 0.8), (0.01, 1.0)]})
    assert {t.get_text() for t in fig.axes[0].get_legend().get_texts()} == {"EAP", "ACDC", "chance"}
    assert sum(len(c.get_offsets()) for c in fig.axes[0].collections) == 2


def test_a_circuit_is_drawn_from_input_to_output():
    fig = edge_graph(EDGES, {EDGES[0]: -1.0, EDGES[4]: 2.0}, true=EDGES[:4])
    ax = fig.axes[0]
    at = {t.get_text(): t.get_position() for t in ax.texts if t.get_text()}
    assert set(at) == {"in", "a0.1", "a0.5", "m2", "out"}
    assert at["in"][1] < at["a0.1"][1] == at["a0.5"][1] < at["m2"][1] < at["out"][1]
    arrows = [t.arrow_patch for t in ax.texts if getattr(t, "arrow_patch", None) is not None]
    assert len(arrows) == 5 and len({a.get_linestyle() for a in arrows}) == 3  # true, negative, wrong


def test_names_are_short():
    assert [name_of(n) for n in (INPUT, A, M, Node("neuron", 3, 40), OUTPUT)] == ["in", "a0.1", "m2", "n3.40", "out"]
    with pytest.raises(ValueError, match="no edge to draw"):
        edge_graph([])
