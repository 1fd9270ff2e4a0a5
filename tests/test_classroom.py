"""What instructors use: the summary of a class, the answer keys, the links."""

import json

import pytest

from helpers import texts
from tools import classroom


def learner(folder, name, own_folder=True, **shelves):
    """A progress file as the course writes it."""
    path = folder / name / classroom.PROGRESS if own_folder else folder / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"version": 1, "lessons": shelves}), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    """Three learners: one ahead, one with an open exercise, one who has not begun."""
    first, second = list(texts.load("00").exercises)[:2]
    asked = [q.id for q in texts.load("00").questions.values() if q.kind != "predict"]
    predictions = {
        q.id: {"answer": "1", "right": None} for q in texts.load("00").questions.values() if q.kind == "predict"
    }
    ada = {"checks": {first: "passed", second: "passed"}, "questions": {asked[0]: {"right": True}} | predictions}
    bo = {"checks": {first: "passed", second: "open"}, "hints": {second: 3}, "questions": {asked[0]: {"right": False}}}
    learner(tmp_path, "Ada", **{"00": ada})
    learner(tmp_path, "Bo", own_folder=False, **{"00": bo})
    learner(tmp_path, "Cy")
    return tmp_path


def test_a_class_in_two_tables(folder):
    stored = classroom.progress_files(folder)
    assert list(stored) == ["Ada", "Bo", "Cy"]
    rows = classroom.by_learner(stored).set_index("learner")
    assert rows.loc["Ada", ["exercises", "hints", "questions right"]].tolist() == [2, 0, 1]
    assert rows.loc["Bo", ["exercises", "hints", "questions right"]].tolist() == [1, 3, 0]
    assert "Cy" not in rows.index and (rows["of"] == len(texts.load("00").exercises)).all()
    exercises = classroom.by_exercise(stored).set_index("exercise")
    assert exercises[["tried", "passed", "hints each"]].values.tolist() == [[2, 2, 0], [2, 1, 1.5]]


def test_the_command_puts_the_hardest_first_and_writes_csv(folder, capsys):
    assert classroom.main(["summary", str(folder), "--csv", str(folder / "class.csv")]) == 0
    said = capsys.readouterr().out
    first, second = list(texts.load("00").exercises)[:2]
    assert "3 learners" in said and said.rindex(second) < said.rindex(first)
    assert (folder / "class.csv").read_text().startswith("learner,lesson,exercises")


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"lessons": 3}', '{"lessons": {"00": []}}', '{"lessons": {"00": {"checks": 1}}}']
)
def test_what_is_no_progress_file_is_named(folder, content, capsys):
    (folder / "Dee.json").write_text(content)
    assert classroom.main(["summary", str(folder)]) == 1
    assert "Dee.json" in capsys.readouterr().err


def test_an_empty_or_missing_folder_is_said(tmp_path, capsys):
    assert classroom.main(["summary", str(tmp_path)]) == 1 and "collect the learners' files" in capsys.readouterr().err
    assert classroom.main(["summary", str(tmp_path / "no")]) == 1 and "not a folder" in capsys.readouterr().err


@pytest.mark.parametrize("lesson", classroom.lessons())
def test_a_key_holds_every_question_and_mistake(lesson):
    words, text = texts.load(lesson), classroom.key(lesson)
    assert all(f"**{name}**" in text for name in words.questions)
    assert all(f"`{name}`:" in text for exercise in words.exercises.values() for name in exercise.messages)


def test_an_unknown_lesson_is_one_sentence(capsys):
    assert classroom.main(["key", "77"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_links_name_every_lesson_and_the_hub(capsys):
    assert classroom.main(["links", "--hub", "https://hub.example.org/"]) == 0
    said = capsys.readouterr().out
    assert all(f"{lesson}_" in said for lesson in classroom.lessons())
    assert "https://hub.example.org/hub/user-redirect/git-pull?repo=https%3A%2F%2F" in said
