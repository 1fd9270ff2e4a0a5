"""Effects of single components: patched one prompt at a time by hand, and differentiated by finite differences."""

import naive_twins
import numpy as np
import pytest
from families import CONFIGS
from naive_twins import PAIRS, put, seen, twins_of

from helpers.glassbox import Node, glassbox_prompts, load_glassbox, ranked, score
from helpers.models import dims_of
from helpers.node_effects import attribute_nodes, channels_of, patch_nodes
from helpers.twins import Twins

NODES = [Node("head", 1, 2), Node("neuron", 0, 5), Node("mlp", 2, 0), Node("head", 0, 3)]


def by_hand(model, node, into: int, share: float = 1.0) -> list[float]:
    """Log-odds after the patch, a pair at a time."""
    out = []
    for pair in PAIRS:
        site, _ = naive_twins.channels(model, node)
        donor = seen(model, pair[1 - into], [site])[site][node.layer]
        out.append(naive_twins.odds(model, pair[into], [put(model, node, donor, share)]))
    return np.array(out)


@pytest.mark.parametrize("family", CONFIGS)
def test_patching_equals_one_prompt_at_a_time(family):
    twins = twins_of(family)
    for into, side, sign in ((0, "harmful", -1), (1, "harmless", 1)):
        found = patch_nodes(twins, NODES, side, at_once=2)
        before = np.array([naive_twins.odds(twins.model, pair[into]) for pair in PAIRS])
        for row, node in zip(found, NODES, strict=True):
            assert row == pytest.approx(sign * (by_hand(twins.model, node, into) - before), abs=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_plain_estimate_is_the_slope_of_the_patch(family):
    twins = twins_of(family)
    found = attribute_nodes(twins, steps=1)
    for node in NODES:
        estimate = (
            found.neurons[:, node.layer].sum(-1) if node.kind == "mlp" else found.of(node)
        )  # behind it may be a norm
        slope = (by_hand(twins.model, node, 0, 0.02) - by_hand(twins.model, node, 0, -0.02)) / 0.04
        assert estimate.numpy() == pytest.approx(-slope, abs=0.02 * abs(slope).max() + 1e-3)


def test_the_integral_averages_slopes_on_the_way():
    """Five steps: the mean of the slopes at runs whose embeddings lie 1/5 ... 5/5 of the way to the harmful request."""
    twins, node, eps = twins_of("llama"), Node("head", 1, 2), 0.02
    model, slopes = twins.model, []
    for step in range(1, 6):
        row = []
        for harmful, harmless in PAIRS:
            x = [seen(model, text, ["resid_pre", "z"]) for text in (harmful, harmless)]
            a, b = (run["resid_pre"][0] for run in x)
            begin = ("resid_pre", 0, lambda _, a=a, b=b, step=step: b + step / 5 * (a - b))
            gap = x[1]["z"][1] - x[0]["z"][1]  # towards the twin, whatever the run

            def move(sign, gap=gap):
                _, part = naive_twins.channels(model, node)
                change = gap.clone()
                change[..., : part.start], change[..., part.stop :] = 0, 0
                return ("z", 1, lambda z: z + sign * eps * change)

            up, down = (naive_twins.odds(model, harmful, [begin, move(sign)]) for sign in (1, -1))
            row.append(-(up - down) / (2 * eps))
        slopes.append(row)
    expected = np.mean(slopes, 0)
    assert attribute_nodes(twins, steps=5).of(node).numpy() == pytest.approx(expected, abs=0.02 * abs(expected).max())


def test_the_parts_of_an_effect_add_up():
    twins = twins_of("llama")
    found = attribute_nodes(twins, 3)
    assert found.neurons.sum(-1).numpy() == pytest.approx(found.mlps.numpy(), abs=1e-4)  # an MLP is its neurons
    assert found.heads_at.sum(-1).numpy() == pytest.approx(found.heads.numpy(), abs=1e-5)


def test_attribution_finds_the_box_s_circuit_and_patching_confirms_it():
    model, tokenizer, truth = load_glassbox("concentrated")
    pairs = glassbox_prompts("pairs", n=12, split="train") + glassbox_prompts(
        "pairs", n=6, split="train", changed="permit"
    )
    twins = Twins(model, tokenizer, pairs)
    found = attribute_nodes(twins)
    assert score(ranked(found.mean("head")), truth, "heads").recall_at_k == 1
    assert score(ranked(found.mean("neuron")), truth, "neurons").recall_at_k > 0.9
    decoys = [Node("neuron", *p) for p in truth.decoy_neurons]
    assert (
        abs(patch_nodes(twins, decoys)).max()
        < 2
        < patch_nodes(twins, [Node("head", *truth.decision_components[0])]).min()
    )


def test_the_plain_gradient_overlooks_what_a_threshold_hides():
    """The failure that the lesson shows: on a harmless request the neurons behind a detection head are shut, so nothing has
    a slope; yet the head alone, with its twin's values, would open them."""
    model, tokenizer, truth = load_glassbox("concentrated")
    twins = Twins(model, tokenizer, glassbox_prompts("pairs", n=24, split="train"))
    nodes = [Node("head", *p) for p in truth.detection_heads]
    true = patch_nodes(twins, nodes, "harmless").mean(1)
    plain, integrated = (np.array([attribute_nodes(twins, s, "harmless").of(n).mean() for n in nodes]) for s in (1, 5))
    strong = true > 3
    assert strong.sum() >= 2
    assert (plain[strong] < 0.5 * true[strong]).all() and (integrated[strong] > 0.5 * true[strong]).all()


def test_bad_input_gets_one_sentence():
    twins = twins_of("llama")
    for steps in (0, 1.5, True):
        with pytest.raises(ValueError, match="steps is how many"):
            attribute_nodes(twins, steps)
    with pytest.raises(ValueError, match="no head 4 in layer 0"):
        channels_of(dims_of(twins.model), Node("head", 0, 4))
    with pytest.raises(ValueError, match="a neuron or an mlp"):
        channels_of(dims_of(twins.model), Node("layer", 0, 4))
    with pytest.raises(ValueError, match="There is no side"):
        patch_nodes(twins, NODES, "benign")
