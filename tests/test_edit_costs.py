"""The three costs of an edit, and the capability set: against naive versions."""

import numpy as np
import pytest
import torch
from families import CharTokenizer, tiny

from helpers.ablation import ablate_safety_neurons
from helpers.capability import Fact, box_facts, knows, load_facts
from helpers.edit_costs import EditMeter
from helpers.glassbox import KINDS, glassbox_prompts, load_glassbox
from helpers.hooks import ablate_direction
from helpers.mean_ablation import mean_ablated, template_means
from helpers.orthogonalise import orthogonalised
from helpers.prompts import chat_text, tokenize
from helpers.shared_prefix import WithPrefix, shared_prefix

FACTS = (
    Fact("hello", "ab", "c", ("d", "e")),
    Fact("why not", "xyz", "q", ("r", "s", "t")),
    Fact("abc", "k", "m", ("n",)),
)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_facts_equal_one_forward_each(family):
    model, tokenizer = tiny(family), CharTokenizer()
    tokenizer_of_words = type("Words", (CharTokenizer,), {"__call__": lambda self, texts, **k: CharTokenizer.__call__(
        self, [text.strip() for text in texts], **k)})()  # fmt: skip
    want = []
    for fact in FACTS:
        (text,) = chat_text(tokenizer, [fact.question])
        ids = tokenize(tokenizer_of_words, [text])[0] + tokenize(tokenizer_of_words, [fact.start])[0]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        options = [tokenize(tokenizer_of_words, [word])[0][0] for word in (fact.right, *fact.wrong)]
        want.append(float(logits[options].argmax() == 0))
    assert knows(model, tokenizer_of_words, FACTS).tolist() == want
    assert knows(model, tokenizer_of_words, FACTS, batch_size=1).tolist() == want
    prefix = shared_prefix(tokenizer_of_words, [f.question for f in FACTS])
    assert knows(WithPrefix(model, prefix), tokenizer_of_words, FACTS).tolist() == want


def test_the_boxes_know_their_facts_and_entangled_loses_them():
    for kind in KINDS:
        model, tokenizer, truth = load_glassbox(kind)
        assert knows(model, tokenizer, box_facts()).all()
        means = template_means(model, tokenizer, glassbox_prompts("harmless", n=16, split="train"))
        with ablate_safety_neurons(model, truth.evaluation_neurons, donors=means):
            assert knows(model, tokenizer, box_facts()).mean() == (
                1 if kind != "entangled" else pytest.approx(0, abs=0.3)
            )


def test_the_shipped_facts_are_clean():
    facts = load_facts()
    assert len(facts) >= 30 and len({fact.question for fact in facts}) == len(facts)
    for fact in facts:
        assert fact.right not in fact.wrong and len(fact.wrong) == 3 and not fact.start.endswith(" ")
        assert fact.question.endswith("?")


@pytest.fixture(scope="module")
def box():
    model, tokenizer, truth = load_glassbox("concentrated")
    harmful, harmless = (
        glassbox_prompts("harmful", n=8, split="test"),
        glassbox_prompts("borderline", n=6, split="test"),
    )
    meters = [EditMeter(model, tokenizer, harmful, harmless, box_facts(8), quick=quick) for quick in (False, True)]
    return model, tokenizer, truth, meters


def test_costs_of_nothing_and_of_the_circuit(box):
    model, tokenizer, truth, meters = box
    means = template_means(model, tokenizer, glassbox_prompts("harmless", n=16, split="train"))
    for meter in meters:
        clean = meter.measure()
        assert clean.refused.all() and not clean.over_refused.any() and clean.knows.all()
        assert clean.kl == pytest.approx(0, abs=1e-5)
        row = clean.row()
        assert (
            row["refused"] == row["high"] == 1 > row["low"] > 0.6 and row["topics"] == 8 and np.isnan(row["perplexity"])
        )
        cut = meter.measure(ablate_safety_neurons(model, truth.evaluation_neurons, donors=means))
        assert not cut.refused.any() and cut.knows.all() and not any(m._forward_pre_hooks for m in model.modules())
    odds = [meter.odds(mean_ablated(model, truth.neurons, means)) for meter in meters]
    assert odds[0] == pytest.approx(odds[1], abs=1e-3)
    assert meters[0].threshold == model.refusal_score.threshold


def test_borderline_prompts_count_for_over_refusal_alone(box):
    model, tokenizer, truth, _ = box
    harmful, plain = (glassbox_prompts(kind, n=6, split="test") for kind in ("harmful", "plain"))
    meters = [EditMeter(model, tokenizer, harmful, plain, box_facts(4), borderline=more) for more in ((), harmful[:3])]
    one, other = (meter.measure(ablate_direction(model, truth.direction)) for meter in meters)
    assert one.kl == pytest.approx(other.kl, abs=1e-6) and len(other.over_refused) == 9
    assert meters[1].measure().over_refused.tolist() == [False] * 6 + [True] * 3


def test_the_kl_leaves_out_harmless_prompts_that_are_refused(box):
    model, tokenizer, truth, _ = box
    harmful, plain = (glassbox_prompts(kind, n=6, split="test") for kind in ("harmful", "plain"))
    meters = [EditMeter(model, tokenizer, harmful, more, box_facts(4)) for more in (plain, plain + harmful[:3])]
    one, other = (meter.measure(ablate_direction(model, truth.direction)) for meter in meters)
    assert one.kl == pytest.approx(other.kl, abs=1e-6) and meters[1].meter.harmless == plain
    assert len(other.over_refused) == 9  # but they count for over-refusal
    assert EditMeter(model, tokenizer, harmful, harmful, box_facts(4)).meter.harmless == harmful


def test_an_edited_copy_costs_what_the_intervention_does(box):
    model, _, truth, (slow, quick) = box
    there = slow.measure(ablate_direction(model, truth.direction))
    for meter in (slow, quick):  # of another model the shared beginning is read anew, so that quick is exact
        here = meter.on(orthogonalised(model, truth.direction)).measure()
        assert here.odds == pytest.approx(there.odds, abs=1e-2) and here.kl == pytest.approx(there.kl, abs=1e-3)
        assert (here.over_refused == there.over_refused).all() and (here.knows == there.knows).all()
    assert slow.measure().refused.all()  # the meter of the first model is as it was


def test_bad_input_is_named(box):
    model, tokenizer, _, _ = box
    with pytest.raises(ValueError, match="list of facts is empty"):
        knows(model, tokenizer, [])
    with pytest.raises(ValueError, match="begins with the token of 'gold'"):
        knows(model, tokenizer, [Fact("what is it", "", "gold", ("gold",))])
