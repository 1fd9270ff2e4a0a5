"""Weights that cannot write along a direction equal its ablation at run time, in every family that allows it."""

import pytest
import torch
from families import CONFIGS, tiny

from helpers.glassbox import glassbox_prompts, load_glassbox
from helpers.hooks import ablate_direction, record
from helpers.models import UnknownArchitecture, embedding_of, layers_of, unembedding_of
from helpers.orthogonalise import orthogonalised, untie, writing_weights
from helpers.refusal import refusal_score_of

POST_NORM = ("gemma2", "gemma3", "olmo2")
SITES = ["resid_pre", "attn_out", "mlp_out", "resid_post"]


def a_direction(width: int = 32) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(width, generator=torch.Generator().manual_seed(3)), dim=0)


def with_biases(model):
    """Random biases where a family has some: they start at zero, and a test on zeros proves nothing."""
    torch.manual_seed(4)
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            weight.data.normal_(0, 0.3)
    return model


@pytest.mark.parametrize("family", [family for family in CONFIGS if family not in POST_NORM])
@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_weights_equal_the_ablation_at_run_time(family, tied):
    model, r, ids = with_biases(tiny(family)), a_direction(), torch.randint(1, 60, (3, 9))
    if tied:
        unembedding_of(model).weight = embedding_of(model).weight
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    new = orthogonalised(model, r)
    with ablate_direction(model, r), record(model, SITES) as there:
        want = model(ids).logits
    with record(new, SITES) as here:
        got = new(ids).logits
    assert (got - want).norm() < 1e-4 * want.norm()
    assert (got - model(ids).logits).norm() > 1e-2 * want.norm()  # the direction does matter
    for site in SITES:
        for layer in range(3):
            x, y = here[site][layer], there[site][layer]
            assert (x - y).norm() < 1e-4 * y.norm() and (x @ r).abs().max() < 1e-4 * x.norm()
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())  # the given one is whole


@pytest.mark.parametrize("family", [family for family in CONFIGS if family not in POST_NORM])
@torch.no_grad()
def test_some_layers_alone_equal_their_ablation_at_run_time(family):
    model, r, ids, layers = with_biases(tiny(family)), a_direction(), torch.randint(1, 60, (3, 9)), range(1, 3)
    unembedding_of(model).weight = embedding_of(model).weight
    new = orthogonalised(model, r, layers)
    with ablate_direction(model, r, layers):
        want = model(ids).logits
    assert (new(ids).logits - want).norm() < 1e-4 * want.norm()
    assert (want - model(ids).logits).norm() > 1e-2 * want.norm()
    assert unembedding_of(new).weight is embedding_of(new).weight  # the embedding is whole, so nothing is untied
    with pytest.raises(ValueError, match="There is no layer 3"):
        orthogonalised(model, r, [3])


@pytest.mark.parametrize("family", POST_NORM)
def test_a_norm_behind_the_block_is_refused_with_the_reason(family):
    with pytest.raises(UnknownArchitecture, match="a norm stands between.*at run time instead"):
        orthogonalised(tiny(family), a_direction())


@torch.no_grad()
def test_the_reason_is_true():
    """In Gemma 2, orthogonal projections still reach the direction: the norm's gains turn what they write."""
    model, r = tiny("gemma2"), a_direction()
    for layer in layers_of(model):
        layer.post_feedforward_layernorm.weight.normal_(0, 0.5)
    for weight in writing_weights(model):
        weight.copy_(weight - (weight @ r)[..., None] * r)
    with record(model, ["mlp_out"]) as seen:
        model(torch.randint(1, 60, (2, 7)))
    assert (seen["mlp_out"][0] @ r).abs().max() > 0.05


def test_a_tied_head_goes_on_reading_as_before():
    model = tiny("llama")
    unembedding_of(model).weight = embedding_of(model).weight
    new = orthogonalised(model, a_direction())
    assert torch.equal(unembedding_of(new).weight, embedding_of(model).weight)
    assert not torch.equal(embedding_of(new).weight, embedding_of(model).weight)
    assert unembedding_of(model).weight is embedding_of(model).weight and not new.config.tie_word_embeddings
    untie(new)  # a second time changes nothing
    assert torch.equal(unembedding_of(new).weight, embedding_of(model).weight)


def test_sixteen_bits_are_computed_in_thirty_two():
    model, r = tiny("llama").to(torch.bfloat16), a_direction()
    new = orthogonalised(model, r)
    for weight in writing_weights(new):
        assert weight.dtype == torch.bfloat16
        assert (weight.float() @ r).abs().max() < 2e-2 * weight.float().norm(dim=-1).max()


def test_bad_directions_are_refused():
    for direction, complaint in ((2 * a_direction(), "length 1"), (a_direction(16), "shape"), ([1.0], "not list")):
        with pytest.raises(ValueError, match=complaint):
            orthogonalised(tiny("llama"), direction)


@pytest.mark.parametrize("kind", ["concentrated", "redundant"])
def test_without_its_direction_a_box_does_not_refuse(kind):
    model, tokenizer, truth = load_glassbox(kind)
    new, asked = orthogonalised(model, truth.direction), glassbox_prompts("harmful", n=16, split="test")
    score = refusal_score_of(model, tokenizer)
    assert (score.log_odds(model, tokenizer, asked) > 0).all() and not (score.log_odds(new, tokenizer, asked) > 0).any()
