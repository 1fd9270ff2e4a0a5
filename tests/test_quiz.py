"""Quizzes: the file is validated, answers are graded and explained, and progress survives."""

import json
from pathlib import Path

import ipywidgets
import pytest
import yaml

from helpers import progress, quiz, quiz_pages, quiz_widgets, texts

MINI = Path(__file__).parent / "fixtures" / "mini"
RAW = (MINI / "quizzes" / "99_mini.yaml").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_EXTRA", str(MINI))
    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setattr(progress, "_memory", {})


def question(name: str) -> texts.Question:
    return quiz.find("99", name)


# --- the file -----------------------------------------------------------------------------------------------

FAULTS = {
    "needs `because`": lambda raw: raw["questions"][2].pop("because"),
    "choice 1: `because` must be text": lambda raw: raw["questions"][0]["choices"][0].pop("because"),
    "exactly one choice": lambda raw: raw["questions"][0]["choices"][0].update(right=True),
    "at least one choice": lambda raw: [choice.pop("right", 0) for choice in raw["questions"][1]["choices"]],
    "at least two choices": lambda raw: raw["questions"][0].update(choices=raw["questions"][0]["choices"][1:2]),
    "same text": lambda raw: raw["questions"][0]["choices"][0].update(text="the rows"),
    "`kind` must be one of": lambda raw: raw["questions"][0].update(kind="essay"),
    "unknown explanation": lambda raw: raw["questions"][0]["choices"][0].update(explanation="..."),
    "two questions are called q1": lambda raw: raw["questions"][1].update(id="q1"),
    "`answer` must be a number": lambda raw: raw["questions"][2].update(answer="twelve"),
    "has no `answer`": lambda raw: raw["questions"][4].update(answer=1),
    "brackets must follow on": lambda raw: raw["questions"][4]["choices"][1].update({"from": 0.4}),
    "`format` '{:q}'": lambda raw: raw["questions"][4].update(format="{:q}"),
    "needs three hints": lambda raw: raw["exercises"]["99.1"]["hints"].pop(),
    "`minutes` must be a whole number": lambda raw: raw["exercises"]["99.1"].update(minutes="five"),
    "`difficulty` must be 1, 2 or 3": lambda raw: raw["exercises"]["99.1"].update(difficulty=4),
    'must be called "99.1"': lambda raw: raw["exercises"].update({"1": raw["exercises"].pop("99.1")}),
    "`lesson` must be the two digits": lambda raw: raw.update(lesson=99),
}


@pytest.mark.parametrize("complaint", FAULTS)
def test_each_fault_of_the_file_is_named(complaint):
    raw = yaml.safe_load(RAW)
    FAULTS[complaint](raw)
    with pytest.raises(texts.LessonTextError) as caught:
        texts.parse(yaml.safe_dump(raw, sort_keys=False), Path("99_mini.yaml"))
    assert complaint in str(caught.value) and "99_mini.yaml" in str(caught.value)


def test_what_is_not_yaml_or_could_run_code_is_refused():
    for text in ("a: [", "!!python/object/apply:os.getcwd []"):
        with pytest.raises(texts.LessonTextError, match="99_mini.yaml is not YAML"):
            texts.parse(text, Path("99_mini.yaml"))


def test_a_lesson_or_question_that_is_not_there_is_named():
    with pytest.raises(texts.LessonTextError, match="98_topic.yaml; found: none"):
        quiz.quiz("98")
    with pytest.raises(ValueError, match="no question 'q9'; it has q1, q2"):
        quiz.quiz("99.q9")


def test_text_becomes_safe_html():
    assert texts.to_html("*a* <b> `x*y*z`") == "<em>a</em> &lt;b&gt; <code>x*y*z</code>"
    assert texts.to_html("2*3*4, one\n\ntwo") == "2*3*4, one<br><br>two"


# --- grading ------------------------------------------------------------------------------------------------


def test_single_and_multiple_choice():
    q1, q2 = question("q1"), question("q2")
    assert quiz.grade(q1, ["the rows"]).right
    wrong = quiz.grade(q1, ["every number"])
    assert not wrong.right and "without an axis" in wrong.reasons[0][1]
    both = [choice.text for choice in q2.choices if choice.right]
    assert quiz.grade(q2, both).right and len(quiz.grade(q2, both).reasons) == 2
    assert "1 of the 2 right choices found, 0 wrong" in quiz.grade(q2, both[:1]).summary
    assert "2 of the 2 right choices found, 1 wrong" in quiz.grade(q2, [*both, "a table of shape (3, 4)"]).summary
    with pytest.raises(ValueError, match="Choose"):
        quiz.grade(q1, [])


def test_numbers_have_a_tolerance_and_known_mistakes():
    q3 = question("q3")
    assert quiz.grade(q3, " 12.0 ").right
    assert "added" in quiz.grade(q3, "7").reasons[0][1]
    assert "less" in quiz.grade(q3, "100").summary and "more" in quiz.grade(q3, "-3").summary
    for nonsense in ("", "twelve", "1.2.3", "nan", "1e", "--1"):
        with pytest.raises(ValueError, match="Type a number"):
            quiz.grade(q3, nonsense)


@pytest.mark.parametrize(
    "text, values",
    [("1,536", [1536, 1.536]), ("0,5", [0.5]), ("93 %", [93, 0.93]), ("\u22122", [-2]), ("1e-3", [0.001])],
)
def test_numbers_are_read_as_people_write_them(text, values):
    assert quiz.numbers_in(text) == pytest.approx(values)


# --- predictions --------------------------------------------------------------------------------------------


def test_predictions_are_set_beside_the_measured_value(capsys):
    quiz.reveal("99.p1", 0.42)
    assert "You made no prediction. Measured: 42%." in capsys.readouterr().out
    for said, measured, verdict in (("half or more", 0.42, "surprise"), ("half or more", 0.5, "fits")):
        quiz.record("99", question("p1"), [said], None)
        quiz.reveal("99.p1", measured)
        out = capsys.readouterr().out
        assert f"You predicted: {said}. " in out and verdict in out and "Seven, not six" in out
    quiz.record("99", question("p2"), "0,4", None)
    quiz.reveal("99.p2", 5 / 12)
    assert "You predicted: 0,4. Measured: 0.42. That fits." in capsys.readouterr().out


def test_a_reveal_needs_a_prediction_and_a_number():
    with pytest.raises(ValueError, match="not a prediction"):
        quiz.reveal("99.q1", 1)
    with pytest.raises(ValueError, match="nan"):
        quiz.reveal("99.p1", float("nan"))


# --- widgets ------------------------------------------------------------------------------------------------


def views(*names: str) -> list[quiz_widgets.QuestionView]:
    return [quiz_widgets.QuestionView("99", question(name), 1) for name in names]


def test_a_widget_explains_and_remembers(monkeypatch):
    single, multiple, number, predict = views("q1", "q2", "q3", "p1")
    single.button.click()
    assert "Choose an answer" in single.feedback.value
    single.radios.value = 0
    single.button.click()
    assert "Not quite" in single.feedback.value and "Change your answer" in single.feedback.value
    single.radios.value = 1
    single.button.click()
    assert "Right." in single.feedback.value and "without an axis" in single.feedback.value  # every choice explained
    for box, tick in zip(multiple.boxes, (True, False, True), strict=True):
        box.value = tick
    multiple.button.click()
    number.field.value = "12"
    number.button.click()
    predict.radios.value = 2
    predict.button.click()
    assert "Recorded: <strong>half or more</strong>" in predict.feedback.value

    monkeypatch.setattr(progress, "_memory", {})  # a new kernel
    single, multiple, number, predict = views("q1", "q2", "q3", "p1")
    assert single.radios.value == 1 and "Right." in single.feedback.value
    assert [box.value for box in multiple.boxes] == [True, False, True]
    assert number.field.value == "12" and "Right." in number.feedback.value
    assert predict.radios.value == 2
    assert progress.get("99", "questions", "q1")["attempts"] == 2
    assert quiz.score("99", [question(name) for name in ("q1", "q2", "q3", "q4")]) == (3, 4)


def test_the_score_follows_and_the_quiz_can_be_started_again():
    asked = [question(name) for name in ("q1", "q3")]
    box = quiz_widgets.build("99", asked)
    line, again = box.children[-1].children
    assert "0 of 2" in line.value
    first, second = box.children[1], box.children[2]
    first.children[1].value = 1
    first.children[2].click()
    second.children[1].children[0].value = "12"
    second.children[2].click()
    assert "2 of 2" in line.value
    again.click()
    assert "0 of 2" in line.value and first.children[1].value is None and second.children[3].value == ""
    assert quiz.answered("99", asked[0]) is None


def test_a_stored_answer_that_the_question_no_longer_has_is_dropped():
    for name, answer in (("q1", ["gone"]), ("q1", "text"), ("q2", []), ("q3", "abc"), ("q3", 3), ("p2", [1])):
        progress.put("99", "questions", name, {"answer": answer, "right": True})
        views(name)
    progress.put("99", "questions", "q1", "not even a dictionary")
    views("q1")


def test_the_page_needs_no_kernel():
    asked = [question(name) for name in ("q1", "q2", "q3", "p1")]
    page, text = quiz_pages.page(asked, "Quiz"), quiz_pages.plain(asked, "Quiz")
    assert page.count("<details>") == 3 and page.count("<summary>") == 3  # a prediction has no answer to fold away
    for item in asked[:3]:
        for choice in item.choices:
            assert texts.to_html(choice.because) in page
    assert "<input" not in page and "<script" not in page
    assert "2. Which of these" in text and "   A. the columns" in text and "Axis 0" not in text


def test_a_quiz_is_sent_as_widget_page_and_text_at_once(monkeypatch):
    sent = []
    monkeypatch.setattr("IPython.get_ipython", lambda: object())
    monkeypatch.setattr("IPython.display.display", lambda data, raw=False: sent.append(data))
    quiz.quiz("99")
    script, bundle = sent
    assert "data-lm-suppress-shortcuts" in script.data
    assert set(bundle) == {"text/html", "text/plain", "application/vnd.jupyter.widget-view+json"}
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"]
    monkeypatch.setattr(quiz_widgets, "build", lambda *a: (_ for _ in ()).throw(ImportError))
    sent.clear()
    quiz.quiz("99", "q1")
    assert [set(data) for data in sent] == [{"text/html", "text/plain"}]


def test_without_a_notebook_the_quiz_is_printed(capsys):
    quiz.quiz("99.q1")
    assert "1. What does" in capsys.readouterr().out


def test_only_what_both_versions_of_ipywidgets_have_is_used():
    """7.7 (Colab) and 8 share these; the newer traits are not to be relied on."""
    source = Path(quiz_widgets.__file__).read_text(encoding="utf-8")
    for newer in ("description_allow_html", "style_class", "TagsInput", "tooltip="):
        assert newer not in source
    assert ipywidgets.RadioButtons(options=[("a", 0)], value=None).value is None


# --- progress -----------------------------------------------------------------------------------------------


def test_a_damaged_progress_file_is_set_aside(capsys):
    file = progress.place()
    for damage in ('{"version": 1, "les', "[1, 2]", '{"lessons": {"99": 3}}', '{"lessons": {"99": {"questions": []}}}'):
        file.write_text(damage)
        assert progress.get("99", "questions", "q1") is None
        assert "damaged" in capsys.readouterr().out
        assert not file.exists() and file.with_name("progress.json.damaged").read_text() == damage
    file.write_bytes(b"\xff\xfe\x00")
    progress.put("99", "questions", "q1", {"answer": ["the rows"]})
    assert json.loads(file.read_text())["lessons"]["99"]["questions"]["q1"]


def test_lessons_do_not_overwrite_each_other():
    progress.put("98", "questions", "q1", {"answer": ["a"]})
    progress.put("99", "questions", "q1", {"answer": ["b"]})
    progress.put("99", "questions", "q1", None)
    stored = json.loads(progress.place().read_text())
    assert stored["lessons"] == {"98": {"questions": {"q1": {"answer": ["a"]}}}, "99": {"questions": {}}}
    assert [path.name for path in progress.place().parent.iterdir()] == ["progress.json"]  # nothing left half done


def test_a_full_disk_stops_no_lesson(monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(progress, "_unsaved", False)
    monkeypatch.setattr("os.replace", full)
    progress.put("99", "questions", "q1", {"answer": ["b"]})
    assert "could not be saved (No space left on device)" in capsys.readouterr().out
    assert list(progress.place().parent.iterdir()) == []
    assert progress.get("99", "questions", "q1") == {"answer": ["b"]}  # in memory at least


def test_progress_lies_beside_the_notebook(monkeypatch, tmp_path):
    monkeypatch.delenv("COURSE_PROGRESS")
    monkeypatch.chdir(tmp_path)
    assert progress.place() == tmp_path / ".progress.json"
    monkeypatch.setenv("COURSE_PROGRESS", "off")
    assert progress.place() is None
    progress.put("99", "hints", "99.1", 2)
    assert progress.get("99", "hints", "99.1") == 2 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("end", ["", ".", "?", ".`", "!"])
def test_no_sentence_ends_twice(end):
    choices = tuple(texts.Choice(f"it does harm {i}{end}", f"Because {i}.", i == 0, 0, 1) for i in (0, 1))
    asked = texts.Question("p1", "predict", "What?", choices, because="That is all.", format="{:.0%}")
    stop = end if end else "."
    html, text = quiz_pages.revealed(asked, ["it does harm 0" + end], 0.5)
    for words in (quiz_pages.page([asked]), quiz_pages.solution(asked), html, text):
        assert ".. " not in words and "?." not in words and "!." not in words
    assert f"it does harm 0{stop} Measured: 50%." in text
