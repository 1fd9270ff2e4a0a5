"""Blocks that hand out what they gave before equal whole forwards, wherever an edit is made."""

import pytest
import torch
from families import CONFIGS, CharTokenizer, tiny

from helpers.costs import CostMeter
from helpers.fresh_prefix import FreshPrefix
from helpers.hooks import ablate_direction, edit
from helpers.refusal import RefusalScore
from helpers.replay import Replaying, replaying
from helpers.shared_prefix import shared_prefix

PROMPTS = ["hello", "why not", "abcdef ghi"]


def meters(family):
    """A meter that runs everything, and one that replays."""
    model, tokenizer = tiny(family), CharTokenizer()
    score = RefusalScore(((3, 4), (5, 6, 7)))
    slow = CostMeter(model, tokenizer, PROMPTS, PROMPTS[:2], ["some prose to read"], score)
    quick = CostMeter(model, tokenizer, PROMPTS, PROMPTS[:2], ["some prose to read"], score)
    quick = replaying(quick)
    return model, slow, quick


@pytest.mark.parametrize("family", CONFIGS)
def test_edits_of_any_layer_are_seen(family):
    model, slow, quick = meters(family)
    r = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    twice = lambda x: 2 * x  # noqa: E731
    edits = (
        lambda: ablate_direction(model, r / r.norm(), [2]),
        lambda: None,
        lambda: ablate_direction(model, r / r.norm(), [1, 2]),
        lambda: edit(model, [("resid_pre", 2, twice)]),
        lambda: edit(model, [("resid_post", 0, twice)]),
        lambda: ablate_direction(model, r / r.norm()),
        lambda: None,
    )
    for one in edits:
        a, b = slow.measure(one()), quick.measure(one())
        assert b.odds == pytest.approx(a.odds, abs=1e-3)
        assert b.kl == pytest.approx(a.kl, abs=1e-4) and b.perplexity == pytest.approx(a.perplexity, rel=1e-3)
    assert not any("forward" in vars(block) or block._forward_hooks for block in quick.model._blocks)


def test_behind_a_shared_beginning_and_only_what_is_needed_is_run():
    model, slow, quick = meters("llama")
    prefix = shared_prefix(slow.tokenizer, [*PROMPTS, "x"])
    quick.model = FreshPrefix(Replaying(model), prefix)
    r = torch.ones(32) / 32**0.5
    ran = []
    for i in (0, 1, 2):
        with ablate_direction(model, r, [2]):
            handle = model.model.layers[0].mlp.gate_proj.weight  # nothing hangs on the low blocks
            before = model.model.layers[0].mlp.forward
            model.model.layers[0].mlp.forward = lambda x, i=i, before=before: ran.append(i) or before(x)
            try:
                odds = quick.odds()
            finally:
                del model.model.layers[0].mlp.forward
        with ablate_direction(model, r, [2]):
            assert odds == pytest.approx(slow.odds(), abs=1e-3)
        assert handle is model.model.layers[0].mlp.gate_proj.weight
    assert set(ran) == {0}  # the lowest block was run the first time only


def test_an_interrupted_forward_leaves_nothing_behind():
    model, _, quick = meters("llama")
    quick.odds()

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), edit(model, [("mlp_out", 2, stop)]):
        quick.odds()
    assert not any("forward" in vars(block) or block._forward_hooks for block in quick.model._blocks)
