"""Quizzes as text: the page beside every quiz widget (answers folded away), explanations, and reveals."""

from helpers.quiz import Verdict, numbers_in
from helpers.texts import Choice, Question, to_html

HOW = {
    "single": "Choose one.",
    "multiple": "Choose all that are right.",
    "number": "Type a number.",
    "predict": "Predict before you run on. There is no score.",
}


def page(questions: list[Question], heading: str = "") -> str:
    """The questions as HTML that needs no kernel: each answer opens from a `<details>`."""
    title = f"<h3>{to_html(heading)}</h3>" if heading else ""
    return f"<div>{title}{''.join(_question(item, number) for number, item in enumerate(questions, 1))}</div>"


def _question(question: Question, number: int) -> str:
    choices = "".join(f"<li>{to_html(choice.text)}</li>" for choice in question.choices)
    options = f"<ol>{choices}</ol>" if choices else ""
    unit = f" ({to_html(question.unit)})" if question.unit else ""
    label = "Prediction" if question.kind == "predict" else f"Question {number}"
    folded = "" if question.kind == "predict" else f"<details><summary>Answer</summary>{solution(question)}</details>"
    how = f"<em>{HOW[question.kind]}</em>"
    return f"<div><p><strong>{label}.</strong> {to_html(question.text)}{unit} {how}</p>{options}{folded}</div>"


def plain(questions: list[Question], heading: str = "") -> str:
    """The questions as plain text, without their answers, for a terminal."""
    lines = [heading] if heading else []
    for number, question in enumerate(questions, 1):
        lines.append(f"{number}. {question.text} {HOW[question.kind]}")
        lines += [f"   {letter}. {choice.text}" for letter, choice in zip("ABCDEFGHIJ", question.choices, strict=False)]
    return "\n".join(lines)


def solution(question: Question) -> str:
    """The right answer, with the reason for every choice."""
    if question.kind == "number":
        unit = f" {to_html(question.unit)}" if question.unit else ""
        return f"<p><strong>{question.answer:g}{unit}.</strong> {to_html(question.because)}</p>"
    rows = "".join(_explained(choice) for choice in question.choices)
    end = f"<p>{to_html(question.because)}</p>" if question.because else ""
    return f"<ul>{rows}</ul>{end}"


def _explained(choice: Choice) -> str:
    mark = "Right" if choice.right else "Wrong"
    return f"<li><strong>{mark}:</strong> {to_html(_sentence(choice.text))} {to_html(choice.because)}</li>"


def _sentence(text: str) -> str:
    """The text with a full stop behind it, unless it ends a sentence already."""
    return text if text.rstrip("`*\"')").endswith((".", "!", "?", "…")) else f"{text}."


def feedback(question: Question, verdict: Verdict) -> str:
    """What a learner reads after answering: the verdict, the reasons for the choice, the rest folded away."""
    kind = "right" if verdict.right else "wrong"
    reasons = verdict.reasons
    if len(reasons) > 1:
        body = (
            "<ul>" + "".join(f"<li>{to_html(_sentence(what))} {to_html(why)}</li>" for what, why in reasons) + "</ul>"
        )
    else:
        body = "".join(f" {to_html(why)}" for _, why in reasons)
    label = "All choices explained" if verdict.right and question.choices else "Show the answer"
    rest = (
        ""
        if verdict.right and not question.choices
        else (f"<details><summary>{label}</summary>{solution(question)}</details>")
    )
    after = "" if verdict.right else " Change your answer and check again."
    return f'<div class="course-{kind}"><strong>{verdict.summary}</strong>{body}{after}{rest}</div>'


def revealed(question: Question, prediction: list[str] | str | None, measured: float) -> tuple[str, str]:
    """A prediction beside the measured value, as HTML and as plain text."""
    value = question.format.format(measured)
    if question.choices:
        chosen = next((choice for choice in question.choices if prediction and choice.text in prediction), None)
        said = chosen.text if chosen else None
        close = chosen is not None and chosen.start <= measured < chosen.below
        reason = chosen.because if chosen else ""
    else:
        said, reason = prediction, ""
        close = bool(said) and any(abs(guess - measured) <= question.tolerance for guess in numbers_in(said))
    if said is None:
        start = f"You made no prediction. Measured: {value}."
    else:
        start = (
            f"You predicted: {_sentence(said)} Measured: {value}. {'That fits.' if close else 'That is a surprise.'}"
        )
    parts = [part for part in (start, reason, question.because) if part]
    body = "".join(f"<p>{to_html(part)}</p>" for part in parts)
    return f"<div><p><em>{to_html(question.text)}</em></p>{body}</div>", " ".join(parts)


def show_html(page_html: str, text: str) -> None:
    """Display HTML in a notebook, or print its plain twin elsewhere."""
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        print(text)
    else:
        display({"text/html": page_html, "text/plain": text}, raw=True)
