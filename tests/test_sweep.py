"""The sweep engine against one full forward for each patch, prompt and opening, in every family, at every site."""

from collections.abc import Sequence

import pytest
import torch
import transformers as T
from families import CONFIGS, SMALL, tiny

from helpers.hooks import SITES, edit, record, width_of
from helpers.prompts import pad
from helpers.refusal import RefusalScore
from helpers.sweep import Patch, Sweep

SCORE = RefusalScore(((3, 4), (3, 5, 6), (7, 8), (9,)))
CLEAN = [[1, 5, 9, 2, 40], [1, 5, 9, 7, 8, 12, 2, 40], [1, 6, 2, 40]]
DONOR = [[1, 5, 11, 2, 40], [1, 5, 9, 30, 31, 13, 2, 40], [1, 7, 2, 40]]


def log_odds(model, ids: Sequence[int], edits=()) -> float:
    """By one forward for each opening, without a cache or padding; the edits see the prompt and what follows it."""
    terms = []
    for opening in SCORE.openings:
        with edit(model, edits):
            logits = model(torch.tensor([[*ids, *opening[:-1]]])).logits[0].float().log_softmax(-1)
        terms.append(sum(logits[len(ids) - 1 + i, token] for i, token in enumerate(opening)))
    p = torch.stack(terms).logsumexp(0)
    return float(p - torch.log(-torch.expm1(p)))


def naive(model, site, layer, positions, channels) -> torch.Tensor:
    """[prompt]: hooks replace chosen positions (from the end) of a whole forward by what the donor had there."""
    out = []
    for ids, donor in zip(CLEAN, DONOR, strict=True):
        with record(model, [site], [layer]) as seen:
            model(torch.tensor([donor]))
        at = [len(ids) + p for p in positions if len(ids) + p >= 0]

        def change(x, at=at, value=seen[site][layer]):
            new = x.clone()
            for p in at:
                new[0, p, channels] = value[0, p, channels]
            return new

        out.append(log_odds(model, ids, [(site, layer, change)]))
    return torch.tensor(out)


def patches_of(model, clean, donor, wanted) -> list[Patch]:
    with record(model, list(SITES)) as seen:
        model(**donor.inputs())
    out = []
    for site, layer, positions, channels in wanted:
        length = clean.attention_mask.sum(1)
        place = clean.position_ids - length[:, None]  # from the end
        columns = torch.isin(place, torch.tensor(positions)) & clean.attention_mask.bool()
        out.append(
            Patch(site, layer, columns, seen[site][layer][..., slice(None) if channels is None else channels], channels)
        )
    return out


def wanted(model, positions=((-1,), (-3, -2), tuple(range(-8, 0)))):
    for site in SITES:
        for layer in range(3):
            for at in positions:
                yield site, layer, at, None
        yield site, 1, (-2, -1), slice(width_of(model, site) // 4, width_of(model, site) // 2)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", CONFIGS)
def test_equal_to_one_forward_a_patch(family, side):
    model = tiny(family)
    clean, donor = (pad(rows, [0, 1, 2], 0, side) for rows in (CLEAN, DONOR))
    sweep = Sweep(model, clean, SCORE)
    assert torch.allclose(sweep.clean, torch.tensor([log_odds(model, ids) for ids in CLEAN]), atol=1e-4)
    places = list(wanted(model))
    got = sweep.scores(patches_of(model, clean, donor, places))
    moved = 0
    for row, (site, layer, at, channels) in zip(got, places, strict=True):
        expected = naive(model, site, layer, at, channels or slice(None))
        assert torch.allclose(row, expected, atol=1e-4), (site, layer, at, channels)
        moved += bool((expected - sweep.clean).abs().max() > 1e-3)
    assert moved > 0.8 * len(places)  # the same last token enters layer 0; elsewhere, equality must say something


def test_chunks_give_the_same_and_are_in_order():
    model = tiny("llama")
    clean, donor = (pad(rows, [0, 1, 2], 0) for rows in (CLEAN, DONOR))
    patches = patches_of(model, clean, donor, reversed(list(wanted(model))))
    whole, pieces = (Sweep(model, clean, SCORE, max_tokens=m).scores(patches) for m in (10**6, 40))
    assert torch.allclose(whole, pieces, atol=1e-5)


def test_a_patch_with_the_models_own_activations_changes_nothing():
    model = tiny("qwen3")
    clean = pad(CLEAN, [0, 1, 2], 0)
    sweep = Sweep(model, clean, SCORE)
    got = sweep.scores(patches_of(model, clean, clean, wanted(model)))
    assert torch.allclose(got, sweep.clean.expand_as(got), atol=1e-4)


def test_eager_attention_does_as_well():
    torch.manual_seed(0)
    model = T.AutoModelForCausalLM.from_config(CONFIGS["llama"](), attn_implementation="eager").eval()
    model.requires_grad_(False)
    clean, donor = (pad(rows, [0, 1, 2], 0) for rows in (CLEAN, DONOR))
    place = ("z", 1, (-2, -1), None)
    got = Sweep(model, clean, SCORE).scores(patches_of(model, clean, donor, [place]))
    assert torch.allclose(got[0], naive(model, "z", 1, (-2, -1), slice(None)), atol=1e-4)


def test_bad_patches_are_named_before_computing_and_no_hook_stays():
    model = tiny("llama")
    clean = pad(CLEAN, [0, 1, 2], 0)
    sweep = Sweep(model, clean, SCORE)
    columns = torch.zeros(3, 8, dtype=torch.bool)
    values = torch.zeros(3, 8, 32)
    with pytest.raises(ValueError, match="names no position"):
        sweep.scores([Patch("attn_out", 0, columns, values)])
    columns[:, -1] = True
    with pytest.raises(ValueError, match="no layer 3"):
        sweep.scores([Patch("attn_out", 3, columns, values)])
    with pytest.raises(ValueError, match="values"):
        sweep.scores([Patch("neurons", 0, columns, values)])
    with pytest.raises(ValueError, match="columns"):
        sweep.scores([Patch("attn_out", 0, columns[:2], values)])
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_what_cannot_be_exact_is_refused():
    clean = pad(CLEAN, [0, 1, 2], 0)
    model = T.AutoModelForCausalLM.from_config(T.MistralConfig(**SMALL, sliding_window=6)).eval()
    with pytest.raises(ValueError, match="sliding window of 6"):
        Sweep(model, clean, SCORE)
    model = tiny("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attn_implementation='sdpa'"):
        Sweep(model, clean, SCORE)


def test_several_patches_in_one_row_and_any_channels():
    model = tiny("llama")
    clean, donor = (pad(rows, [0, 1, 2], 0) for rows in (CLEAN, DONOR))
    some = torch.tensor([3, 17, 40])
    (one,) = patches_of(model, clean, donor, [("neurons", 2, (-2, -1), some)])
    (other,) = patches_of(model, clean, donor, [("attn_out", 0, (-3,), None)])
    got = Sweep(model, clean, SCORE).scores([(one, other), one, other])
    for row, patches in zip(got, [(one, other), (one,), (other,)], strict=True):
        for i, ids in enumerate(CLEAN):
            length = len(ids)

            def change(patch, i=i, length=length):
                def function(x):
                    new = x.clone()
                    for p in patch.columns[i, -length:].nonzero()[:, 0].tolist():
                        new[0, p, some if patch is one else slice(None)] = patch.values[i, p - length]
                    return new

                return patch.site, patch.layer, function

            assert abs(float(row[i]) - log_odds(model, ids, [change(p) for p in patches])) < 1e-4
    with pytest.raises(ValueError, match="0 to 47"):
        Sweep(model, clean, SCORE).scores([Patch("neurons", 2, one.columns, one.values, torch.tensor([3, 17, 48]))])
    with pytest.raises(ValueError, match="no patch"):
        Sweep(model, clean, SCORE).scores([()])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_noisy_run_can_be_patched(family):
    model = tiny(family)
    clean, noise = pad(CLEAN, [0, 1, 2], 0), torch.randn(3, 8, 32)
    sweep = Sweep(model, clean, SCORE, noise=noise)
    (patch,) = patches_of(model, clean, clean, [("mlp_out", 1, (-2, -1), None)])
    got = sweep.scores([patch])[0]
    for i, ids in enumerate(CLEAN):
        n = len(ids)

        def disturb(x, i=i, n=n):
            new = x.clone()
            new[0, :n] += noise[i, -n:]
            return new

        def restore(x, i=i, n=n):
            new = x.clone()
            new[0, n - 2 : n] = patch.values[i, -2:]
            return new

        noisy = [("resid_pre", 0, disturb)]
        assert abs(float(sweep.clean[i]) - log_odds(model, ids, noisy)) < 1e-4
        assert abs(float(got[i]) - log_odds(model, ids, [*noisy, ("mlp_out", 1, restore)])) < 1e-4
    assert (sweep.clean - got).abs().max() > 1e-3
