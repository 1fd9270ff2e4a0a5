"""Give a base model some neurons of its safety-tuned sibling while it answers. Taught in lesson 01.

"Dynamic activation patching" (Chen et al. 2024, section 3): at every token the tuned model reads what the base model
has read, and the chosen neurons of the base take the values that they have there. If the base then refuses, these
neurons are enough.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch

from .hooks import edit, record
from .mean_ablation import neurons_by_layer
from .models import body_of, dims_of
from .prompts import CACHE, LAST, check_prompts, pad_token_id, token_batches
from .refusal import end_tokens

Place = tuple[int, int]  # (layer, neuron)


@torch.no_grad()
def generate_with_transplant(
    base,
    tuned,
    tokenizer,
    prompts: Sequence[str],
    neurons: Iterable[Place],
    max_new_tokens: int = 12,
    batch_size: int = 32,
) -> list[str]:
    """Greedy answers of `base` with these neurons, (layer, neuron) pairs or a table, taken from `tuned` at every token.

    In the order of the prompts. Position 0 keeps its own values. Raises ValueError if the two models differ in shape.
    """
    if dims_of(base) != dims_of(tuned):
        raise ValueError("The two models differ in shape: take the base that the tuned model was made from.")
    prompts, chosen = check_prompts(prompts), neurons_by_layer(base, neurons)
    answers = [""] * len(prompts)
    for batch in token_batches(tokenizer, prompts, batch_size):
        said = _answer(base, tuned, batch.to(base.device), chosen, max_new_tokens, tokenizer)
        for i, text in zip(batch.order, tokenizer.batch_decode(said, skip_special_tokens=True), strict=True):
            answers[i] = text.strip()
    return answers


def _answer(base, tuned, batch, chosen: dict[int, list[int]], max_new_tokens: int, tokenizer) -> torch.Tensor:
    """Token ids of the answers, [batch, token]; what follows an end token is padding."""
    ends = torch.tensor(end_tokens(base, tokenizer), device=base.device)
    ids, mask, positions = batch.input_ids, batch.attention_mask, batch.position_ids
    caches, said, done = [None, None], [], torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for _ in range(max_new_tokens):
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "use_cache": True}
        with record(tuned, ["neurons"], chosen) if chosen else nullcontext({"neurons": {}}) as seen:
            there = {key: x.to(tuned.device) if isinstance(x, torch.Tensor) else x for key, x in inputs.items()}
            caches[1] = body_of(tuned)(**there, **{CACHE: caches[1]})[CACHE]
        edits = [("neurons", layer, _give(seen["neurons"][layer], own, positions)) for layer, own in chosen.items()]
        with edit(base, edits):
            out = base(**inputs, **{CACHE: caches[0]}, logits_to_keep=LAST)
        caches[0] = out[CACHE]
        token = out.logits[:, -1].argmax(-1).masked_fill(done, pad_token_id(tokenizer))
        said.append(token)
        done = done | torch.isin(token, ends)
        if bool(done.all()):
            break
        ids, positions = token[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(ids)], -1)
    return torch.stack(said, 1)


def _give(donor: torch.Tensor, own: list[int], positions: torch.Tensor):
    """An edit that puts the donor's values, [batch, position, d_mlp], into these neurons, position 0 excepted."""

    def function(activation: torch.Tensor) -> torch.Tensor:
        at = torch.tensor(own, device=activation.device)
        keep = (positions == 0).to(activation.device)[..., None]
        changed = activation.clone()
        changed[..., at] = torch.where(keep, activation[..., at], donor.to(activation)[..., at])
        return changed

    return function
