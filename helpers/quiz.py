"""Quizzes: `quiz("00")` asks, explains and keeps the score; `reveal("00.p1", 0.45)` settles a prediction.

The questions are in `quizzes/NN_topic.yaml`. Where widgets can be shown they are answered in place, and
what was answered is still there after a kernel restart; elsewhere (an exported page, a viewer) the same
questions stand as text, with the answers folded away.
"""

import re
from dataclasses import dataclass

from helpers import progress, texts
from helpers.texts import Question


@dataclass(frozen=True)
class Verdict:
    """What an answer is worth, and why: `(text, sentence)` for what was chosen."""

    right: bool
    summary: str
    reasons: tuple[tuple[str, str], ...]


def quiz(lesson: str, question: str | None = None) -> None:
    """Show a lesson's quiz, `quiz("00")`, or one of its questions, `quiz("00.q3")` or `quiz("00", "q3")`.

    Predictions are shown only one by one. Raises ValueError for a question that does not exist.
    """
    from helpers import quiz_pages, quiz_widgets

    lesson, part = texts.split_id(lesson)
    words = texts.load(lesson)
    name = question or part
    if name:
        asked = [find(lesson, name)]
    else:
        asked = [item for item in words.questions.values() if item.kind != "predict"]
    heading = "" if name else f"Quiz: {words.title}"
    quiz_widgets.show(lesson, asked, heading, quiz_pages.page(asked, heading), quiz_pages.plain(asked, heading))


def find(lesson: str, name: str) -> Question:
    """One question of a lesson. Raises ValueError if there is none of this name."""
    questions = texts.load(lesson).questions
    if name not in questions:
        raise ValueError(f"Lesson {lesson} has no question {name!r}; it has {', '.join(questions) or 'none'}.")
    return questions[name]


def grade(question: Question, answer: list[str] | str) -> Verdict:
    """Grade an answer: the texts of the chosen choices, or the text of a number.

    Raises ValueError, with a sentence for the learner, if there is nothing to grade.
    """
    if question.kind == "number":
        return _grade_number(question, answer)
    chosen = {place for place, choice in enumerate(question.choices) if choice.text in answer}
    if not chosen:
        raise ValueError("Choose an answer first.")
    reasons = tuple((question.choices[place].text, question.choices[place].because) for place in sorted(chosen))
    if chosen == question.right:
        return Verdict(True, "Right.", reasons)
    if question.kind == "single":
        return Verdict(False, "Not quite.", reasons)
    found, extra = len(chosen & question.right), len(chosen - question.right)
    summary = f"Not quite: {found} of the {len(question.right)} right choices found, {extra} wrong ticked."
    return Verdict(False, summary, reasons)


def _grade_number(question: Question, answer: str) -> Verdict:
    values = numbers_in(answer)
    near = [value for value in values if abs(value - question.answer) <= question.tolerance]
    if near:
        return Verdict(True, "Right.", ((answer, question.because),))
    for value, because in question.mistakes:
        if any(abs(value - given) <= question.tolerance for given in values):
            return Verdict(False, "Not quite.", ((answer, because),))
    direction = "less" if values[0] > question.answer else "more"
    return Verdict(False, f"Not quite: it is {direction} than that.", ())


def numbers_in(text: str) -> list[float]:
    """What a text can mean as a number: `1,536` has a thousands or a decimal comma; `93%` is 93 or 0.93."""
    cleaned = str(text).strip().replace("\u2212", "-").replace(" ", "").replace("_", "")
    percent = cleaned.endswith("%")
    cleaned = cleaned.removesuffix("%")
    readings = [cleaned.replace(",", ".", 1)]
    if re.fullmatch(r"-?[1-9]\d{0,2}(,\d{3})+(\.\d+)?", cleaned):
        readings.insert(0, cleaned.replace(",", ""))
    values = []
    for reading in readings:
        if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", reading, re.IGNORECASE):
            values += [float(reading), float(reading) / 100] if percent else [float(reading)]
    if not values:
        raise ValueError("Type a number, such as 12 or 0.5.")
    return values


def answered(lesson: str, question: Question) -> list[str] | str | None:
    """The stored answer of a question; None if there is none, or none that the question still has."""
    stored = progress.get(lesson, "questions", question.id)
    answer = stored.get("answer") if isinstance(stored, dict) else None
    if question.choices:
        texts_now = {choice.text for choice in question.choices}
        return answer if isinstance(answer, list) and answer and set(answer) <= texts_now else None
    try:
        numbers_in(answer or "")
    except ValueError:
        return None
    return str(answer)


def record(lesson: str, question: Question, answer: list[str] | str, right: bool | None) -> None:
    """Store an answer; `right` is None for a prediction. Attempts are counted."""
    before = progress.get(lesson, "questions", question.id)
    attempts = before.get("attempts", 0) if isinstance(before, dict) else 0
    progress.put(lesson, "questions", question.id, {"answer": answer, "right": right, "attempts": attempts + 1})


def score(lesson: str, questions: list[Question]) -> tuple[int, int]:
    """How many of these questions are answered right now, and how many there are."""
    stored = [progress.get(lesson, "questions", item.id) for item in questions]
    return sum(isinstance(item, dict) and item.get("right") is True for item in stored), len(questions)


def reveal(name: str, measured: float) -> None:
    """Set the learner's prediction beside the measured value, as in `reveal("00.p1", share)`.

    Raises ValueError if the question is not a prediction, or if `measured` is not a number.
    """
    from helpers import quiz_pages

    lesson, part = texts.split_id(name)
    question = find(lesson, part)
    if question.kind != "predict":
        raise ValueError(f"{name} is a {question.kind} question, not a prediction.")
    measured = float(measured)
    if measured != measured:
        raise ValueError(f"The measured value for {name} is nan: give the number that the cell above has computed.")
    quiz_pages.show_html(*quiz_pages.revealed(question, answered(lesson, question), measured))
