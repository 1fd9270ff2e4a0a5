"""The picture of a circuit: each place gets the verdict it deserves, in a mark that shows without colour."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from helpers.circuit_plot import LOOKS, STAGES, circuit_graph, circuit_words, verdicts
from helpers.glassbox import KINDS, load_glassbox, mystery
from helpers.glassbox_truth import INPUT, OUTPUT, Node, Truth

matplotlib.use("Agg")
TRUTH = Truth(
    kind="redundant",
    detection_heads=((0, 1), (0, 2)),
    evaluation_neurons=((1, 10), (1, 11), (2, 12)),
    decision_components=((3, 4),),
    production_neurons=((4, 20), (5, 21)),
    backup_heads=((1, 1), (1, 2), (4, 3)),
    backup_neurons=((2, 50),),
    decoy_heads=((2, 2),),
    decoy_neurons=((1, 90),),
    edges=(
        (INPUT, Node("head", 0, 1)),
        (Node("head", 0, 1), Node("neuron", 1, 10)),
        (Node("neuron", 2, 50), Node("head", 4, 3)),
        (Node("neuron", 5, 21), OUTPUT),
    ),
    labels={Node("head", 0, 1): "verb"},
    direction=torch.ones(128),
)
FOUND = {
    "detection_heads": [(0, 1), (2, 2), (5, 5), (1, 2), (4, 3)],
    "evaluation_neurons": [(1, 11), (1, 90), (2, 50)],
    "production_neurons": [],
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def legend(fig) -> set[str]:
    return {text.get_text() for text in fig.axes[0].get_legend().get_texts()}


def written(fig) -> set[str]:
    return {text.get_text() for text in fig.axes[0].texts}


def test_every_place_gets_its_verdict():
    assert verdicts(TRUTH, "detection_heads", FOUND["detection_heads"]) == {
        (0, 1): "found",
        (0, 2): "missed",
        (1, 1): "backup",
        (1, 2): "backup, found",
        (2, 2): "wrong, a decoy",
        (5, 5): "wrong",  # (4, 3) decides in the backup: it is neither right nor wrong here
    }
    assert set(verdicts(TRUTH, "decision_components", None).values()) == {"not looked for", "backup"}
    assert set(verdicts(TRUTH, "decision_components", None, plain=True).values()) == {"true", "backup"}
    assert set(verdicts(TRUTH, "production_neurons", []).values()) == {"missed"}


def test_the_picture_counts_them():
    fig = circuit_graph(TRUTH, FOUND, title="A circuit")
    assert legend(fig) == {
        "found (2)", "missed (5)", "wrong (1)", "wrong, a decoy (2)", "not looked for (1)", "backup (2)",
        "backup, found (2)",
    }  # fmt: skip
    assert {"1 of 2 found, 2 wrong", "1 of 3 found, 1 wrong", "0 of 2 found, 0 wrong", "0.1 verb", "backup"} <= written(
        fig
    )
    assert fig.axes[0].get_title(loc="left") == "A circuit"


def test_as_many_marks_are_drawn_as_counted():
    fig = circuit_graph(TRUTH, FOUND)
    scatters = [c for c in fig.axes[0].collections if hasattr(c, "get_sizes")]
    assert sum(len(c.get_offsets()) for c in scatters) == 15
    lines = [c for c in fig.axes[0].collections if not hasattr(c, "get_sizes")]
    assert sorted(len(c.get_segments()) for c in lines) == [1, 1]  # the backup's edge is one of its own, dashed


def test_the_marks_differ_in_more_than_colour():
    """Shape, filling and edge, seen in grey, tell apart all verdicts that can stand in one picture."""

    def grey(color):
        red, green, blue = matplotlib.colors.to_rgb(color)
        return round(0.2126 * red + 0.7152 * green + 0.0722 * blue, 1)

    looks = {
        name: (look["marker"], grey(look.get("facecolor", "black")), look.get("linestyle", "-"))
        for name, look in LOOKS.items()
        if name != "true"  # never beside "found"
    }
    assert len(set(looks.values())) == len(looks)


def test_many_wrong_places_are_counted_and_not_all_drawn():
    wrong = [(3, i) for i in range(40)]
    fig = circuit_graph(TRUTH, {"evaluation_neurons": wrong})
    assert "and 28 more" in written(fig) and "wrong (40)" in legend(fig)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_fits_into_the_picture(kind):
    truth = load_glassbox(kind)[2]
    fig = circuit_graph(truth, {"evaluation_neurons": truth.neurons[::2] + truth.decoy_neurons})
    ax = fig.axes[0]
    points = np.concatenate([c.get_offsets() for c in ax.collections if hasattr(c, "get_sizes")])
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    assert (points[:, 0] > left).all() and (points[:, 0] < right).all()
    assert (points[:, 1] > low).all() and (points[:, 1] < high).all()
    assert len({tuple(p) for p in points.round(3)}) == len(points)  # no mark lies on another


def test_the_words_say_what_is_to_be_seen():
    words = circuit_words(TRUTH, FOUND)
    assert "detection heads: 1 of 2 found, 2 wrong" in words and "decision heads: 1;" in words and len(words) > 100
    assert "evaluation neurons: 3;" in circuit_words(TRUTH)


def test_bad_input_gets_one_sentence():
    with pytest.raises(TypeError, match=r"open truth of a glass box: call truth.unseal\(\) first"):
        circuit_graph(mystery(1)[2])
    with pytest.raises(TypeError, match="open truth of a glass box."):
        circuit_graph({"detection_heads": []})
    with pytest.raises(ValueError, match="no place for detection_heads"):
        circuit_graph(TRUTH, {"detection_heads": [(0, 99)]})


def test_all_four_stages_have_a_heading():
    assert {"detection\nheads", "evaluation\nneurons", "decision\nheads", "production\nneurons"} <= written(
        circuit_graph(TRUTH)
    )
    assert len(STAGES) == 4
