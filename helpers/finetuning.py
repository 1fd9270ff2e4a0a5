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
from itertools import accumulate

import torch
from torch import nn

from .answer_tree import AnswerTree
from .circuit_weights import weight_masks
from .marked_weights import MarkedWeights
from .models import body_of, unembedding_of
from .prompts import chat_text, check_prompts, tokenize

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
    """Mean cross-entropy of the answers' tokens, in nats. Only their logits are computed.

    All examples stand in one row, behind what they all begin with: that is read once, and nothing is padded.
    """
    count = min(len(os.path.commonprefix([one.ids for one in batch])), min(one.start for one in batch) - 1)
    shared = count if len(batch) > 1 else 0
    ends = list(accumulate((len(one.ids) - 1 - shared for one in batch), initial=shared))
    if len(batch) > 1 and not AnswerTree(()).fits(model, ends[-1]):  # it takes no mask of ours: one at a time
        tokens = [len(one.ids) - one.start for one in batch]
        return sum(answer_loss(model, [one]) * n for one, n in zip(batch, tokens, strict=True)) / sum(tokens)
    states = body_of(model)(**_in_one_row(model, batch, shared), use_cache=False).last_hidden_state[0]
    said = [states[end - (len(one.ids) - one.start) : end] for one, end in zip(batch, ends[1:], strict=True)]
    wanted = torch.tensor([token for one in batch for token in one.ids[one.start :]], device=model.device)
    return nn.functional.cross_entropy(unembedding_of(model)(torch.cat(said)).float(), wanted)


def _in_one_row(model: nn.Module, batch: Sequence[Example], shared: int) -> dict[str, torch.Tensor]:
    """What the forward takes: the shared beginning, and behind it the rest of each example but its last token, which see the beginning
    and what stands before them in their own example."""
    ids, owner, positions = list(batch[0].ids[:shared]), [-1] * shared, list(range(shared))
    for i, one in enumerate(batch):
        ids += one.ids[shared:-1]
        owner += [i] * (len(one.ids) - 1 - shared)
        positions += range(shared, len(one.ids) - 1)
    inputs = {"input_ids": torch.tensor([ids]), "position_ids": torch.tensor([positions])}
    if len(batch) > 1:
        of = torch.tensor(owner)
        sees = ((of == of[:, None]) | (of == -1)).tril()
        hidden = torch.finfo(model.dtype).min  # added to the attention scores
        inputs["attention_mask"] = torch.zeros(sees.shape, dtype=model.dtype).masked_fill(~sees, hidden)[None, None]
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


def moved(before: nn.Module, after: nn.Module) -> dict[str, torch.Tensor]:
    """Which weights differ between two models of one shape: {parameter: booleans}, only those where any does."""
    others = dict(after.named_parameters())
    found = {name: weight != others[name] for name, weight in before.named_parameters()}
    return {name: mask for name, mask in found.items() if bool(mask.any())}
