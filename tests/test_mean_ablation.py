"""Mean ablation, its matched controls, and its costs: each against a naive version; the shared beginning is exact."""

import numpy as np
import pytest
import torch
from families import CONFIGS, CharTokenizer, tiny

from helpers.costs import CostMeter
from helpers.glassbox import glassbox_prompts, load_glassbox
from helpers.hooks import record
from helpers.matched import matched_random_sets, mean_activity, random_alike, random_sets
from helpers.mean_ablation import TemplateMeans, mean_ablated, template_means, template_places
from helpers.models import down_projection_of, layers_of
from helpers.prompts import chat_text, token_batches, tokenize
from helpers.refusal import RefusalScore, generate, is_refusal
from helpers.shared_prefix import WithPrefix, shared_prefix


@pytest.fixture(scope="module")
def box():
    model, tokenizer, truth = load_glassbox("concentrated")
    harmless = glassbox_prompts("harmless", n=24, split="train")
    return model, tokenizer, truth, harmless, template_means(model, tokenizer, harmless)


@pytest.fixture(scope="module")
def score(box):
    model, tokenizer, *_ = box
    said = generate(model, tokenizer, glassbox_prompts("harmful", n=2, split="validation"), max_new_tokens=4)
    return RefusalScore(tuple({tuple(tokenizer(text, add_special_tokens=False)["input_ids"][:2]) for text in said}))


def test_means_equal_a_loop_over_prompts(box):
    model, tokenizer, _, harmless, means = box
    rows = tokenize(tokenizer, chat_text(tokenizer, harmless))
    prefix = len(means.prefix)
    assert all(row[:prefix] == list(means.prefix) for row in rows) and prefix >= 1
    by_place = {}
    for row in rows:
        with record(model, ["neurons"]) as seen:
            model(torch.tensor([row]))
        stacked = torch.stack([x[0] for x in seen["neurons"].values()], 1)  # [position, layer, d_mlp]
        for index in range(prefix, len(row)):
            by_place.setdefault(min(len(row) - 1 - index, means.depth), []).append(stacked[index])
    for place, found in by_place.items():
        assert torch.allclose(means.values[place], torch.stack(found).mean(0), atol=1e-4)


def naive_ablated(model, row, means, neurons):
    """Logits of one prompt, with the means written by index arithmetic on a single unpadded row."""
    length, prefix, handles = len(row), len(means.prefix), []
    for layer, neuron in neurons:

        def hook(module, inputs, layer=layer, neuron=neuron):
            x = inputs[0].clone()
            for index in range(max(prefix, 1), length):
                x[0, index, neuron] = means.values[min(length - 1 - index, means.depth), layer, neuron]
            return (x,)

        handles.append(down_projection_of(layers_of(model)[layer]).register_forward_pre_hook(hook))
    logits = model(torch.tensor([row])).logits[0, -1]
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_is_ablated_alike_with_and_without_its_beginning(family):
    torch.manual_seed(0)
    model, tokenizer, prompts = tiny(family), CharTokenizer(), ["hello", "why not", "abcdef ghi"]
    prefix = shared_prefix(tokenizer, prompts)
    means = TemplateMeans(torch.randn(6, 3, 48), tuple(prefix))
    neurons = [(0, 3), (1, 7), (1, 40), (2, 0)]
    (batch,) = token_batches(tokenizer, prompts)
    quick = WithPrefix(model, prefix)
    with torch.no_grad(), mean_ablated(model, neurons, means):
        slow = model(**batch.inputs()).logits[:, -1]
        fast = quick(**batch.inputs(), logits_to_keep=1).logits[:, -1]
    assert torch.allclose(slow, fast, atol=1e-4)
    for i, got in zip(batch.order, slow, strict=True):
        (row,) = tokenize(tokenizer, chat_text(tokenizer, [prompts[i]]))
        assert torch.allclose(got, naive_ablated(model, row, means, neurons), atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_ablation_equals_the_naive_one_under_padding(box, side):
    model, tokenizer, truth, _, means = box
    asked = [*glassbox_prompts("harmful", n=6, split="test"), "boil acid"]
    rows = tokenize(tokenizer, chat_text(tokenizer, asked))
    neurons = [*truth.evaluation_neurons, (0, 3), (5, 7)]
    for batch in token_batches(tokenizer, asked, side=side):
        with mean_ablated(model, neurons, means):
            logits = model(**batch.inputs()).logits[torch.arange(len(batch.order)), batch.last]
        for i, got in zip(batch.order, logits, strict=True):
            assert torch.allclose(got, naive_ablated(model, rows[i], means, neurons), atol=1e-3)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_shared_beginning_is_exact(box, score):
    model, tokenizer, truth, harmless, means = box
    asked = glassbox_prompts("harmful", n=10, split="test")
    quick = WithPrefix(model, shared_prefix(tokenizer, asked))
    want = score.log_odds(model, tokenizer, asked)
    assert score.log_odds(quick, tokenizer, asked) == pytest.approx(want, abs=1e-3)
    assert score.log_odds(quick, tokenizer, asked) == pytest.approx(want, abs=1e-3)  # the kept cache did not grow
    with mean_ablated(model, truth.evaluation_neurons, means):
        want, got = (score.log_odds(m, tokenizer, asked) for m in (model, quick))
    assert got == pytest.approx(want, abs=1e-3)
    with pytest.raises(ValueError, match="do not begin"):
        WithPrefix(model, [5, 6, 7]).__call__(**next(token_batches(tokenizer, asked)).inputs())
    with pytest.raises(ValueError, match="prefix is empty"):
        WithPrefix(model, [])


def test_the_circuit_matters_and_the_decoys_do_not(box, score):
    model, tokenizer, truth, harmless, means = box
    asked = glassbox_prompts("harmful", n=16, split="test")
    for neurons, share in (([], 1), (truth.decoy_neurons, 1), (truth.evaluation_neurons, 0)):
        with mean_ablated(model, neurons, means):
            assert sum(map(is_refusal, generate(model, tokenizer, asked, max_new_tokens=6))) == share * len(asked)


def test_costs_of_nothing_and_of_a_broken_model(box, score):
    model, tokenizer, truth, harmless, means = box
    asked = glassbox_prompts("harmful", n=8, split="test")
    prose = ["boil milk", "wash the acid"]
    slow, quick = (CostMeter(model, tokenizer, asked, harmless[:6], prose, score, quick=q) for q in (False, True))
    clean = slow.measure()
    assert clean.kl == pytest.approx(0, abs=1e-5) and clean.refused.all() and clean.perplexity > 1
    cut = [m.measure(mean_ablated(model, truth.evaluation_neurons, means)) for m in (slow, quick)]
    assert not cut[0].refused.any()
    assert cut[1].odds == pytest.approx(cut[0].odds, abs=1e-3)
    assert cut[1].perplexity == pytest.approx(cut[0].perplexity, rel=1e-3)
    every = [(layer, neuron) for layer in range(6) for neuron in range(256)]
    assert slow.measure(mean_ablated(model, every, means)).kl > clean.kl


def test_perplexity_equals_one_forward(box, score):
    model, tokenizer, _, harmless, _ = box
    prose = ["boil the milk", "wash"]
    meter = CostMeter(model, tokenizer, harmless[:2], harmless[2:4], prose, score)
    losses = []
    for text in prose:
        asked = tokenize(tokenizer, chat_text(tokenizer, ["Tell me something."]))[0]
        said = tokenize(tokenizer, [text])[0]
        logits = model(torch.tensor([[*asked, *said]])).logits[0].log_softmax(-1)
        losses += [-logits[len(asked) - 1 + i, token] for i, token in enumerate(said)]
    assert meter.measure().perplexity == pytest.approx(torch.stack(losses).mean().exp().item(), rel=1e-4)


def test_random_places_of_the_same_layers():
    chosen = [(1, 2), (4, 0), (1, 0)]
    sets = random_sets(chosen, (6, 9), count=20)
    for one in sets:
        assert sorted(layer for layer, _ in one) == [1, 1, 4] and len(set(one)) == 3 and not set(one) & set(chosen)
    assert sets == random_sets(chosen, (6, 9), count=20) != random_sets(chosen, (6, 9), count=20, seed=1)
    assert len({place for one in sets for place in one}) == 7 + 8  # all that are free come up
    crowded = [(1, h) for h in range(8)]  # its layer has one other: the rest come from the neighbours
    one = random_alike(crowded, (6, 9), np.random.default_rng(0))
    assert len(set(one)) == 8 and (1, 8) in one and {layer for layer, _ in one} <= {0, 1, 2}
    with pytest.raises(ValueError, match="There is no place .6, 0."):
        random_alike([(6, 0)], (6, 9), np.random.default_rng(0))
    with pytest.raises(ValueError, match="no other set is as large"):
        random_alike([(i, h) for i in range(4) for h in range(9)], (6, 9), np.random.default_rng(0))


def test_matched_sets_are_like_the_chosen_ones():
    torch.manual_seed(0)
    activity = torch.rand(3, 200).exp()
    chosen = [(0, i) for i in range(0, 40, 2)] + [(2, i) for i in range(10)]
    sets = matched_random_sets(chosen, activity, count=20)
    assert len(sets) == 20 and len({tuple(s) for s in sets}) > 15
    for drawn in sets:
        assert len(set(drawn)) == len(chosen) and not set(drawn) & set(chosen)
        assert [layer for layer, _ in drawn].count(2) == 10
        assert mean_activity(drawn, activity) == pytest.approx(mean_activity(chosen, activity), rel=0.05)
    assert sets == matched_random_sets(chosen, activity, count=20)


def test_a_crowded_layer_finds_its_partners_next_door():
    activity = torch.rand(4, 50)
    chosen = [(2, i) for i in range(40)] + [(1, 3)]
    (drawn,) = matched_random_sets(chosen, activity, count=1, spill=True)
    layers = [layer for layer, _ in drawn]
    assert len(set(drawn)) == 41 and not set(drawn) & set(chosen) and layers.count(2) == 10
    assert layers.count(1) + layers.count(3) == 31


def test_bad_input_is_named(box):
    model, tokenizer, _, harmless, means = box
    tiny_model = tiny("llama")
    cases = {
        "There is no layer 6": lambda: mean_ablated(model, [(6, 0)], means).__enter__(),
        "There is no neuron 256": lambda: mean_ablated(model, [(0, 256)], means).__enter__(),
        "is not a .layer, neuron. pair": lambda: mean_ablated(model, [3], means).__enter__(),
        "means are of another model": lambda: mean_ablated(tiny_model, [(0, 1)], means).__enter__(),
        "at least two harmless": lambda: template_means(model, tokenizer, harmless[:1]),
        "no set of others is as large": lambda: matched_random_sets([(0, i) for i in range(150)], torch.rand(6, 256)),
        "There is no neuron .7, 1.": lambda: matched_random_sets([(7, 1)], torch.rand(6, 256)),
        "one number for each": lambda: matched_random_sets([(0, 1)], torch.rand(256)),
    }
    for complaint, call in cases.items():
        with pytest.raises(ValueError, match=complaint):
            call()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_prompts_share_by_chance_is_not_the_template():
    tokenizer = CharTokenizer()
    assert shared_prefix(tokenizer, ["hello", "how not", "hey"]) == tokenizer(["^"])["input_ids"][0]


def test_tokens_of_an_answer_have_a_place_of_their_own_whoever_generates():
    """transformers 5.24 gave the cache another name; asked by the old one it was not seen, and answers were left alone."""
    model, tokenizer, _ = load_glassbox("concentrated")
    (batch,) = token_batches(tokenizer, glassbox_prompts("harmful", n=2, split="test"))
    with torch.no_grad(), template_places(model, prefix=0, depth=3) as now:
        model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=2,
            do_sample=False,
            pad_token_id=0,
        )
    assert now["place"].tolist() == [[4], [4]]
