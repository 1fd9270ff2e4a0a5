"""Many prompts in bounded memory: batch by batch, and a smaller batch when a GPU runs out."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from tqdm import tqdm

Item, Result = TypeVar("Item"), TypeVar("Result")


def in_batches(
    run: Callable[[list[Item]], Sequence[Result]], items: Sequence[Item], batch_size: int = 32
) -> list[Result]:
    """`run` over the items, `batch_size` at a time; one result for each item, in their order.

    When a GPU runs out of memory the batch is halved and tried again, down to one item, whose error is raised. What takes
    over two seconds shows a progress bar.
    """
    if batch_size < 1:
        raise ValueError(f"A batch needs at least one item, not batch_size={batch_size}.")
    results: list[Result] = []
    with tqdm(total=len(items), desc="prompts", delay=2, leave=False, disable=len(items) <= batch_size) as bar:
        while len(results) < len(items):
            part = list(items[len(results) : len(results) + batch_size])
            try:
                results.extend(run(part))
            except RuntimeError as error:
                if len(part) == 1 or not out_of_memory(error):
                    raise
                batch_size = len(part) // 2
            bar.update(len(results) - bar.n)
    return results


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a device ran out of memory. Apple's GPUs and CPUs say so in words only."""
    words = ("MPS backend out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)
