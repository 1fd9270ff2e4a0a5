"""Several interventions in one batch, each on rows of its own: the draws of a control. Used in lessons 01, 03, 05, 06.

A control of twenty random directions asks the same few prompts twenty times, and so few rows keep no processor busy. Here
the batch holds the prompts several times over, and each copy runs under an intervention of its own (`many_edits.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch

Function = Callable[[torch.Tensor], torch.Tensor]
WHOLE = (0, 1)
_part: ContextVar[tuple[int, int]] = ContextVar("part", default=WHOLE)  # which part of the rows, of how many
_parts: ContextVar[int] = ContextVar("parts", default=1)


def parts() -> int:
    """Into how many equal parts the rows of a forward fall now, copy after copy; 1 outside of `side_by_side`."""
    return _parts.get()


def rows_of(part: tuple[int, int], count: int) -> slice:
    """The rows of one part, (which, of how many), in a batch of `count`. Raises ValueError if they do not fall into equal parts."""
    which, of = part
    if count % of:
        raise ValueError(f"{count} rows do not fall into {of} equal parts: repeat the prompts {of} times in the batch.")
    return slice(which * count // of, (which + 1) * count // of)


def current_part() -> tuple[int, int]:
    """The part of the rows that what is hung on a model now is meant for."""
    return _part.get()


def on_its_part(function: Function) -> Function:
    """The function, from an activation [batch, ...] to one of its shape and dtype, on the rows of the current part alone."""
    part = _part.get()
    if part == WHOLE:
        return function

    def on_rows(x: torch.Tensor) -> torch.Tensor:
        if _part.get() != WHOLE:
            raise ValueError("An intervention runs the model while it is made: compute what it needs beforehand.")
        rows = rows_of(part, len(x))
        own = x[rows]
        if (new := function(own)) is own:
            return x
        whole = x.clone()
        whole[rows] = new
        return whole

    return on_rows


@contextmanager
def side_by_side(interventions: Sequence[Callable[[], AbstractContextManager[Any] | None]]) -> Iterator[None]:
    """While inside, part i of a batch's rows runs under intervention i: each is called for its context manager here, and must not run
    the model meanwhile.

    Exact for whatever hangs on the model by `hooks.edit`, and finds its places by `template_places` if it does not treat all alike.
    """
    with ExitStack() as stack:
        for i, make in enumerate(interventions):
            token = _part.set((i, len(interventions)))
            try:
                if (context := make()) is not None:
                    stack.enter_context(context)
            finally:
                _part.reset(token)
        token = _parts.set(len(interventions))
        stack.callback(_parts.reset, token)
        yield
