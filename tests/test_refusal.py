"""Refusal measures: patterns on known answers, the log-odds against a naive reference, threshold, openings."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers import refusal as R
from helpers.prompts import chat_text, load_first_person, tokenize

REFUSALS = [
    "I can't help with that.",
    "I'm sorry, but I can't assist with this request.",
    "I\u2019m sorry, but I cannot help.",
    "Sorry, but no. I can't help with breaking the law.",
    "No, I won't help with that. It could do real harm.",
    "That would be dishonest, so I can't help.",
    "My answer is no. I can't help with that.",
    "I must decline. Please ask me something else.",
    "Of course! ... no, I have to stop here. I can't help with that.",
    "I am unable to provide instructions for that.",
    "It would be wrong to help with this, so I won't.",
]
ANSWERS = [
    "Sure! Here are three steps to bake bread.",
    "I'm sorry for being late yesterday, I missed the bus.",
    "Sorry I forgot your birthday! Let me make it up to you.",
    "I can help you with that. First, open the file.",
    "I can't wait to see the ocean again, said the robot.",
    "I couldn't find my keys, so I walked home.",
    "No, whales are not fish. They are mammals.",
    "Unfortunately, the museum is closed on Mondays.",
    "To crack an egg, tap it on a flat surface.",
]


@pytest.mark.parametrize("answer", REFUSALS)
def test_refusals_are_recognised(answer):
    assert R.is_refusal(answer)
    assert R.classify_answer(answer) == "coherent refusal"


@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_and_apologies_are_no_refusals(answer):
    assert not R.is_refusal(answer)
    assert R.classify_answer(answer) == "coherent answer"


@pytest.mark.parametrize("answer", ["", "...", "the the the the the the the the the the", "\u2580 \u2580 \u2580"])
def test_broken_answers_are_neither(answer):
    assert R.classify_answer(answer) == "broken"


def test_short_factual_answers_are_answers():
    assert R.classify_answer("42") == "coherent answer"
    assert R.classify_answer("7 * 8 = 56") == "coherent answer"


@pytest.fixture(scope="module")
def tiny():
    """A tiny random Llama under the default tokenizer: the arithmetic does not depend on what a model knows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from helpers.models import load_model

    tokenizer = load_model("smollm2-135m")[1]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


def naive_log_odds(model, ids, openings):
    """One full forward for each opening, no cache, no padding."""
    total = 0.0
    for opening in openings:
        logits = model(torch.tensor([[*ids, *opening]])).logits[0].double().log_softmax(-1)
        total += math.exp(sum(logits[len(ids) - 1 + j, t].item() for j, t in enumerate(opening)))
    return math.log(total) - math.log1p(-total)


@torch.no_grad()
def test_log_odds_equal_a_naive_reference(tiny):
    model, tokenizer = tiny
    prompts = ["Hi", "Tell me about the long history of bread in Europe", "Why?"]
    rows = tokenize(tokenizer, chat_text(tokenizer, prompts))
    # The model's own likely beginnings, so that the probabilities are not all negligible.
    said = [model.generate(torch.tensor([r]), max_new_tokens=4, do_sample=False)[0, len(r) :].tolist() for r in rows]
    openings = ((tuple(said[0][:2])), tuple(said[1][:4]), (5, 6, 7))
    got = R.RefusalScore(openings).log_odds(model, tokenizer, prompts, batch_size=2)
    want = [naive_log_odds(model, row, openings) for row in rows]
    assert np.allclose(got, want, atol=1e-4)
    one_by_one = R.RefusalScore(openings).log_odds(model, tokenizer, prompts, batch_size=1)
    assert np.allclose(got, one_by_one, atol=1e-4)


def test_openings_are_the_shortest_that_tell_refusals_from_answers():
    refusals = [[1, 2, 3, 4, 5, 6], [1, 2, 9, 9, 9, 9], [7, 8, 1, 1, 1, 1], [7, 8, 1, 2, 1, 1]]
    answers = [[1, 2, 3, 8, 8], [4, 4, 4, 4]]
    assert R.find_openings(refusals, answers) == ((1, 2, 3, 4), (1, 2, 9), (7, 8))
    assert R.find_openings([[1, 2, 3, 4, 5]], [[1, 2, 3, 4, 5, 6]]) == ()


def test_an_opening_seen_once_among_many_is_an_accident():
    many = [[1, 2, 3]] * 100
    assert R.find_openings([*many, [7, 8]], [[4, 4]]) == ((1, 2),)
    assert R.find_openings([*many, [7, 8], [7, 8]], [[4, 4]]) == ((1, 2), (7, 8))


def test_the_threshold_parts_the_classes_in_the_middle_of_the_gap():
    scores, labels = np.array([3.0, -2.0, 5.0, -1.0]), np.array([True, False, True, False])
    assert -1 < R.best_threshold(scores, labels) < 3
    noisy = R.best_threshold(np.array([0.0, 1, 2, 3, 4, 5]), np.array([False, False, True, False, True, True]))
    assert 1 < noisy < 4


def test_bad_measures_and_prompts_are_refused_before_computing(tiny):
    model, tokenizer = tiny
    with pytest.raises(ValueError, match="'keywords' or 'log_odds'"):
        R.measure_refusal(model, tokenizer, ["Hi"], by="vibes")
    with pytest.raises(ValueError, match="empty"):
        R.measure_refusal(model, tokenizer, [], by="log_odds")
    with pytest.raises(ValueError, match="Give a list"):
        R.generate(model, tokenizer, "Hi")


def test_a_model_that_never_refuses_is_told_apart(tiny):
    model, tokenizer = tiny
    with pytest.raises(ValueError, match="refuses none"):
        R.find_refusal_score(model, tokenizer, ["Hi"], ["Ho"])


def test_there_are_first_person_prompts_of_both_sorts():
    assert len(load_first_person("test")) >= 24


def test_an_answer_ends_where_the_models_own_configuration_says():
    """Gemma's turns end by another token than its texts."""
    model, tokenizer = (
        SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[1, 107])),
        SimpleNamespace(eos_token_id=1),
    )
    assert R.end_tokens(model, tokenizer) == [1, 107]
    assert R.end_tokens(SimpleNamespace(), tokenizer) == [1]
    assert R.end_tokens(SimpleNamespace(), SimpleNamespace(eos_token_id=None)) == []
