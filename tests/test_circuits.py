"""The map in four stages against the boxes' truth; nothing on shuffled labels; and its picture."""

import matplotlib
import matplotlib.pyplot as plt
import naive_twins
import numpy as np
import pandas as pd
import pytest
from families import CONFIGS, tiny
from naive_twins import PAIRS, TOKENS, twins_of

from helpers.circuit import NAMES, RefusalCircuit
from helpers.circuits import (
    arrows_between,
    direct_attribution,
    direct_share,
    looks,
    map_refusal_circuit,
    random_like,
    stage_of,
)
from helpers.glassbox import glassbox_prompts, load_glassbox, score
from helpers.glassbox_truth import STAGES, Node
from helpers.models import down_projection_of, layers_of, weight_of
from helpers.node_effects import attribute_nodes, patch_nodes
from helpers.refusal import RefusalScore
from helpers.stage_plot import stage_graph
from helpers.twins import Twins, swapped

matplotlib.use("Agg")


def box_pairs(n: int = 96) -> list:
    pairs = glassbox_prompts("pairs", n=2 * n // 3, split="train")
    pairs += glassbox_prompts("pairs", n=n // 3, split="train", changed="permit")
    return [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))]


@pytest.fixture(scope="module")
def mapped():
    model, tokenizer, truth = load_glassbox("concentrated")
    return map_refusal_circuit(model, tokenizer, box_pairs(), heads=12, neurons=80), truth


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_the_concentrated_box_is_found_whole(mapped):
    circuit, truth = mapped
    for stage, scored in score(circuit, truth).items():
        assert scored.recall == 1 and scored.precision == 1, stage
    assert circuit.empty == [] and circuit.arrows.drawn.all() and len(circuit.arrows) == 6
    members = circuit.evidence[circuit.evidence.member]
    assert (members.low > 0).all() and (members.effect > members.control).all() and len(members) == 18
    assert set(members.stage) == set(STAGES) and not circuit.evidence[~circuit.evidence.member].stage.any()


def test_nothing_is_found_where_labels_mean_nothing():
    model, tokenizer, _ = load_glassbox("concentrated")
    circuit = map_refusal_circuit(model, tokenizer, swapped(box_pairs(48)), heads=12, neurons=24)
    assert circuit.empty == list(STAGES) and circuit.arrows.empty
    assert circuit.gap[1] < 0 < circuit.gap[2]


def test_a_smaller_effect_counts_if_asked_for():
    model, tokenizer, truth = load_glassbox("distributed")
    circuit = map_refusal_circuit(model, tokenizer, box_pairs(), heads=12, neurons=48)
    assert circuit.evaluation_neurons == ()  # no single one of 128 has an effect worth the name
    small = map_refusal_circuit(model, tokenizer, box_pairs(), heads=12, neurons=200, least=0.001)
    assert score(small, truth)["evaluation_neurons"].recall > 0.8


def test_heads_of_the_box_look_where_they_should():
    model, tokenizer, truth = load_glassbox("concentrated")
    twins = Twins(model, tokenizer, glassbox_prompts("pairs", n=12, split="train"))
    detectors = [Node("head", *p) for p in truth.detection_heads if "permit" not in truth.labels[Node("head", *p)]]
    found = looks(
        twins, attribute_nodes(twins), [*detectors, Node("head", *truth.decision_components[0]), Node("neuron", 1, 1)]
    )
    assert min(found[:-2]) > 0.7 and found[-2] < 0.1 and np.isnan(found[-1])


@pytest.mark.parametrize("family", [f for f in CONFIGS if f not in ("gemma2", "gemma3", "olmo2")])
def test_the_direct_attribution_is_a_slope(family):
    """By hand: the neuron's column added to the last stream, its log-odds differentiated by finite differences."""
    twins, layer, neuron = twins_of(family), 1, 9
    found = direct_attribution(twins)[layer, neuron]
    column = weight_of(down_projection_of(layers_of(twins.model)[layer]))[:, neuron]
    slopes = []
    for harmful, harmless in PAIRS:
        a, b = (
            naive_twins.seen(twins.model, text, ["neurons"])["neurons"][layer][0, -1, neuron]
            for text in (harmful, harmless)
        )

        def added(eps, column=column):
            return [("resid_post", 2, lambda x: x + eps * column)]

        up, down = (naive_twins.odds(twins.model, harmful, added(eps)) for eps in (0.05, -0.05))
        slopes.append(float(a - b) * (up - down) / 0.1)
    assert float(found) == pytest.approx(np.mean(slopes), rel=0.02, abs=1e-4)


def test_what_is_written_straight_is_told_from_what_others_pass_on():
    """In the last layer nobody is left to pass anything on: there the direct share is the whole."""
    twins = twins_of("llama")
    nodes = [Node("neuron", 2, 4), Node("neuron", 0, 4), Node("head", 2, 1)]
    effects = (patch_nodes(twins, nodes) + patch_nodes(twins, nodes, "harmless")).mean(1) / 2
    share = direct_share(twins, nodes, effects)
    assert share[0] == pytest.approx(1, abs=1e-2) and np.isnan(share[2])


def test_an_arrow_is_what_passes_through():
    """Source and target next to each other, by hand: the target's change under the patched source, put into the clean run."""
    twins = twins_of("llama")
    source, target = Node("head", 0, 1), Node("neuron", 1, 5)
    table = arrows_between(
        twins, {s: () for s in STAGES} | {"detection_heads": [(0, 1)], "evaluation_neurons": [(1, 5)]}
    )
    passed = []
    for into in (0, 1):
        for pair in PAIRS:
            donor = naive_twins.seen(twins.model, pair[1 - into], ["z"])["z"][0]
            then = naive_twins.seen(twins.model, pair[into], ["neurons"], [naive_twins.put(twins.model, source, donor)])
            through = naive_twins.odds(
                twins.model, pair[into], [naive_twins.put(twins.model, target, then["neurons"][1])]
            )
            change = through - naive_twins.odds(twins.model, pair[into])
            passed.append(-change if into == 0 else change)
    assert len(table) == 1 and table.effect[0] == pytest.approx(np.mean(passed), abs=1e-4)


def test_random_components_are_none_of_the_candidates():
    model, tokenizer, truth = load_glassbox("concentrated")
    twins = Twins(model, tokenizer, glassbox_prompts("pairs", n=6, split="train"))
    candidates = [Node("head", *p) for p in truth.heads] + [Node("neuron", *p) for p in truth.neurons]
    drawn = random_like(twins, candidates, 10)
    assert len(set(drawn)) == 20 and not set(drawn) & set(candidates)
    assert {n.layer for n in drawn if n.kind == "neuron"} <= {n.layer for n in candidates if n.kind == "neuron"}
    assert len(random_like(twins, candidates[:4], 5)) == 5  # no neuron among the candidates, none beside them


def test_stages_go_by_what_a_member_does():
    assert stage_of({"kind": "head", "looks": 0.9, "direct": np.nan}) == "detection_heads"
    assert stage_of({"kind": "head", "looks": 0.1, "direct": np.nan}) == "decision_components"
    assert stage_of({"kind": "neuron", "looks": np.nan, "direct": 0.9}) == "production_neurons"
    assert stage_of({"kind": "neuron", "looks": np.nan, "direct": 0.1}) == "evaluation_neurons"


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "qwen3"])
def test_other_families_are_mapped_too(family):
    model = tiny(family)
    model.refusal_score = RefusalScore(((TOKENS[0], 1), (TOKENS[1], 1)))
    circuit = map_refusal_circuit(model, naive_twins.CharTokenizer(), PAIRS * 5, heads=4, neurons=6, controls=3)
    assert len(circuit.evidence) == 10 and circuit.n_layers == 3
    assert len(circuit.words()) > 80


def test_bad_input_gets_one_sentence():
    model, tokenizer, _ = load_glassbox("concentrated")
    with pytest.raises(ValueError, match="5 pairs are too few"):
        map_refusal_circuit(model, tokenizer, box_pairs(6)[:5])
    with pytest.raises(TypeError, match="draws a RefusalCircuit"):
        stage_graph({"detection_heads": []})


# --- the picture --------------------------------------------------------------------------------------------


def texts(fig) -> list[str]:
    return [t.get_text() for ax in fig.axes for t in ax.texts]


def marks(fig) -> int:
    return sum(len(c.get_offsets()) for c in fig.axes[1].collections)


def test_the_picture_shows_every_member_at_its_layer(mapped):
    circuit, _ = mapped
    fig = circuit.draw("A box")
    heights = [float(y) for c in fig.axes[1].collections for _, y in c.get_offsets()]
    assert sorted(heights) == sorted(layer for places in circuit.stages.values() for layer, _ in places)
    assert set(NAMES.values()) <= set(texts(fig)) and "3 heads" in texts(fig) and "empty" not in texts(fig)
    assert sum(isinstance(p, matplotlib.patches.FancyArrowPatch) for p in fig.axes[0].patches) == 6
    assert "3 in layers 0 to 0" in circuit.words()


def test_what_is_not_there_is_said():
    nothing = RefusalCircuit(n_layers=30)
    fig = nothing.draw()
    assert texts(fig).count("empty") == 8 and marks(fig) == 0  # in the boxes and in the columns
    assert nothing.words().count("empty") == 4 and "Arrows: none" in nothing.words()
    assert (nothing.beside_textbook()["found in layers"] == "none").all()


def test_an_arrow_that_was_not_earned_is_not_drawn():
    arrows = pd.DataFrame(
        [("detection_heads", "evaluation_neurons", 1.0, 2.0, True), ("detection_heads", "production_neurons", 0.1, 2.0, False)],
        columns=["source", "target", "effect", "of", "drawn"],
    )  # fmt: skip
    circuit = RefusalCircuit(((3, 1),), ((4, 1), (17, 2)), (), ((29, 1),), arrows=arrows, n_layers=30)
    fig = circuit.draw()
    assert sum(isinstance(p, matplotlib.patches.FancyArrowPatch) for p in fig.axes[0].patches) == 1
    table = circuit.beside_textbook()
    assert table.loc["safety evaluation", "found in layers"] == "4, 17"
    assert table["in the textbook's layers"].tolist() == [0, 1, 0, 1]
