"""Lesson 06's measures: counts, compactness, correlations, edits by place, self-repair, and further directions."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.circuit_weights import random_circuit, weight_masks
from helpers.directions import ablation_of, mean_differences, unit
from helpers.faithfulness import Ablator
from helpers.finetuning import moved
from helpers.glassbox import KINDS, Node, glassbox_prompts, load_glassbox
from helpers.hooks import edit, read
from helpers.layer_edits import edit_places, layer_ablations, layer_places
from helpers.localization import (
    FINDINGS,
    Findings,
    compactness,
    count_interval,
    rank_correlation,
    ranks,
    smallest_count,
    strongest,
    weights_of,
)
from helpers.next_directions import between, next_direction, read_last, successive_directions
from helpers.node_effects import attribute_nodes, held
from helpers.self_repair import Cuts, cut_response, together
from helpers.twins import Twins


@pytest.fixture(scope="module")
def boxes():
    return {kind: load_glassbox(kind) for kind in KINDS}


def twins_of(box, n=8, split="train"):
    model, tokenizer, _ = box
    return Twins(model, tokenizer, glassbox_prompts("pairs", n=n, split=split))


def same_weights(model, before: dict) -> bool:
    return all(torch.equal(p, before[name]) for name, p in model.named_parameters())


# --- the table ----------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_finding_and_model():
    found = Findings()
    found.add(FINDINGS[1], "box", "probe right", 0.9, (0.8, 0.95), "words alone 0.5", "holds")
    found.add(FINDINGS[0], "box", "neurons", 8, (4, float("inf")), "random 0 of 20", "holds", fmt="{:,.0f}")
    table = found.table()
    assert list(table.index) == [(FINDINGS[0], "box"), (FINDINGS[1], "box")]
    assert table.loc[(FINDINGS[0], "box"), "95% interval"] == "4 to more than was tried"
    assert found.missing(["box"]) == [(FINDINGS[2], "box"), (FINDINGS[3], "box")]
    found.add(FINDINGS[0], "box", "neurons", 16, (8, 16), "random 0 of 20", "holds", fmt="{:,.0f}")
    assert found.table().loc[(FINDINGS[0], "box"), "value"] == "16" and len(found.table()) == 2


def test_a_bare_figure_is_refused():
    with pytest.raises(ValueError, match="no interval or no control"):
        Findings().add(FINDINGS[0], "box", "neurons", 8, (4, 16), "", "holds")
    with pytest.raises(ValueError, match="no finding"):
        Findings().add("fame", "box", "neurons", 8, (4, 16), "x", "holds")
    with pytest.raises(ValueError, match="verdict is one of"):
        Findings().add(FINDINGS[0], "box", "neurons", 8, (4, 16), "x", "great")


# --- counts -------------------------------------------------------------------------------------------------------


def test_the_smallest_count_and_its_interval():
    counts = [1, 10, 100]
    refused = np.array([[1] * 20, [0] * 18 + [1] * 2, [0] * 20])
    assert smallest_count(refused, counts) == 100
    assert count_interval(refused, counts) == (10, 100)
    assert smallest_count(np.ones((3, 5)), counts) == float("inf")
    assert count_interval(np.ones((3, 5)), counts) == (float("inf"), float("inf"))


def test_draws_without_any_count_stay_in_the_interval():
    refused = np.array([[1] * 20, [0] * 19 + [1]])
    low, high = count_interval(refused, [1, 10])
    assert low == 10 and high == float("inf")


def test_counts_and_rows_must_agree():
    with pytest.raises(ValueError, match="3 counts"):
        smallest_count(np.zeros((2, 5)), [1, 2, 3])


# --- compactness --------------------------------------------------------------------------------------------------


def test_the_concentrated_circuit_is_compact_and_the_distributed_is_not(boxes):
    found = {}
    for kind in ("concentrated", "distributed"):
        effects = attribute_nodes(twins_of(boxes[kind], 12), 3)
        parts = strongest(effects)
        assert len(parts) == 6 * (8 + 256)
        found[kind] = compactness(Ablator(twins_of(boxes[kind], 8, "test")), parts, (4, 32, 256, 1584))
    small = found["concentrated"]
    assert small.smallest() == 32 and found["distributed"].smallest() == 256
    assert small.shares()[-1] == pytest.approx(1, abs=1e-4) and small.shares("gone")[-1] == pytest.approx(1, abs=1e-4)
    assert small.interval() == (32, 32)
    assert 0 < small.weight_share(32) < small.weight_share(256) < 1
    assert np.isnan(small.weight_share(float("inf"))) and small.smallest(2.0) == float("inf")


def test_weights_of_parts_are_those_of_lesson_05(boxes):
    model, _, _ = boxes["concentrated"]
    assert weights_of(model, [Node("neuron", 2, 5)]) == 3 * 128
    assert weights_of(model, [Node("head", 3, 1)]) == 2 * 16 * 128


def test_counts_must_rise(boxes):
    ablator = Ablator(twins_of(boxes["concentrated"], 2))
    with pytest.raises(ValueError, match="Counts rise"):
        compactness(ablator, [Node("head", 0, 0)] * 4, (2, 2))
    with pytest.raises(ValueError, match="end at 4"):
        compactness(ablator, [Node("head", 0, 0)] * 4, (2, 8))


# --- correlations -------------------------------------------------------------------------------------------------


def test_rank_correlation_knows_order_and_chance():
    x = np.arange(12.0)
    same = rank_correlation(x, x**3)
    assert same.rho == pytest.approx(1) and same.p < 0.01 and same.least == pytest.approx(1) and same.count == 12
    noise = rank_correlation(x, np.random.default_rng(3).permutation(12))
    assert noise.low < noise.rho < noise.high and noise.p > 0.05 and noise.high - noise.low > 0.5
    assert rank_correlation(x, np.ones(12)).rho == 0


def test_few_noisy_pairs_widen_the_interval():
    rng = np.random.default_rng(1)
    x = np.arange(15.0)
    noisy = [x[:, None] + rng.normal(0, 8, (15, 6)) for _ in range(2)]
    with_pairs, means_alone = rank_correlation(*noisy), rank_correlation(*(v.mean(1) for v in noisy))
    assert with_pairs.rho == means_alone.rho
    assert with_pairs.high - with_pairs.low > means_alone.high - means_alone.low


def test_ranks_are_those_of_pandas():
    values = [3.0, 1.0, 3.0, -2.0, 7.0, 1.0]
    assert (ranks(values) + 1).tolist() == pd.Series(values).rank().tolist()
    a, b = np.random.default_rng(0).normal(size=(2, 15))
    assert rank_correlation(a, b).rho == pytest.approx(pd.Series(a).rank().corr(pd.Series(b).rank()))


def test_a_correlation_needs_places():
    with pytest.raises(ValueError, match="four places"):
        rank_correlation([1, 2, 3], [1, 2, 3])


# --- edits by place -----------------------------------------------------------------------------------------------


def test_an_edit_moves_what_it_may_and_leaves_the_model_as_it_was(boxes):
    box = boxes["concentrated"]
    before = {name: p.clone() for name, p in box[0].named_parameters()}
    train, test = twins_of(box, 8), twins_of(box, 8, "test")
    places = layer_places(box[0], (2, 5)) | {"circuit": weight_masks(box[0], box[2])}
    found = edit_places(train, test, places, rate=1e-3, steps=6)
    assert set(found) == {2, 5, "circuit"} and same_weights(box[0], before)
    assert not any(p.requires_grad or p.grad is not None for p in box[0].parameters())
    lost, kl = found["circuit"]
    assert lost.shape == (8,) and lost.mean() > 5 and kl < 0.1
    nothing = edit_places(train, test, layer_places(box[0], (2,)), rate=1e-3, steps=0)[2]
    assert np.abs(nothing[0]).max() < 1e-4 and abs(nothing[1]) < 1e-5


def test_an_edit_is_that_of_the_whole_model_trained_naively(boxes):
    model, tokenizer, _ = boxes["concentrated"]
    train, test = twins_of(boxes["concentrated"], 4), twins_of(boxes["concentrated"], 4, "test")
    places = layer_places(model, (4,))
    lost, _ = edit_places(train, test, places, rate=1e-3, steps=3)[4]
    naive = copy.deepcopy(model)
    weights = [dict(naive.named_parameters())[name].requires_grad_(True) for name in places[4]]
    with torch.no_grad():
        wanted = train.logits("harmless").softmax(-1)
    own = Twins(naive, tokenizer, train.pairs)
    optimiser = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.0)
    for _ in range(3):
        optimiser.zero_grad()
        with torch.enable_grad():
            (-(wanted * own.logits("harmful").log_softmax(-1)).sum(-1).mean()).backward()
        optimiser.step()
    naive.requires_grad_(False)
    assert len(moved(model, naive)) == len(places[4])
    after = Twins(naive, tokenizer, test.pairs).odds()  # the beginning read anew, by the edited weights
    assert np.allclose(test.odds() - after, lost, atol=0.05)


def test_an_interrupted_edit_leaves_nothing_behind(boxes, monkeypatch):
    box = boxes["concentrated"]
    before = {name: p.clone() for name, p in box[0].named_parameters()}
    train = twins_of(box, 4)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.AdamW, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        edit_places(train, train, layer_places(box[0], (3,)), rate=1e-3, steps=2)
    assert same_weights(box[0], before) and not any(p.requires_grad for p in box[0].parameters())


def test_places_are_checked_first(boxes):
    box = boxes["concentrated"]
    train = twins_of(box, 2)
    with pytest.raises(ValueError, match="of one model"):
        edit_places(train, twins_of(boxes["redundant"], 2), layer_places(box[0], (3,)), 1e-3, 1)
    with pytest.raises(ValueError, match="holds no weights"):
        edit_places(train, train, {"none": {}}, 1e-3, 1)
    with pytest.raises(ValueError, match="no weight of a block"):
        edit_places(train, train, {"e": {"model.embed_tokens.weight": torch.ones(1, dtype=torch.bool)}}, 1e-3, 1)


def test_random_places_of_the_box_do_less_at_one_rate(boxes):
    box = boxes["concentrated"]
    places = {i: weight_masks(box[0], random_circuit(box[0], box[2], i)) for i in range(3)}
    places["circuit"] = weight_masks(box[0], box[2])
    found = edit_places(twins_of(box, 8), twins_of(box, 8, "test"), places, rate=3e-4, steps=6)
    assert found["circuit"][0].mean() > max(found[i][0].mean() for i in range(3))


def test_layers_are_ablated_as_one_at_a_time(boxes):
    twins = twins_of(boxes["concentrated"], 6)
    lost = layer_ablations(twins, (1, 4), ("resample", "mean", "zero"))
    for kind, rows in lost.items():
        ablator = Ablator(twins, kind)
        for layer, row in zip((1, 4), rows, strict=True):
            assert np.allclose(row, twins.odds() - ablator.odds([Node("mlp", layer, 0)]), atol=1e-4)


# --- self-repair --------------------------------------------------------------------------------------------------


def test_the_backup_writes_what_the_cut_head_no_longer_writes(boxes):
    twins, truth = twins_of(boxes["redundant"]), boxes["redundant"][2]
    (head,) = [Node("head", *p) for p in truth.decision_components]
    answer = cut_response(twins, [head])
    assert answer.total.mean() > -0.5  # from outside nothing is lost: the head seems to have no role
    assert answer.direct.mean() < 1 and answer.repaired > 1 >= -answer.passed_on
    along = cut_response(twins, [head], truth.direction)  # the backup writes no answer, but the direction
    assert along.direct.mean() < 0
    assert any(
        along.later[at, "attention"].mean() > 0.3 for at, _ in truth.backup_heads if (at, "attention") in along.later
    )
    assert list(answer.table().columns) == ["layer", "part", "change", "low", "high"]


def test_direct_and_later_add_up_where_nothing_else_moves(boxes):
    """In the last layer only the MLP comes behind a head, and the answer is nearly linear in small changes."""
    twins, truth = twins_of(boxes["concentrated"]), boxes["concentrated"][2]
    last = [Node("neuron", *p) for p in truth.production_neurons if p[0] == 5]
    answer = cut_response(twins, last)
    assert not answer.later and np.allclose(answer.direct, answer.total, atol=1e-3)


def test_only_together_do_the_two_paths_matter(boxes):
    twins, truth = twins_of(boxes["redundant"]), boxes["redundant"][2]
    (main,) = [Node("head", *p) for p in truth.decision_components]
    cuts, excess = Cuts(twins), {}
    for place in truth.backup_heads:
        table = together(cuts, [main, Node("head", *place)])
        excess[place] = table.excess[0]
        naive = held(twins.model, [main, Node("head", *place)], twins.read("harmless", ["z", "neurons"]))
        assert table["both"][0] == pytest.approx((twins.odds() - twins.odds("harmful", naive)).mean())
    assert max(excess.values()) > 5
    assert cuts([]).tolist() == [0] * len(twins) and cuts([main]) is cuts([main])


def test_cuts_are_checked(boxes):
    twins = twins_of(boxes["concentrated"], 2)
    for nodes in ([], [Node("head", 1, 0), Node("head", 2, 0)], [Node("head", 1, 0), Node("neuron", 1, 0)]):
        with pytest.raises(ValueError, match="one layer and one kind"):
            cut_response(twins, nodes)
    with pytest.raises(ValueError, match="at least two"):
        together(Cuts(twins), [Node("head", 1, 0)])


# --- further directions -------------------------------------------------------------------------------------------


def test_the_last_token_is_read_as_by_read_also_under_an_edit(boxes):
    model, tokenizer, truth = boxes["distributed"]
    prompts = glassbox_prompts("harmful", n=5, split="train") + glassbox_prompts("borderline", n=3)
    for change in (None, ("resid_pre", 0, lambda x: 1.1 * x)):
        with edit(model, [change] if change else []):
            ours = read_last(model, tokenizer, prompts, ["resid_pre", "neurons"], batch_size=3)
            naive = read(model, tokenizer, prompts, ["resid_pre", "neurons"])
        for site in ours:
            assert torch.allclose(ours[site], naive[site], atol=1e-3)


def test_directions_follow_one_another_at_right_angles(boxes):
    model, tokenizer, _ = boxes["distributed"]
    pairs = glassbox_prompts("pairs", n=16, split="train")
    sides = [p.harmful for p in pairs], [p.harmless for p in pairs]
    found = successive_directions(model, tokenizer, *sides, layer=4, count=3)
    assert torch.allclose(found @ found.T, torch.eye(3), atol=1e-4)
    assert torch.allclose(found[0], unit(mean_differences(model, tokenizer, *sides)[4, 0]), atol=1e-4)
    with ablation_of(model, found[0]):
        left = mean_differences(model, tokenizer, *sides)[4, 0]
    assert torch.allclose(found[1], next_direction(left[None], torch.zeros(1, 128), found[:1]), atol=1e-3)


def test_what_lies_between_two_directions_is_a_unit():
    one, other = torch.eye(3)[:2]
    assert torch.allclose(between(one, other, 0), one) and torch.allclose(between(one, other, 90), other, atol=1e-6)
    assert between(one, other, 60) @ one == pytest.approx(0.5, abs=1e-5)
    with pytest.raises(ValueError, match="no length"):
        next_direction(one[None], 0 * one[None], [one])
