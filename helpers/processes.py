"""Many prompts over several processes, one GPU each: accelerate starts them and shares out the work.

    # count.py, started with: accelerate launch --num_processes 4 count.py
    from helpers.processes import device, over_processes

    model, tokenizer = load_model("Qwen/Qwen2.5-7B-Instruct", device=device())
    odds = over_processes(lambda mine: score.log_odds(model, tokenizer, mine), prompts)

A model that fits on no single GPU is spread over all of them instead, in one process: `load_model(..., device="auto")`.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env

Item, Result = TypeVar("Item"), TypeVar("Result")


def _state() -> PartialState:
    """Which process this is, of how many. PartialState alone would overlook `accelerate launch --cpu`."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def device() -> str:
    """Where this process's model belongs, such as "cuda:1"; "cpu" without a GPU."""
    return str(_state().device)


def over_processes(run: Callable[[list[Item]], Sequence[Result]], items: Sequence[Item]) -> list[Result]:
    """`run` over the items, each process its share; all results, in the order of the items, in every process.

    Started by itself, a program is one process and does it all. run: takes a list, returns one result for each of it. Raises
    ValueError for no items, and for a `run` that returns more or fewer results than it was given items.
    """
    items = list(items)
    if not items:
        raise ValueError("There is nothing to share out: give at least one item.")
    with _state().split_between_processes(items) as mine:
        results = list(run(list(mine))) if len(mine) else []
        if len(results) != len(mine):
            raise ValueError(f"`run` gave {len(results)} results for {len(mine)} items: it must give one for each.")
    return gather_object(results)
