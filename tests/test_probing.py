"""Probes: the batched solver against scikit-learn, folds by topic, controls that can be learned, erasure, heads."""

import numpy as np
import pytest
import torch
from families import CharTokenizer, tiny
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from helpers import probing as P
from helpers.control_tasks import bag_of_words, control_labels, recurring, surface_types
from helpers.erasure import erase, leace
from helpers.glassbox import glassbox_prompts, load_glassbox
from helpers.head_probes import probe_heads, read_heads, steer_heads
from helpers.hooks import edit, read, record
from helpers.logistic import fit_logistic
from helpers.models import out_projection_of
from helpers.prompts import CACHE, chat_text, load_pairs, tokenize
from helpers.shared_prefix import WithPrefix


def data(n=60, d=100, sites=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(sites, n, d, generator=g) * torch.rand(d, generator=g).mul(5) + 3
    y = (torch.arange(n) % 2).float()
    x[1, :, 0] += 4 * y
    x[2, :, 5] = 7  # a channel that never moves
    return x, y


@pytest.mark.parametrize("d", [8, 100])
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_all_probes_equal_scikit_learns(d, C):
    x, y = data(d=d)
    folds = torch.arange(60) // 2 % 5
    train = folds[None] != torch.arange(5)[:, None]
    labels = torch.stack([y, (torch.arange(60) // 3 % 2).float()])
    fits = fit_logistic(x, labels, train, C)
    for k, s, f in np.ndindex(2, 3, 5):
        scaler = StandardScaler().fit(x[s, train[f]].double())
        model = LogisticRegression(C=C, tol=1e-10, max_iter=20_000)
        model.fit(scaler.transform(x[s, train[f]].double()), labels[k, train[f]])
        decisions = model.decision_function(scaler.transform(x[s].double()))
        assert np.allclose(fits.decisions[k, s, f], decisions, rtol=2e-3, atol=2e-3)
        assert np.allclose(fits.weights[k, s, f], model.coef_[0] / scaler.scale_, rtol=2e-3, atol=2e-3)
        again = x[s] @ fits.weights[k, s, f] + fits.bias[k, s, f]
        assert torch.allclose(again, fits.decisions[k, s, f], atol=2e-3, rtol=1e-3)


def test_no_topic_is_in_two_folds_and_folds_are_even():
    topics = [f"t{i // 2}" for i in range(46)]
    folds = P.topic_folds(topics, 5)
    assert all(len({f for f, t in zip(folds, topics, strict=True) if t == name}) == 1 for name in topics)
    assert np.ptp(np.bincount(folds)) <= 2


def test_held_out_decisions_come_from_a_probe_that_did_not_see_them():
    x, y = data()
    folds = P.topic_folds([i // 2 for i in range(60)])
    held = P.held_out_decisions(x, y, folds)
    spoiled = x.clone()
    spoiled[:, 0] += 50  # prompt 0 must not move the decision on the others of its fold
    others = (folds == folds[0]) & (np.arange(60) != 0)
    assert torch.allclose(P.held_out_decisions(spoiled, y, folds)[:, others], held[:, others], atol=1e-4)


def test_swaps_keep_pairs_whole():
    topics = [i % 10 for i in range(20)]
    labels = (torch.arange(20) >= 10).long()
    drawn = P.swapped_labels(labels, topics, 50)
    assert drawn.shape == (50, 20) and (drawn[:, :10] + drawn[:, 10:] == 1).all()
    assert 0.3 < (drawn[:, 10:] == 0).float().mean() < 0.7


def test_control_labels_belong_to_types_that_recur():
    types, topics = ["a", "a", "b", "b", "c", "d", "d"], [0, 1, 2, 3, 4, 5, 5]
    labels, keep = control_labels(types, topics, 4)
    assert keep.tolist() == [True] * 4 + [False] * 3 == recurring(types, topics).tolist()
    assert (labels[:, 0] == labels[:, 1]).all() and (labels[:, 0] != labels[:, 2]).all()
    with pytest.raises(ValueError, match="two or more surface types"):
        control_labels(["a", "b", "c"], [0, 1, 2])


def test_a_control_task_can_be_learned_where_its_types_can_be_read():
    rng = torch.Generator().manual_seed(0)
    kind = torch.arange(120) // 2 % 6
    x = torch.eye(6)[kind][None] * 5 + torch.randn(1, 120, 6, generator=rng)
    topics, y = [i // 2 for i in range(120)], (torch.arange(120) % 2).float()
    table = P.probe_table(x, y, topics, kind.tolist(), C=1.0, permutations=19)
    assert table.control_accuracy[0] > 0.9 and table.accuracy[0] < 0.7 and not table.above_chance[0]
    assert table.selectivity[0] == pytest.approx(table.accuracy[0] - table.control_accuracy[0])


def test_frames_of_the_course_are_recognised():
    pairs = load_pairs("validation")[:20]
    assert surface_types([p.harmful for p in pairs]) == surface_types([p.harmless for p in pairs])
    assert surface_types(["Why on earth"]) == ["why on"]
    assert bag_of_words(["a red dog", "red red cat"]).sum(0).max() == 2


def test_the_mean_runs_over_the_request_alone():
    for model, tokenizer, prompts in (
        (tiny("llama"), CharTokenizer(), ["hello", "ab", "why not"]),
        (*load_glassbox()[:2], glassbox_prompts("harmful", n=3)),
    ):
        got = P.read_request_mean(model, tokenizer, prompts)
        for i, prompt in enumerate(prompts):
            before, after = P.request_span(tokenizer, prompt)
            row = tokenize(tokenizer, chat_text(tokenizer, [prompt]))[0]
            assert row[before : len(row) - after] == tokenize(tokenizer, [prompt])[0]
            with torch.no_grad(), record(model, ["resid_pre"]) as seen:
                model(torch.tensor([row]))
            for layer, x in seen["resid_pre"].items():
                assert torch.allclose(got[i, layer], x[0, before : len(row) - after].mean(0), atol=1e-4)


# --- against the truth ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def box():
    model, tokenizer, truth = load_glassbox("concentrated")
    pairs = glassbox_prompts("pairs", n=96, split="train")
    return model, tokenizer, truth, pairs


def test_the_box_is_read_where_its_truth_says(box):
    model, tokenizer, truth, pairs = box
    table = P.probe_for_safety(
        model, tokenizer, [p.harmless for p in pairs], [p.harmful for p in pairs],
        topics=[p.topic for p in pairs], types=[p.template for p in pairs] * 2, permutations=39,
    )  # fmt: skip
    first = min(layer for layer, _ in truth.evaluation_neurons)
    assert table.accuracy[0] < 0.6 and not table.above_chance[0]
    assert (table.accuracy[first + 2 :] > 0.9).all() and table.above_chance[first + 2 :].all()
    assert (table.low <= table.accuracy).all() and (table.high >= table.accuracy).all()


def test_erasure_leaves_nothing_to_a_linear_probe_and_little_else_changes():
    x, y = data(n=300, d=20)
    for shrinkage in (0.0, 0.2):
        eraser = leace(x[1], y, shrinkage)
        clean = eraser(x[1])
        assert torch.allclose(clean[y == 1].mean(0), clean[y == 0].mean(0), atol=1e-3)
        assert torch.allclose(clean.mean(0), x[1].mean(0), atol=1e-3)
        # exact: the loss of the best probe is that of a coin
        probe = LogisticRegression(C=1e6, max_iter=5000).fit(StandardScaler().fit_transform(clean), y)
        assert np.abs(probe.coef_).max() < 1e-2
        assert torch.allclose(eraser(clean), clean, atol=1e-3)
    # against the general formula of the paper: x - W+ P W (x - mean)
    a = x[1].double() - x[1].double().mean(0)
    values, vectors = torch.linalg.eigh(a.T @ a / len(a))
    w = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    cross = w @ (a.T @ (y - y.mean()).double())[:, None]
    p = cross @ torch.linalg.pinv(cross)
    assert torch.allclose(leace(x[1], y)(x[1]).double(), x[1] - a @ (torch.linalg.inv(w) @ p @ w).T, atol=1e-3)


def test_erasure_in_a_model_touches_one_position_and_goes_away():
    model, tokenizer = tiny("llama"), CharTokenizer()
    prompts = ["hello", "abcde", "zzzzz", "why n"]
    x = read(model, tokenizer, prompts, ["resid_pre"])["resid_pre"]
    eraser = leace(x[:, 1], torch.tensor([0, 1, 0, 1]), 0.1)
    ids = torch.tensor(tokenize(tokenizer, chat_text(tokenizer, prompts)))
    before = model(ids).logits
    with erase(model, "resid_pre", {1: eraser}), record(model, ["resid_pre"], [1, 2]):
        after = model(ids).logits
    assert not torch.allclose(before[:, -1], after[:, -1]) and torch.allclose(before[:, :-1], after[:, :-1], atol=1e-5)
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_steering_adds_to_the_heads_that_were_named(family):
    model, tokenizer = tiny(family), CharTokenizer()
    prompts = ["hello", "abcde", "zzzzz", "why n", "12345", "other"]
    z = read_heads(model, tokenizer, prompts)
    probes = probe_heads(z, torch.tensor([0, 1] * 3), [0, 0, 1, 1, 2, 2], folds=3)
    ids = torch.tensor(tokenize(tokenizer, chat_text(tokenizer, prompts[:1])))
    with steer_heads(model, probes, [(1, 2)], 3.0), record(model, ["z"], [1]) as seen:
        model(ids)
    change = seen["z"][1][0, -1].view(4, -1) - z[0, 1]
    assert torch.allclose(change[2], 3 * probes.sigma[1, 2] * probes.direction[1, 2], atol=1e-4)
    assert change[[0, 1, 3]].abs().max() < 1e-4
    caught = []
    from helpers.models import layers_of

    handle = out_projection_of(layers_of(model)[1]).register_forward_pre_hook(lambda m, a: caught.append(a[0]))
    model(ids)
    handle.remove()
    assert torch.allclose(caught[0][0, -1].view(4, -1), z[0, 1], atol=1e-4)


def test_detection_and_decision_heads_are_read(box):
    model, tokenizer, truth, pairs = box
    prompts = [p.harmless for p in pairs] + [p.harmful for p in pairs]
    labels = torch.cat([torch.zeros(96), torch.ones(96)])
    z = read_heads(model, tokenizer, prompts)
    probes = probe_heads(z, labels, [p.topic for p in pairs] * 2)
    assert all(probes.accuracy[place] > 0.9 for place in truth.decision_components)


# --- bad input ------------------------------------------------------------------------------------------------

SAFE, UNSAFE = ["hello a", "hello b", "why a", "why b", "ok c"], ["x a", "x b", "y a", "y b", "z z"]
BAD = {
    "Probing needs pairs": lambda m, t: P.probe_for_safety(m, t, SAFE, UNSAFE[:2]),
    "one prompt for a|Give a list of prompts": lambda m, t: P.probe_for_safety(m, t, "hello", UNSAFE),
    "take it out of one list": lambda m, t: P.probe_for_safety(m, t, SAFE, SAFE),
    "cannot fill 9 folds": lambda m, t: P.probe_for_safety(m, t, SAFE, UNSAFE, folds=9),
    "two or more surface types": lambda m, t: P.probe_for_safety(m, t, SAFE, UNSAFE, types=list(range(10))),
    "There is no site": lambda m, t: P.probe_for_safety(m, t, SAFE, UNSAFE, site="mlp"),
    "one topic for each pair": lambda m, t: P.probe_for_safety(m, t, SAFE, UNSAFE, topics=[1, 2]),
    "There is no position": lambda m, t: P.read_at(m, t, SAFE, "end"),
    "all of one class|of one class": lambda m, t: P.held_out_decisions(torch.randn(1, 6, 2), torch.zeros(6), [0, 1] * 3),
    "both classes": lambda m, t: leace(torch.randn(4, 3), torch.ones(4)),
    "not finite": lambda m, t: fit_logistic(torch.full((1, 4, 2), torch.nan), torch.tensor([[0, 1, 0, 1]]), torch.ones(1, 4)),
    "above 0": lambda m, t: fit_logistic(torch.randn(1, 4, 2), torch.tensor([[0, 1, 0, 1]]), torch.ones(1, 4), C=0),
}  # fmt: skip


@pytest.mark.parametrize("complaint", BAD)
def test_bad_input_is_named(complaint, monkeypatch):
    model = tiny("llama")
    monkeypatch.setattr(type(model.model), "forward", lambda *a, **k: 1 / 0)
    with pytest.raises(ValueError, match=complaint):
        BAD[complaint](model, CharTokenizer())


def test_steering_reaches_the_prompts_end_and_every_token_of_a_long_answer():
    """Against one whole forward, steered by hand; and a shared beginning that nobody was told of is an error, not silence."""
    model, tokenizer = tiny("llama"), CharTokenizer()
    prompts = ["hello", "abcde", "zzzzz", "why n", "12345", "other"]
    probes = probe_heads(read_heads(model, tokenizer, prompts), torch.tensor([0, 1] * 3), [0, 0, 1, 1, 2, 2], folds=3)
    (row,), answer = tokenize(tokenizer, chat_text(tokenizer, prompts[:1])), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    ids, n = torch.tensor([row + answer]), len(row)
    where = torch.arange(ids.shape[1]) >= n - 1
    push = torch.zeros(4, probes.direction.shape[-1])
    push[2] = 3 * probes.sigma[1, 2] * probes.direction[1, 2]
    with torch.no_grad(), edit(model, [("z", 1, lambda x: x + where[None, :, None] * push.flatten())]):
        whole = model(ids).logits

    def in_two(model, prefix):
        mask, place = torch.ones_like(ids), torch.arange(ids.shape[1])[None]
        with torch.no_grad(), steer_heads(model.model, probes, [(1, 2)], 3.0, prefix=prefix):
            first = model(input_ids=ids[:, :n], attention_mask=mask[:, :n], position_ids=place[:, :n], use_cache=True)
            then = model(
                input_ids=ids[:, n:],
                attention_mask=mask,
                position_ids=place[:, n:],
                use_cache=True,
                **{CACHE: first[CACHE]},
            )
        return torch.cat([first.logits[:, -1:], then.logits], 1)

    quick = WithPrefix(model, row[:4])
    assert torch.allclose(in_two(quick, prefix=4), whole[:, n - 1 :], atol=1e-4)
    with pytest.raises(ValueError, match="give prefix=meter.prefix"):
        in_two(quick, prefix=0)
    with (
        pytest.raises(ValueError, match="counted from the prompt's end"),
        steer_heads(model, probes, [(1, 2)], 1.0, position=3),
    ):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
