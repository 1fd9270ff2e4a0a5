"""Many sets in one batch give what each gives alone."""

import numpy as np
import pytest
import torch
from families import CONFIGS, CharTokenizer, tiny

from helpers.costs import CostMeter
from helpers.edit_costs import EditMeter
from helpers.glassbox import glassbox_prompts, load_glassbox
from helpers.many_sets import each_its_own, odds_of_sets
from helpers.matched import matched_random_sets
from helpers.mean_ablation import TemplateMeans, mean_ablated, template_means
from helpers.models import dims_of
from helpers.prompts import token_batches
from helpers.refusal import RefusalScore
from helpers.shared_prefix import shared_prefix


@pytest.fixture(scope="module")
def box():
    model, tokenizer, truth = load_glassbox("concentrated")
    harmful, harmless = (glassbox_prompts(kind, n=6, split="test") for kind in ("harmful", "harmless"))
    means = template_means(model, tokenizer, glassbox_prompts("harmless", n=8, split="train"))
    return model, tokenizer, truth, harmful, harmless, means


def one_by_one(meter, model, sets, means):
    return np.stack([meter.odds(mean_ablated(model, one, means)) for one in sets])


@pytest.mark.parametrize("quick", [True, False])
def test_they_are_those_of_one_set_after_the_other(box, quick):
    model, tokenizer, truth, harmful, harmless, means = box
    activity = torch.rand(6, 256, generator=torch.Generator().manual_seed(0))
    sets = [list(truth.evaluation_neurons), *matched_random_sets(truth.evaluation_neurons, activity, 6), [(0, 3)]]
    meter = CostMeter(model, tokenizer, harmful, harmless[:1], quick=quick)
    found = odds_of_sets(meter, sets, means, at_once=3)  # eight sets: the last batch is a smaller one
    assert np.allclose(found, one_by_one(meter, model, sets, means), atol=1e-3)
    assert found[0].mean() < found[1:].mean() - 5  # the true ones end refusal, and only in their own rows
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("family", CONFIGS)
def test_in_every_family_with_prompts_of_unlike_length_and_openings_of_unlike_length(family):
    model, tokenizer = tiny(family), CharTokenizer()
    prompts = ["hello", "why not", "a", "some more of it"]
    score = RefusalScore(((5, 6), (5, 7, 8, 9), (11, 3)))
    meter = CostMeter(model, tokenizer, prompts, prompts[:1], score=score, quick=True)
    dims, prefix = dims_of(model), tuple(shared_prefix(tokenizer, prompts))
    values = torch.randn(5, dims.n_layers, dims.d_mlp, generator=torch.Generator().manual_seed(0))
    means = TemplateMeans(values, prefix, "drawn")
    sets = [[(0, 1), (1, 2)], [(1, 0)], [(0, 0), (0, 1), (1, 3)]]
    assert np.allclose(odds_of_sets(meter, sets, means, at_once=2), one_by_one(meter, model, sets, means), atol=1e-4)


def test_an_edit_meters_own_meter_does_as_well(box):
    model, tokenizer, truth, harmful, harmless, means = box
    meter = EditMeter(model, tokenizer, harmful, harmless, [])
    sets = [[(3, 1), (4, 2)], [(2, 0)]]
    assert np.allclose(odds_of_sets(meter.meter, sets, means), one_by_one(meter, model, sets, means), atol=1e-3)


def test_bad_input_gets_one_sentence_and_leaves_nothing_behind(box):
    model, tokenizer, _, harmful, harmless, means = box
    meter = CostMeter(model, tokenizer, harmful, harmless[:1], quick=True)
    with pytest.raises(ValueError, match="no sets to ablate"):
        odds_of_sets(meter, [], means)
    with pytest.raises(ValueError, match="no neuron 9999"):
        odds_of_sets(meter, [[(0, 1)], [(0, 9999)]], means)
    (batch,) = token_batches(tokenizer, harmful)
    with pytest.raises(KeyboardInterrupt), each_its_own(model, [[(0, 1)]], means):
        model(**batch.inputs())
        raise KeyboardInterrupt
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
