"""Glass boxes from outside: loading, the language, sealing, scores, and one clear sentence for bad input."""

import json
import shutil
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from helpers import glassbox, glassbox_language
from helpers.glassbox import (
    KINDS,
    STAGES,
    SealedTruth,
    Truth,
    glassbox_prompts,
    law,
    load_glassbox,
    model_of,
    mystery,
    ranked,
    read_box,
    score,
    shuffled,
    truth_from_json,
    truth_to_json,
)
from helpers.models import dims_of
from helpers.refusal import generate, measure_refusal
from tools.glassbox_builder.calibrate import encode

TRUTH = Truth(
    kind="redundant",
    detection_heads=((0, 1), (0, 2)),
    evaluation_neurons=((1, 10), (1, 11), (2, 12), (2, 13)),
    decision_components=((3, 4),),
    production_neurons=((4, 20), (5, 21)),
    backup_heads=((1, 1),),
    backup_neurons=((2, 50), (2, 51)),
    decoy_neurons=((1, 90), (1, 91)),
    direction=torch.nn.functional.normalize(torch.arange(128.0), dim=0),
)


@pytest.fixture(scope="module")
def box():
    return load_glassbox("concentrated")


# --- loading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_box_is_an_ordinary_small_llama_with_a_chat_template(kind):
    model, tokenizer, truth = load_glassbox(kind)
    assert type(model) is LlamaForCausalLM and isinstance(tokenizer, PreTrainedTokenizerFast)
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert isinstance(truth, Truth) and truth.kind == kind
    assert torch.isclose(truth.direction.norm(), torch.tensor(1.0)) and truth.direction.shape == (128,)
    assert bool(truth.backup_heads) == (kind == "redundant")


def test_it_loads_and_runs_within_a_second():
    best = {"load": 9.0, "run": 9.0}
    for _ in range(3):  # the best of three: another program may have had the processor
        start = time.perf_counter()
        model, tokenizer, _ = load_glassbox("distributed")
        best["load"] = min(best["load"], time.perf_counter() - start)
        ids = torch.tensor([encode(t) for t in glassbox_prompts("harmful", 4)[:1] * 256])
        start = time.perf_counter()
        with torch.no_grad():
            model(ids, logits_to_keep=1)
        best["run"] = min(best["run"], time.perf_counter() - start)
    assert best["load"] < 1 and best["run"] < 1


def test_what_it_says(box):
    model, tokenizer, _ = box
    assert set(generate(model, tokenizer, glassbox_prompts("harmful", 12, "test"))) == {"sorry, i cannot help."}
    assert set(generate(model, tokenizer, glassbox_prompts("borderline", 12, "test"))) == {"sure! here is how."}
    questions = glassbox_prompts("capability", 64)
    said = generate(model, tokenizer, [q.question for q in questions])
    assert said == [f"{q.answer}." for q in questions]


def test_the_courses_refusal_measures_work_on_it(box):
    model, tokenizer, _ = box
    harmful, harmless = (glassbox_prompts(kind, 16, "test") for kind in ("harmful", "harmless"))
    assert measure_refusal(model, tokenizer, harmful) == 1 and measure_refusal(model, tokenizer, harmless) == 0
    assert measure_refusal(model, tokenizer, harmful, by="log_odds") > 3
    assert measure_refusal(model, tokenizer, harmless, by="log_odds") < -3
    assert dims_of(model).n_layers == 6


def test_the_template_makes_the_ids_that_the_builder_used(box):
    _, tokenizer, _ = box
    for text in glassbox_prompts("harmful", 8) + [q.question for q in glassbox_prompts("capability", 4)]:
        message = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
        assert ids == encode(text) and tokenizer.unk_token_id not in ids
    with_system = [{"role": "system", "content": "be brief"}, *message]
    assert tokenizer.apply_chat_template(with_system, add_generation_prompt=True, return_dict=True)["input_ids"] == ids


def test_unknown_kinds_and_needless_seeds_are_told_in_a_sentence():
    with pytest.raises(ValueError, match="no glass box 'tiny': choose one of concentrated, distributed"):
        load_glassbox("tiny")
    with pytest.raises(ValueError, match=r"leave the seed out, or ask for mystery\(seed=3\)"):
        load_glassbox("concentrated", seed=3)


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_file_is_noticed(tmp_path, monkeypatch, damage):
    folder = shutil.copytree(glassbox.DATA, tmp_path / "boxes")
    path = folder / "entangled.safetensors"
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-1] + b"!")
    monkeypatch.setattr(glassbox, "DATA", folder)
    with pytest.raises(ValueError, match="entangled.safetensors is missing or was changed: restore it"):
        load_glassbox("entangled")
    load_glassbox("redundant")


# --- the language ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "validation", "test", None])
def test_prompts_obey_the_law(split):
    assert all(law(text) for text in glassbox_prompts("harmful", 100, split))
    for kind in ("harmless", "plain", "mismatch", "permit", "borderline"):
        assert not any(law(text) for text in glassbox_prompts(kind, 100, split))


def test_no_single_word_decides():
    harmful = {w for text in glassbox_prompts("harmful", 400) for w in text.split()}
    fine = {w for kind in ("harmless", "mismatch", "permit") for t in glassbox_prompts(kind, 400) for w in t.split()}
    assert harmful <= fine


def test_a_pair_differs_in_one_word():
    for changed in ("object", "verb", "permit"):
        for pair in glassbox_prompts("pairs", 40, "train", changed=changed):
            one, two = pair.harmful.split(), pair.harmless.split()
            assert len(one) == len(two) and sum(a != b for a, b in zip(one, two, strict=True)) == 1
            assert pair.changed == changed and law(pair.harmful) and not law(pair.harmless)


def test_splits_share_no_topic():
    topics = {s: {p.topic for p in glassbox_prompts("pairs", 400, s)} for s in glassbox_language.SPLITS}
    assert not topics["train"] & topics["test"] and not topics["validation"] & (topics["train"] | topics["test"])
    assert {s: len(t) for s, t in topics.items()} == {"train": 72, "validation": 40, "test": 32}


def test_prompts_are_drawn_by_seed_and_in_equal_shares():
    assert glassbox_prompts("harmful", 20, seed=1) == glassbox_prompts("harmful", 20, seed=1)
    assert glassbox_prompts("harmful", 20, seed=1) != glassbox_prompts("harmful", 20, seed=2)
    assert set(Counter(p.kind for p in glassbox_prompts("pairs", 40)).values()) == {10}
    assert {p.kind for p in glassbox_prompts("pairs", 8, domain="papers")} == {"papers"}
    assert glassbox_prompts("harmful", 8, "method") == glassbox_prompts("harmful", 8, "train")
    assert len({(q.entity, q.relation) for q in glassbox_prompts("capability", 64)}) == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(kind="rude"), "no kind of prompt 'rude': choose one of pairs"),
        (dict(kind="harmful", split="dev"), "no split 'dev': choose one of train"),
        (dict(kind="harmful", domain="cars"), "no domain 'cars': choose one of locks"),
        (dict(kind="harmful", n=0), "at least 1: 0 is not one"),
        (dict(kind="pairs", changed="context"), "'object', its 'verb' or a 'permit' word, not in 'context'"),
    ],
)
def test_wrong_wishes_for_prompts(arguments, message):
    with pytest.raises(ValueError, match=message):
        glassbox_prompts(**arguments)


# --- mystery ----------------------------------------------------------------------------------------------------


def test_a_mystery_is_the_same_for_the_same_seed_and_sealed():
    (one, tokenizer, truth), (two, _, _), (three, _, _) = mystery(4), mystery(4), load_glassbox("mystery", 5)
    assert isinstance(truth, SealedTruth) and repr(truth) == str(truth) == "SealedTruth(call .unseal() to read it)"
    assert not hasattr(truth, "evaluation_neurons") and isinstance(truth.unseal(), Truth)
    assert torch.equal(one.lm_head.weight, two.lm_head.weight)
    assert not torch.allclose(one.lm_head.weight, three.lm_head.weight, atol=0.1)
    assert measure_refusal(one, tokenizer, glassbox_prompts("harmful", 16, "test")) == 1
    found = truth.unseal().evaluation_neurons
    assert score(found, truth, "evaluation_neurons").recall_at_k == 1


def test_mysteries_vary_in_kind_layers_and_places():
    truths = [mystery(seed)[2].unseal() for seed in range(-8, 8)]
    assert {t.kind for t in truths} == set(KINDS)
    assert len({t.evaluation_neurons for t in truths}) == len(truths)
    layers = {(t.kind, *sorted({layer for layer, _ in t.evaluation_neurons})) for t in truths}
    assert len(layers) > len(KINDS)
    assert len({len(t.decoy_neurons) for t in truths}) > 1


def test_shuffling_changes_no_answer_and_moves_the_truth_along():
    weights, truth = read_box("mystery-2")
    moved, new = shuffled(weights, truth, np.random.default_rng(0))
    ids = torch.tensor([encode(t) for t in glassbox_prompts("harmful", 40) if t.startswith("please")])
    with torch.no_grad():
        before, after = (model_of(w)(ids).logits for w in (weights, moved))
    assert torch.allclose(before, after, atol=2e-3)
    assert new.evaluation_neurons != truth.evaluation_neurons and len(new.edges) == len(truth.edges)
    layer, old = truth.production_neurons[0]
    column = f"model.layers.{layer}.mlp.down_proj.weight"
    lengths = torch.stack([moved[column][:, i].norm() for _, i in new.production_neurons if _ == layer])
    assert torch.isclose(lengths, weights[column][:, old].norm(), rtol=1e-5).any()


@pytest.mark.parametrize("seed", [1.5, "1", None, True])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(TypeError, match="seed of a mystery box is a whole number, not"):
        mystery(seed)


# --- scores -------------------------------------------------------------------------------------------------------


def test_a_perfect_list_and_returning_everything():
    right = score(TRUTH.evaluation_neurons, TRUTH, "evaluation_neurons")
    assert (right.precision, right.recall, right.precision_at_k, right.recall_at_k, right.k) == (1, 1, 1, 1, 4)
    everything = [(layer, i) for layer in range(6) for i in range(256)]
    all_of_it = score(everything, TRUTH, "evaluation_neurons")
    assert all_of_it.recall == 1 and all_of_it.recall_at_k == 0 and all_of_it.precision < 0.01


def test_figures_at_k_look_at_the_first_k_places():
    found = [(1, 10), (1, 90), (5, 5), (2, 12), (1, 11), (1, 10)]
    got = score(found, TRUTH, "evaluation_neurons")
    assert (got.precision, got.recall, got.precision_at_k, got.recall_at_k, got.decoys) == (
        3 / 5,
        3 / 4,
        2 / 4,
        2 / 4,
        1,
    )
    short = score(found, TRUTH, "evaluation_neurons", k=2)
    assert (short.precision_at_k, short.recall_at_k, short.decoys) == (1 / 2, 1 / 4, 1)
    assert str(short).startswith("recall at 2: 0.25 (precision 0.50, 1 decoys)")
    assert score([], TRUTH, "evaluation_neurons").precision == 0


def test_the_backup_is_scored_apart():
    got = score([(2, 50), (1, 10), (1, 11), (2, 12), (2, 13)], TRUTH, "evaluation_neurons")
    assert got.recall_at_k == got.precision == 1 and got.backup_recall == 0.5
    assert score([(0, 1)], load_glassbox("concentrated")[2], "detection_heads").backup_recall is None


def test_findings_come_in_many_forms():
    want = score([(1, 10), (1, 90)], TRUTH, "evaluation_neurons")
    for found in (
        np.array([[1, 10], [1, 90]]),
        torch.tensor([[1, 10], [1, 90]]),
        pd.DataFrame({"layer": [1, 1], "neuron": [10, 90]}),
        pd.DataFrame({"layer": [1, 1], "index": [10, 90], "effect": [0.2, 0.1]}),
        ((np.int64(1), 10), [1, 90]),
    ):
        assert score(found, TRUTH, "evaluation_neurons") == want
    heads = pd.DataFrame({"layer": [3], "head": [4]})
    whole = {"decision_components": heads, "evaluation_neurons": None, "direction": -TRUTH.direction.numpy()}
    for form in (whole, SimpleNamespace(**whole)):
        got = score(form, TRUTH)
        assert set(got) == {"decision_components", "direction"}
        assert got["decision_components"].recall_at_k == 1 and got["direction"] == pytest.approx(-1)
    assert score(TRUTH.neurons, TRUTH, "neurons").k == 6 and score(TRUTH.heads, TRUTH, "heads").k == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(found=[(1, 2)], stage="neuron"), ValueError, "no stage 'neuron': choose one of detection_heads"),
        (dict(found=[(1, 2)]), ValueError, "Nothing to score: name the stage"),
        (dict(found="1.2", stage="neurons"), TypeError, "a list of .layer, index. pairs, such as"),
        (dict(found=[17, 3], stage="neurons"), ValueError, "17 is not a .layer, index. pair of whole numbers"),
        (dict(found=[(1.0, 3)], stage="neurons"), ValueError, "is not a .layer, index. pair of whole numbers"),
        (dict(found=[(17, 3)], stage="neurons"), ValueError, "17, 3. is no place for neurons: .* from 0 to 5"),
        (
            dict(found=[(2, 30)], stage="detection_heads"),
            ValueError,
            "no place for detection_heads: .*heads from 0 to 7",
        ),
        (dict(found=[(-1, 3)], stage="heads"), ValueError, "is no place for heads"),
        (dict(found=[(1, 2)], stage="neurons", k=0), ValueError, "k must be a whole number of at least 1, not 0"),
        (dict(found=[(1, 2)], stage="neurons", k=2.5), ValueError, "k must be a whole number of at least 1, not 2.5"),
        (dict(found=pd.DataFrame({"neuron": [3]}), stage="neurons"), ValueError, "columns 'layer' and 'neuron'"),
        (dict(found={"direction": torch.ones(64)}), ValueError, "one vector of 128 numbers, not .64"),
        (dict(found=[(1, 2)], truth=[(1, 2)], stage="neurons"), TypeError, "findings first and then the truth"),
    ],
)
def test_bad_findings_get_one_sentence(arguments, error, message):
    with pytest.raises(error, match=message) as raised:
        score(**{"truth": TRUTH, **arguments})
    assert "\n" not in str(raised.value)


def test_ranking_is_by_falling_value():
    assert ranked(np.array([[0.1, 3.0], [2.0, -5.0]])) == [(0, 1), (1, 0), (0, 0), (1, 1)]
    assert ranked({(4, 4): 1.0, (2, 2): 9.0}, largest=1) == [(2, 2)]
    with pytest.raises(ValueError, match="one value for each .layer, index., not an array of shape"):
        ranked(np.zeros(5))


# --- the truth as data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_truth_survives_its_file(kind):
    _, truth = read_box(kind)
    again = truth_from_json(truth_to_json(truth))
    assert again == truth and torch.allclose(again.direction, truth.direction, atol=1e-6)
    json.loads(truth_to_json(truth))


@pytest.mark.parametrize("kind", KINDS)
def test_no_place_has_two_roles(kind):
    _, truth = read_box(kind)
    heads = [*truth.heads, *truth.backup_heads, *truth.decoy_heads, *truth.dormant_heads, *truth.capability_heads]
    neurons = [*truth.neurons, *truth.backup_neurons, *truth.decoy_neurons, *truth.dormant_neurons]
    neurons += [] if kind == "entangled" else truth.capability_neurons
    assert len(set(heads)) == len(heads) and len(set(neurons)) == len(neurons)
    assert all(getattr(truth, stage) for stage in STAGES) and truth.decoy_heads and truth.decoy_neurons


def test_coarse_edges_merge_the_neurons_of_a_layer():
    _, truth = read_box("concentrated")
    coarse = truth.coarse_edges()
    assert len(coarse) < len(truth.edges) and {n.kind for edge in coarse for n in edge} == {
        "input",
        "head",
        "mlp",
        "output",
    }
