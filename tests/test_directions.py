"""Directions: the algebra against naive versions, the selection rule on a table made by hand."""

import pandas as pd
import pytest
import torch
from families import CharTokenizer, tiny

from helpers import directions as D
from helpers.hooks import read, record


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


def test_a_direction_is_ablated_from_a_layer_on_and_not_below(model):
    row, direction = (
        torch.tensor([[3, 1, 4, 1, 5]]),
        D.unit(torch.randn(32, generator=torch.Generator().manual_seed(0))),
    )
    sites = ["attn_out", "mlp_out", "resid_pre"]
    with torch.no_grad(), D.ablation_of(model, direction, 1), record(model, sites) as seen:
        model(row)
    along = {site: [float((x @ direction).abs().max()) for x in seen[site].values()] for site in sites}
    assert min(along["attn_out"][0], along["mlp_out"][0], along["resid_pre"][0]) > 1e-4
    assert max(along["attn_out"][1:] + along["mlp_out"][1:]) < 1e-5
    with torch.no_grad(), D.ablation_of(model, direction), record(model, sites) as seen:
        model(row)
    assert max(float((x @ direction).abs().max()) for site in sites for x in seen[site].values()) < 1e-5


def test_every_first_layer_is_tried_with_every_direction():
    class Judge:
        def clean(self):
            return {}

        def ablated(self, direction, clean, first):
            return {"bypass": -first, "kl": 1.0 / (1 + first)}

        def added(self, difference, layer):
            return float(layer)

    table = D.score_directions(Judge(), torch.ones(4, 1, 8), layers=(1, 2), firsts=(0, 3))
    assert table[["layer", "first", "bypass", "induce"]].values.tolist() == [
        [1, 0, 0, 1], [1, 3, -3, 1], [2, 0, 0, 2], [2, 3, -3, 2],
    ]  # fmt: skip
