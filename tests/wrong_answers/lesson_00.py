"""Wrong answers to the exercises of lesson 00, one for each message, and other right ones."""

from contextlib import contextmanager
from functools import cache

import torch

from helpers.glassbox import load_glassbox
from helpers.hooks import edit, record
from helpers.models import (
    attention_of,
    down_projection_of,
    embedding_of,
    final_norm_of,
    layers_of,
    load_model,
    mlp_of,
    unembedding_of,
)


@cache
def box():
    return load_glassbox("concentrated")


@cache
def tokenizer():
    return load_model("smollm2-135m")[1]


def context(exercise_id):
    """The keyword arguments that the lesson gives to check()."""
    if exercise_id == "00.1":
        return {"tokenizer": tokenizer()}
    if exercise_id in ("00.2", "00.6"):
        return {"model": box()[0], "tokenizer": box()[1]}
    return {}


# --- 00.1 ---------------------------------------------------------------------------------------------------


def _template(tok, request, **how):
    how = {"tokenize": False, "add_generation_prompt": True} | how
    return tok.apply_chat_template([{"role": "user", "content": request}], **how)


def _closed(tok, request):
    talk = [{"role": "user", "content": request}, {"role": "assistant", "content": ""}]
    return tok.apply_chat_template(talk, tokenize=False)


def _by_hand(tok, request, system="You are a helpful AI assistant named SmolLM, trained by Hugging Face", end="\n"):
    start = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{start}<|im_start|>user\n{request}<|im_end|>\n<|im_start|>assistant{end}"


# --- 00.2 ---------------------------------------------------------------------------------------------------


def _read(site="neurons", shift=0, at=None):
    def answer(model, batch, layer):
        with record(model, [site], [layer + shift]) as seen:
            model(**batch.inputs())
        x = seen[site][layer + shift]
        return x[torch.arange(len(batch.last)), batch.last] if at is None else at(x)

    return answer


def _caught(hang, remove=True):
    """Neurons by a plain hook; hang(module of the layer, list) registers it."""

    def answer(model, batch, layer):
        caught = []
        handle = hang(layers_of(model)[layer], caught)
        model(**batch.inputs())
        if remove:
            handle.remove()
        return caught[0][torch.arange(len(batch.last)), batch.last]

    return answer


def _at_down_projection(layer, caught):
    def hook(module, inputs):
        caught.append(inputs[0])

    return down_projection_of(layer).register_forward_pre_hook(hook)


def _at_gate(layer, caught):
    return mlp_of(layer).act_fn.register_forward_hook(lambda module, inputs, output: caught.append(output))


def _other_neurons(model, batch, layer):
    return _read()(model, batch, layer).abs() + 0.1


# --- 00.3 ---------------------------------------------------------------------------------------------------


def _odds(p):
    return torch.log(p / (1 - p))


# --- 00.5 ---------------------------------------------------------------------------------------------------


def _kl(tuned, base, axis=-1):
    p, q = tuned.log_softmax(axis), base.log_softmax(axis)
    return (p.exp() * (p - q)).sum(-1)


def _terms(tuned, base):
    p, q = tuned.log_softmax(-1), base.log_softmax(-1)
    return p.exp() * (p - q)


# --- 00.6 ---------------------------------------------------------------------------------------------------


def _hooked(hook, remove=True, careful=True, module=lambda model, layer: attention_of(layers_of(model)[layer])):
    """A context manager that hangs a forward hook somewhere."""

    @contextmanager
    def answer(model, layer):
        handle = module(model, layer).register_forward_hook(hook)
        if not careful:
            yield
            if remove:
                handle.remove()
            return
        try:
            yield
        finally:
            if remove:
                handle.remove()

    return answer


def _nothing(module, inputs, output):
    output = output[0] * 0


def _bare(module, inputs, output):
    return torch.zeros_like(output[0])


def _zeros(module, inputs, output):
    return (torch.zeros_like(output[0]), *output[1:])


def _edited(sites, layers):
    def answer(model, layer):
        chosen = layers(layer, len(layers_of(model)))
        return edit(model, [(site, at, torch.zeros_like) for site in sites for at in chosen])

    return answer


def _no_context(model, layer):
    """`@contextmanager` is lost, so that this is a bare generator."""
    handle = attention_of(layers_of(model)[layer]).register_forward_hook(_zeros)
    yield
    handle.remove()


def _handle_as_context(model, layer):
    return attention_of(layers_of(model)[layer]).register_forward_hook(_zeros)


WRONG = {
    "00.1": {
        "token_ids": lambda c: lambda tok, r: _template(tok, r, tokenize=True),
        "no_template": lambda c: lambda tok, r: r,
        "no_generation_prompt": lambda c: lambda tok, r: _template(tok, r, add_generation_prompt=False),
        "answer_closed": lambda c: _closed,
        "request_missing": lambda c: lambda tok, r: _template(tok, "Tell me a joke."),
        "request_twice": lambda c: lambda tok, r: _template(tok, r) + r,
        "start_differs": lambda c: lambda tok, r: _by_hand(tok, r, system=""),
        "white_space": lambda c: lambda tok, r: _by_hand(tok, r, end=""),
        "other": lambda c: lambda tok, r: _by_hand(tok, r, end=":"),
    },
    "00.2": {
        "residual_dimensions": lambda c: _read("mlp_out"),
        "every_position": lambda c: _read(at=lambda x: x),
        "first_position": lambda c: _read(at=lambda x: x[:, 0]),
        "padding": lambda c: _read(at=lambda x: x[:, -1]),
        "wrong_layer": lambda c: _read(shift=-1),
        "gate_only": lambda c: _caught(_at_gate),
        "hook_left": lambda c: _caught(_at_down_projection, remove=False),
        "other": lambda c: _other_neurons,
    },
    "00.3": {
        "not_summed": lambda c: _odds,
        "sign_flipped": lambda c: lambda p: -_odds(p.sum(-1)),
        "log_probability": lambda c: lambda p: p.sum(-1).log(),
        "no_log": lambda c: lambda p: p.sum(-1) / (1 - p.sum(-1)),
        "probability": lambda c: lambda p: p.sum(-1),
        "maximum": lambda c: lambda p: _odds(p.max(-1).values),
        "mean": lambda c: lambda p: _odds(p.mean(-1)),
        "summed_after": lambda c: lambda p: _odds(p).sum(-1),
        "base_two": lambda c: lambda p: torch.log2(p.sum(-1) / (1 - p.sum(-1))),
        "base_ten": lambda c: lambda p: torch.log10(p.sum(-1) / (1 - p.sum(-1))),
        "other": lambda c: lambda p: p.prod(-1),
    },
    "00.4": {
        "no_final_norm": lambda c: lambda model, x: unembedding_of(model)(x),
        "norm_twice": lambda c: lambda model, x: unembedding_of(model)(final_norm_of(model)(final_norm_of(model)(x))),
        "norm_only": lambda c: lambda model, x: final_norm_of(model)(x),
        "embedding_matrix": lambda c: lambda model, x: final_norm_of(model)(x) @ embedding_of(model).weight.T,
        "probabilities": lambda c: lambda model, x: unembedding_of(model)(final_norm_of(model)(x)).softmax(-1),
        "log_probabilities": lambda c: lambda model, x: unembedding_of(model)(final_norm_of(model)(x)).log_softmax(-1),
        "top_token": lambda c: lambda model, x: unembedding_of(model)(final_norm_of(model)(x)).argmax(-1),
        "axis_lost": lambda c: lambda model, x: unembedding_of(model)(final_norm_of(model)(x[-1])),
        "other": lambda c: lambda model, x: unembedding_of(model)(final_norm_of(model)(x)) * 3 - 1,
    },
    "00.5": {
        "reversed": lambda c: lambda a, b: _kl(b, a),
        "raw_logits": lambda c: lambda a, b: (a.softmax(-1) * (a - b)).sum(-1),
        "mean_over_vocabulary": lambda c: lambda a, b: _terms(a, b).mean(-1),
        "not_summed": lambda c: _terms,
        "one_per_prompt": lambda c: lambda a, b: _kl(a, b).sum(-1),
        "not_weighted": lambda c: lambda a, b: (a.log_softmax(-1) - b.log_softmax(-1)).sum(-1),
        "log_ratio_times_log": lambda c: (
            lambda a, b: (a.log_softmax(-1) * (a.log_softmax(-1) - b.log_softmax(-1))).sum(-1)
        ),
        "sign_flipped": lambda c: lambda a, b: -_kl(a, b),
        "wrong_axis": lambda c: lambda a, b: _kl(a, b, axis=1),
        "bits": lambda c: lambda a, b: _kl(a, b) / torch.log(torch.tensor(2.0)),
        "other": lambda c: lambda a, b: _kl(a, b) ** 2,
    },
    "00.6": {
        "no_context": lambda c: _no_context,
        "nothing_changed": lambda c: _hooked(_nothing),
        "tuple_lost": lambda c: _hooked(_bare),
        "stays_on": lambda c: _hooked(_zeros, remove=False),
        "stays_on_after_error": lambda c: _hooked(_zeros, careful=False),
        "wrong_layer": lambda c: _edited(["attn_out"], lambda layer, n: [layer - 1]),
        "every_layer": lambda c: _edited(["attn_out"], lambda layer, n: range(n)),
        "mlp_instead": lambda c: _edited(["mlp_out"], lambda layer, n: [layer]),
        "whole_block": lambda c: _edited(["resid_post"], lambda layer, n: [layer]),
        "other": lambda c: lambda model, layer: edit(model, [("attn_out", layer, lambda x: -x)]),
    },
}

RIGHT = {
    "00.1": [lambda c: _template, lambda c: _by_hand],
    "00.2": [lambda c: _caught(_at_down_projection)],
    "00.3": [lambda c: lambda p: _odds(p.sum(-1)), lambda c: lambda p: torch.logit(p.sum(-1))],
    "00.4": [lambda c: lambda model, x: final_norm_of(model)(x) @ unembedding_of(model).weight.T],
    "00.5": [lambda c: _kl],
    "00.6": [lambda c: _hooked(_zeros), lambda c: _handle_as_context],
}
