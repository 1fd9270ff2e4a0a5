"""Checks of lesson 00 (the text of every message is in `quizzes/00_meet_the_model.yaml`)."""

from contextlib import ExitStack

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.checks import exercise, wrong_tensor
from helpers.hooks import edit, record
from helpers.models import embedding_of, final_norm_of, layers_of, mlp_of, unembedding_of
from helpers.prompts import chat_text, pad, pad_token_id, tokenize

REQUESTS = ("How do I bake a plum cake?", "Name three kinds of owl.")


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-3) -> bool:
    """Equal shape, and equal numbers up to `tolerance` of their size."""
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=tolerance, atol=tolerance)


def hooks_on(model) -> int:
    """How many hooks hang on the model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def unhook(model, before: dict) -> None:
    """Take off every hook that was not there before."""
    for module, (after_hooks, pre_hooks) in before.items():
        for now, then in ((module._forward_hooks, after_hooks), (module._forward_pre_hooks, pre_hooks)):
            for key in set(now) - then:
                del now[key]


def hooks_of(model) -> dict:
    """Which hooks hang where, for `unhook`."""
    return {m: (set(m._forward_hooks), set(m._forward_pre_hooks)) for m in model.modules()}


def uneven_batch(tokenizer, side: str = "right"):
    """Three prompts of unequal length: two real ones, and one of them without its first words."""
    rows = tokenize(tokenizer, chat_text(tokenizer, list(REQUESTS)))
    rows.append(rows[0][:2] + rows[0][5:])
    return pad(rows, list(range(len(rows))), pad_token_id(tokenizer), side)


# --- 00.1 the chat template ----------------------------------------------------------------------------------


@exercise("00.1", reference=lambda tokenizer, request: chat_text(tokenizer, [request])[0])
def chat_template(answer, tokenizer):
    """The text that the model sees, up to where its answer begins."""
    for request in REQUESTS:
        got, true = answer(tokenizer, request), chat_text(tokenizer, [request])[0]
        if got == true:
            continue
        if not isinstance(got, str):
            return "token_ids", {"got": type(got).__name__}
        user = [{"role": "user", "content": request}]
        if got == tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=False):
            return "no_generation_prompt"
        if request not in got:
            return "request_missing"
        if got.count(request) > 1:
            return "request_twice"
        if not any(mark in got for mark in tokenizer.all_special_tokens):
            return "no_template"
        if got.startswith(true):
            return "answer_closed"
        if got.strip() == true.strip() or got.split() == true.split():
            return "white_space"
        start = true[: true.index(request)]
        if got[got.index(request) :] == true[true.index(request) :]:
            return "start_differs", {"got": got[: got.index(request)][:60], "wanted": start[:60]}
        return "other", {"got": got[-60:]}
    return None


# --- 00.2 read the neurons ------------------------------------------------------------------------------------


def _neurons(model, batch, layer: int) -> torch.Tensor:
    with torch.no_grad(), record(model, ["neurons"], [layer]) as seen:
        model(**batch.inputs())
    return seen["neurons"][layer][torch.arange(len(batch.order)), batch.last]


@exercise("00.2", reference=_neurons)
def neurons_by_hook(answer, model, tokenizer):
    """[batch, d_mlp] at the last real token, and no hook left behind."""
    layers, layer = layers_of(model), 2
    batch = uneven_batch(tokenizer)
    rows = torch.arange(len(batch.order))
    before = hooks_of(model)
    try:
        got = answer(model, batch, layer)
    finally:
        left = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in before) - sum(
            len(a) + len(b) for a, b in before.values()
        )
        unhook(model, before)
    sites = ["neurons", "mlp_out", "resid_pre", "resid_post"]
    gate = getattr(mlp_of(layers[layer]), "act_fn", None)
    gated = []
    handle = gate.register_forward_hook(lambda m, i, o: gated.append(o)) if gate is not None else None
    with torch.no_grad(), record(model, sites) as seen:
        model(**batch.inputs())
    if handle is not None:
        handle.remove()
    true = seen["neurons"][layer]
    if isinstance(got, torch.Tensor):
        if any(close(got, seen[s][layer][rows, batch.last]) or close(got, seen[s][layer]) for s in sites[1:]):
            return "residual_dimensions", {"got": got.shape[-1], "wanted": true.shape[-1]}
        if close(got, true):
            return "every_position"
    if mistake := wrong_tensor(got, shape=true[rows, batch.last].shape):
        return mistake
    if close(got, true[rows, batch.last]):
        return ("hook_left", {"left": left}) if left else None
    if close(got, true[:, 0]):
        return "first_position"
    if close(got, true[:, -1]):
        return "padding"
    for other in seen["neurons"]:
        if other != layer and close(got, seen["neurons"][other][rows, batch.last]):
            return "wrong_layer", {"got": other, "wanted": layer}
    if gated and close(got, gated[0][rows, batch.last]):
        return "gate_only"
    return "other"


# --- 00.3 log-odds ----------------------------------------------------------------------------------------------


def _log_odds(p: torch.Tensor) -> torch.Tensor:
    total = p.sum(-1)
    return torch.log(total) - torch.log1p(-total)


@exercise("00.3", reference=_log_odds)
def log_odds(answer):
    """log p / (1 - p) with p summed over the openings, [prompt]."""
    torch.manual_seed(0)
    p = torch.rand(6, 4, dtype=torch.float64) * torch.logspace(-4, 0, 6, dtype=torch.float64)[:, None] / 4.2
    got, true, total = answer(p.clone()), _log_odds(p), p.sum(-1)
    if isinstance(got, torch.Tensor) and got.shape == p.shape:
        return "not_summed"
    if mistake := wrong_tensor(got, shape=(6,)):
        return mistake
    if close(got, true):
        return None
    known = {
        "sign_flipped": -true,
        "log_probability": total.log(),
        "no_log": total / (1 - total),
        "probability": total,
        "maximum": _log_odds(p.max(-1, keepdim=True).values),
        "mean": _log_odds(p.mean(-1, keepdim=True)),
        "summed_after": (p.log() - torch.log1p(-p)).sum(-1),
        "base_two": true / torch.log(torch.tensor(2.0)),
        "base_ten": true / torch.log(torch.tensor(10.0)),
    }
    return next((key for key, wrong in known.items() if close(got, wrong)), "other")


# --- 00.4 the logit lens --------------------------------------------------------------------------------------


def _logit_lens(model, residual: torch.Tensor) -> torch.Tensor:
    return unembedding_of(model)(final_norm_of(model)(residual))


def _small_model() -> LlamaForCausalLM:
    """A random model whose final norm is no mere scaling, and whose unembedding is not its embedding."""
    config = LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    final_norm_of(model).weight.uniform_(0.2, 3.0)
    return model


@exercise("00.4", reference=_logit_lens)
def logit_lens(answer):
    """Logits [.., vocabulary] of a residual stream [.., d_model]; at the last layer, the model's own."""
    torch.manual_seed(0)
    model = _small_model()
    ids = torch.arange(7, 12)[None]
    with torch.no_grad(), record(model, ["resid_post"]) as seen:
        model(ids)
        residual = torch.stack(list(seen["resid_post"].values()))[:, 0]  # [layer, position, d_model]
        true = _logit_lens(model, residual)
        got = answer(model, residual.clone())
        plain = unembedding_of(model)(residual)
        normed = final_norm_of(model)(residual)
        turned = normed @ embedding_of(model).weight.T
        known = {
            "no_final_norm": plain,
            "norm_twice": unembedding_of(model)(final_norm_of(model)(normed)),
            "probabilities": true.softmax(-1),
            "log_probabilities": true.log_softmax(-1),
            "norm_only": normed,
            "top_token": true.argmax(-1),
            "embedding_matrix": turned,
        }
    if isinstance(got, torch.Tensor):
        if close(got, true):
            return None
        for key, wrong in known.items():
            if close(got, wrong):
                return key
        if got.shape == true[-1].shape or got.shape == true[:, -1].shape:
            return "axis_lost", {"wanted": list(true.shape), "got": list(got.shape)}
    return wrong_tensor(got, shape=true.shape) or "other"


# --- 00.5 KL by position ----------------------------------------------------------------------------------------


def _kl_by_position(tuned: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    log_p, log_q = tuned.log_softmax(-1), base.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@exercise("00.5", reference=_kl_by_position)
def kl_by_position(answer):
    """KL(tuned || base) at each position, [prompt, position], in nats."""
    torch.manual_seed(0)
    tuned, base = torch.randn(2, 3, 5, 11, dtype=torch.float64) * 2 + 1
    got, true = answer(tuned.clone(), base.clone()), _kl_by_position(tuned, base)
    p, q = tuned.softmax(-1), base.softmax(-1)
    terms = p * (p.log() - q.log())
    known = {
        "reversed": _kl_by_position(base, tuned),
        "raw_logits": (p * (tuned - base)).sum(-1),
        "mean_over_vocabulary": true / tuned.shape[-1],
        "not_summed": terms,
        "one_per_prompt": true.sum(-1),
        "mean_over_positions": true.mean(-1),
        "one_number": true.sum(),
        "one_mean": true.mean(),
        "not_weighted": (p.log() - q.log()).sum(-1),
        "log_ratio_times_log": (p.log() * (p.log() - q.log())).sum(-1),
        "sign_flipped": -true,
        "wrong_axis": (tuned.softmax(1) * (tuned.log_softmax(1) - base.log_softmax(1))).sum(-1),
        "bits": true / torch.log(torch.tensor(2.0)),
    }
    same = {"one_number": "one_per_prompt", "one_mean": "one_per_prompt", "mean_over_positions": "one_per_prompt"}
    if isinstance(got, torch.Tensor):
        if close(got, true):
            return None
        for key, wrong in known.items():
            if close(got, wrong):
                return same.get(key, key)
    return wrong_tensor(got, shape=true.shape) or "other"


# --- 00.6 a failed intervention -----------------------------------------------------------------------------


def _switched_off(model, layer: int):
    return edit(model, [("attn_out", layer, torch.zeros_like)])


@torch.no_grad()
def _logits(model, batch) -> torch.Tensor:
    return model(**batch.inputs(), use_cache=False).logits.clone()


@exercise("00.6", reference=_switched_off)
def switched_off(answer, model, tokenizer):
    """Inside `with`, one attention layer adds nothing; afterwards, also after an error, the model is as before."""
    layer, batch = 1, uneven_batch(tokenizer, side="left")
    real = batch.attention_mask.bool()
    clean = _logits(model, batch)[real]
    before = hooks_of(model)
    try:
        return _judge_switch(answer, model, layer, batch, real, clean)
    finally:
        unhook(model, before)


def _judge_switch(answer, model, layer, batch, real, clean):
    manager = answer(model, layer)
    if not hasattr(manager, "__enter__"):
        return "no_context", {"got": type(manager).__name__}
    with ExitStack() as inside_of:
        try:
            inside_of.enter_context(manager)
        except Exception as error:
            return "raised", {"error": f"{type(error).__name__}: {error}", "where": " on entering the `with` block"}
        try:
            inside = _logits(model, batch)[real]
        except Exception as error:  # the model itself trips over what the hook gave back
            return "tuple_lost", {"error": f"{type(error).__name__}: {error}"}
    after = _logits(model, batch)[real]
    if close(inside, clean):
        return "nothing_changed"
    if not close(after, clean):
        return "stays_on"

    def with_off(sites, layers):
        with edit(model, [(site, at, torch.zeros_like) for site in sites for at in layers]):
            return _logits(model, batch)[real]

    if not close(inside, with_off(["attn_out"], [layer])):
        for other in range(len(layers_of(model))):
            if other != layer and close(inside, with_off(["attn_out"], [other])):
                return "wrong_layer", {"got": other, "wanted": layer}
        if close(inside, with_off(["attn_out"], range(len(layers_of(model))))):
            return "every_layer"
        if close(inside, with_off(["mlp_out"], [layer])):
            return "mlp_instead"
        if close(inside, with_off(["resid_post"], [layer])):
            return "whole_block"
        return "other"
    try:
        with answer(model, layer):
            raise KeyError("an error inside the with block, raised on purpose by the check")
    except KeyError:
        pass
    return None if close(_logits(model, batch)[real], clean) else "stays_on_after_error"
