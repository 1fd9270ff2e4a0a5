"""Bad input to the public calls: one clear sentence that names the fix, before anything is computed, and no hook left.

A table of calls and inputs. Each call runs on a glass box whose forward passes are counted: there may be none.
"""

import copy
import re

import numpy as np
import pytest
import torch

from helpers.ablation import ablate_safety_neurons
from helpers.circuits import map_refusal_circuit
from helpers.directions import mean_differences
from helpers.finetuning import examples, targeted_safety_removal
from helpers.glassbox import glassbox_prompts, load_glassbox, mystery, score
from helpers.hooks import ablate_direction, add_direction, patch, read
from helpers.matched import matched_random_sets
from helpers.models import UnknownArchitecture, load_model
from helpers.neurons import SafetyNeuronFinder
from helpers.orthogonalise import orthogonalised
from helpers.probing import probe_for_safety
from helpers.prompts import load_borderline, load_pairs
from helpers.quiz import quiz, reveal
from helpers.refusal import generate, measure_refusal
from helpers.statistics import mean_interval
from helpers.tracing import CausalTracer
from helpers.weights import WeightsError

MODEL, TOKENIZER, TRUTH = load_glassbox("concentrated")
PAIRS = glassbox_prompts("pairs", n=4, split="train")
HARMFUL, HARMLESS = [p.harmful for p in PAIRS], [p.harmless for p in PAIRS]
MUTE = copy.deepcopy(TOKENIZER)
MUTE.chat_template = None
NAN = torch.full((MODEL.config.hidden_size,), float("nan"))
UNIT = torch.eye(MODEL.config.hidden_size)[0]
FINDER, TRACER = SafetyNeuronFinder(MODEL, TOKENIZER), CausalTracer(MODEL, TOKENIZER)
ERRORS = (ValueError, TypeError, UnknownArchitecture, WeightsError)
PROMPTS = {"no prompts": [], "one string": "How?", "no text": ["How?", 3], "an empty text": ["How?", " "]}
LAYERS = {"a layer too high": 99, "a negative layer": -1, "half a layer": 1.5, "a layer's name": "last"}


def within(context):
    """Enter and leave a context manager."""
    with context:
        pass


def calls():
    """(what is called, what is wrong, the call)."""
    for wrong, value in PROMPTS.items():
        yield "find_by_activation_difference", wrong, lambda v=value: FINDER.find_by_activation_difference(v, HARMFUL)
        yield (
            "find_by_activation_difference",
            f"{wrong}, harmful",
            lambda v=value: FINDER.find_by_activation_difference(HARMLESS, v),
        )
        yield "get_mlp_activations", wrong, lambda v=value: FINDER.get_mlp_activations(v)
        yield (
            "trace_safety_circuit",
            wrong,
            lambda v=value: TRACER.trace_safety_circuit(v if v != "How?" else [v], HARMLESS),
        )
        yield "measure_refusal", wrong, lambda v=value: measure_refusal(MODEL, TOKENIZER, v)
        yield "measure_refusal by log_odds", wrong, lambda v=value: measure_refusal(MODEL, TOKENIZER, v, by="log_odds")
        yield "probe_for_safety", wrong, lambda v=value: probe_for_safety(MODEL, TOKENIZER, v, HARMFUL)
        yield "map_refusal_circuit", wrong, lambda v=value: map_refusal_circuit(MODEL, TOKENIZER, v)
        yield "examples", wrong, lambda v=value: examples(TOKENIZER, v)
        yield "generate", wrong, lambda v=value: generate(MODEL, TOKENIZER, v)
        yield "read", wrong, lambda v=value: read(MODEL, TOKENIZER, v, ["resid_pre"])
        yield "mean_differences", wrong, lambda v=value: mean_differences(MODEL, TOKENIZER, v, HARMLESS)
    for wrong, layer in LAYERS.items():
        yield (
            "find_by_activation_difference",
            wrong,
            lambda v=layer: FINDER.find_by_activation_difference(HARMLESS, HARMFUL, layer=v),
        )
        yield "get_mlp_activations", wrong, lambda v=layer: FINDER.get_mlp_activations(HARMFUL, layer=v)
        yield "add_direction", wrong, lambda v=layer: within(add_direction(MODEL, UNIT, v))
        yield "ablate_direction", wrong, lambda v=layer: within(ablate_direction(MODEL, UNIT, [v]))
        yield "patch", wrong, lambda v=layer: within(patch(MODEL, "resid_pre", v, UNIT))
        yield "ablate_safety_neurons", wrong, lambda v=layer: ablate_safety_neurons(MODEL, [(v, 0)])
        yield "orthogonalised", wrong, lambda v=layer: orthogonalised(MODEL, UNIT, [v])
    for wrong, vector in {
        "nan": NAN,
        "the wrong size": UNIT[:5],
        "not of length one": 2 * UNIT,
        "zero": 0 * UNIT,
    }.items():
        yield "ablate_direction", f"a direction that is {wrong}", lambda v=vector: within(ablate_direction(MODEL, v))
        yield "orthogonalised", f"a direction that is {wrong}", lambda v=vector: orthogonalised(MODEL, v)
    yield (
        "no template",
        "find_by_activation_difference",
        lambda: SafetyNeuronFinder(MODEL, MUTE).find_by_activation_difference(HARMLESS, HARMFUL),
    )
    yield "no template", "measure_refusal", lambda: measure_refusal(MODEL, MUTE, HARMFUL)
    yield (
        "no template",
        "trace_safety_circuit",
        lambda: CausalTracer(MODEL, MUTE).trace_safety_circuit(HARMFUL, HARMLESS),
    )
    yield "no template", "probe_for_safety", lambda: probe_for_safety(MODEL, MUTE, HARMLESS, HARMFUL)
    yield "trace_safety_circuit", "unequal lists", lambda: TRACER.trace_safety_circuit(HARMFUL, HARMLESS[:-1])
    yield "probe_for_safety", "unequal lists", lambda: probe_for_safety(MODEL, TOKENIZER, HARMLESS, HARMFUL[:-1])
    yield "probe_for_safety", "one class only", lambda: probe_for_safety(MODEL, TOKENIZER, HARMFUL, HARMFUL)
    yield (
        "find_by_activation_difference",
        "one class only",
        lambda: FINDER.find_by_activation_difference(HARMFUL, HARMFUL),
    )
    yield (
        "find_by_activation_difference",
        "no neurons wanted",
        lambda: FINDER.find_by_activation_difference(HARMLESS, HARMFUL, top_k=0),
    )
    yield "measure_refusal", "an unknown measure", lambda: measure_refusal(MODEL, TOKENIZER, HARMFUL, by="vibes")
    yield "ablate_safety_neurons", "none", lambda: ablate_safety_neurons(MODEL, [])
    yield "ablate_safety_neurons", "a neuron too high", lambda: ablate_safety_neurons(MODEL, [(0, 10_000)])
    yield "ablate_safety_neurons", "no pairs", lambda: ablate_safety_neurons(MODEL, [3, 4])
    yield "ablate_safety_neurons", "strength nan", lambda: ablate_safety_neurons(MODEL, [(0, 1)], float("nan"))
    yield "ablate_safety_neurons", "a mean without donors", lambda: ablate_safety_neurons(MODEL, [(0, 1)], kind="mean")
    yield "targeted_safety_removal", "nothing to train on", lambda: targeted_safety_removal(MODEL, TRUTH, [])
    yield (
        "targeted_safety_removal",
        "no circuit",
        lambda: targeted_safety_removal(MODEL, None, examples(TOKENIZER, HARMFUL, "sure !")),
    )
    yield "examples", "unequal lists", lambda: examples(TOKENIZER, HARMFUL, ["sure !"])
    yield (
        "matched_random_sets",
        "a neuron that is not there",
        lambda: matched_random_sets([(0, 9999)], torch.rand(6, 256), 2),
    )
    yield "mean_interval", "no values", lambda: mean_interval([])
    yield "load_glassbox", "an unknown kind", lambda: load_glassbox("hidden")
    yield "load_glassbox", "a seed too many", lambda: load_glassbox("redundant", 3)
    yield "mystery", "half a seed", lambda: mystery(0.5)
    yield "score", "no stage", lambda: score([(0, 1)], TRUTH)
    yield "score", "no such place", lambda: score([(99, 1)], TRUTH, "evaluation_neurons")
    yield "load_pairs", "an unknown split", lambda: load_pairs("train")
    yield "load_pairs", "an unknown kind of harm", lambda: load_pairs("test", kinds=["rudeness"])
    yield "load_borderline", "an unknown phrasing", lambda: load_borderline("test", "shouted")
    yield "load_model", "an unknown model", lambda: load_model("smollm3-of-ours")
    yield "load_model", "a dtype's name", lambda: load_model(dtype="float32")
    yield "load_model", "no such device", lambda: load_model(device="cuda:77")
    yield "quiz", "an unknown lesson", lambda: quiz("77")
    yield "quiz", "an unknown question", lambda: quiz("00.q99")
    yield "reveal", "not a prediction", lambda: reveal("00.q1", 0.5)
    yield "reveal", "nan", lambda: reveal("00.p1", np.nan)


TABLE = list(calls())


def row(name, wrong, call):
    return pytest.param(call, id=f"{name}: {wrong}")


@pytest.mark.parametrize("call", [row(*entry) for entry in TABLE])
def test_one_sentence_before_any_computing(call):
    forwards = []
    counter = MODEL.model.layers[0].register_forward_hook(lambda *_: forwards.append(1))
    try:
        with pytest.raises(ERRORS) as caught:
            call()
    finally:
        counter.remove()
        left = [hooks for m in MODEL.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks) if hooks]
        for hooks in left:  # the next call begins with a clean model
            hooks.clear()
    said = str(caught.value)
    assert 15 < len(said) < 330 and "\n" not in said.strip() and said.strip().endswith((".", "`", ")")), said
    assert re.search(r"[:,;]|\b(give|use|choose|write|take|set|run)\b", said, re.IGNORECASE), f"no fix is named: {said}"
    assert not re.search(r"object at 0x|Traceback|NoneType|shape mismatch", said), said
    assert not forwards, "something was computed first"
    assert not left, "a hook was left"
