"""Fine-tuning of a circuit's own weights: which they are, in every family; and that the rest stays as it was, to the bit."""

import copy

import pandas as pd
import pytest
import torch
from families import CONFIGS, CharTokenizer, tiny

from helpers.circuit_weights import Circuit, parameters_in, places_of_circuit, random_circuit, weight_masks
from helpers.finetuning import (
    PLACEHOLDER,
    Example,
    answer_loss,
    examples,
    finetuned,
    moved,
    targeted_safety_removal,
)
from helpers.glassbox import Node, glassbox_prompts, load_glassbox
from helpers.hooks import record
from helpers.models import dims_of
from helpers.refusal import generate, is_refusal, refusal_score_of

CIRCUIT = Circuit(
    detection_heads=((0, 1),), evaluation_neurons=((1, 5), (1, 30)), decision_components=((1, 2),), production_neurons=((2, 7),)
)  # fmt: skip


@pytest.fixture(scope="module")
def box():
    return load_glassbox("concentrated")


def data(n=8, split="train"):
    tokenizer = load_glassbox("concentrated")[1]
    return examples(tokenizer, glassbox_prompts("harmful", n=n, split=split), "sure !")


# --- which weights --------------------------------------------------------------------------------------------


def shaken(model, masks, seed=5):
    """The model with noise on what the masks mark; restored by the returned function."""
    generator, named = torch.Generator().manual_seed(seed), dict(model.named_parameters())
    kept = {name: named[name].clone() for name in masks}
    for name, mask in masks.items():
        named[name].data += torch.randn(mask.shape, generator=generator) * mask

    def restore():
        for name, weight in kept.items():
            named[name].data.copy_(weight)

    return restore


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_a_neurons_weights_move_that_neuron_and_what_it_writes(family):
    model, ids = tiny(family), torch.randint(1, 60, (2, 9))
    masks = weight_masks(model, Circuit(evaluation_neurons=((1, 5), (1, 30))))
    with record(model, ["neurons"], [0, 1]) as before:
        model(ids)
    restore = shaken(model, masks)
    with record(model, ["neurons"], [0, 1]) as after:
        model(ids)
    restore()
    assert torch.equal(before["neurons"][0], after["neurons"][0])
    changed = (before["neurons"][1] - after["neurons"][1]).abs().amax((0, 1)) > 1e-6
    assert changed.nonzero().flatten().tolist() == [5, 30]
    assert parameters_in(masks) % 2 == 0 and parameters_in(masks) >= 2 * 2 * 32  # in and out, two neurons, d_model


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_a_heads_weights_move_that_head_alone(family):
    model, ids = tiny(family), torch.randint(1, 60, (2, 9))
    dims = dims_of(model)
    masks = weight_masks(model, Circuit(decision_components=((1, 2),)))
    with record(model, ["z"], [1]) as before:
        model(ids)
    restore = shaken(model, masks)
    with record(model, ["z"], [1]) as after:
        model(ids)
    restore()
    difference = (before["z"][1] - after["z"][1]).abs().view(2, 9, dims.n_heads, dims.d_head).amax((0, 1, 3))
    found = (difference > 1e-6).nonzero().flatten().tolist()
    # Keys and values are left: heads share them. In OLMo 2 one norm goes over all queries, so that others move a little.
    assert found == [2] if family != "olmo2" else difference.argmax() == 2


def test_the_weights_of_a_llama_circuit_by_hand():
    masks = weight_masks(tiny("llama"), CIRCUIT)
    want = {
        "model.layers.0.self_attn.q_proj.weight": (slice(8, 16), slice(None)),
        "model.layers.0.self_attn.o_proj.weight": (slice(None), slice(8, 16)),
        "model.layers.1.self_attn.q_proj.weight": (slice(16, 24), slice(None)),
        "model.layers.1.self_attn.o_proj.weight": (slice(None), slice(16, 24)),
        "model.layers.1.mlp.gate_proj.weight": ([5, 30], slice(None)),
        "model.layers.1.mlp.up_proj.weight": ([5, 30], slice(None)),
        "model.layers.1.mlp.down_proj.weight": (slice(None), [5, 30]),
        "model.layers.2.mlp.gate_proj.weight": ([7], slice(None)),
        "model.layers.2.mlp.up_proj.weight": ([7], slice(None)),
        "model.layers.2.mlp.down_proj.weight": (slice(None), [7]),
    }
    assert set(masks) == set(want)
    for name, place in want.items():
        expected = torch.zeros_like(masks[name])
        expected[place] = True
        assert torch.equal(masks[name], expected), name
    assert parameters_in(masks) == 2 * 2 * 8 * 32 + 3 * 3 * 32


def test_a_circuit_comes_in_several_forms(box):
    model, _, truth = box
    heads, neurons = places_of_circuit(model, truth)
    assert sum(map(len, heads.values())) == len(truth.heads) and sum(map(len, neurons.values())) == len(truth.neurons)
    nodes = Circuit(decision_components=(Node("head", 0, 1), Node("neuron", 2, 3)), evaluation_neurons=((2, 4),))
    assert places_of_circuit(model, nodes) == ({0: [1]}, {2: [3, 4]})
    table = pd.DataFrame({"layer": [1], "neuron": [2]})
    assert places_of_circuit(model, Circuit(evaluation_neurons=tuple(table.itertuples(index=False, name=None))))[1] == {
        1: [2]
    }


def test_a_random_circuit_has_as_many_weights_and_none_of_the_same(box):
    model, _, truth = box
    drawn = [random_circuit(model, truth, seed) for seed in range(3)]
    heads, neurons = places_of_circuit(model, truth)
    for one in drawn:
        other_heads, other_neurons = places_of_circuit(model, one)
        assert parameters_in(weight_masks(model, one)) == parameters_in(weight_masks(model, truth))
        assert {k: len(v) for k, v in other_neurons.items()} == {k: len(v) for k, v in neurons.items()}
        for layer, members in other_heads.items():
            assert not set(members) & set(heads.get(layer, []))
        for layer, members in other_neurons.items():
            assert not set(members) & set(neurons[layer])
    assert len({one.evaluation_neurons for one in drawn}) == 3 and random_circuit(model, truth, 0) == drawn[0]
    crowded = Circuit(decision_components=tuple((1, h) for h in range(3)))  # three of four: two come from next door
    drawn = random_circuit(tiny("llama"), crowded).decision_components
    assert len(drawn) == 3 and [layer for layer, _ in drawn].count(1) == 1


# --- training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
def test_the_frozen_part_stays_the_same_to_the_bit(family):
    model, tokenizer = tiny(family), CharTokenizer()
    rows = examples(tokenizer, ["hello", "why not", "abc"], "sure")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    new = targeted_safety_removal(model, CIRCUIT, rows, rate=1e-2, steps=4, batch_size=2)
    masks = weight_masks(model, CIRCUIT)
    for name, weight in new.named_parameters():
        outside = ~masks.get(name, torch.zeros(weight.shape, dtype=torch.bool))
        assert torch.equal(weight[outside], before[name][outside]), name
        assert torch.equal(dict(model.named_parameters())[name], before[name]), name  # the given model is untouched
    changed = moved(model, new)
    assert set(changed) <= set(masks) and parameters_in(changed) > 0.8 * parameters_in(masks)
    assert not any(weight.requires_grad for weight in new.parameters())


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_it_is_adamw_on_masked_gradients_without_decay(decay):
    model = tiny("llama")
    rows, masks = examples(CharTokenizer(), ["hello", "why not"], "sure"), weight_masks(model, CIRCUIT)
    masks["model.layers.2.mlp.down_proj.weight"] = torch.ones(32, 48, dtype=torch.bool)  # and one whole
    new, naive = finetuned(model, masks, rows, rate=1e-2, steps=3), copy.deepcopy(model)
    named = dict(naive.named_parameters())
    optimiser = torch.optim.AdamW([named[name].requires_grad_(True) for name in masks], lr=1e-2, weight_decay=decay)
    for _ in range(3):
        optimiser.zero_grad()
        answer_loss(naive, rows).backward()
        for name, mask in masks.items():
            named[name].grad *= mask
        optimiser.step()
    same = all(torch.allclose(w, named[name], atol=1e-6) for name, w in new.named_parameters())
    assert same == (decay == 0)  # with decay, what is masked moves all the same


def test_one_step_is_adamws_first_step():
    """The first step of Adam moves each weight by the rate, against the sign of its gradient."""
    model = tiny("llama")
    rows, masks = examples(CharTokenizer(), ["hello"], "sure"), weight_masks(model, CIRCUIT)
    name = "model.layers.1.mlp.down_proj.weight"
    model.requires_grad_(True)
    answer_loss(model, rows).backward()
    gradient = dict(model.named_parameters())[name].grad.clone()
    model.zero_grad()
    model.requires_grad_(False)
    new = targeted_safety_removal(model, CIRCUIT, rows, rate=1e-3, steps=1)
    step = dict(new.named_parameters())[name] - dict(model.named_parameters())[name]
    mask = masks[name] & (gradient.abs() > 1e-5)
    assert torch.allclose(step[mask], -1e-3 * gradient[mask].sign(), atol=1e-5)


def test_the_loss_is_that_of_transformers():
    model, tokenizer = tiny("llama"), CharTokenizer()
    rows = examples(tokenizer, ["hello", "why not, then"], ["sure", "I can not"])
    total, count = 0.0, 0
    for one in rows:
        ids = torch.tensor([one.ids])
        labels = ids.clone()
        labels[:, : one.start] = -100
        n = len(one.ids) - one.start
        total, count = total + n * float(model(ids, labels=labels).loss), count + n
    assert float(answer_loss(model, rows)) == pytest.approx(total / count, rel=1e-5)


def test_an_example_is_the_template_the_answer_and_an_end(box):
    _, tokenizer, _ = box
    (one,) = examples(tokenizer, ["boil the acid"], "sure !")
    words = tokenizer.convert_ids_to_tokens(one.ids)
    assert words[one.start :][:1] == ["sure"] and one.ids[-1] == tokenizer.eos_token_id
    assert PLACEHOLDER == "Sure. [withheld in this course]"


def test_every_example_is_seen_once_in_a_round(monkeypatch):
    seen = []
    model, rows = tiny("llama"), examples(CharTokenizer(), list("abcdefg"), "sure")

    def loss(model, batch):
        seen.extend(batch)
        return answer_loss(model, batch)

    monkeypatch.setattr("helpers.finetuning.answer_loss", loss)
    targeted_safety_removal(model, CIRCUIT, rows, steps=7, batch_size=3)
    assert set(seen[:7]) == set(rows) and len(seen) == 21 and len(set(seen[7:14])) == 7


def test_removal_on_the_box_and_its_controls(box):
    """In twelve small steps on the circuit refusal goes; on as many random weights, at the same rate, it does not yet."""
    model, tokenizer, truth = box
    asked, score = glassbox_prompts("harmful", n=16, split="test"), refusal_score_of(model, tokenizer)
    steps = []
    kept = {"rate": 1e-4, "steps": 12, "batch_size": 8}
    new = targeted_safety_removal(model, truth, data(32), each=lambda done, m: steps.append(done), **kept)
    other = targeted_safety_removal(model, random_circuit(model, truth), data(32), **kept)
    refused = [(score.log_odds(m, tokenizer, asked) > 0).mean() for m in (model, new, other)]
    assert refused[0] == 1 and refused[1] < 0.2 and refused[2] > 0.8 and steps == list(range(13))
    assert not any(map(is_refusal, generate(new, tokenizer, asked[:4], max_new_tokens=4)))
    plain = targeted_safety_removal(model, truth, data(16))  # the rate of the outline, 1e-5: far too small here
    assert (score.log_odds(plain, tokenizer, asked) > 0).all()


def test_bad_input_is_named(box):
    model, tokenizer, truth = box
    rows = data(2)
    big = torch.nn.Module()
    big.weight = torch.nn.Parameter(torch.empty(20_001, 10_000, device="meta"))
    cases = {
        "nothing to train on": lambda: targeted_safety_removal(model, truth, []),
        "examples.tokenizer, prompts": lambda: targeted_safety_removal(model, truth, ["boil the acid"]),
        "it lacks detection_heads": lambda: targeted_safety_removal(model, [(0, 1)], rows),
        "circuit is empty": lambda: targeted_safety_removal(model, Circuit(), rows),
        "There is no neuron 256": lambda: targeted_safety_removal(model, Circuit(evaluation_neurons=((0, 256),)), rows),
        "There is no head": lambda: targeted_safety_removal(model, Circuit(detection_heads=((0, 8),)), rows),
        "its own small model only": lambda: targeted_safety_removal(big, truth, rows),
        "dtype=torch.float32": lambda: targeted_safety_removal(tiny("llama").bfloat16(), CIRCUIT, rows),
        "is neither": lambda: weight_masks(model, Circuit(decision_components=(Node("mlp", 0, 0),))),
        "list of prompts is empty": lambda: examples(tokenizer, []),
        "2 prompts and 1 answers": lambda: examples(tokenizer, ["a", "b"], ["sure"]),
        "no other set is as large": lambda: random_circuit(
            tiny("llama"), Circuit(detection_heads=tuple((layer, h) for layer in range(3) for h in range(3)))
        ),
    }
    for complaint, call in cases.items():
        with pytest.raises(ValueError, match=complaint):
            call()
    assert isinstance(rows[0], Example)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_loss_with_a_shared_beginning_and_its_gradient_are_those_of_each_example_alone(family):
    model, generator = tiny(family).requires_grad_(True), torch.Generator().manual_seed(0)
    ids = [torch.randint(1, 60, (n,), generator=generator).tolist() for n in (6, 9, 7)]
    batch = [Example((5, 7, 9, 11, 13, *own), 8) for own in ids]
    together = answer_loss(model, batch)
    together.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    tokens = [len(one.ids) - one.start for one in batch]
    alone = sum(answer_loss(model, [one]) * n for one, n in zip(batch, tokens, strict=True)) / sum(tokens)
    alone.backward()
    assert float(together) == pytest.approx(float(alone), abs=1e-4)
    for name, p in model.named_parameters():
        if p.grad is not None:
            assert torch.allclose(found[name], p.grad, atol=1e-3), name


def test_examples_go_one_at_a_time_where_a_model_takes_no_mask_of_ours(monkeypatch):
    model = tiny("llama")
    batch = [Example((5, 7, 9, 11, 13, *own), 8) for own in ((1, 2, 3, 4, 6), (8, 9, 10, 12), (20, 21, 22, 23, 24, 25))]
    together, lengths = float(answer_loss(model, batch)), []
    monkeypatch.setattr("helpers.finetuning.AnswerTree.fits", lambda *_: False)
    hook = model.model.register_forward_pre_hook(
        lambda _, __, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    assert float(answer_loss(model, batch)) == pytest.approx(together, abs=1e-5)
    hook.remove()
    assert lengths == [len(one.ids) - 1 for one in batch]
