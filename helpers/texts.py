"""The words of a lesson, from `quizzes/NN_topic.yaml`: its quiz, and the hints and messages of its exercises.

The file's form is described in `quizzes/README.md`. It is loaded with YAML's safe loader and validated
here once, so that the quiz and the checks can trust it; every complaint names the file and the place.
"""

import functools
import html
import importlib.util
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

KINDS = ("single", "multiple", "number", "predict")
CHOICE_KEYS = {"text", "right", "because", "from", "below"}
QUESTION_KEYS = {
    "id",
    "kind",
    "text",
    "choices",
    "answer",
    "tolerance",
    "unit",
    "because",
    "mistakes",
    "format",
}
EXERCISE_KEYS = {"title", "minutes", "difficulty", "hints", "messages"}


class LessonTextError(ValueError):
    """A lesson's YAML file is not as `quizzes/README.md` describes it."""


@dataclass(frozen=True)
class Choice:
    """One answer of a question. A prediction's choice is a bracket of numbers: `[start, below)`."""

    text: str
    because: str
    right: bool = False
    start: float = float("-inf")
    below: float = float("inf")


@dataclass(frozen=True)
class Question:
    """One question. Numbers have no choices; predictions have no right answer until something is measured."""

    id: str
    kind: str
    text: str
    choices: tuple[Choice, ...] = ()
    answer: float | None = None
    tolerance: float = 0.0
    unit: str = ""
    because: str = ""
    mistakes: tuple[tuple[float, str], ...] = ()
    format: str = "{:g}"

    @property
    def right(self) -> set[int]:
        """The places of the right choices."""
        return {place for place, choice in enumerate(self.choices) if choice.right}


@dataclass(frozen=True)
class Exercise:
    """What a learner reads about an exercise: heading, three hints, and a message for each named mistake."""

    id: str
    title: str
    minutes: int
    difficulty: int
    hints: tuple[str, ...]
    messages: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LessonText:
    """All the words of one lesson."""

    lesson: str
    title: str
    path: Path
    questions: dict[str, Question]
    exercises: dict[str, Exercise]


def folders() -> list[Path]:
    """Where lessons' texts and checks are looked for: the course, then the folders in COURSE_EXTRA."""
    course = Path(importlib.util.find_spec("helpers").origin).resolve().parent.parent
    return [
        course,
        *(Path(folder) for folder in os.environ.get("COURSE_EXTRA", "").split(os.pathsep) if folder),
    ]


def split_id(name: str) -> tuple[str, str]:
    """`"00.q3"` becomes `("00", "q3")`, and a whole lesson `"00"` becomes `("00", "")`."""
    lesson, _, rest = str(name).partition(".")
    if not re.fullmatch(r"\d\d", lesson):
        raise ValueError(f'{name!r} does not begin with a lesson\'s two digits, as in "00" or "00.1".')
    return lesson, rest


def load(lesson: str) -> LessonText:
    """The text of lesson `"NN"`. Raises LessonTextError if there is none, or if it is not well formed."""
    found = [path for folder in folders() for path in sorted((folder / "quizzes").glob(f"{lesson}_*.yaml"))]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise LessonTextError(f"Lesson {lesson} needs one file quizzes/{lesson}_topic.yaml; found: {names}.")
    return _load_file(found[0], found[0].stat().st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _load_file(path: Path, _changed: int) -> LessonText:
    return parse(path.read_text(encoding="utf-8"), path)


def parse(text: str, path: Path) -> LessonText:
    """Read and validate one YAML text; `path` is for the messages."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise LessonTextError(f"{path.name} is not YAML: {error}") from error
    _require(isinstance(raw, dict), path.name, "the file must hold `lesson`, `title`, `exercises`, `questions`")
    _only(raw, {"lesson", "title", "exercises", "questions"}, path.name)
    lesson = raw.get("lesson")
    _require(
        isinstance(lesson, str) and path.name.startswith(f"{lesson}_"),
        path.name,
        f"`lesson` must be the two digits of the file's name, in quotes; it is {lesson!r}",
    )
    exercises = {}
    for name, item in (raw.get("exercises") or {}).items():
        exercises[str(name)] = _exercise(str(name), item, lesson, f"{path.name}, exercise {name}")
    questions: dict[str, Question] = {}
    for number, item in enumerate(raw.get("questions") or [], start=1):
        question = _question(item, f"{path.name}, question {number}")
        _require(question.id not in questions, path.name, f"two questions are called {question.id}")
        questions[question.id] = question
    return LessonText(lesson, _text(raw, "title", path.name), path, questions, exercises)


def _exercise(name: str, item: dict, lesson: str, where: str) -> Exercise:
    _require(isinstance(item, dict), where, "must hold title, minutes, difficulty, hints, messages")
    _only(item, EXERCISE_KEYS, where)
    _require(bool(re.fullmatch(rf"{lesson}\.\d+", name)), where, f'must be called "{lesson}.1", "{lesson}.2", ...')
    hints, messages = item.get("hints") or [], item.get("messages") or {}
    _require(len(hints) == 3 and all(isinstance(hint, str) for hint in hints), where, "needs three hints, as text")
    _require(all(isinstance(text, str) for text in messages.values()), where, "every message must be text")
    minutes, difficulty = item.get("minutes"), item.get("difficulty")
    _require(isinstance(minutes, int) and minutes > 0, where, f"`minutes` must be a whole number, not {minutes!r}")
    _require(difficulty in (1, 2, 3), where, f"`difficulty` must be 1, 2 or 3, not {difficulty!r}")
    return Exercise(name, _text(item, "title", where), minutes, difficulty, tuple(hints), dict(messages))


def _question(item: dict, where: str) -> Question:
    _require(isinstance(item, dict), where, "must hold id, kind, text, ...")
    _only(item, QUESTION_KEYS, where)
    name, kind = _text(item, "id", where), item.get("kind")
    where = f"{where} ({name})"
    _require(bool(re.fullmatch(r"[a-z]\w*", name)), where, "`id` must be a short name such as q1 or p1")
    _require(kind in KINDS, where, f"`kind` must be one of {', '.join(KINDS)}, not {kind!r}")
    choices = tuple(
        _choice(choice, f"{where}, choice {number}") for number, choice in enumerate(item.get("choices") or [], 1)
    )
    question = Question(
        id=name,
        kind=kind,
        text=_text(item, "text", where),
        choices=choices,
        answer=_number(item, "answer", where),
        tolerance=_number(item, "tolerance", where) or 0.0,
        unit=str(item.get("unit") or ""),
        because=str(item.get("because") or ""),
        mistakes=tuple(
            (_number(mistake, "value", where), _text(mistake, "because", where))
            for mistake in item.get("mistakes") or []
        ),
        format=str(item.get("format") or "{:g}"),
    )
    _fits_its_kind(question, where)
    return question


def _fits_its_kind(question: Question, where: str) -> None:
    """What each kind of question must have."""
    texts = [choice.text for choice in question.choices]
    _require(len(set(texts)) == len(texts), where, "two choices have the same text")
    if question.kind in ("single", "multiple"):
        _require(len(texts) >= 2, where, "needs at least two choices")
        _require(
            len(question.right) == 1 if question.kind == "single" else bool(question.right),
            where,
            f"a {question.kind} question needs {'exactly' if question.kind == 'single' else 'at least'} one "
            f"choice with `right: true`; it has {len(question.right)}",
        )
    else:
        _require(bool(question.because), where, "needs `because`, the explanation")
    if question.kind == "number":
        _require(question.answer is not None and not texts, where, "a number needs `answer`, and no choices")
    if question.kind == "predict":
        _require(question.answer is None, where, "a prediction has no `answer`: it is measured in the lesson")
        try:
            question.format.format(0.5)
        except (ValueError, IndexError, KeyError) as error:
            raise LessonTextError(f"{where}: `format` {question.format!r} cannot write a number ({error}).") from error
        for left, right in zip(question.choices, question.choices[1:], strict=False):
            _require(left.below == right.start, where, "brackets must follow on: each `from` is the last `below`")


def _choice(item: dict, where: str) -> Choice:
    _require(isinstance(item, dict), where, "must hold text and because")
    _only(item, CHOICE_KEYS, where)
    _require(item.get("right") in (None, True, False), where, "`right` must be true or false")
    start, below = _number(item, "from", where), _number(item, "below", where)
    return Choice(
        text=_text(item, "text", where),
        because=_text(item, "because", where),
        right=bool(item.get("right")),
        start=float("-inf") if start is None else start,
        below=float("inf") if below is None else below,
    )


def _require(condition: bool, where: str, what: str) -> None:
    if not condition:
        raise LessonTextError(f"{where}: {what}.")


def _only(item: dict, known: set[str], where: str) -> None:
    unknown = sorted(str(key) for key in item if key not in known)
    _require(not unknown, where, f"unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}")


def _text(item: dict, key: str, where: str) -> str:
    value = item.get(key)
    _require(isinstance(value, str) and bool(value.strip()), where, f"`{key}` must be text (in quotes if in doubt)")
    return value.strip()


def _number(item: dict, key: str, where: str) -> float | None:
    value = item.get(key)
    is_number = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
    _require(is_number, where, f"`{key}` must be a number, not {value!r}")
    return None if value is None else float(value)


def to_html(text: str) -> str:
    """Course text as HTML: escaped, with `code` in backticks, *emphasis*, and blank lines as paragraphs."""
    parts = re.split(r"`([^`]+)`", html.escape(text.strip(), quote=False))
    for place, part in enumerate(parts):
        if place % 2:
            parts[place] = f"<code>{part}</code>"
        else:
            emphasised = re.sub(r"(?<![\w*])\*([^*\n]+)\*(?![\w*])", r"<em>\1</em>", part)
            parts[place] = re.sub(r"\n\s*\n", "<br><br>", emphasised)
    return "".join(parts)
