"""A shared beginning that is read under the edit equals whole forwards, whatever the edit does to it."""

import pytest
import torch
from families import CONFIGS, CharTokenizer, tiny

from helpers import refusal
from helpers.ablation import ablate_safety_neurons
from helpers.costs import CostMeter
from helpers.fresh_prefix import FreshPrefix, fresh
from helpers.glassbox import glassbox_prompts, load_glassbox
from helpers.hooks import ablate_direction, add_direction
from helpers.refusal import RefusalScore
from helpers.shared_prefix import WithPrefix, held

PROMPTS = ["hello", "why not", "abcdef ghi"]


@pytest.mark.parametrize("family", CONFIGS)
def test_edits_of_the_beginning_are_seen(family):
    model, tokenizer = tiny(family), CharTokenizer()
    score = RefusalScore(((3, 4), (5, 6, 7)))
    slow = CostMeter(model, tokenizer, PROMPTS, PROMPTS[:2], ["some prose to read"], score)
    quick = fresh(slow)
    assert isinstance(quick.model, FreshPrefix) and not isinstance(slow.model, WithPrefix)
    r = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    edits = (
        lambda: None,
        lambda: ablate_direction(model, r / r.norm()),
        lambda: ablate_safety_neurons(model, [(0, 3), (1, 7)], sink=True),
        lambda: None,  # nothing is left over from the edits before
    )
    for edit in edits:
        a, b = slow.measure(edit()), quick.measure(edit())
        assert b.odds == pytest.approx(a.odds, abs=1e-3)
        assert b.kl == pytest.approx(a.kl, abs=1e-4) and b.perplexity == pytest.approx(a.perplexity, rel=1e-3)


def test_what_was_read_before_an_edit_would_be_wrong():
    model, tokenizer, _ = load_glassbox("concentrated")
    asked = glassbox_prompts("harmful", n=6, split="test")
    slow, once = (CostMeter(model, tokenizer, asked, asked, quick=quick) for quick in (False, True))
    everyone = [(layer, n) for layer in range(6) for n in range(256)]
    with ablate_safety_neurons(model, everyone, 3.0):
        truth, stale, new = (meter.odds() for meter in (slow, once, fresh(slow)))
    assert abs(stale - truth).max() > 0.02 and new == pytest.approx(truth, abs=2e-3)
    assert fresh(once) is once


class Reader(CharTokenizer):
    """A tokenizer that can be read back: one character for each token; the template opens with many tokens."""

    eos_token_id = None

    def apply_chat_template(self, messages, **_):
        return "^the beginning|" + "".join(m["content"] for m in messages) + "$"

    def batch_decode(self, rows, **_):
        return ["".join(chr(200 + int(i)) for i in row if i > 0) for row in rows]  # 0 is padding


@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
def test_answers_that_go_on_from_a_beginning_are_those_of_whole_prompts(family):
    model, tokenizer = tiny(family), Reader()
    prompts = ["hello", "why not", "abcdef ghi", "a", "more of it"]
    for prefill in ("", "so "):
        want = []
        for prompt in prompts:
            (ids,) = tokenizer([tokenizer.apply_chat_template([{"content": prompt}]) + prefill])["input_ids"]
            out = model.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False, pad_token_id=0)
            want += [text.strip() for text in tokenizer.batch_decode(out[:, len(ids) :])]
        assert refusal.read_ahead(model, tokenizer, prompts) is not None
        assert refusal.generate(model, tokenizer, prompts, 5, prefill=prefill, batch_size=3) == want
    with add_direction(model, torch.ones(model.config.hidden_size), 0):  # hooks may ask where they are
        assert refusal.read_ahead(model, tokenizer, prompts) is None
    assert refusal.read_ahead(model, tokenizer, prompts[:3]) is None


def test_a_beginning_is_not_read_apart_where_that_would_not_be_exact(monkeypatch):
    tokenizer, prompts = Reader(), ["hello", "why not", "abcdef ghi", "a", "more of it"]
    model = tiny("mistral")
    longest = max(map(len, tokenizer([tokenizer.apply_chat_template([{"content": p}]) for p in prompts])["input_ids"]))
    for window, ahead in ((longest + 4, False), (longest + 5, True)):
        monkeypatch.setattr(model.config, "sliding_window", window)
        assert (refusal.read_ahead(model, tokenizer, prompts, further=5) is not None) == ahead
    model = tiny("llama")
    want = refusal.generate(model, tokenizer, prompts, 5)
    monkeypatch.setattr(model.generation_config, "use_cache", False)  # as some fine-tuned models have it
    assert refusal.generate(model, tokenizer, prompts, 5) == want
    monkeypatch.setattr(model.generation_config, "cache_implementation", "static")
    assert refusal.read_ahead(model, tokenizer, prompts) is None
    model(input_ids=torch.tensor([[1, 2, 3]]), output_attentions=True)  # transformers leaves hooks, which only look
    monkeypatch.setattr(model.generation_config, "cache_implementation", None)
    assert refusal.read_ahead(model, tokenizer, prompts) is not None


def test_a_beginning_that_is_held_is_read_once_and_given_back(monkeypatch):
    model, tokenizer, read = tiny("llama"), CharTokenizer(), []
    meter = fresh(CostMeter(model, tokenizer, PROMPTS, PROMPTS[:2], score=RefusalScore(((3, 4),))), replay=False)
    model.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs["input_ids"].shape), with_kwargs=True)
    with held(meter.model):
        meter.odds(), meter.odds()
    assert read.count((1, len(meter.model.prefix))) == 1
    with pytest.raises(KeyboardInterrupt), held(meter.model):
        meter.odds()
        raise KeyboardInterrupt
    read.clear()
    meter.odds(), meter.odds()
    assert read.count((1, len(meter.model.prefix))) == 2  # anew each time, under the edits of the moment
