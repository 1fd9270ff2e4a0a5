"""Neurons: every ranking against a naive loop and against the glass boxes' truth; bad input named before computing."""

import numpy as np
import pytest
import torch
from families import CharTokenizer, tiny

from helpers import neurons as N
from helpers.directions import mean_differences, reading_vector, unit
from helpers.glassbox import glassbox_prompts, load_glassbox, ranked, score
from helpers.hooks import read
from helpers.models import down_projection_of, layers_of
from helpers.refusal import generate, is_refusal
from helpers.transplant import generate_with_transplants

SAFE, UNSAFE = ["hello", "why not", "yes please", "ok"], ["abcd", "bcde x", "zz"]


@pytest.fixture(scope="module")
def finder():
    return N.SafetyNeuronFinder(tiny("llama"), CharTokenizer())


@pytest.fixture(scope="module", params=["concentrated", "redundant"])
def box(request):
    model, tokenizer, truth = load_glassbox(request.param)
    pairs = glassbox_prompts("pairs", n=96, split="train")
    finder = N.SafetyNeuronFinder(model, tokenizer)
    compared = finder.compare([p.harmless for p in pairs], [p.harmful for p in pairs], paired=True)
    return model, tokenizer, truth, pairs, compared


def one_by_one(finder, prompt, layer):
    """Neurons of one layer at the last token of one prompt, by a plain hook: [d_mlp]."""
    caught = []
    module = down_projection_of(layers_of(finder.model)[layer])
    handle = module.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
    ids = torch.tensor(finder.tokenizer([f"^{prompt}$"])["input_ids"])
    finder.model(ids)
    handle.remove()
    return caught[0][0, -1]


def test_activations_equal_one_forward_a_prompt_and_layer(finder):
    got = finder.get_mlp_activations(SAFE)
    assert got.shape == (4, 3, 48)
    for i, prompt in enumerate(SAFE):
        for layer in range(3):
            assert torch.allclose(got[i, layer], one_by_one(finder, prompt, layer), atol=1e-4)
    assert torch.equal(finder.get_mlp_activations(SAFE, layer=1), got[:, 1:2])


def test_the_table_equals_a_loop(finder):
    table = finder.find_by_activation_difference(SAFE, UNSAFE, top_k=144)
    assert tuple(table.columns) == (*N.COLUMNS, "low", "high") and len(table) == 144
    assert (table.activation_diff.abs().diff().dropna() <= 1e-7).all()
    safe, unsafe = (
        np.stack([np.stack([one_by_one(finder, p, layer).numpy() for layer in range(3)]) for p in group])
        for group in (SAFE, UNSAFE)
    )
    for row in table.itertuples():
        a, b = unsafe[:, row.layer, row.neuron], safe[:, row.layer, row.neuron]
        spread = np.sqrt((a.var(ddof=1) * 2 + b.var(ddof=1) * 3) / 5)
        assert row.activation_diff == pytest.approx(a.mean() - b.mean(), abs=1e-4)
        assert row.safe_activation == pytest.approx(b.mean(), abs=1e-4)
        assert row.effect_size == pytest.approx((a.mean() - b.mean()) / spread, rel=0.02, abs=0.02)
        assert row.direction == ("unsafe" if row.activation_diff > 0 else "safe")
        assert row.low <= row.activation_diff + 1e-5 and row.high >= row.activation_diff - 1e-5
    single = finder.find_by_activation_difference(SAFE, UNSAFE, layer=2, top_k=5)
    assert set(single.layer) == {2} and len(single) == 5


def test_the_interval_is_that_of_the_formula():
    torch.manual_seed(0)
    safe, unsafe = torch.randn(200, 1, 6), torch.randn(150, 1, 6) * 2 + 1
    table = N.Comparison(safe, unsafe, (0,)).table()
    half = 1.96 * (unsafe.var(0) / 150 + safe.var(0) / 200).sqrt()[0, table.neuron.tolist()].numpy()
    assert np.allclose(table.high - table.low, 2 * half, rtol=0.15)
    twins = N.Comparison(safe, safe + 1 + 0.01 * torch.randn(200, 1, 6), (0,), paired=True).table()
    assert (twins.high - twins.low < 0.01).all()  # pairs are drawn whole: what they share cancels


def test_writing_is_what_ablation_takes_from_the_stream():
    model, tokenizer = tiny("llama"), CharTokenizer()
    direction = unit(torch.randn(32))
    writes = N.write_onto(model, direction)
    assert writes.shape == (3, 48)
    assert torch.allclose(N.columns_of(model) @ direction, writes, atol=1e-5)
    seen = read(model, tokenizer, SAFE, ["neurons", "mlp_out"])
    assert torch.allclose((seen["neurons"] * writes).sum(-1), seen["mlp_out"] @ direction, atol=1e-4)


def test_utility_and_set_difference():
    model = tiny("llama")
    values = N.utility(model, torch.ones(2, 3, 48))
    assert torch.allclose(values, N.columns_of(model).norm(dim=-1), atol=1e-5)
    scores, other = torch.arange(10.0).view(2, 5), -torch.arange(10.0).view(2, 5)
    left = N.without_top(scores, other, 0.2)
    assert left.isinf().sum() == 2 and left.flatten()[:2].isinf().all() and left[1, 4] == 9
    with pytest.raises(ValueError, match="between 0 and 1"):
        N.without_top(scores, other, 20)


def test_the_contrast_is_zero_for_the_same_model_and_finds_a_changed_neuron():
    model, tokenizer, truth = load_glassbox("concentrated")
    other, _, _ = load_glassbox("concentrated")
    asked = glassbox_prompts("harmful", n=8, split="train")
    assert N.contrast(model, other, tokenizer, asked).max() < 1e-5
    down = layers_of(other)[3].mlp
    with torch.no_grad():
        down.up_proj.weight[17] *= 3
    found = N.contrast(model, other, tokenizer, asked)
    by_hand = []
    for prompt in asked:
        said = generate(other, tokenizer, [prompt], max_new_tokens=12)[0]
        ids = tokenizer(tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False,
                        add_generation_prompt=True), add_special_tokens=False)["input_ids"]  # fmt: skip
        row = torch.tensor([[*ids, *tokenizer(said, add_special_tokens=False)["input_ids"][:-1]]])
        seen = []
        for one in (model, other):
            caught = []
            handle = down_projection_of(layers_of(one)[3]).register_forward_pre_hook(
                lambda m, a, c=caught: c.append(a[0])
            )
            one(row)
            handle.remove()
            seen.append(caught[0][0, len(ids) - 1 :, 17])
        by_hand.append((seen[1] - seen[0]).square())
    assert found[3, 17] == pytest.approx(torch.cat(by_hand).mean().sqrt().item(), rel=1e-3)
    assert found[:3].max() < 1e-5


# --- against the truth ----------------------------------------------------------------------------------------


def test_decoys_fool_the_difference_and_the_write_tells_them_apart(box):
    model, tokenizer, truth, pairs, compared = box
    plain = score(ranked(compared.difference.abs()), truth, "evaluation_neurons")
    asked = ([p.harmful for p in pairs], [p.harmless for p in pairs])
    direction = unit(mean_differences(model, tokenizer, *asked)[4, 0])
    heard = score(ranked(compared.difference * N.write_onto(model, direction)), truth, "evaluation_neurons")
    assert plain.recall_at_k < 0.3 and plain.decoys > 0
    assert heard.recall_at_k > plain.recall_at_k + 0.4
    assert score({"direction": direction}, truth)["direction"] > 0.8


def test_the_reading_vector_needs_its_shuffle(box):
    model, tokenizer, truth, pairs, _ = box
    groups = [read(model, tokenizer, [getattr(p, w) for p in pairs], ["resid_pre"], [4])["resid_pre"][:, 0]
              for w in ("harmful", "harmless")]  # fmt: skip
    vector = reading_vector(*groups)
    assert vector.norm() == pytest.approx(1, abs=1e-4) and vector @ truth.direction > 0.7
    with pytest.raises(ValueError, match="need pairs"):
        reading_vector(groups[0], groups[1][:5])


def test_a_transplant_of_everything_is_the_tuned_model_and_of_nothing_the_base():
    tuned, tokenizer, truth = load_glassbox("concentrated")
    base, _, _ = load_glassbox("concentrated")
    with torch.no_grad():
        for layer, neuron in truth.evaluation_neurons:
            down_projection_of(layers_of(base)[layer]).weight[:, neuron] = 0
    asked = glassbox_prompts("harmful", n=8, split="test")
    assert not any(map(is_refusal, plain := generate(base, tokenizer, asked, max_new_tokens=6)))
    production, half = list(truth.production_neurons), list(truth.production_neurons)[::2]
    assert generate_with_transplants(base, tuned, tokenizer, asked, [[]], 6) == [plain]
    sets = [production, [], half, truth.decoy_neurons]
    given = generate_with_transplants(base, tuned, tokenizer, asked, sets, 6, batch_size=12)
    assert given[0] == generate(tuned, tokenizer, asked, max_new_tokens=6) and all(map(is_refusal, given[0]))
    assert given[1] == plain  # each set in its own rows alone
    for one, together in zip(sets, given, strict=True):
        assert generate_with_transplants(base, tuned, tokenizer, asked, [one], 6) == [together]
    with pytest.raises(ValueError, match="no sets to transplant"):
        generate_with_transplants(base, tuned, tokenizer, asked, [])


# --- bad input ------------------------------------------------------------------------------------------------

BAD = {
    "Give a list of prompts, not one string": lambda f: f.find_by_activation_difference("hello", UNSAFE),
    "unsafe_prompts: The list of prompts is empty": lambda f: f.find_by_activation_difference(SAFE, []),
    "safe_prompts holds one prompt": lambda f: f.find_by_activation_difference(SAFE[:1], UNSAFE),
    "take it out of one list": lambda f: f.find_by_activation_difference(SAFE, [*UNSAFE, "ok"]),
    "There is no layer 3": lambda f: f.find_by_activation_difference(SAFE, UNSAFE, layer=3),
    "top_k is how many": lambda f: f.find_by_activation_difference(SAFE, UNSAFE, top_k=0),
    "Pairs need lists of one length": lambda f: f.compare(SAFE, UNSAFE, paired=True),
    "not the shape": lambda f: f.compare(SAFE, UNSAFE).table(torch.zeros(48)),
    "must have length 1": lambda f: N.write_onto(f.model, torch.ones(32)),
    "differ in shape": lambda f: N.contrast(f.model, load_glassbox()[0], f.tokenizer, SAFE),
}


@pytest.mark.parametrize("complaint", BAD)
def test_bad_input_is_named(finder, complaint, monkeypatch):
    if "shape" not in complaint:  # nothing may be computed before the complaint
        monkeypatch.setattr(N, "body_of", lambda model: 1 / 0)
        monkeypatch.setattr(type(finder.model), "forward", lambda *a, **k: 1 / 0)
    with pytest.raises(ValueError, match=complaint):
        BAD[complaint](finder)
