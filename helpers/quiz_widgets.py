"""Quizzes as widgets: ipywidgets for the inputs, a few lines of script for the keyboard and screen readers.

Two things that ipywidgets leaves undone are added in the browser by `SCRIPT`: JupyterLab takes the arrow
keys away from radio buttons (and `d d` on one deletes the cell) unless each input itself carries
`data-lm-suppress-shortcuts`; and inputs need names and groups that a screen reader can say.
"""

from helpers import progress, quiz_pages
from helpers import quiz as grading
from helpers.texts import Question, to_html

SCRIPT = """
(() => {
  if (window.courseQuizAccess) return;
  let count = 0;
  const name = (text) => {
    if (text && !text.id) text.id = `course-label-${++count}`;
    return text ? text.id : null;
  };
  const tidy = () => document.querySelectorAll('.course-question').forEach((question) => {
    const label = name(question.querySelector('.course-text'));
    question.querySelectorAll('.course-radios, .course-boxes').forEach((group) => {
      if (group.hasAttribute('role')) return;
      group.setAttribute('role', group.classList.contains('course-radios') ? 'radiogroup' : 'group');
      if (label) group.setAttribute('aria-labelledby', label);
    });
    question.querySelectorAll('.course-feedback:not([role])').forEach((feedback) => {
      feedback.setAttribute('role', 'status');
      feedback.setAttribute('aria-live', 'polite');
    });
    question.querySelectorAll(
      ':is(input, button, summary):not([data-lm-suppress-shortcuts])').forEach((input) => {
        input.setAttribute('data-lm-suppress-shortcuts', 'true');
        if (input.type === 'radio' && label) input.name = label;
        if (input.type === 'text' && label) input.setAttribute('aria-labelledby', label);
    });
  });
  let waiting = false;
  window.courseQuizAccess = new MutationObserver(() => {
    if (waiting) return;
    waiting = true;
    setTimeout(() => { waiting = false; tidy(); }, 50);
  });
  window.courseQuizAccess.observe(document.body, { childList: true, subtree: true });
  tidy();
})();
"""

STYLE = """<style>
.course-question {
  border-left: 4px solid #0072B2; padding: 2px 0 6px 12px; margin: 6px 0 10px 0; overflow: visible; }
.course-question .course-text { line-height: 1.5; font-size: 1.05em; }
.course-question .widget-radio-box { height: auto; max-width: none; }
.course-question .widget-radio-box label, .course-question .widget-checkbox label {
  white-space: normal; height: auto; line-height: 1.4; margin: 3px 0; }
.course-question .widget-radio-box label { display: flex; align-items: flex-start; }
.course-question .widget-radio-box input { order: -1; flex: none; } /* it stands behind its text, and long texts wrap */
.course-quiz .course-question :is(input, button, summary):focus-visible {
  outline: 3px solid #D55E00; outline-offset: 2px; }
.course-feedback { line-height: 1.5; }
.course-feedback ul { margin: 2px 0; }
.course-right { border-left: 6px double #009E73; padding-left: 8px; }
.course-wrong { border-left: 6px dotted #D55E00; padding-left: 8px; }
</style>"""


BUTTON = {"width": "auto", "align_self": "flex-start"}


def show(lesson: str, questions: list[Question], heading: str, page: str, text: str) -> None:
    """Display the questions as widgets, with the page and the text for where widgets cannot render."""
    from IPython import get_ipython
    from IPython.display import Javascript, display

    if get_ipython() is None:
        print(text)
        return
    bundle = {"text/html": page, "text/plain": text}
    try:
        view = build(lesson, questions, heading)
    except ImportError:  # no ipywidgets here: the page alone
        view = None
    if view is not None:
        display(Javascript(SCRIPT))
        key = "application/vnd.jupyter.widget-view+json"
        bundle[key] = {"version_major": 2, "version_minor": 0, "model_id": view.model_id}
    display(bundle, raw=True)


def build(lesson: str, questions: list[Question], heading: str = ""):
    """The widget, an ipywidgets VBox: one box a question, and the score below when there are several."""
    import ipywidgets as widgets

    views = [QuestionView(lesson, question, number) for number, question in enumerate(questions, 1)]
    top = widgets.HTML(STYLE + (f"<h3>{to_html(heading)}</h3>" if heading else ""))
    rows = [top, *(view.box for view in views)]
    if len(views) > 1:
        rows.append(_score_row(lesson, views))
    box = widgets.VBox(rows)
    box.add_class("course-quiz")
    return box


def _score_row(lesson: str, views: list["QuestionView"]):
    import ipywidgets as widgets

    line, again = widgets.HTML(), widgets.Button(description="Start the quiz again", layout=BUTTON)

    def update() -> None:
        right, total = grading.score(lesson, [view.question for view in views])
        line.value = f"<strong>Score: {right} of {total} questions right.</strong>"

    def restart(_button) -> None:
        for view in views:
            view.clear()
        update()

    for view in views:
        view.when_answered = update
    again.on_click(restart)
    line.add_class("course-feedback")
    row = widgets.VBox([line, again])
    row.add_class("course-question")
    update()
    return row


class QuestionView:
    """One question: its text, the inputs, a button, and what the answer is worth."""

    def __init__(self, lesson: str, question: Question, number: int):
        import ipywidgets as widgets

        self.lesson, self.question = lesson, question
        self.when_answered = lambda: None
        predicts = question.kind == "predict"
        label = "Prediction." if predicts else f"Question {number}."
        text = widgets.HTML(
            f'<div class="course-text"><strong>{label}</strong> {to_html(question.text)} '
            f"<em>{quiz_pages.HOW[question.kind]}</em></div>"
        )
        self.feedback = widgets.HTML()
        self.feedback.add_class("course-feedback")
        self.inputs = self._inputs(widgets)
        self.button = widgets.Button(
            description="Record my prediction" if predicts else "Check my answer", layout=BUTTON
        )
        self.button.on_click(lambda _button: self.answer())
        self.box = widgets.VBox([text, *self.inputs, self.button, self.feedback])
        self.box.add_class("course-question")
        self.restore()

    def _inputs(self, widgets) -> list:
        """One group of radio buttons, a group of check boxes, or a text field with its unit."""
        wide = {"width": "auto", "max_width": "100%"}
        names = [choice.text.replace("`", "") for choice in self.question.choices]
        if self.question.kind == "multiple":
            self.boxes = [widgets.Checkbox(description=name, indent=False, layout=wide) for name in names]
            group = widgets.VBox(self.boxes)
            group.add_class("course-boxes")
        elif names:
            options = [(name, place) for place, name in enumerate(names)]
            self.radios = widgets.RadioButtons(options=options, value=None, layout=wide)
            group = self.radios
            group.add_class("course-radios")
        else:
            self.field = widgets.Text(placeholder="a number", layout={"width": "12em"})
            group = widgets.HBox([self.field, widgets.Label(self.question.unit)])
        return [group]

    def given(self) -> list[str] | str:
        """The answer as it stands in the inputs."""
        choices = self.question.choices
        if self.question.kind == "multiple":
            return [choice.text for choice, box in zip(choices, self.boxes, strict=True) if box.value]
        if choices:
            return [] if self.radios.value is None else [choices[self.radios.value].text]
        return self.field.value.strip()

    def answer(self) -> None:
        """Grade and store what stands in the inputs, and explain it."""
        answer = self.given()
        try:
            if self.question.kind == "predict":
                self._check_prediction(answer)
                right = None
            else:
                right = grading.grade(self.question, answer).right
        except ValueError as nothing_to_grade:
            self.feedback.value = f"<em>{nothing_to_grade}</em>"
            return
        grading.record(self.lesson, self.question, answer, right)
        self._explain(answer)
        self.when_answered()

    def _check_prediction(self, answer: list[str] | str) -> None:
        if not self.question.choices:
            grading.numbers_in(answer)
        elif not answer:
            raise ValueError("Choose an answer first.")

    def _explain(self, answer: list[str] | str) -> None:
        if self.question.kind == "predict":
            said = answer if isinstance(answer, str) else answer[0]
            self.feedback.value = f"Recorded: <strong>{to_html(said)}</strong>. Run on to see what is measured."
        else:
            self.feedback.value = quiz_pages.feedback(self.question, grading.grade(self.question, answer))

    def restore(self) -> None:
        """Put back what was answered before a kernel restart."""
        answer = grading.answered(self.lesson, self.question)
        if answer is None:
            return
        places = [place for place, choice in enumerate(self.question.choices) if choice.text in answer]
        if self.question.kind == "multiple":
            for place in places:
                self.boxes[place].value = True
        elif places:
            self.radios.value = places[0]
        else:
            self.field.value = answer
        self._explain(answer)

    def clear(self) -> None:
        """Forget the answer, here and in the stored progress."""
        progress.put(self.lesson, "questions", self.question.id, None)
        if self.question.kind == "multiple":
            for box in self.boxes:
                box.value = False
        elif self.question.choices:
            self.radios.value = None
        else:
            self.field.value = ""
        self.feedback.value = ""
