"""Larger models and several devices: spread over GPUs, shared out over processes, and of 7B's shape without its weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model, infer_auto_device_map
from families import CONFIGS, CharTokenizer, tiny
from naive_twins import PAIRS, TOKENS
from transformers import AutoModelForCausalLM, LlamaConfig

from helpers.circuit_weights import Circuit, parameters_in, weight_masks
from helpers.fresh_prefix import in_context
from helpers.glassbox_truth import Node
from helpers.hooks import SITES, ablate_direction, record, width_of
from helpers.models import body_of, dims_of, layers_of
from helpers.node_effects import attribute_nodes, patch_nodes
from helpers.packed_score import packed
from helpers.processes import over_processes
from helpers.refusal import RefusalScore
from helpers.replay import Replaying
from helpers.twins import Twins

ROOT = Path(__file__).parents[1]
SEVEN_B = LlamaConfig(
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
)


def spread(model):
    """The same model as accelerate hands it out over devices: each part's forward is replaced, its inputs are moved."""
    parts = {name: "cpu" for name, _ in model.named_modules() if name.count(".") == 1}
    blocks = {f"{name}.{i}": "cpu" for name in list(parts) for i in range(9) if name.endswith(("layers", "h"))}
    parts = {name: at for name, at in parts.items() if not name.endswith(("layers", "h"))}
    heads = {name: "cpu" for name, _ in model.named_children() if name in ("lm_head", "embed_out")}
    there = {name for name, _ in model.named_modules()}
    device_map = {name: at for name, at in {**parts, **blocks, **heads}.items() if name in there}
    return dispatch_model(model, device_map=device_map, force_hooks=True)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_model_spread_by_accelerate_gives_the_same_and_keeps_its_own_forward(family):
    nodes = [Node("head", 1, 0), Node("neuron", 2, 3), Node("mlp", 0, 0)]
    direction = torch.nn.functional.normalize(torch.ones(dims_of(tiny(family)).d_model), dim=0)

    def everything(model):
        twins = Twins(model, CharTokenizer(), PAIRS, tokens=TOKENS)
        with ablate_direction(model, direction):
            cut = twins.odds()
        with twins.remembering():
            kept = twins.odds("harmful", [("neurons", 1, lambda x: 0 * x)])
        score = packed(RefusalScore(((5, 6), (5, 7, 8), (9, 3))))
        four = ["hello", "why not", "abcdef ghi", "a"]
        scored = [
            score.log_odds(one, CharTokenizer(), four) for one in (model, in_context(model, CharTokenizer(), four))
        ]
        return [twins.odds(), cut, kept, attribute_nodes(twins, 2).heads.numpy(), patch_nodes(twins, nodes), *scored]

    model = spread(tiny(family))
    forwards = [vars(layer).get("forward") for layer in layers_of(model)]
    assert all(forwards), "accelerate has hung nothing on the blocks"
    for found, expected in zip(everything(model), everything(tiny(family)), strict=True):
        assert found == pytest.approx(expected, abs=1e-4)
    assert [vars(layer).get("forward") for layer in layers_of(model)] == forwards


def test_what_is_replayed_on_a_spread_model_leaves_accelerate_s_forward():
    model = spread(tiny("llama"))
    forwards = [vars(layer)["forward"] for layer in layers_of(model)]
    ids = torch.tensor([[1, 2, 3, 4]])
    quick = Replaying(model)
    first, again = (quick(ids, attention_mask=torch.ones_like(ids), use_cache=True).logits for _ in range(2))
    assert torch.allclose(first, again) and [vars(layer)["forward"] for layer in layers_of(model)] == forwards


def test_a_7b_shape_is_understood_without_its_weights():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SEVEN_B, attn_implementation="eager")
        ids = torch.zeros(2, 5, dtype=torch.long)
    dims = dims_of(model)
    assert (dims.n_layers, dims.d_model, dims.d_mlp, dims.n_heads) == (32, 4096, 11008, 32)
    with record(model, SITES, [0, 31]) as seen:
        body_of(model)(ids, attention_mask=torch.ones_like(ids), use_cache=False)
    for site in SITES:
        assert all(x.shape == (2, 5, width_of(model, site)) for x in seen[site].values()), site
    masks = weight_masks(model, Circuit(evaluation_neurons=((31, 11007),), decision_components=((0, 31),)))
    assert parameters_in(masks) == 3 * 4096 + 2 * 128 * 4096


def test_a_7b_shape_is_split_between_blocks_never_within_one():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SEVEN_B, dtype=torch.float16)
    places = infer_auto_device_map(
        model, {0: "8GiB", 1: "8GiB"}, no_split_module_classes=list(model._no_split_modules), dtype=torch.float16
    )
    inside = [name for name in places if name.startswith("model.layers.") and name.count(".") > 2]
    assert set(places.values()) == {0, 1} and not inside


# --- several processes --------------------------------------------------------------------------------------

SCRIPT = """
import json, sys
from helpers.glassbox import glassbox_prompts, load_glassbox
from helpers.processes import _state, device, over_processes
from helpers.refusal import refusal_score_of

model, tokenizer, _ = load_glassbox("concentrated")
asked = glassbox_prompts("harmful", n=7, split="test")
score, mine = refusal_score_of(model, tokenizer), []
def run(part):
    mine.append(len(part))
    return score.log_odds(model, tokenizer, part).tolist()
odds = over_processes(run, asked)
state = _state()
with open(f"{sys.argv[1]}/{state.process_index}.json", "w") as file:
    json.dump({"of": state.num_processes, "did": mine, "odds": odds, "device": device()}, file)
"""


def test_two_processes_give_what_one_gives(tmp_path):
    script = tmp_path / "share.py"
    script.write_text(SCRIPT, encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    # What `accelerate launch` itself starts; on processors alone, accelerate asks for an MPI that few have.
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    for start, place in ((launch, "two"), ([sys.executable], "one")):
        (tmp_path / place).mkdir()
        subprocess.run([*start, str(script), str(tmp_path / place)], env=env, check=True, timeout=300)
    (alone,) = (json.loads(p.read_text()) for p in (tmp_path / "one").iterdir())
    together = [json.loads(p.read_text()) for p in sorted((tmp_path / "two").iterdir())]
    assert alone["of"] == 1 and alone["did"] == [7] and len(alone["odds"]) == 7
    assert [t["of"] for t in together] == [2, 2] and sorted(sum((t["did"] for t in together), [])) == [3, 4]
    for one in together:
        assert one["odds"] == pytest.approx(alone["odds"], abs=1e-5)


def test_what_cannot_be_shared_out_is_refused():
    with pytest.raises(ValueError, match="at least one item"):
        over_processes(list, [])
    with pytest.raises(ValueError, match="one for each"):
        over_processes(lambda part: [1], ["a", "b"])
