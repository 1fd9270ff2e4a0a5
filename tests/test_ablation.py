"""Ablation of neurons and heads: each against a naive version, and against the truth of the boxes."""

import numpy as np
import pytest
import torch
from families import CONFIGS, CharTokenizer, tiny

from helpers.ablation import (
    ablate_safety_neurons,
    heads_by_layer,
    heads_scaled,
    remove_ablations,
    resample_donors,
    zeros,
)
from helpers.directions import kl_divergence, next_token_log_probs
from helpers.dose import dose_response, smallest_set
from helpers.glassbox import KINDS, glassbox_prompts, load_glassbox
from helpers.head_ranking import head_map, rank_heads
from helpers.hooks import record
from helpers.mean_ablation import TemplateMeans, mean_ablated, template_means
from helpers.models import down_projection_of, layers_of, out_projection_of
from helpers.prompts import chat_text, token_batches, tokenize
from helpers.refusal import RefusalScore, refusal_score_of
from helpers.shared_prefix import WithPrefix, shared_prefix


@pytest.fixture(scope="module")
def boxes():
    return {kind: load_glassbox(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def box(boxes):
    model, tokenizer, truth = boxes["concentrated"]
    harmless = glassbox_prompts("harmless", n=24, split="train")
    return model, tokenizer, truth, harmless, template_means(model, tokenizer, harmless)


def hooks_on(model) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def naive(model, row, neurons, target, strength=1.0, first=1):
    """Logits of one prompt without padding, each neuron moved by index arithmetic."""
    handles = []
    for layer, neuron in neurons:

        def hook(module, inputs, layer=layer, neuron=neuron):
            x = inputs[0].clone()
            for index in range(len(row)):
                if index >= first:
                    goal = target(len(row) - 1 - index, layer, neuron)
                    x[0, index, neuron] += strength * (goal - x[0, index, neuron])
            return (x,)

        handles.append(down_projection_of(layers_of(model)[layer]).register_forward_pre_hook(hook))
    with torch.no_grad():
        logits = model(torch.tensor([row])).logits[0, -1]
    for handle in handles:
        handle.remove()
    return logits


def zero(*_):
    return 0.0


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 1.7])
def test_zero_and_mean_equal_index_arithmetic(family, strength):
    torch.manual_seed(0)
    model, tokenizer, prompts = tiny(family), CharTokenizer(), ["hello", "why not", "abcdef ghi"]
    means = TemplateMeans(torch.randn(6, 3, 48), (tokenizer(["^"])["input_ids"][0][0],))
    neurons = [(0, 3), (1, 7), (1, 40), (2, 0)]
    (batch,) = token_batches(tokenizer, prompts)
    for donors, target in _cases(means):
        with torch.no_grad(), ablate_safety_neurons(model, neurons, strength, donors):
            got = model(**batch.inputs()).logits[:, -1]
        for i, logits in zip(batch.order, got, strict=True):
            (row,) = tokenize(tokenizer, chat_text(tokenizer, [prompts[i]]))
            assert torch.allclose(logits, naive(model, row, neurons, target, strength), atol=1e-4)
    assert not hooks_on(model)


def _cases(means):
    return [(None, zero), (means, lambda place, layer, n: means.values[min(place, means.depth), layer, n])]


def test_the_sink_is_left_alone_unless_asked_for(box):
    model, tokenizer, *_ = box
    neurons = [(0, 3), (2, 7), (5, 40)]
    asked = ["boil the acid", "wash milk for the old class"]
    (batch,) = token_batches(tokenizer, asked)
    for sink in (False, True):
        with torch.no_grad(), ablate_safety_neurons(model, neurons, sink=sink), record(model, ["neurons"]) as seen:
            got = model(**batch.inputs()).logits[:, -1]
        for row, i in enumerate(batch.order):
            (ids,) = tokenize(tokenizer, chat_text(tokenizer, [asked[i]]))
            assert torch.allclose(got[row], naive(model, ids, neurons, zero, first=0 if sink else 1), atol=1e-3)
        at = batch.attention_mask.argmax(-1)  # each row's position 0
        values = torch.stack([seen["neurons"][layer][torch.arange(2), at, n] for layer, n in neurons])
        assert bool((values == 0).all()) == sink


def test_kinds_name_their_donors(box):
    model, tokenizer, truth, harmless, means = box
    donors = resample_donors(model, tokenizer, harmless[:2])
    some = truth.evaluation_neurons[:3]
    for given, words in (
        ({}, "zero"),
        ({"donors": means}, "mean of 24 harmless"),
        ({"donors": donors[0]}, "one harmless prompt"),
    ):
        with ablate_safety_neurons(model, some, 0.5, **given) as ablation:
            assert words in str(ablation) and "3 neurons" in str(ablation) and "strength 0.5" in str(ablation)
            assert "removed" not in repr(ablation)
        assert "removed" in repr(ablation)


def test_a_donor_is_what_one_prompt_does(box):
    model, tokenizer, _, harmless, _ = box
    (donor,) = resample_donors(model, tokenizer, harmless[:1])
    (row,) = tokenize(tokenizer, chat_text(tokenizer, harmless[:1]))
    with torch.no_grad(), record(model, ["neurons"]) as seen:
        model(torch.tensor([row]))
    for place in range(len(row) - len(donor.prefix)):
        for layer in range(6):
            assert torch.allclose(
                donor.values[place, layer], seen["neurons"][layer][0, len(row) - 1 - place], atol=1e-5
            )
    # ablated with its own values, a prompt does not change
    everything = [(layer, neuron) for layer in range(6) for neuron in range(256)]
    with torch.no_grad():
        clean = model(torch.tensor([row])).logits[0, -1]
        with ablate_safety_neurons(model, everything, donors=donor):
            assert torch.allclose(model(torch.tensor([row])).logits[0, -1], clean, atol=1e-4)


def test_zero_with_donors_writes_where_the_donors_would(box):
    model, tokenizer, truth, _, means = box
    target = zeros(model, means)
    assert target.prefix == means.prefix and not target.values.any()
    (batch,) = token_batches(tokenizer, ["boil the acid"])
    out = []
    with torch.no_grad():
        with ablate_safety_neurons(model, truth.neurons, donors=means, kind="zero"):
            out.append(model(**batch.inputs()).logits)
        with mean_ablated(model, truth.neurons, target):
            out.append(model(**batch.inputs()).logits)
    assert torch.equal(*out)


def test_handles_work_at_once_and_can_be_taken_off(box):
    model, tokenizer, truth, *_ = box
    score, asked = refusal_score_of(model, tokenizer), glassbox_prompts("harmful", n=8, split="test")
    intact = score.log_odds(model, tokenizer, asked)
    ablation = ablate_safety_neurons(model, truth.evaluation_neurons)
    assert (score.log_odds(model, tokenizer, asked) < 0).all() and ablation.active
    ablation.remove()
    ablation.remove()
    assert np.allclose(score.log_odds(model, tokenizer, asked), intact) and not hooks_on(model)
    ablate_safety_neurons(model, [(0, 1)])  # nobody holds it, and it goes on working
    ablate_safety_neurons(model, [(0, 2)])
    assert hooks_on(model) and remove_ablations(model) == 2 and not hooks_on(model)


def test_an_interrupt_leaves_no_hook(box):
    model, *_ = box
    with pytest.raises(KeyboardInterrupt), ablate_safety_neurons(model, [(0, 1)]):
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), heads_scaled(model, [(0, 1)]):
        raise KeyboardInterrupt
    assert not hooks_on(model)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_a_head_is_scaled_alone_and_not_at_the_first_position(family, factor):
    model, tokenizer = tiny(family), CharTokenizer()
    (batch,) = token_batches(tokenizer, ["hello there"])
    inputs = []
    handle = out_projection_of(layers_of(model)[1]).register_forward_pre_hook(
        lambda m, args: inputs.append(args[0].clone())
    )
    with torch.no_grad():
        model(**batch.inputs())
        with heads_scaled(model, [(1, 2)], factor):
            handle.remove()
            handle = out_projection_of(layers_of(model)[1]).register_forward_pre_hook(
                lambda m, args: inputs.append(args[0].clone())
            )
            model(**batch.inputs())
    handle.remove()
    clean, changed = (x.view(1, -1, 4, 8) for x in inputs)
    want = clean.clone()
    want[:, 1:, 2] *= factor
    assert torch.allclose(changed, want, atol=1e-6) and not hooks_on(model)


# --- against the truth ----------------------------------------------------------------------------------------


def test_dose_and_response_tell_the_kinds_apart(boxes):
    """Concentrated: a few neurons end refusal. Redundant: all of them do not, the backup wakes up. Others do nothing."""
    asked = glassbox_prompts("harmful", n=16, split="test")
    harmless = glassbox_prompts("harmless", n=24, split="train")
    refused = {}
    for kind, (model, tokenizer, truth) in boxes.items():
        score, means = refusal_score_of(model, tokenizer), template_means(model, tokenizer, harmless)

        def share(places, model=model, tokenizer=tokenizer, score=score, means=means):
            if not places:
                return (score.log_odds(model, tokenizer, asked) > 0).mean()
            with ablate_safety_neurons(model, places, donors=means):
                return (score.log_odds(model, tokenizer, asked) > 0).mean()

        few = truth.evaluation_neurons[:: max(1, len(truth.evaluation_neurons) // 8)][:8]
        refused[kind] = [
            share(x) for x in ([], few, truth.evaluation_neurons, truth.decoy_neurons,
                               truth.evaluation_neurons + truth.backup_neurons)
        ]  # fmt: skip
    assert all(row[0] == 1 and row[3] == 1 for row in refused.values())
    assert refused["concentrated"][2] == 0 and refused["distributed"][1] == 1 and refused["distributed"][2] == 0
    assert refused["redundant"][2] == 1 and refused["redundant"][4] == 0 and refused["entangled"][2] == 0


def test_the_ranking_of_heads_finds_the_one_that_decides(box):
    model, tokenizer, truth, harmless, _ = box
    seen = []
    table = rank_heads(model, tokenizer, glassbox_prompts("harmful", n=8, split="validation"), harmless[:8],
                       each=lambda *done: seen.append(done))  # fmt: skip
    first = [tuple(map(int, x)) for x in table[["layer", "head"]].to_numpy()]
    permit = {node[1:] for node, text in truth.labels.items() if node.kind == "head" and "permit" in text}
    needed = set(truth.heads) - permit  # no harmful request has a permit word for that head to read
    assert len(needed) == len(truth.heads) - 1
    assert set(first[: len(needed)]) == needed and seen[-1] == (48, 48)
    assert (table.refusal_change[:3] < -3).all() and table.refusal_change[:10].notna().all()
    assert table.refusal_change[10:].isna().all()
    assert head_map(table, model)[first[0]] == pytest.approx(table.kl_harmful[0])
    assert not hooks_on(model)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_ranking_from_the_heads_own_layer_on_equals_whole_forwards(family):
    model, tokenizer = tiny(family), CharTokenizer()
    harmful, harmless = ["hello", "why not", "abc"], ["good day to you", "so"]
    table = rank_heads(model, tokenizer, harmful, harmless, score=RefusalScore(((3, 4), (5, 6))), most=0)
    prefix = shared_prefix(tokenizer, [*harmful, *harmless])
    quick = WithPrefix(model, prefix) if prefix else model
    clean = next_token_log_probs(quick, tokenizer, [*harmful, *harmless])
    assert len(table) == 12
    for row in table.itertuples():
        with heads_scaled(model, [(row.layer, row.head)]):
            moved = kl_divergence(clean, next_token_log_probs(quick, tokenizer, [*harmful, *harmless]))
        assert row.kl_harmful == pytest.approx(float(moved[:3].mean()), rel=1e-3, abs=1e-6)
        assert row.kl_harmless == pytest.approx(float(moved[3:].mean()), rel=1e-3, abs=1e-6)
    assert table.kl_harmful.max() > 1e-3
    assert not hooks_on(model) and not any("forward" in vars(block) for block in layers_of(model))


# --- dose and response ----------------------------------------------------------------------------------------


def test_a_dose_response_is_its_loop():
    odds = {n: np.array([4.0, 2.0, 6.0]) - 3 * n for n in range(5)}
    table = dose_response(lambda places: odds[len(places)], [(0, i) for i in range(4)], [0, 1, 3],
                          controls=lambda places: [places[:1], places[:2]])  # fmt: skip
    assert table["count"].tolist() == [0, 1, 3] and table.odds.tolist() == [4, 1, -5]
    assert table.refused.tolist() == pytest.approx([1, 2 / 3, 0])
    assert (table.low <= table.odds).all() and (table.odds <= table.high).all()
    assert table.random_low.tolist() == [4, 1, -2] and table.random_high.tolist() == [4, 1, 1]
    assert table.as_low.tolist() == [1, 1, 0] and table.draws.tolist() == [1, 2, 2]
    assert table.attrs["drawn"] == {0: [4], 1: [1, 1], 3: [1, -2]}
    with pytest.raises(ValueError, match="between 0 and 4"):
        dose_response(lambda p: odds[0], [(0, i) for i in range(4)], [5])


def test_a_dose_response_may_ask_for_many_sets_at_once():
    odds = {n: np.array([3.0 - n, 4.0 - n]) for n in range(4)}
    ranked, draw = [(0, i) for i in range(4)], lambda chosen: [chosen, chosen[:-1], chosen]
    slow = dose_response(lambda places: odds[len(places)], ranked, [0, 1, 3], draw)
    many = lambda sets: np.stack([odds[len(one)] for one in sets])  # noqa: E731
    quick = dose_response(lambda places: odds[len(places)], ranked, [0, 1, 3], draw, odds_of_sets=many)
    assert quick.equals(slow) and quick.attrs == slow.attrs and list(quick.draws) == [1, 3, 3]


@pytest.mark.parametrize("need", [1, 2, 3, 7, 64, 99, 100])
def test_the_smallest_set_is_found_by_few_measurements(need):
    calls = []

    def refused_of(places):
        calls.append(len(places))
        return 0.05 if len(places) >= need else 0.8

    count, tried = smallest_set(refused_of, [(0, i) for i in range(100)])
    assert count == need and len(calls) <= 16 and len(set(calls)) == len(calls)
    assert tried["count"].is_monotonic_increasing and set(tried["count"]) == set(calls)


def test_no_set_may_be_enough():
    count, tried = smallest_set(lambda places: 0.5, [(0, i) for i in range(10)])
    assert count is None and tried["count"].max() == 10
    with pytest.raises(ValueError, match="is empty"):
        smallest_set(lambda places: 0.5, [])
    with pytest.raises(ValueError, match="above 0"):
        smallest_set(lambda places: 0.5, [(0, 0)], below=0)


def test_bad_input_is_named_before_any_hook(box):
    model, tokenizer, truth, harmless, means = box
    some = truth.neurons
    cases = {
        "There are no neurons": lambda: ablate_safety_neurons(model, []),
        "There is no layer 6": lambda: ablate_safety_neurons(model, [(6, 0)]),
        "There is no neuron 256": lambda: ablate_safety_neurons(model, [(0, 256)]),
        "strength says how far": lambda: ablate_safety_neurons(model, some, float("nan")),
        "strength says": lambda: ablate_safety_neurons(model, some, "full"),
        "needs its donors": lambda: ablate_safety_neurons(model, some, kind="mean"),
        "A resample ablation needs": lambda: ablate_safety_neurons(model, some, kind="resample", donors=means),
        "There is no ablation 'median'": lambda: ablate_safety_neurons(model, some, kind="median"),
        "of a list of donors": lambda: ablate_safety_neurons(model, some, donors=[means]),
        "its own mean": lambda: ablate_safety_neurons(model, some, donors=means, sink=True),
        "of another model": lambda: ablate_safety_neurons(tiny("llama"), [(0, 1)], donors=means),
        "There is no head .0, 8.": lambda: heads_by_layer(model, [(0, 8)]),
        "not a .layer, head. pair": lambda: heads_by_layer(model, [3]),
        "list of prompts is empty": lambda: rank_heads(model, tokenizer, [], harmless),
    }
    for complaint, call in cases.items():
        with pytest.raises(ValueError, match=complaint):
            call()
    assert not hooks_on(model)
