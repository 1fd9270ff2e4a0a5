"""Tracing against the glass boxes' truth and against plain hooks; roles of tokens; bad input named before computing."""

import numpy as np
import pytest
import torch
from families import CharTokenizer, tiny

from helpers import joint, noise, tracing
from helpers.glassbox import glassbox_prompts, load_glassbox
from helpers.hooks import edit, patch, record
from helpers.prompts import chat_text, tokenize
from helpers.refusal import RefusalScore, refusal_score_of
from helpers.roles import equal_length, roles_of, template_ends
from helpers.statistics import bootstrap_interval

INTO_HARMFUL, INTO_BENIGN = tracing.DIRECTIONS
PAIRS = glassbox_prompts("pairs", n=24, split="test")
SIDES = [p.harmful for p in PAIRS], [p.harmless for p in PAIRS]


@pytest.fixture(scope="module")
def box():
    return load_glassbox("concentrated")


@pytest.fixture(scope="module")
def redundant():
    return load_glassbox("redundant")


def at(table, **wanted):
    """The refusal_change of the one row that fits."""
    for column, value in wanted.items():
        table = table[table[column] == value]
    assert len(table) == 1, wanted
    return float(table.refusal_change.iloc[0])


def test_heads_of_the_concentrated_box(box):
    model, tokenizer, truth = box
    table = tracing.CausalTracer(model, tokenizer).trace_safety_circuit(*SIDES, ["heads"])
    into_harmful = table[table.direction == INTO_HARMFUL]
    critical = {(row.layer, row.unit) for row in into_harmful[into_harmful.is_safety_critical].itertuples()}
    assert critical <= set(truth.heads) and set(truth.decision_components) <= critical
    # the decision head needs the evaluation neurons' own writes beside it: alone it is not enough
    (layer, head) = truth.decision_components[0]
    assert at(table, layer=layer, unit=head, direction=INTO_HARMFUL) > 0.9
    assert at(table, layer=layer, unit=head, direction=INTO_BENIGN) < 0.1


def test_self_repair_hides_a_true_component_in_one_direction(redundant):
    model, tokenizer, truth = redundant
    groups = {
        "main": truth.evaluation_neurons,
        "both": truth.evaluation_neurons + truth.backup_neurons,
        "decoys": truth.decoy_neurons,
    }
    table = tracing.CausalTracer(model, tokenizer).trace_safety_circuit(*SIDES, ["neurons"], neurons=groups)
    assert at(table, unit="main", direction=INTO_HARMFUL) < 0.1 < 0.9 < at(table, unit="main", direction=INTO_BENIGN)
    assert at(table, unit="both", direction=INTO_HARMFUL) > 0.9
    assert all(abs(at(table, unit="decoys", direction=d)) < 0.1 for d in tracing.DIRECTIONS)


def test_a_table_equals_plain_hooks_one_pair_at_a_time(box):
    model, tokenizer, _ = box
    score = refusal_score_of(model, tokenizer)
    few = SIDES[0][:3], SIDES[1][:3]
    table = tracing.CausalTracer(model, tokenizer, batch_size=2).trace_safety_circuit(*few, ["mlp_out"], "end", [4])
    for direction, (runs, donors) in zip(tracing.DIRECTIONS, (few, few[::-1]), strict=True):
        for position in (-2, -1):
            change = []
            for run, donor in zip(runs, donors, strict=True):
                ids, other = tokenize(tokenizer, chat_text(tokenizer, [run, donor]))
                with record(model, ["mlp_out"], [4]) as seen:
                    model(torch.tensor([other]))
                value = seen["mlp_out"][4][0, position]
                before = score.log_odds(model, tokenizer, [run])[0]
                opening = list(score.openings[0])
                with patch(model, "mlp_out", 4, value, positions=[len(ids) + position]):
                    logits = model(torch.tensor([ids + opening[:-1]])).logits[0].log_softmax(-1)
                log_p = sum(logits[len(ids) - 1 + i, token] for i, token in enumerate(opening))
                after = float(log_p - torch.log(-torch.expm1(log_p)))
                moved = tracing.probability(after) - tracing.probability(before)
                change.append(moved if direction == INTO_BENIGN else -moved)
            assert at(table, direction=direction, position=position) == pytest.approx(np.mean(change), abs=1e-4)


def test_everything_exchanged_is_the_donors_run(box):
    model, tokenizer, _ = box
    tracer = tracing.CausalTracer(model, tokenizer)
    for one in tracer.trace(*SIDES, ["resid_pre"], "all", [0]):
        assert np.allclose(one.patched[0], one.donor, atol=1e-3)
    table = tracer.trace_safety_circuit(*SIDES, ["resid_pre"], "all", [0])
    assert np.allclose(table.share_of_gap, 1, atol=1e-3)


def test_controls_take_donors_of_the_same_class(box):
    model, tokenizer, _ = box
    table = tracing.CausalTracer(model, tokenizer).trace_safety_circuit(
        *SIDES, ["attn_out"], "last", [0, 3], controls=5
    )
    assert (table.controls == 5).all() and (table.control_low <= table.control_high).all()
    assert table.control_change.abs().max() < 0.2 < table.refusal_change.max()


def test_intervals_are_those_of_one_place_at_a_time():
    values = np.random.default_rng(3).normal(size=(7, 12))
    values[1:4, 2], values[5] = np.nan, np.nan
    low, high = tracing._intervals(values)
    for i, row in enumerate(values):
        expected = bootstrap_interval(row[~np.isnan(row)]) if i != 5 else (np.nan, np.nan)
        assert (low[i], high[i]) == pytest.approx(expected, nan_ok=True)


def test_two_heads_together_show_what_each_hides(redundant):
    model, tokenizer, truth = redundant
    (decision,), (backup,) = truth.decision_components, [h for h in truth.backup_heads if h[0] == 4]
    heads = [truth.decoy_heads[0], decision, backup]
    found = joint.joint_changes(model, tokenizer, *SIDES, heads)
    assert np.allclose(found, found.T) and found[1, 2] > 0.9
    assert np.abs(found[[0, 0, 0, 1, 2], [0, 1, 2, 1, 2]]).max() < 0.1
    table = tracing.CausalTracer(model, tokenizer).trace_safety_circuit(*SIDES, ["heads"])
    alone = [at(table, layer=layer, unit=head, direction=INTO_HARMFUL) for layer, head in heads]
    assert np.allclose(np.diag(found), alone, atol=1e-4)
    back = joint.joint_changes(model, tokenizer, *SIDES, heads, INTO_BENIGN)
    alone = [at(table, layer=layer, unit=head, direction=INTO_BENIGN) for layer, head in heads]
    assert np.allclose(np.diag(back), alone, atol=1e-4)
    for groups, words in (([[(0, 8)]], "no head 8"), ([[(6, 0)]], "no layer 6"), ([[]], "no head"), ([], "no head")):
        with pytest.raises(ValueError, match=words):
            joint.trace_head_groups(model, tokenizer, *SIDES, groups)
    with pytest.raises(ValueError, match="no direction 'up'"):
        joint.joint_changes(model, tokenizer, *SIDES, heads, "up")


def test_order_and_batches_do_not_matter(box):
    model, tokenizer, _ = box
    tables = [
        tracing.CausalTracer(model, tokenizer, batch_size=b).trace(*SIDES, ["attn_out"], "map", [0, 3]) for b in (5, 24)
    ]
    for one, other in zip(*tables, strict=True):
        assert np.allclose(one.patched, other.patched, atol=1e-3, equal_nan=True)
        assert np.allclose(one.baseline, refusal_score_of(model, tokenizer).log_odds(model, tokenizer, SIDES[one is tables[0][1]]), atol=1e-3)  # fmt: skip


# --- roles --------------------------------------------------------------------------------------------------


def test_roles_of_tokens():
    tokenizer = CharTokenizer()
    assert template_ends(tokenizer) == (1, 1)
    roles = roles_of(tokenizer, ["how xx now", "a b"], ["how yz now", "a c"], "map")
    assert roles.labels == ["differing words", "words after", -1]
    first, second = roles.columns([0, 1], 12)[0].unbind(1)
    assert first.nonzero().tolist() == [[0, 5], [0, 6], *[[1, i] for i in range(7, 11)], [2, 11]]
    assert second.nonzero().tolist() == [[0, 10], [2, 11]]  # nothing comes after the word that differs
    some = roles_of(tokenizer, ["how xx now", "a b"], ["how yz now", "a c"], [-1, "differing words"])
    assert some.labels == [-1, "differing words"] and torch.equal(
        some.columns([0, 1], 12)[0][1], roles.columns([0, 1], 12)[0][0]
    )
    with pytest.raises(ValueError, match="no place 'end'.*'words after', -1"):
        roles_of(tokenizer, ["how xx now"], ["how yz now"], ["end", -1])
    whole = roles_of(tokenizer, ["how xx now"], ["how yz now"], "roles").columns([0], 12)[1][:, 0]
    assert whole.int().sum(-1).tolist() == [1, 10, 1]


def test_pairs_of_unequal_length_are_refused_or_aligned_from_the_end():
    model, tokenizer = tiny("llama"), CharTokenizer()
    tracer = tracing.CausalTracer(model, tokenizer, RefusalScore(((3, 4),)), quick=True)
    with pytest.raises(ValueError, match=r"Pair 1 has 5 tokens .* 6 in its benign .*positions='end'.*equal_length"):
        tracer.trace(["abc", "abc"], ["abd", "abcd"], positions="all")
    (one, _) = tracer.trace(["abc", "abc"], ["abd", "abcd"], ["resid_post"], "last", [2])
    assert np.allclose(one.patched, one.donor, atol=1e-4)

    class Pair:
        def __init__(self, harmful, harmless):
            self.harmful, self.harmless = harmful, harmless

    pairs = [Pair("abc", "abd"), Pair("abc", "ab"), Pair("xy", "yy")]
    assert equal_length(tokenizer, pairs) == [pairs[0], pairs[2]] and equal_length(tokenizer, pairs, 1) == pairs[:1]


def test_bad_input_is_named_before_computing(box):
    model, tokenizer, _ = box
    tracer = tracing.CausalTracer(model, tokenizer)
    for arguments, words in (
        ((["a"], ["b", "c"]), "1 harmful and 2 benign"),
        (([], []), "empty"),
        ((["a"], ["a"], ["attn_out"], "all"), "the same"),
        ((["a"], ["b"], "attn_out"), "not one string"),
        ((["a"], ["b"], ["mlp"]), "no component 'mlp'"),
        ((["a"], ["b"], ["mlp_out"], "first"), "no positions 'first'"),
        ((["a"], ["b"], ["mlp_out"], [0]), "count from the end"),
        ((["a"], ["b"], ["mlp_out"], "last", [6]), "no layer 6"),
        ((["a"], ["b"], ["mlp_out"], "last", [0], ["up"]), "no direction"),
        ((["a"], ["b"], ["neurons"]), "neurons="),
    ):
        with pytest.raises(ValueError, match=words):
            tracer.trace(*arguments)
    with pytest.raises(ValueError, match="no neuron 999"):
        tracer.trace(["a"], ["b"], ["neurons"], neurons={"x": [(0, 999)]})


# --- noise --------------------------------------------------------------------------------------------------


def test_mending_a_twin_is_tracing_into_the_benign_run(box):
    model, tokenizer, _ = box
    table = noise.trace_corrupted(model, tokenizer, *SIDES, positions="last", corruptions=["twin"])
    traced = tracing.CausalTracer(model, tokenizer).trace_safety_circuit(*SIDES, directions=[INTO_BENIGN])
    assert np.allclose(table.share_of_gap, traced.share_of_gap, atol=1e-3)


def test_noise_is_on_the_request_alone_and_mending_all_layers_mends_it(box):
    model, tokenizer, _ = box
    few = SIDES[0][:6], SIDES[1][:6]
    table = noise.trace_corrupted(
        model, tokenizer, *few, ["resid_post"], "last", (1, 3), corruptions=["noise"], draws=2
    )
    assert set(table.window) == {1, 3} and len(table) == 12
    assert (table.corrupted < table.intact - 1).all()
    top = table[table.layer == 5]
    assert np.allclose(top.share_of_gap, 1, atol=0.05)  # the last block's output at the last token is the answer
    some = noise.trace_corrupted(model, tokenizer, *few, ["resid_post"], "last", (3,), [1, 5], ["noise"], draws=2)
    same = table[(table.window == 3) & table.layer.isin([1, 5])]
    assert np.allclose(some.share_of_gap, same.share_of_gap, atol=1e-5)
    assert list(noise.window_of(0, 3, 6)) == [0, 1] and list(noise.window_of(3, 3, 6)) == [2, 3, 4]
    assert list(noise.window_of(5, 1, 6)) == [5]
    for bad in (
        {"scale": 0},
        {"draws": 0},
        {"windows": (0,)},
        {"corruptions": ["dropout"]},
        {"components": ["mlp"]},
        {"layers": [6]},
        {"layers": []},
        {"components": []},
    ):
        with pytest.raises(ValueError):
            noise.trace_corrupted(model, tokenizer, *few, **bad)


def test_an_error_in_the_middle_leaves_no_hook_behind(box, monkeypatch):
    model, tokenizer, _ = box
    monkeypatch.setattr("helpers.sweep.log_probs", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tracing.CausalTracer(model, tokenizer).trace(*SIDES)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    with edit(model, []):
        pass
