"""Checks of exercises: each named wrong answer gets its own message, and no one is ever stuck.

The first half looks at every lesson's checks, those of the miniature lesson in tests/fixtures among them.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
import yaml

from helpers import checks, progress, texts

TESTS = Path(__file__).parent
MINI = TESTS / "fixtures" / "mini"


def exercises() -> list[str]:
    files = [*sorted((TESTS.parent / "quizzes").glob("*.yaml")), *sorted((MINI / "quizzes").glob("*.yaml"))]
    return [name for file in files for name in yaml.safe_load(file.read_text(encoding="utf-8")).get("exercises", {})]


def wrong_answers(exercise_id: str):
    """The module of wrong answers of an exercise's lesson."""
    lesson = exercise_id[:2]
    places = [TESTS / "wrong_answers" / f"lesson_{lesson}.py", MINI / f"wrong_lesson_{lesson}.py"]
    file = next((place for place in places if place.exists()), None)
    assert file, f"tests/wrong_answers/lesson_{lesson}.py is missing: each exercise needs three wrong answers."
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setenv("COURSE_EXTRA", str(MINI))
    monkeypatch.setenv("COURSE_PROGRESS", "off")
    monkeypatch.delenv("COURSE_STRICT", raising=False)
    monkeypatch.setattr(progress, "_memory", {})
    monkeypatch.setattr(progress, "_notes", [])


@pytest.fixture
def case(request):
    """An exercise's id, its words, its wrong answers, the other right ones, and the context of its check."""
    name = request.param
    module = wrong_answers(name)
    words = texts.load(name[:2]).exercises[name]
    return name, words, module.WRONG.get(name, {}), getattr(module, "RIGHT", {}).get(name, []), module.context(name)


every_exercise = pytest.mark.parametrize("case", exercises(), indirect=True)


@every_exercise
def test_each_named_wrong_answer_gets_its_own_message(case):
    name, words, wrong, _, context = case
    assert len(wrong) >= 3, f"exercise {name} has {len(wrong)} wrong answers in tests/wrong_answers; three are due"
    assert set(words.messages) <= set(wrong), f"no wrong answer proves {set(words.messages) - set(wrong)}"
    said = {}
    for key, build in wrong.items():
        found = checks.mistake(name, build(context), **context)
        assert found is not None, f"the wrong answer {key} is accepted"
        assert found[0] == key, f"the wrong answer {key} is told {found[0]}: {found[1]}"
        said[key] = checks.judge(name, build(context), **context)
        assert "{" not in said[key], f"a field of the message is not filled in: {said[key]}"
    assert len(set(said.values())) == len(said)


@every_exercise
def test_right_answers_are_accepted(case):
    name, _, _, right, context = case
    reference = checks.registered(name[:2])[name].course_version(context)
    for answer in [reference, *(build(context) for build in right)]:
        assert checks.judge(name, answer, **context) is None
        assert checks.check(name, answer, **context) is answer


@every_exercise
def test_missing_answers_are_no_dead_end(case, monkeypatch, capsys):
    name, _, wrong, _, context = case
    reference = checks.registered(name[:2])[name].course_version(context)
    answers = {None: "stub", ...: "stub", next(iter(wrong)): None}
    if callable(reference) and not checks.registered(name[:2])[name].none_is_an_answer:
        assert checks.mistake(name, lambda *a, **k: None, **context)[0] == "no_return"
        assert checks.mistake(name, lambda *a, **k: 1 / 0, **context)[0] == "raised"
    for answer, key in answers.items():
        if key is None:
            answer = wrong[answer](context)
        else:
            assert checks.mistake(name, answer, **context)[0] == key
        stands_in = checks.check(name, answer, **context)
        assert stands_in is not answer
        assert f"Exercise {name}: " in (said := capsys.readouterr().out) and "course's version" in said
        with monkeypatch.context() as strict:
            strict.setenv("COURSE_STRICT", "1")
            with pytest.raises(checks.CheckFailed, match=f"Exercise {name}"):
                checks.check(name, answer, **context)


def test_every_exercise_has_a_predicate_and_words():
    lessons = {name[:2] for name in exercises()}
    for lesson in lessons:
        assert set(checks.registered(lesson)) == set(texts.load(lesson).exercises)


# --- the framework ------------------------------------------------------------------------------------------


def test_the_learners_error_is_named_with_its_line(tmp_path):
    file = tmp_path / "cell.py"
    file.write_text("def broken(left, right):\n    return left.mean(0) - right.median(5)\n")
    spec = importlib.util.spec_from_file_location("cell", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    said = checks.judge("99.1", module.broken)
    assert "AttributeError" in said and "`return left.mean(0) - right.median(5)`" in said


def test_an_untouched_stub_is_told_from_a_missing_return():
    def untouched(left, right): ...  # your code here

    def raising_stub(left, right):
        result = ...  # your code here
        return result.mean(0)

    def no_return(left, right):
        left.mean(0)

    assert [checks.mistake("99.1", f)[0] for f in (untouched, raising_stub, no_return)] == ["stub", "stub", "no_return"]


def test_an_answer_of_an_unforeseen_kind_is_no_crash():
    assert checks.mistake("99.1", lambda left, right: "text")[0] == "unreadable"
    assert checks.mistake("99.1", torch.zeros(3))[0] == "unreadable"


def test_a_wrong_call_is_the_lessons_fault():
    with pytest.raises(TypeError, match="table"):
        checks.check("99.2", 3)
    with pytest.raises(ValueError, match="99.1, 99.2, 99.3"):
        checks.check("99.9", 3)
    with pytest.raises(ValueError, match="two digits"):
        checks.hint("first")


def test_an_interrupt_passes_through():
    def interrupted(left, right):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checks.check("99.1", interrupted)


def test_the_next_figure_says_what_stands_in():
    checks.check("99.1", None)
    checks.check("99.3", None)
    assert progress.take_note() == "(with the course's version of 99.1 and 99.3)"
    assert progress.take_note() == ""
    checks.check("99.1", None)
    checks.check("99.1", lambda left, right: left.mean(0) - right.mean(0))
    assert progress.take_note() == ""


def test_hints_come_one_after_the_other_and_are_remembered(capsys):
    for _ in range(4):
        checks.hint("99.1")
    said = capsys.readouterr().out.strip().split("\n")
    assert [line[:25] for line in said] == [f"**Hint {n} of 3 for exercise"[:25] for n in (1, 2, 3, 3)]
    assert "left.mean(0)" in said[2] and "last one" in said[2] and "last one" not in said[1]
    checks.hint("99.2", 2)
    assert progress.get("99", "hints", "99.2") == 2
    with pytest.raises(ValueError, match="1 to 3"):
        checks.hint("99.2", 4)


def test_passing_is_remembered_when_a_later_try_fails():
    checks.check("99.2", 3, table=torch.zeros(4, 3))
    checks.check("99.2", 4, table=torch.zeros(4, 3))
    assert progress.get("99", "checks", "99.2") == "passed"


def test_common_mistakes_in_tensors():
    kind = {
        "wrong_type": checks.wrong_tensor([1.0]),
        "wrong_shape": checks.wrong_tensor(torch.zeros(2), shape=(3,)),
        "not_finite": checks.wrong_tensor(torch.tensor([float("nan")]), shape=(1,)),
    }
    assert {key: found[0] for key, found in kind.items()} == {key: key for key in kind}
    assert checks.wrong_tensor(torch.zeros(3, dtype=torch.int64), shape=(3,)) is None
    for key, (_, fields) in kind.items():
        assert "{" not in checks.COMMON[key].format_map(fields)


def test_a_registration_needs_one_reference_and_a_name_of_its_own():
    with pytest.raises(TypeError, match="either"):
        checks.exercise("99.7")
    with pytest.raises(TypeError, match="either"):
        checks.exercise("99.7", reference=1, reference_from=lambda: 1)
    with pytest.raises(ValueError, match="Two predicates"):
        checks.exercise("99.1", reference=1)(lambda answer: None)
