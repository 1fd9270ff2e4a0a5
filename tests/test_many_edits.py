"""Many interventions in one batch give what each gives alone."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from families import CONFIGS, CharTokenizer, tiny

from helpers.ablation import ablate_safety_neurons, heads_scaled
from helpers.costs import CostMeter
from helpers.edit_costs import EditMeter
from helpers.erasure import Eraser, erase
from helpers.fresh_prefix import fresh
from helpers.glassbox import glassbox_prompts, load_glassbox
from helpers.hooks import ablate_direction, add_direction, edit
from helpers.many_edits import answers_of_each, costs_of_each, odds_of_each
from helpers.matched import matched_random_sets
from helpers.mean_ablation import TemplateMeans, mean_ablated, template_means
from helpers.models import dims_of
from helpers.prompts import token_batches
from helpers.refusal import RefusalScore, generate, is_refusal
from helpers.shared_prefix import shared_prefix
from helpers.side_by_side import side_by_side


@pytest.fixture(scope="module")
def box():
    model, tokenizer, truth = load_glassbox("concentrated")
    harmful, harmless = (glassbox_prompts(kind, n=6, split="test") for kind in ("harmful", "harmless"))
    means = template_means(model, tokenizer, glassbox_prompts("harmless", n=8, split="train"))
    return model, tokenizer, truth, harmful, harmless, means


def one_by_one(meter, makers):
    return np.stack([meter.odds(make()) for make in makers])


def untouched(model):
    return not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("quick", [True, False])
def test_sets_of_neurons(box, quick):
    model, tokenizer, truth, harmful, harmless, means = box
    activity = torch.rand(6, 256, generator=torch.Generator().manual_seed(0))
    sets = [list(truth.evaluation_neurons), *matched_random_sets(truth.evaluation_neurons, activity, 6), [(0, 3)]]
    makers = [lambda one=one: mean_ablated(model, one, means) for one in sets]
    meter = CostMeter(model, tokenizer, harmful, harmless[:1], quick=quick)
    found = odds_of_each(meter, makers, at_once=3)  # eight sets: the last batch is a smaller one
    assert np.allclose(found, one_by_one(meter, makers), atol=1e-3)
    assert found[0].mean() < found[1:].mean() - 5  # the true ones end refusal, and only in their own rows
    assert untouched(model)


@pytest.mark.parametrize("family", CONFIGS)
def test_every_kind_of_edit_in_every_family(family):
    """Prompts of unlike length, openings of unlike length, and a shared beginning that is read under each edit."""
    model, tokenizer = tiny(family), CharTokenizer()
    prompts = ["hello", "why not", "a", "some more of it"]
    score = RefusalScore(((5, 6), (5, 7, 8, 9), (11, 3)))
    dims, seeded = dims_of(model), torch.Generator().manual_seed(0)
    prefix = tuple(shared_prefix(tokenizer, prompts))
    means = TemplateMeans(torch.randn(5, dims.n_layers, dims.d_mlp, generator=seeded), prefix, "drawn")
    r, s = torch.nn.functional.normalize(torch.randn(2, dims.d_model, generator=seeded))
    makers = [
        lambda: mean_ablated(model, [(0, 1), (1, 2)], means),
        lambda: ablate_safety_neurons(model, [(1, 0)], 0.5),
        lambda: None,
        lambda: ablate_direction(model, r),
        lambda: ablate_direction(model, s, [1]),
        lambda: add_direction(model, 3 * s, 1),
        lambda: heads_scaled(model, [(0, 1), (1, 0)]),
        lambda: edit(model, [("neurons", 1, lambda x: None)]),
    ]
    for quick in (False, True):
        prose = ["some words of it", "more"]
        meter = CostMeter(model, tokenizer, prompts, prompts[:3], prose, score, quick, 9)
        for one, these in ((meter, makers), (fresh(meter), makers)):
            these = [these[0], *these[2:3]] if quick else these  # the others reach into the shared beginning
            slow = CostMeter(model, tokenizer, prompts, prompts[:3], prose, score, prose_tokens=9)
            assert np.allclose(odds_of_each(one, these, at_once=3), one_by_one(slow, these), atol=1e-4)
            for got, make in zip(costs_of_each(one, these, at_once=5), these, strict=True):
                want = slow.measure(make())
                assert np.allclose(got.odds, want.odds, atol=1e-4) and (got.refused == want.refused).all()
                assert got.kl == pytest.approx(want.kl, abs=1e-5)
                assert got.perplexity == pytest.approx(want.perplexity, rel=1e-4)
    assert untouched(model)


def test_edits_that_find_their_place_in_the_template(box):
    model, tokenizer, _, harmful, harmless, _ = box
    width = dims_of(model).d_model
    erasers = [Eraser(torch.zeros(width), torch.ones(width) / k, torch.ones(width)) for k in (40, 90)]
    meter = CostMeter(model, tokenizer, harmful, harmless[:1], quick=True)
    makers = [lambda e=e: erase(model, "resid_pre", {2: e}, prefix=meter.prefix) for e in erasers]
    slow = CostMeter(model, tokenizer, harmful, harmless[:1])
    want = np.stack([slow.odds(erase(model, "resid_pre", {2: e})) for e in erasers])
    assert np.allclose(odds_of_each(meter, makers), want, atol=1e-3)
    assert np.abs(want - slow.odds()).max() > 0.1  # they do something


def test_answers(box):
    model, tokenizer, truth, harmful, _, means = box
    makers = [
        lambda: None,
        lambda: mean_ablated(model, truth.evaluation_neurons, means),
        lambda: ablate_direction(model, truth.direction / truth.direction.norm()),
    ]
    found = answers_of_each(model, tokenizer, harmful, makers, 6, at_once=2)
    assert found == answers_of_each(model, tokenizer, harmful, makers, 6)
    assert all(map(is_refusal, found[0])) and not any(map(is_refusal, found[1]))
    for said, make in zip(found, makers, strict=True):
        with make() or nullcontext():
            assert said == generate(model, tokenizer, harmful, 6)


def test_an_edit_meters_own_meter_does_as_well(box):
    model, tokenizer, truth, harmful, harmless, means = box
    meter = EditMeter(model, tokenizer, harmful, harmless, [])
    makers = [lambda one=one: mean_ablated(model, one, means) for one in ([(3, 1), (4, 2)], [(2, 0)])]
    assert np.allclose(odds_of_each(meter.meter, makers), one_by_one(meter, makers), atol=1e-3)


def test_bad_input_gets_one_sentence_and_leaves_nothing_behind(box):
    model, tokenizer, _, harmful, harmless, means = box
    meter = CostMeter(model, tokenizer, harmful, harmless[:1], quick=True)
    with pytest.raises(ValueError, match="nothing to measure"):
        odds_of_each(meter, [])
    sets = [[(0, 1)], [(0, 9999)]]
    with pytest.raises(ValueError, match="no neuron 9999"):
        odds_of_each(meter, [lambda one=one: mean_ablated(model, one, means) for one in sets])
    assert untouched(model)
    with pytest.raises(ValueError, match="must return a tensor of shape"):
        odds_of_each(meter, [lambda: edit(model, [("neurons", 0, lambda x: x[:1])]), lambda: None])
    (batch,) = token_batches(tokenizer, harmful[:3])
    two = [lambda: mean_ablated(model, [(0, 1)], means)] * 2
    with pytest.raises(ValueError, match="3 rows do not fall into 2 equal parts"), side_by_side(two):
        model(**batch.inputs())
    works = [
        lambda: mean_ablated(model, [(0, 1)], means),
        lambda: heads_scaled(model, [(meter.odds() > 0).astype(int)[:2]]),
    ]
    with pytest.raises(ValueError, match="runs the model while it is made"):
        odds_of_each(meter, works)
    with pytest.raises(KeyboardInterrupt), side_by_side(two):
        raise KeyboardInterrupt
    assert untouched(model)
    assert np.allclose(meter.odds(), odds_of_each(meter, [lambda: None])[0], atol=1e-4)  # nor a part of the rows
