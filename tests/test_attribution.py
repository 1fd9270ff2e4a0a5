"""Edges: cut by hand with plain hooks, one prompt at a time; the attributed effect is the slope of that cut."""

import naive_twins
import numpy as np
import pytest
import torch
from families import CONFIGS
from naive_twins import PAIRS, put, seen, twins_of

from helpers.attribution import attribute_edges, patch_edges
from helpers.glassbox import KINDS, glassbox_prompts, load_glassbox
from helpers.glassbox_truth import INPUT, OUTPUT, Node
from helpers.models import UnknownArchitecture, dims_of, layers_of, out_projection_of, weight_of
from helpers.twins import Twins
from helpers.wiring import Wiring, all_edges, all_nodes

H, M = (lambda layer, i: Node("head", layer, i)), (lambda layer: Node("mlp", layer, 0))
EDGES = [(INPUT, H(0, 1)), (INPUT, M(1)), (H(0, 2), H(1, 3)), (M(0), H(2, 0)), (H(1, 1), OUTPUT), (INPUT, OUTPUT), (M(2), OUTPUT)]  # fmt: skip
WITHIN = [(H(1, 2), M(1)), (H(2, 0), M(2))]  # a head read by the MLP of its own layer
SUMS = [f for f in CONFIGS if f not in ("gemma2", "gemma3", "olmo2")]
PARALLEL = ("phi", "gpt_neox")  # attention and MLP read the same stream


def written(model, run: dict, node: Node) -> torch.Tensor:
    if node == INPUT:
        return run["resid_pre"][0]
    if node.kind == "mlp":
        return run["mlp_out"][node.layer]
    d, w = dims_of(model).d_head, weight_of(out_projection_of(layers_of(model)[node.layer]))
    part = slice(node.index * d, (node.index + 1) * d)
    return run["z"][node.layer][..., part] @ w[:, part].T


def cut(model, edge, share: float = 1.0, parallel: bool = False) -> np.ndarray:
    """Log-odds of each pair's harmful request when this edge alone carries (a share of) the twin's value."""
    a, b = edge
    out = []
    for pair in PAIRS:
        full, twin = (seen(model, text, ["resid_pre", "mlp_out", "z", "neurons"]) for text in pair)
        change = share * (written(model, twin, a) - written(model, full, a))
        last = dims_of(model).n_layers - 1
        if b == OUTPUT:
            edits = [("resid_post", last, lambda x, change=change: x + change)]
        else:
            # run the model once with the changed stream before b, note what b does there, and put only that back
            # (an MLP behind its attention reads the change there: the attention itself must not)
            where = "attn_out" if b.kind == "mlp" and not parallel else "resid_pre"
            read = seen(model, pair[0], ["z", "neurons"], [(where, b.layer, lambda x, change=change: x + change)])
            site, _ = naive_twins.channels(model, b)
            edits = [put(model, b, read[site][b.layer])]
        out.append(naive_twins.odds(model, pair[0], edits))
    return np.array(out)


def edges_of(family: str) -> list:
    return EDGES if family in PARALLEL else EDGES + WITHIN


@pytest.mark.parametrize("family", SUMS)
def test_cutting_an_edge_equals_plain_hooks(family):
    wiring = Wiring(twins_of(family))
    before = np.array([naive_twins.odds(wiring.model, harmful) for harmful, _ in PAIRS])
    found = patch_edges(wiring, edges_of(family), at_once=2)
    everything = set(wiring.edges)
    for edge, effect in found.items():
        expected = cut(wiring.model, edge, parallel=family in PARALLEL)
        assert effect == pytest.approx(before - expected, abs=1e-4)
        assert wiring.odds(everything - {edge}) == pytest.approx(expected, abs=1e-4)  # a third way


@pytest.mark.parametrize("family", SUMS)
def test_the_plain_estimate_is_the_slope_of_the_cut(family):
    wiring = Wiring(twins_of(family))
    found = attribute_edges(wiring, steps=1)
    for edge in edges_of(family):
        up, down = (cut(wiring.model, edge, share, family in PARALLEL) for share in (0.02, -0.02))
        slope = (up - down) / 0.04
        assert found.of(edge).numpy() == pytest.approx(-slope, abs=0.02 * abs(slope).max() + 1e-3)


@pytest.mark.parametrize("family", PARALLEL)
def test_nothing_passes_within_a_parallel_block(family):
    wiring = Wiring(twins_of(family))
    assert np.abs(patch_edges(wiring, WITHIN)[WITHIN[0]]).max() < 1e-4
    assert float(attribute_edges(wiring, 1).of(WITHIN[0]).abs().max()) < 1e-5


@pytest.mark.parametrize("family", SUMS)
def test_all_edges_are_the_model_and_none_is_the_twin(family):
    twins = twins_of(family)
    wiring = Wiring(twins)
    assert wiring.odds(wiring.edges) == pytest.approx(twins.odds(), abs=1e-4)
    assert wiring.odds([]) == pytest.approx(twins.odds("harmless"), abs=1e-4)


def test_a_graph_of_some_components_holds_the_others_as_on_the_twin():
    """With one head alone in the graph, its reads being the input's, by hand."""
    twins, node = twins_of("llama"), H(1, 2)
    wiring = Wiring(twins, [node])
    for i, (harmful, harmless) in enumerate(PAIRS):
        full, twin = (seen(twins.model, text, ["resid_pre", "z"]) for text in (harmful, harmless))
        read = seen(twins.model, harmless, ["z"], [("resid_pre", 1, lambda x, a=full, b=twin: x + a["resid_pre"][0] - b["resid_pre"][0])])  # fmt: skip
        change = written(twins.model, {"z": read["z"]}, node) - written(twins.model, {"z": twin["z"]}, node)
        change = change + full["resid_pre"][0] - twin["resid_pre"][0]
        expected = naive_twins.odds(twins.model, harmless, [("resid_post", 2, lambda x, c=change: x + c)])
        assert wiring.odds(wiring.edges)[i] == pytest.approx(expected, abs=1e-4)


def test_the_rest_can_be_held_as_on_the_harmful_request():
    twins, node = twins_of("llama"), H(1, 2)
    wiring = Wiring(twins, [node], rest="harmful")
    assert wiring.odds(wiring.edges) == pytest.approx(twins.odds(), abs=1e-4)
    for kept in ([], [(node, OUTPUT)]):
        found = wiring.odds(kept)
        for i, (harmful, harmless) in enumerate(PAIRS):
            full, twin = (seen(twins.model, text, ["resid_pre", "z"]) for text in (harmful, harmless))
            begin = twin["resid_pre"][0] - full["resid_pre"][0]
            read = seen(twins.model, harmful, ["z"], [("resid_pre", 1, lambda x, c=begin: x + c)]) if kept else twin
            change = begin + written(twins.model, read, node) - written(twins.model, full, node)
            expected = naive_twins.odds(twins.model, harmful, [("resid_post", 2, lambda x, c=change: x + c)])
            assert found[i] == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="harmful or harmless"):
        Wiring(twins, [node], rest="clean")


def test_edges_run_forwards_only():
    nodes = all_nodes(twins_of("llama").model)
    edges = all_edges(nodes)
    heads, mlps = 12, 3
    assert len(edges) == len(set(edges))
    assert (H(0, 0), H(0, 1)) not in edges and (M(0), H(0, 1)) not in edges and (H(0, 1), M(0)) in edges
    later_heads, head_to_mlp, mlp_to_head, mlp_to_mlp = 4 * 4 * 3, 4 * 6, 4 * 3, 3
    by_hand = 2 * (heads + mlps) + 1 + later_heads + head_to_mlp + mlp_to_head + mlp_to_mlp
    assert len(edges) == by_hand


@pytest.mark.parametrize("kind", KINDS)
def test_integrated_edges_find_the_box_s_wiring(kind):
    from sklearn.metrics import roc_auc_score

    model, tokenizer, truth = load_glassbox(kind)
    pairs = glassbox_prompts("pairs", n=8, split="train") + glassbox_prompts(
        "pairs", n=4, split="train", changed="permit"
    )
    found = attribute_edges(Wiring(Twins(model, tokenizer, pairs)), steps=5).mean()
    true = truth.coarse_edges()
    assert roc_auc_score([e in true for e in found], [abs(v) for v in found.values()]) > 0.97


def test_families_whose_writes_are_no_sum_are_refused():
    for family in ("gemma2", "gemma3", "olmo2"):
        with pytest.raises(UnknownArchitecture, match="a norm stands behind"):
            Wiring(twins_of(family))
    with pytest.raises(ValueError, match="steps is how many"):
        attribute_edges(Wiring(twins_of("llama")), 0)
