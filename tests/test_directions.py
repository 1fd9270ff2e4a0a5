"""Directions: the algebra against naive versions, the selection rule on a table made by hand."""

import pandas as pd
import pytest
import torch
from families import CharTokenizer, tiny

from helpers import directions as D
from helpers.hooks import read


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


def test_the_difference_of_means_equals_a_loop(model):
    tokenizer = CharTokenizer()
    bad, good = ["abcd", "bcde x"], ["hello", "why not", "yes"]
    got = D.mean_differences(model, tokenizer, bad, good, positions=(-1, -2))
    assert got.shape == (3, 2, 32)
    for p, position in enumerate((-1, -2)):
        means = [
            torch.stack(
                [read(model, tokenizer, [t], ["resid_pre"], [2], position)["resid_pre"][0, 0] for t in texts]
            ).mean(0)
            for texts in (bad, good)
        ]
        assert torch.allclose(got[2, p], means[0] - means[1], atol=1e-4)


def test_a_direction_without_length_is_refused():
    with pytest.raises(ValueError, match="no length"):
        D.unit(torch.zeros(8))


def test_kl_is_zero_for_the_same_and_right_for_two_coins():
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    assert D.kl_divergence(p, p) == 0
    want = 0.5 * torch.log(torch.tensor(0.5 / 0.9)) + 0.5 * torch.log(torch.tensor(0.5 / 0.1))
    assert torch.isclose(D.kl_divergence(p, q), want)


def test_the_selection_rule_keeps_each_condition():
    table = pd.DataFrame(
        [
            dict(layer=1, position=-1, bypass=-5.0, kl=0.05, induce=2.0),
            dict(layer=2, position=-1, bypass=-9.0, kl=0.5, induce=2.0),  # breaks the model
            dict(layer=3, position=-1, bypass=-8.0, kl=0.05, induce=-1.0),  # induces nothing
            dict(layer=9, position=-1, bypass=-9.0, kl=0.05, induce=2.0),  # too late
        ]
    )
    assert D.select_direction(table, n_layers=10).layer == 1
    with pytest.raises(ValueError, match="No candidate passes: 0 have a KL of at most 0.01"):
        D.select_direction(table, n_layers=10, max_kl=0.01)


def test_control_directions_have_the_covariance_they_are_drawn_from():
    torch.manual_seed(0)
    activations = torch.randn(500, 4) * torch.tensor([10.0, 1, 1, 1])
    drawn = D.covariance_directions(activations, 200)
    assert torch.allclose(drawn.norm(dim=-1), torch.ones(200), atol=1e-5)
    assert drawn[:, 0].abs().mean() > 0.8 > 0.4 > drawn[:, 1].abs().mean()
    assert torch.equal(drawn, D.covariance_directions(activations, 200))
    with pytest.raises(ValueError, match="at least two"):
        D.covariance_directions(activations[:1], 3)
