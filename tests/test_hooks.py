"""Hooks: every site is what it says in every family; edits act, and always come off; padding changes nothing."""

import pytest
import torch
from families import CONFIGS, CharTokenizer, tiny

from helpers import hooks as H
from helpers import models as M
from helpers.batching import in_batches

IDS = torch.tensor([[5, 9, 2, 33, 21], [7, 1, 1, 40, 3]])


def run(model, ids=IDS):
    return model(ids).logits


def count_hooks(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture(scope="module")
def llama():
    return tiny("llama")


@pytest.mark.parametrize("family", CONFIGS)
def test_the_stream_is_the_sum_of_what_is_written(family):
    model = tiny(family)
    with H.record(model, H.SITES) as seen:
        run(model)
    for layer in range(3):
        total = seen["resid_pre"][layer] + seen["attn_out"][layer] + seen["mlp_out"][layer]
        assert torch.allclose(total, seen["resid_post"][layer], atol=1e-4)
        if layer < 2:
            assert torch.equal(seen["resid_post"][layer], seen["resid_pre"][layer + 1])


@pytest.mark.parametrize("family", CONFIGS)
def test_the_neuron_site_drives_the_mlp_through_its_columns(family):
    model = tiny(family)
    dims, layer = M.dims_of(model), M.layers_of(model)[1]
    down = M.down_projection_of(layer)
    seen_out = []
    handle = down.register_forward_hook(lambda m, a, out: seen_out.append(out.detach().clone()))
    with H.record(model, ["neurons"], [1]) as seen:
        run(model)
    neuron = 7
    with H.patch(model, "neurons", 1, torch.zeros(()), channels=[neuron]):
        run(model)
    handle.remove()
    assert seen["neurons"][1].shape[-1] == dims.d_mlp == 48
    lost = seen["neurons"][1][..., neuron, None] * M.weight_of(down)[:, neuron]
    assert torch.allclose(seen_out[0] - seen_out[1], lost, atol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_z_goes_through_the_output_projection(family):
    model = tiny(family)
    projection = M.out_projection_of(M.layers_of(model)[2])
    seen_out = []
    handle = projection.register_forward_hook(lambda m, a, out: seen_out.append(out.detach()))
    with H.record(model, ["z"], [2]) as seen:
        run(model)
    handle.remove()
    dims = M.dims_of(model)
    assert seen["z"][2].shape[-1] == dims.n_heads * dims.d_head
    bias = projection.bias if projection.bias is not None else 0
    assert torch.allclose(seen["z"][2] @ M.weight_of(projection).T + bias, seen_out[0], atol=1e-5)


@pytest.mark.parametrize("site", H.SITES)
def test_patching_a_run_with_its_own_values_changes_nothing_and_with_others_something(llama, site):
    clean = run(llama)
    with H.record(llama, [site], [1]) as seen:
        run(llama)
    with H.patch(llama, site, 1, seen[site][1]):
        assert torch.allclose(run(llama), clean, atol=1e-5)
    with H.patch(llama, site, 1, seen[site][1] + 1.0):
        assert not torch.allclose(run(llama), clean, atol=1e-2)


def test_a_patch_reaches_only_its_positions_and_channels(llama):
    with H.patch(llama, "neurons", 1, torch.tensor(3.0), positions=[-1], channels=[4, 5]):
        with H.record(llama, ["neurons"], [1]) as seen:
            run(llama)
    with H.record(llama, ["neurons"], [1]) as clean:
        run(llama)
    same = seen["neurons"][1] == clean["neurons"][1]
    assert (seen["neurons"][1][:, -1, 4:6] == 3.0).all()
    same[:, -1, 4:6] = True
    assert same.all()


def test_hooks_come_off_after_errors_and_interrupts(llama):
    clean = run(llama)
    for error in (RuntimeError, KeyboardInterrupt):

        def fail(x, error=error):
            raise error

        with pytest.raises(error), H.edit(llama, [("resid_pre", 0, lambda x: x * 2), ("neurons", 1, fail)]):
            run(llama)
        assert count_hooks(llama) == 0
    assert torch.equal(run(llama), clean)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ([("resid_mid", 0, None)], "no site 'resid_mid'"),
        ([("z", 3, None)], "no layer 3.*0 to 2"),
        ([("z", -1, None)], "no layer -1"),
        ([("z", True, None)], "no layer True"),
        ([("z", 0, None), ("z", 0.5, None)], "no layer 0.5"),
    ],
)
def test_bad_places_are_refused_before_any_hook(llama, edits, message):
    with pytest.raises(ValueError, match=message), H.edit(llama, edits):
        pass
    assert count_hooks(llama) == 0


def test_an_edit_of_another_shape_is_refused(llama):
    with pytest.raises(ValueError, match=r"must return a tensor of shape \(2, 5, 32\)"):
        with H.edit(llama, [("resid_pre", 0, lambda x: x[:, -1])]):
            run(llama)
    assert count_hooks(llama) == 0


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_reading_many_prompts_equals_reading_each_alone(family, side):
    model, tokenizer = tiny(family), CharTokenizer()
    prompts = ["short", "a rather longer prompt", "mid length", "x"]
    positions = [-1, -3, 0]
    together = H.read(
        model, tokenizer, prompts, ["neurons", "resid_post"], positions=positions, batch_size=3, side=side
    )
    for i, prompt in enumerate(prompts):
        ids = torch.tensor(tokenizer([f"^{prompt}$"])["input_ids"])
        with H.record(model, ["neurons", "resid_post"]) as seen:
            run(model, ids)
        for site in together:
            alone = torch.stack([seen[site][layer][0, positions] for layer in range(3)])
            assert torch.allclose(together[site][i], alone, atol=1e-4)


def test_reading_one_position_drops_its_axis_and_bad_positions_are_refused(llama):
    tokenizer = CharTokenizer()
    assert H.read(llama, tokenizer, ["abc"], ["z"], layers=[0, 2])["z"].shape == (1, 2, 32)
    with pytest.raises(ValueError, match="shortest prompt, which has 3 tokens"):
        H.read(llama, tokenizer, ["abcdef", "a"], ["z"], positions=-4)
    with pytest.raises(ValueError, match="Give a list of sites"):
        H.read(llama, tokenizer, ["abc"], "z")
    with pytest.raises(ValueError, match="nothing to read"):
        H.read(llama, tokenizer, ["abc"], [])


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "gpt2"])
def test_an_ablated_direction_is_gone_from_every_write(family):
    model = tiny(family)
    direction = torch.randn(32, generator=torch.Generator().manual_seed(1))
    direction = direction / direction.norm()
    if family == "gpt2":  # position embeddings are added after the token embedding: the writes alone are checked
        with H.ablate_direction(model, direction), H.record(model, ["attn_out", "mlp_out"]) as seen:
            run(model)
    else:
        with H.ablate_direction(model, direction), H.record(model, ["resid_pre", "resid_post"]) as seen:
            run(model)
    for by_layer in seen.values():
        for activation in by_layer.values():
            assert (activation @ direction).abs().max() < 1e-4
    assert count_hooks(model) == 0


def test_adding_a_direction_shifts_the_stream_at_its_layer(llama):
    direction = torch.randn(32)
    with H.record(llama, ["resid_post"], [0]) as clean:
        run(llama)
    with H.add_direction(llama, direction, 1, strength=2.0), H.record(llama, ["resid_pre"], [1]) as seen:
        run(llama)
    assert torch.allclose(seen["resid_pre"][1], clean["resid_post"][0] + 2 * direction, atol=1e-5)


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        (torch.ones(32), "length 1, this one has 5.657"),
        (torch.ones(48), r"shape \(32,\)"),
        ([1.0], "not list"),
        (torch.full((32,), float("nan")), "not finite"),
    ],
)
def test_bad_directions_are_refused(llama, direction, message):
    with pytest.raises(ValueError, match=message), H.ablate_direction(llama, direction):
        pass


def test_a_batch_is_halved_until_it_fits_and_order_is_kept():
    tried = []

    def run_part(part):
        tried.append(len(part))
        if len(part) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [x * 10 for x in part]

    assert in_batches(run_part, list(range(10)), 8) == [x * 10 for x in range(10)]
    assert tried[:3] == [8, 4, 2]

    def never(part):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_batches(never, [1, 2], 2)
    with pytest.raises(ValueError, match="at least one item"):
        in_batches(run_part, [1], 0)


@pytest.mark.parametrize("family", CONFIGS)
def test_what_all_prompts_begin_with_is_read_once_and_changes_nothing(family):
    model, tokenizer = tiny(family), CharTokenizer()
    prompts = [f"how do i write {x}" for x in ("it", "a poem", "books", "me")]
    for positions in (-1, [-2, 3], [-1, -2]):
        together = H.read(model, tokenizer, prompts, ["neurons", "resid_pre", "z"], positions=positions, batch_size=3)
        for i, prompt in enumerate(prompts):
            alone = H.read(model, tokenizer, [prompt], ["neurons", "resid_pre", "z"], positions=positions)
            for site in alone:
                assert torch.allclose(together[site][i], alone[site][0], atol=1e-4), (site, positions)
