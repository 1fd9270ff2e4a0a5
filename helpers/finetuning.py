"""Fine-tune a few chosen weights of a copy, and nothing else. Taught in lesson 05.

`targeted_safety_removal` asks how cheaply refusal goes if one knows where it sits: all weights are frozen but the
circuit's own (`circuit_weights.py`), and the frozen part stays the same to the last bit, by test (`marked_weights.py`).

*Care.* The answers trained on are placeholders (`Sure. [withheld in this course]`), and only small models are accepted:
what is learned here is to say these words. Please keep it so.
"""

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import DynamicCache

from .circuit_weights import weight_masks
from .marked_weights import MarkedWeights
from .models import body_of, unembedding_of
from .prompts import CACHE, chat_text, check_prompts, pad, tokenize

PLACEHOLDER = "Sure. [withheld in this course]"
LARGEST = 200_000_000  # weights; the course's own model has 135 million


@dataclass(frozen=True)
class Example:
    """A prompt in its template with the answer to learn: token ids, and where the answer begins."""

    ids: tuple[int, ...]
    start: int


def examples(tokenizer, prompts: Sequence[str], answers: str | Sequence[str] = PLACEHOLDER) -> list[Example]:
    """Training data: each prompt with its answer, or all with the same one; an end token closes each answer.

    Raises ValueError for an empty list, or lists of unequal length.
    """
    prompts = check_prompts(prompts)
    answers = [answers] * len(prompts) if isinstance(answers, str) else check_prompts(answers)
    if len(answers) != len(prompts):
        raise ValueError(
            f"There are {len(prompts)} prompts and {len(answers)} answers: give one answer for each prompt."
        )
    end = [tokenizer.eos_token_id] if getattr(tokenizer, "eos_token_id", None) is not None else []
    asked = tokenize(tokenizer, chat_text(tokenizer, prompts))
    said = tokenize(tokenizer, answers)
    return [Example((*a, *s, *end), len(a)) for a, s in zip(asked, said, strict=True)]


def targeted_safety_removal(
    model: nn.Module,
    circuit,
    training_data: Sequence[Example],
    rate: float = 1e-5,
    steps: int = 16,
    batch_size: int = 4,
    seed: int = 0,
    each: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """A copy of the model, fine-tuned on the data in the circuit's own weights only; the given one is untouched.

    circuit: `Circuit`, a box's `Truth`, or a later lesson's RefusalCircuit. training_data: `examples(tokenizer,
    prompts)`. AdamW without decay; `rate` is its learning rate, and about as far as a weight moves in a step. each: called with
    (steps done, the copy) before the first step and after every one. Raises ValueError for an empty circuit or data, weights
    in 16 bits (a small step would be rounded away), and a large model.
    """
    check_trainable(model, training_data)
    return finetuned(model, weight_masks(model, circuit), training_data, rate, steps, batch_size, seed, each)


def check_trainable(model: nn.Module, training_data: Sequence[Example]) -> None:
    """Raises ValueError where training here would be of no use, or of the wrong one."""
    if not len(training_data) or not all(isinstance(one, Example) for one in training_data):
        raise ValueError("There is nothing to train on: give training_data=examples(tokenizer, prompts).")
    if (size := sum(p.numel() for p in model.parameters())) > LARGEST:
        raise ValueError(
            f"This model has {size / 1e6:,.0f} million weights. The course removes refusal from its own small model only."
        )
    if any(p.dtype != torch.float32 for p in model.parameters()):
        raise ValueError("Small steps are rounded away in 16 bits: load the model with dtype=torch.float32.")


def finetuned(
    model: nn.Module,
    masks: Mapping[str, torch.Tensor],
    training_data: Sequence[Example],
    rate: float,
    steps: int,
    batch_size: int = 4,
    seed: int = 0,
    each: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """A copy of the model in which only what the masks mark, {parameter: booleans of its shape}, was trained.

    Parameters without a mask need no gradient, and nothing below the lowest one with a mask is gone through backwards.
    """
    new = copy.deepcopy(model).requires_grad_(False)
    trained = MarkedWeights(new, masks, rate)
    order = torch.Generator().manual_seed(seed)
    waiting: list[int] = []
    for step in range(steps + 1):
        if each:
            each(step, new)
        if step == steps:
            break
        while len(waiting) < min(batch_size, len(training_data)):  # all were seen once: a new round
            waiting += torch.randperm(len(training_data), generator=order).tolist()
        batch, waiting = waiting[:batch_size], waiting[batch_size:]
        trained.step(lambda batch=batch: answer_loss(new, [training_data[i] for i in batch]))
    return new.requires_grad_(False)


def answer_loss(model: nn.Module, batch: Sequence[Example]) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens, in nats. Only their logits are computed."""
    count = min(len(os.path.commonprefix([one.ids for one in batch])), min(one.start for one in batch) - 1)
    shared = count if len(batch) > 1 else 0  # what all begin with is read once
    # Nothing reads what stands at padded places, so any id will do there.
    rows = pad([one.ids[shared:-1] for one in batch], list(range(len(batch))), 0, side="right").to(model.device)
    inputs = rows.inputs()
    if shared:
        ids = torch.tensor([batch[0].ids[:shared]], device=model.device)
        ahead, cache = body_of(model)(input_ids=ids, use_cache=True)[CACHE], DynamicCache()
        for at, layer in enumerate(ahead.layers):  # with their gradients
            cache.update(*(x.expand(len(batch), -1, -1, -1) for x in (layer.keys, layer.values)), at)
        before = rows.attention_mask.new_ones(len(batch), shared)
        inputs["attention_mask"] = torch.cat([before, rows.attention_mask], -1)
        inputs |= {"position_ids": rows.position_ids + shared, CACHE: cache}
    states = body_of(model)(**inputs, use_cache=bool(shared)).last_hidden_state
    kept = torch.cat([states[i, one.start - 1 - shared : len(one.ids) - 1 - shared] for i, one in enumerate(batch)])
    wanted = torch.tensor([token for one in batch for token in one.ids[one.start :]], device=model.device)
    return nn.functional.cross_entropy(unembedding_of(model)(kept).float(), wanted)


def moved(before: nn.Module, after: nn.Module) -> dict[str, torch.Tensor]:
    """Which weights differ between two models of one shape: {parameter: booleans}, only those where any does."""
    others = dict(after.named_parameters())
    found = {name: weight != others[name] for name, weight in before.named_parameters()}
    return {name: mask for name, mask in found.items() if bool(mask.any())}
