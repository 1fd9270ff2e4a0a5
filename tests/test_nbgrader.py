"""nbgrader takes the lessons as they are: an untouched lesson earns nothing, the reference earns everything."""

import os
import shutil
import sys
from pathlib import Path

import nbformat
import pytest

from helpers import texts
from tools import lesson_source

nbgrader = pytest.importorskip("nbgrader.apps")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "tests" / "fixtures" / "mini"
# Whole lessons take minutes to grade: all of them in the scheduled run, the miniature one always.
SOURCES = sorted((ROOT / "solutions").glob("[0-9][0-9]_*.py"))
GRADED = [MINI / "solutions" / "99_mini.py", *(SOURCES if os.environ.get("COURSE_SCHEDULED") else [])]


@pytest.fixture
def course(tmp_path, monkeypatch):
    """An nbgrader course folder with our configuration, and its API."""
    from traitlets.config import PyFileConfigLoader

    for name, value in {"COURSE_EXTRA": str(MINI), "PYTHONPATH": str(ROOT), "COURSE_PROGRESS": "off"}.items():
        monkeypatch.setenv(name, value)
    scripts = Path(sys.executable).parent  # nbgrader calls alembic by its name
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("COURSE_STRICT", "0")  # the configuration turns it on; afterwards it is as before
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    shutil.copy(ROOT / "classroom" / "nbgrader_config.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    config = PyFileConfigLoader("nbgrader_config.py", path=str(tmp_path)).load_config()
    config.CourseDirectory.root = str(tmp_path)
    assert os.environ["COURSE_STRICT"] == "1"
    return nbgrader.NbGraderAPI(config=config)


def generate(api, folder: Path, source: Path) -> Path:
    """Put a solution into the course and make the learners' version; returns its path."""
    solution = lesson_source.notebooks(source)[0]
    target = folder / "source" / source.stem / f"{source.stem}.ipynb"
    target.parent.mkdir(parents=True)
    target.write_text(lesson_source.to_text(solution), encoding="utf-8")
    made = api.generate_assignment(source.stem)
    assert made["success"], made["log"]
    return folder / "release" / source.stem / f"{source.stem}.ipynb"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_nbgrader_makes_every_lesson(course, tmp_path, source):
    lesson = nbformat.read(generate(course, tmp_path, source), as_version=4)
    code = "\n".join(cell.source for cell in lesson.cells)
    assert "BEGIN SOLUTION" not in code and "### STUB" not in code and code.count("...  # your code here") >= 3
    exercises = texts.load(source.stem[:2]).exercises.values()
    assert course.get_assignment(source.stem)["max_code_score"] == sum(exercise.difficulty for exercise in exercises)


@pytest.mark.parametrize("source", GRADED, ids=lambda path: path.stem)
def test_untouched_earns_nothing_and_the_reference_everything(course, tmp_path, source):
    blank, name = generate(course, tmp_path, source), source.stem
    most = course.get_assignment(name)["max_code_score"]
    own = tmp_path / "own.ipynb"  # the blank lesson that the course itself ships
    own.write_text(lesson_source.to_text(lesson_source.notebooks(source)[1]), encoding="utf-8")
    whole = tmp_path / "source" / name / f"{name}.ipynb"
    for student, notebook, earned in (("untouched", blank, 0), ("ours", own, 0), ("reference", whole, most)):
        place = tmp_path / "submitted" / student / name
        place.mkdir(parents=True)
        shutil.copy(notebook, place / f"{name}.ipynb")
        graded = course.autograde(name, student)
        assert graded["success"], graded["log"]
        assert course.get_submission(name, student)["code_score"] == earned, student
    assert most > 0
