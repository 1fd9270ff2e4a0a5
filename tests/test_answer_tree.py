"""A prompt and the openings of its answer in one forward give what one forward after the other gives."""

import numpy as np
import pytest
import torch
import transformers as T
from families import CONFIGS, SMALL, CharTokenizer, tiny

from helpers.ablation import ablate_safety_neurons
from helpers.answer_tree import AnswerTree, answer_columns
from helpers.directions import next_token_log_probs
from helpers.erasure import edit_at
from helpers.fresh_prefix import in_context
from helpers.hooks import ablate_direction
from helpers.mean_ablation import TemplateMeans, mean_ablated, template_places
from helpers.models import body_of, dims_of
from helpers.packed_score import packed
from helpers.prompts import token_batches
from helpers.refusal import RefusalScore
from helpers.replay import Replaying
from helpers.shared_prefix import WithPrefix, shared_prefix

OPENINGS = ((5, 9), (5, 11), (5, 12, 3), (5, 12, 4, 8), (7, 1), (20, 21, 22, 23, 24), (20, 30))
PROMPTS = ["hello", "why not", "abcdef ghi"]


def naive(model, tokenizer, prompts, openings):
    """One forward a prompt and opening, nothing padded and nothing kept."""
    found = []
    for prompt in prompts:
        (batch,) = token_batches(tokenizer, [prompt])
        terms = []
        for opening in openings:
            ids = torch.cat([batch.input_ids, torch.tensor([opening])], 1)
            log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
            terms.append(sum(log_probs[i - len(opening) - 1, token] for i, token in enumerate(opening)))
        p = torch.stack(terms).logsumexp(-1).exp()
        found.append(float(torch.log(p / (1 - p))))
    return found


@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
def test_the_packed_score_is_the_score(family):
    model, tokenizer = tiny(family), CharTokenizer()
    score, prefix = RefusalScore(OPENINGS, -0.5), shared_prefix(tokenizer, PROMPTS)
    want = naive(model, tokenizer, PROMPTS, OPENINGS)
    assert score.log_odds(model, tokenizer, PROMPTS) == pytest.approx(want, abs=1e-4)
    models = [model, WithPrefix(model, prefix), in_context(model, tokenizer, PROMPTS), Replaying(model)]
    for one in [*models, WithPrefix(Replaying(model), prefix)]:
        for _ in range(2):  # what is kept must not grow
            assert packed(score).log_odds(one, tokenizer, PROMPTS) == pytest.approx(want, abs=1e-4)
        odds, following = packed(score).log_odds_and_next(one, tokenizer, PROMPTS, batch_size=2)
        assert odds == pytest.approx(want, abs=1e-4)
        assert torch.allclose(following, next_token_log_probs(model, tokenizer, PROMPTS), atol=1e-4)
    assert packed(score).threshold == -0.5
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_under_edits_as_well():
    """The score's own three forwards find the answer's tokens by what they stand on; the tree says which they are."""
    model, tokenizer, score = tiny("llama"), CharTokenizer(), RefusalScore(OPENINGS)
    dims, prefix = dims_of(model), shared_prefix(tokenizer, PROMPTS)
    seeded = torch.Generator().manual_seed(0)
    means = TemplateMeans(torch.randn(5, dims.n_layers, dims.d_mlp, generator=seeded), tuple(prefix), "drawn")
    r = torch.nn.functional.normalize(torch.randn(dims.d_model, generator=seeded), dim=0)
    for make in (
        lambda: mean_ablated(model, [(0, 1), (1, 2)], means),
        lambda: mean_ablated(model, [(0, 1), (1, 2)], means, 2.0),
        lambda: ablate_safety_neurons(model, [(0, 1), (1, 2)], sink=True),
        lambda: ablate_direction(model, r),
    ):
        with make():
            want, got = (one.log_odds(model, tokenizer, PROMPTS) for one in (score, packed(score)))
        assert got == pytest.approx(want, abs=1e-4)
        assert np.abs(want - score.log_odds(model, tokenizer, PROMPTS)).max() > 1e-3


def test_the_tree_and_its_places():
    tree, tokenizer, model = AnswerTree.of(OPENINGS), CharTokenizer(), tiny("llama")
    assert tree.nodes == ((5,), (7,), (20,), (5, 12), (20, 21), (5, 12, 4), (20, 21, 22), (20, 21, 22, 23))
    (batch,) = token_batches(tokenizer, PROMPTS)
    whole = tree.behind(batch)
    sees = tree.sees(whole.attention_mask)[:, -8:]
    real = batch.attention_mask.bool()
    assert (sees[..., :-8] == real[:, None]).all()
    assert sees[0, 5, -8:].tolist() == [True, False, False, True, False, True, False, False]  # (5, 12, 4)
    assert answer_columns(whole.attention_mask) == 0
    with template_places(model, 2, 3) as now, tree.read_by(model, whole.input_ids.shape[1]):
        assert answer_columns(whole.attention_mask) == 8
        model(**whole.inputs())
        with_tree = now["place"]
    with template_places(model, 2, 3) as now:
        model(**batch.inputs())
    assert (with_tree[:, :-8] == now["place"]).all() and (with_tree[:, -8:] == 4).all()


def test_attention_that_takes_no_mask_of_ours_is_asked_as_before(monkeypatch):
    model, tokenizer, score = tiny("mistral"), CharTokenizer(), RefusalScore(OPENINGS)
    monkeypatch.setattr(AnswerTree, "read_by", None)  # not to be used
    monkeypatch.setattr(model.config, "sliding_window", 12)
    want = score.log_odds(model, tokenizer, PROMPTS)
    assert not AnswerTree.of(OPENINGS).fits(model, 13) and AnswerTree.of(OPENINGS).fits(model, 12)
    odds, following = packed(score).log_odds_and_next(model, tokenizer, PROMPTS)
    assert odds == pytest.approx(want, abs=1e-4)
    assert torch.allclose(following, next_token_log_probs(model, tokenizer, PROMPTS), atol=1e-4)
    monkeypatch.setattr(model.config, "sliding_window", None)
    monkeypatch.setattr(model.config, "_attn_implementation", "flash_attention_2")
    assert not AnswerTree.of(OPENINGS).fits(model, 12)


def test_edits_at_one_place_as_well():
    """An edit of the prompt's last token, and one that steers every answer token, find them in the tree."""
    model, tokenizer, score = tiny("llama"), CharTokenizer(), RefusalScore(OPENINGS)
    prefix = shared_prefix(tokenizer, PROMPTS)
    push = torch.randn(dims_of(model).d_model, generator=torch.Generator().manual_seed(0))
    for answers in (False, True):
        edits = [("resid_pre", 1, lambda x: x + push)]
        with edit_at(model, edits, -1, answers=answers):
            want, got = (one.log_odds(model, tokenizer, PROMPTS) for one in (score, packed(score)))
        with edit_at(model, edits, -1, len(prefix), answers=answers):
            quick = packed(score).log_odds(WithPrefix(model, prefix), tokenizer, PROMPTS)
        assert got == pytest.approx(want, abs=1e-4) and quick == pytest.approx(want, abs=1e-4)
    assert np.abs(want - score.log_odds(model, tokenizer, PROMPTS)).max() > 1e-2


def test_in_half_precision():
    model, tokenizer = tiny("llama").to(torch.bfloat16), CharTokenizer()
    want, got = (
        one.log_odds(model, tokenizer, PROMPTS) for one in (RefusalScore(OPENINGS), packed(RefusalScore(OPENINGS)))
    )
    assert np.isfinite(got).all() and got == pytest.approx(want, abs=0.1)


@torch.no_grad()
def test_a_model_that_also_sees_is_asked_as_before():
    torch.manual_seed(0)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
    }
    config = T.Gemma3Config(text_config={**SMALL, "head_dim": 8}, vision_config=vision, image_token_index=63)
    model, tokenizer, score = T.Gemma3ForConditionalGeneration(config).eval(), CharTokenizer(), RefusalScore(OPENINGS)
    assert not AnswerTree.of(OPENINGS).fits(model, 12)
    want = naive(model, tokenizer, PROMPTS, OPENINGS)
    assert packed(score).log_odds(model, tokenizer, PROMPTS) == pytest.approx(want, abs=1e-4)


def test_an_interrupt_leaves_nothing_behind():
    model, tree = tiny("gpt2"), AnswerTree.of(OPENINGS)
    with pytest.raises(KeyboardInterrupt), tree.read_by(model, 20):
        raise KeyboardInterrupt
    assert not body_of(model)._forward_pre_hooks and answer_columns(torch.ones(1, 20)) == 0
