"""Each pitfall on five boxes: the naive method misses the circuit, the right one finds it; directions from prompts."""

from functools import cache

import pytest
import torch

from helpers.glassbox import load_tokenizer
from tools.glassbox_builder.pitfalls import PITFALLS, Lab
from tools.glassbox_builder.report import built, shipped

pytestmark = pytest.mark.slow


@cache
def lab(kind: str, seed: int) -> Lab:
    model, truth = shipped(kind) if seed == 0 else built(kind, seed)
    return Lab(model, load_tokenizer(), truth)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", PITFALLS)
def test_the_naive_method_fails_and_the_right_one_does_not(name, seed):
    kind, method = PITFALLS[name]
    naive, right = method(lab(kind, seed))
    assert naive.recall_at_k < 0.5 and right.recall_at_k >= 0.9


def test_there_are_at_least_four():
    assert len(PITFALLS) >= 4


@pytest.mark.parametrize("seed", range(5))
def test_layer_and_direction_are_found_from_prompts(seed):
    here = lab("concentrated", seed)
    assert here.decide == here.truth.decision_components[0][0]
    estimated = here.direction(here.decide + 1)
    cosine = float(torch.dot(estimated, here.truth.direction))
    assert 0.5 < cosine < 0.999  # found from prompts: near the truth, not copied from it
