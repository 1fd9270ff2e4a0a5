"""Ablations of everything but a circuit, by hand on one prompt at a time; the four criteria on boxes with known truth."""

import naive_twins
import numpy as np
import pytest
import torch
from families import CONFIGS
from naive_twins import PAIRS, channels, seen, twins_of

from helpers.faithfulness import ABLATIONS, Ablator, Faithfulness, random_nodes
from helpers.glassbox import glassbox_prompts, load_glassbox
from helpers.glassbox_truth import Node
from helpers.hooks import width_of
from helpers.models import dims_of
from helpers.twins import Twins

NODES = [Node("head", 0, 1), Node("head", 1, 3), Node("neuron", 1, 7), Node("mlp", 2, 0)]


def fill(twins, kind: str, i: int) -> dict:
    """{(site, layer): [1, position, width]} that stands in for what is ablated in pair i, found by single runs."""
    runs = [seen(twins.model, harmless, ["z", "neurons"]) for _, harmless in PAIRS]
    out = {}
    for site in ("z", "neurons"):
        for layer, own in runs[i][site].items():
            value = {"resample": own, "zero": torch.zeros_like(own)}.get(kind)
            if value is None:  # the mean at the same distance from the end, over those that are long enough
                value = own.clone()
                for back in range(1, own.shape[1] - twins.prefix + 1):
                    there = [r[site][layer][0, -back] for r in runs if r[site][layer].shape[1] - twins.prefix >= back]
                    value[0, -back] = torch.stack(there).mean(0)
            out[site, layer] = value
    return out


def by_hand(twins, nodes, kind: str, outside: bool) -> np.ndarray:
    model, gone = twins.model, {}
    for layer in range(dims_of(model).n_layers):
        for site in ("z", "neurons"):
            gone[site, layer] = torch.full((width_of(model, site),), outside)
    for node in nodes:
        site, part = channels(model, node)
        gone[site, node.layer][part] = not outside
    out = []
    for i, (harmful, _) in enumerate(PAIRS):
        values = fill(twins, kind, i)

        def put(x, key, values=values):
            new = x.clone()
            first = max(twins.prefix, 1)  # the shared beginning stays as it is
            new[:, first:, gone[key]] = values[key][:, first:, gone[key]]
            return new

        edits = [(*key, lambda x, key=key, put=put: put(x, key)) for key in gone]
        out.append(naive_twins.odds(model, harmful, edits))
    return np.array(out)


@pytest.mark.parametrize("kind", ABLATIONS)
@pytest.mark.parametrize("family", CONFIGS)
def test_ablating_equals_one_prompt_at_a_time(family, kind):
    twins = twins_of(family)
    ablator = Ablator(twins, kind)
    for outside in (False, True):
        assert ablator.odds(NODES, outside) == pytest.approx(by_hand(twins, NODES, kind, outside), abs=1e-4)
    assert ablator.odds([]) == pytest.approx(twins.odds(), abs=1e-4)


@pytest.mark.parametrize("kind", ABLATIONS)
def test_the_ablated_stream_is_the_one_that_the_answer_is_read_from(kind):
    twins = twins_of("llama")
    ablator = Ablator(twins, kind)
    with torch.no_grad():
        odds = twins.odds_of(twins.head(ablator.stream(NODES, outside=True)))
    assert odds.numpy() == pytest.approx(ablator.odds(NODES, outside=True), abs=1e-4)


def test_the_empty_model_resampled_is_the_twin_but_for_the_embedding():
    """Everything resampled: only what the embedding itself writes to the answer is left of the harmful request."""
    twins = twins_of("llama")
    gap = twins.odds("harmless") - Ablator(twins).odds([], outside=True)
    last_words_differ = twins.changed[:, -1]
    assert not bool(last_words_differ.any()) and np.abs(gap).max() < 1e-4


@pytest.fixture(scope="module")
def box():
    model, tokenizer, truth = load_glassbox("concentrated")
    pairs = glassbox_prompts("pairs", n=12, split="train") + glassbox_prompts(
        "pairs", n=4, split="train", changed="permit"
    )
    whole = [Node("head", *p) for p in truth.heads] + [Node("neuron", *p) for p in truth.neurons]
    return Twins(model, tokenizer, pairs), truth, whole


@pytest.mark.parametrize("kind", ["resample", "mean"])
def test_the_true_circuit_is_faithful_complete_and_minimal(box, kind):
    twins, _, whole = box
    ablator = Ablator(twins, kind)
    judged = ablator.judge(whole)
    assert judged.faithful > 0.9 and abs(judged.left) < 0.1
    low, high = judged.interval()
    assert low <= judged.faithful <= high
    assert ablator.incompleteness(whole, 5).mean() < 0.15 * (judged.full - judged.empty).mean()
    lost = ablator.minimality(whole)
    assert lost.shape == (len(whole), len(twins)) and (lost.mean(1) > 0.2).all()
    useless = Node("neuron", *load_glassbox("concentrated")[2].decoy_neurons[0])
    assert abs(ablator.minimality([*whole, useless])[-1].mean()) < 0.3


def test_a_random_circuit_is_none(box):
    twins, _, whole = box
    for seed in range(3):
        drawn = random_nodes(twins.model, whole, seed)
        assert sorted(n.kind for n in drawn) == sorted(n.kind for n in whole) and len(set(drawn)) == len(whole)
        assert Ablator(twins).judge(drawn).faithful < 0.2
    assert random_nodes(twins.model, whole, 1) != random_nodes(twins.model, whole, 2)


def test_a_backup_makes_a_faithful_circuit_incomplete():
    model, tokenizer, truth = load_glassbox("redundant")
    twins = Twins(model, tokenizer, glassbox_prompts("pairs", n=12, split="train"))
    first = [Node("head", *p) for p in truth.heads] + [Node("neuron", *p) for p in truth.evaluation_neurons]
    first = first + [Node("neuron", *p) for p in truth.production_neurons]
    second = [Node("head", *p) for p in truth.backup_heads] + [Node("neuron", *p) for p in truth.backup_neurons]
    paths = [n for n in first if (n.layer, n.index) not in truth.production_neurons]
    ablator = Ablator(twins)
    assert ablator.judge(first).faithful > 0.8
    assert ablator.judge(paths).left > 0.5  # without the first path, the second one does it
    assert ablator.judge([*paths, *second]).left < 0.1


def test_shares_are_plain_arithmetic():
    one = Faithfulness(np.array([4.0, 6]), np.array([3.0, 3]), np.array([0.0, 2]), np.array([0.0, 2]), "zero")
    assert one.faithful == pytest.approx((3 - 1) / (5 - 1)) and one.left == 0
    flat = Faithfulness(*[np.zeros(3)] * 4, "zero")
    assert np.isnan(flat.faithful)


def test_bad_input_gets_one_sentence(box):
    twins, _, whole = box
    with pytest.raises(ValueError, match="There is no ablation 'noise'"):
        Ablator(twins, "noise")
    with pytest.raises(ValueError, match="no part to take away"):
        Ablator(twins).incompleteness(whole[:1])
    with pytest.raises(ValueError, match="no head 99"):
        Ablator(twins).odds([Node("head", 0, 99)])
