"""Checks of exercises: `check` looks at a learner's answer, `hint` helps, and no one is ever stuck.

    direction = check("01.2", my_direction)

gives back the learner's version if it is right, and the course's if it is missing, wrong or raises; one
line says which, and the next figure's caption repeats it. Under `COURSE_STRICT=1` (tests, builds, grading)
a wrong answer raises CheckFailed instead.

`lesson_NN.py` in this folder holds the predicates of a lesson. A predicate returns None if the answer is
right, else the key of a mistake, or `(key, fields)`; the sentence for each key is in the lesson's YAML file.
"""

import functools
import importlib
import importlib.util
import inspect
import linecache
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from helpers import progress, texts

COMMON = {
    "stub": "not answered yet: put your code in place of the `...`.",
    "no_return": "your function gives back nothing (None). Is a `return` missing?",
    "raised": "your code stopped with {error}{where}.",
    "unreadable": "the answer could not be checked: {error}. Is it of the kind that the exercise asks for?",
    "wrong_type": "the answer should be {wanted}; yours is {got}.",
    "wrong_shape": "the shape should be {wanted}; yours is {got}.",
    "not_finite": "the answer contains infinite or undefined numbers (inf or nan).",
}
# Alone on its line, or behind `def ...:`, where some formatters put it.
STUB_LINE = re.compile(r"^\s*(\w+\s*=\s*|def .*:\s*)?\.\.\.\s*# your code", re.MULTILINE)


class CheckFailed(AssertionError):
    """An answer is wrong or missing, and COURSE_STRICT=1 asks for an error."""


class _NothingReturned(Exception):
    """The learner's function returned None or `...`."""


class _AnswerRaised(Exception):
    """The learner's function raised; the cause is chained."""


@dataclass(frozen=True)
class Registered:
    """An exercise as the lesson's module registers it."""

    id: str
    predicate: Callable
    reference: Any = None
    reference_from: Callable | None = None
    none_is_an_answer: bool = False

    def course_version(self, context: dict) -> Any:
        """What stands in for the learner's answer."""
        return self.reference_from(**context) if self.reference_from else self.reference


_registry: dict[str, Registered] = {}


def exercise(
    exercise_id: str,
    *,
    reference: Any = None,
    reference_from: Callable | None = None,
    none_is_an_answer: bool = False,
) -> Callable[[Callable], Callable]:
    """Register a predicate for an exercise, in `lesson_NN.py`.

    `reference` is the course's version itself (a value, or a function); `reference_from` is a function of
    the keyword arguments given to `check` that makes it. Exactly one of the two.
    """
    if (reference is None) == (reference_from is None):
        raise TypeError(f"Exercise {exercise_id} needs either reference= or reference_from=.")

    def register(predicate: Callable) -> Callable:
        before = _registry.get(exercise_id)
        if before and before.predicate.__qualname__ != predicate.__qualname__:
            raise ValueError(f"Two predicates are registered for exercise {exercise_id}.")
        _registry[exercise_id] = Registered(exercise_id, predicate, reference, reference_from, none_is_an_answer)
        return predicate

    return register


def registered(lesson: str) -> dict[str, Registered]:
    """The exercises of a lesson, from its module `lesson_NN.py`."""
    name = f"helpers.checks.lesson_{lesson}"
    if importlib.util.find_spec(name):
        importlib.import_module(name)
    elif not any(key.startswith(f"{lesson}.") for key in _registry):
        for folder in texts.folders():
            file = folder / "checks" / f"lesson_{lesson}.py"
            if file.exists():
                spec = importlib.util.spec_from_file_location(f"lesson_{lesson}", file)
                spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return {key: item for key, item in _registry.items() if key.startswith(f"{lesson}.")}


def check(exercise_id: str, answer: Any, **context: Any) -> Any:
    """Look at an answer and say in one line what is right or wrong with it.

    Returns the answer if it is right, else the course's version. Raises CheckFailed instead if
    COURSE_STRICT=1, and ValueError for an exercise that does not exist.
    """
    item = _find(exercise_id)
    lesson, _ = texts.split_id(exercise_id)
    inspect.signature(item.predicate).bind(answer, **context)  # a wrong call in the lesson is not the learner's mistake
    message = judge(exercise_id, answer, **context)
    if message is None:
        progress.put(lesson, "checks", exercise_id, "passed")
        progress.forget_note(exercise_id)
        print(f"Exercise {exercise_id}: right. Your version is used from here on.")
        return answer
    if os.environ.get("COURSE_STRICT", "") not in ("", "0"):
        raise CheckFailed(f"Exercise {exercise_id}: {message}")
    if progress.get(lesson, "checks", exercise_id) != "passed":
        progress.put(lesson, "checks", exercise_id, "open")
    progress.note_course_version(exercise_id)
    print(f'Exercise {exercise_id}: {message}\nThe course\'s version is used for now; hint("{exercise_id}") helps.')
    return item.course_version(context)


def judge(exercise_id: str, answer: Any, **context: Any) -> str | None:
    """The message for an answer, None if it is right. Prints and stores nothing."""
    found = mistake(exercise_id, answer, **context)
    if found is None:
        return None
    key, fields = found
    messages = COMMON | texts.load(texts.split_id(exercise_id)[0]).exercises[exercise_id].messages
    if key not in messages:
        raise texts.LessonTextError(f'Exercise {exercise_id} has no message for "{key}".')
    return messages[key].strip().format_map(_Fields(fields))


def mistake(exercise_id: str, answer: Any, **context: Any) -> tuple[str, dict] | None:
    """The key of the mistake in an answer and the fields of its message; None if it is right."""
    item = _find(exercise_id)
    if answer is None or answer is ...:
        return "stub", {}
    learners = callable(answer) and not isinstance(answer, type)
    try:
        found = item.predicate(_watched(answer, item.none_is_an_answer) if learners else answer, **context)
    except _NothingReturned:
        return ("stub" if _is_untouched(answer) else "no_return"), {}
    except _AnswerRaised as wrapped:
        error = wrapped.__cause__
        return (
            ("stub", {})
            if _is_untouched(answer)
            else ("raised", {"error": _named(error), "where": _line(error, answer)})
        )
    except Exception as error:  # the predicate tripped over an answer of an unforeseen kind
        return "unreadable", {"error": _named(error)}
    if found is None:
        return None
    return (found, {}) if isinstance(found, str) else found


def hint(exercise_id: str, number: int | None = None) -> None:
    """Show the next hint for an exercise, or hint `number` (1, 2 or 3)."""
    lesson, _ = texts.split_id(exercise_id)
    hints = texts.load(lesson).exercises[_find(exercise_id).id].hints
    if number is None:
        number = min(progress.get(lesson, "hints", exercise_id, 0) + 1, len(hints))
    if number not in range(1, len(hints) + 1):
        raise ValueError(f"Exercise {exercise_id} has hints 1 to {len(hints)}, not {number!r}.")
    progress.put(lesson, "hints", exercise_id, max(number, progress.get(lesson, "hints", exercise_id, 0)))
    after = "" if number < len(hints) else " This is the last one; the whole answer stands in the solution notebook."
    show_markdown(f"**Hint {number} of {len(hints)} for exercise {exercise_id}.** {hints[number - 1].strip()}{after}")


def show_markdown(text: str) -> None:
    """Show a markdown text in a notebook, and print it elsewhere."""
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        print(text)
    else:
        display({"text/markdown": text, "text/plain": text}, raw=True)


def wrong_tensor(answer: Any, shape: tuple[int, ...] | None = None) -> tuple[str, dict] | None:
    """The common mistake in what should be a tensor of finite numbers of this shape, or None."""
    import torch

    if not isinstance(answer, torch.Tensor):
        return "wrong_type", {"wanted": "a tensor", "got": f"of type {type(answer).__name__}"}
    if shape is not None and tuple(answer.shape) != tuple(shape):
        return "wrong_shape", {"wanted": list(shape), "got": list(answer.shape)}
    if not torch.isfinite(answer.float()).all():
        return "not_finite", {}
    return None


class _Fields(dict):
    """Fields of a message; one that is not given stays visible as `{name}`."""

    def __missing__(self, key: str) -> str:
        return f"{{{key}}}"


def _find(exercise_id: str) -> Registered:
    lesson, _ = texts.split_id(exercise_id)
    known = registered(lesson)
    if exercise_id not in known:
        raise ValueError(f"There is no exercise {exercise_id!r}; lesson {lesson} has {', '.join(known) or 'none'}.")
    return known[exercise_id]


def _watched(function: Callable, none_is_an_answer: bool) -> Callable:
    """The learner's function, telling its own errors from those of the predicate."""

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        try:
            result = function(*arguments, **keywords)
        except Exception as error:
            raise _AnswerRaised from error
        if result is ... or (result is None and not none_is_an_answer):
            raise _NothingReturned
        return result

    return call


def _is_untouched(answer: Any) -> bool:
    """Whether the exercise's `...  # your code here` still stands in the learner's function."""
    try:
        return bool(STUB_LINE.search(inspect.getsource(answer)))
    except (OSError, TypeError):
        return False


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _line(error: BaseException, answer: Callable) -> str:
    """The line of the learner's function at which it stopped, if it can be found."""
    file, line, trace = (
        getattr(getattr(answer, "__code__", None), "co_filename", None),
        "",
        error.__traceback__,
    )
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = linecache.getline(file, trace.tb_lineno).strip()
        trace = trace.tb_next
    return f" at the line `{line}`" if line else ""
