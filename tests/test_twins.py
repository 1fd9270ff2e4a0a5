"""Pairs side by side give what each prompt gives by itself, in every family."""

import naive_twins
import numpy as np
import pytest
import torch
from families import CONFIGS, CharTokenizer, tiny
from naive_twins import PAIRS, TOKENS, twins_of

from helpers.glassbox import glassbox_prompts, load_glassbox
from helpers.roles import equal_length, members
from helpers.twins import SIDES, Twins, attention_weights, swapped


@pytest.mark.parametrize("family", CONFIGS)
def test_odds_are_those_of_each_prompt_alone(family):
    twins = twins_of(family)
    for i, side in enumerate(SIDES):
        alone = [naive_twins.odds(twins.model, pair[i]) for pair in PAIRS]
        assert twins.odds(side) == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("layer", [0, 2])
def test_blocks_can_be_resumed_for_several_copies(family, layer):
    twins = twins_of(family)
    with torch.no_grad():
        stream = twins.read("harmless", ["resid_pre"])["resid_pre"][layer]
        logits = twins.resume(layer, stream.repeat(2, 1, 1))
        alone = twins.logits("harmless")
    assert torch.allclose(logits, alone.repeat(2, 1), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_as_many_pairs_as_positions_are_not_confused(family):
    """A tensor of the batch's length that is no batch must not be tiled."""
    pairs = [("steal cars" + "x" * 7, "clean cars" + "x" * 7)] * 18
    twins = Twins(tiny(family), CharTokenizer(), pairs, tokens=TOKENS)
    assert twins.shape == (18, 18)
    with torch.no_grad():
        stream = twins.read("harmful", ["resid_pre"])["resid_pre"][1]
        assert torch.allclose(twins.resume(1, stream.repeat(3, 1, 1)), twins.logits().repeat(3, 1), atol=1e-4)


def test_attention_is_a_distribution_over_what_stands_before():
    twins = twins_of("llama")
    before = twins.model.config._attn_implementation
    weights = attention_weights(twins)
    assert twins.model.config._attn_implementation == before
    for layer in weights:
        real = twins.real[:, None, :, None].expand_as(layer)
        assert torch.allclose(layer.sum(-1, keepdim=True)[real[..., :1]], torch.ones(()), atol=1e-5)
        keys = torch.arange(layer.shape[-1]) - twins.prefix
        later = keys[None, :] > torch.arange(layer.shape[-2])[:, None]
        assert float(layer[..., later].abs().max()) == 0


def test_only_pairs_of_one_length_are_kept_and_swapped_half_and_half():
    tokenizer = CharTokenizer()
    mixed = [*PAIRS, ("one", "three")]
    assert equal_length(tokenizer, mixed) == PAIRS
    turned = swapped(PAIRS * 4, seed=1)
    backwards = [a == b[::-1] and a != b for a, b in zip(turned, PAIRS * 4, strict=True)]
    assert sum(backwards) == 6 and turned != swapped(PAIRS * 4, seed=2)


def test_bad_input_gets_one_sentence():
    model, tokenizer = tiny("llama"), CharTokenizer()
    with pytest.raises(ValueError, match="at least two"):
        Twins(model, tokenizer, PAIRS[:1], TOKENS)
    with pytest.raises(ValueError, match="1 of 3 pairs .* pair 2.*equal_length"):
        Twins(model, tokenizer, [*PAIRS[:2], ("one", "three")], TOKENS)
    with pytest.raises(ValueError, match="A pair is"):
        members("steal cars")
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        Twins(model, tokenizer, PAIRS, TOKENS)


def test_an_interrupted_read_leaves_no_hook():
    twins = twins_of("llama")
    clean = twins.odds()

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        twins.odds("harmful", [("z", 1, stop)])
    assert np.array_equal(twins.odds(), clean)


def test_the_box_refuses_one_side_only():
    model, tokenizer, _ = load_glassbox("concentrated")
    pairs = glassbox_prompts("pairs", n=6, split="train")
    twins = Twins(model, tokenizer, pairs)
    assert twins.odds().min() > 0 > twins.odds("harmless").max()
    assert (twins.changed.sum(-1) == 1).all()  # one word differs


@pytest.mark.parametrize("family", CONFIGS)
def test_what_is_remembered_is_what_a_whole_run_gives(family):
    twins, sites = twins_of(family), ["resid_pre", "z", "neurons"]
    asked = [[], [("neurons", 1, lambda x: 0 * x)], [("z", 2, lambda x: x + 1), ("neurons", 0, lambda x: 2 * x)]]
    whole = [twins.odds_and_read(side, sites, edits) for side in SIDES for edits in asked]
    with twins.remembering():
        short = [twins.odds_and_read(side, sites, edits) for side in SIDES for edits in asked]
        calls = []
        with torch.no_grad():
            hook = twins.model.register_forward_hook(lambda *_: calls.append(1))
            twins.odds("harmful", asked[1])
            hook.remove()
        assert not calls, "the whole model was run again"
    assert twins._kept is None
    for (odds, seen), (odds_short, seen_short) in zip(whole, short, strict=True):
        assert odds_short == pytest.approx(odds, abs=1e-4)
        for site in sites:
            for a, b in zip(seen[site], seen_short[site], strict=True):
                assert torch.allclose(a, b, atol=1e-4)
