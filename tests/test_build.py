"""Notebooks are what their sources give, byte by byte; solutions are fresh; an untouched lesson reaches its end."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter

from tools import build_lessons, lesson_provenance, lesson_source

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "tests" / "fixtures" / "mini"
SOURCES = sorted((ROOT / "solutions").glob("[0-9][0-9]_*.py"))
each_lesson = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


# --- the course's own lessons -------------------------------------------------------------------------------


@each_lesson
def test_notebooks_are_equal_to_their_source(source):
    assert build_lessons.differences(source) == []


@each_lesson
def test_outputs_are_fresh(source):
    changed = build_lessons.stale(source)
    assert changed == [], f"the outputs of {source.stem} are stale: run `python course.py build {source.stem[:2]}`"


@each_lesson
def test_a_lesson_has_all_its_parts(source):
    assert (ROOT / "quizzes" / f"{source.stem}.yaml").exists()
    assert (ROOT / "helpers" / "checks" / f"lesson_{source.stem[:2]}.py").exists()
    lesson = nbformat.read(ROOT / "lessons" / f"{source.stem}.ipynb", as_version=4)
    nbformat.validate(lesson)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in lesson.cells)
    assert "BEGIN SOLUTION" not in json.dumps(lesson)


def test_no_notebook_or_quiz_is_without_a_source():
    assert build_lessons.orphans(ROOT) == []
    written = {path.stem for path in [*SOURCES, *(ROOT / "drafts").glob("[0-9][0-9]_*.py")]}
    assert {path.stem for path in (ROOT / "quizzes").glob("*.yaml")} <= written


# --- the miniature lesson -----------------------------------------------------------------------------------


@pytest.fixture
def mini(tmp_path, monkeypatch) -> Path:
    """A copy of the miniature course; its source is solutions/99_mini.py."""
    folder = tmp_path / "mini"
    shutil.copytree(MINI, folder, ignore=shutil.ignore_patterns("__pycache__", "*.ipynb"))
    monkeypatch.setenv("COURSE_EXTRA", str(folder))
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "tools" / "build_lessons.py", "--root", folder, *arguments]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


def lesson_cells(folder: Path) -> dict[str, nbformat.NotebookNode]:
    source = folder / "solutions" / "99_mini.py"
    return {cell.id: cell for cell in lesson_source.notebooks(source)[1].cells}


def pages_of(notebook: nbformat.NotebookNode) -> list[str]:
    """The HTML of all outputs."""
    outputs = [output for cell in lesson_source.code_cells(notebook) for output in cell.outputs]
    return [output.data.get("text/html", "") for output in outputs if "data" in output]


def test_the_same_source_gives_the_same_bytes(mini):
    source = mini / "solutions" / "99_mini.py"
    first, second = (
        [lesson_source.to_text(notebook) for notebook in lesson_source.notebooks(source)] for _ in range(2)
    )
    assert first == second
    solution = nbformat.reads(first[0], as_version=4)
    nbformat.validate(solution)
    assert [cell.id for cell in solution.cells[:2]] == ["99-000", "99-001"]
    assert solution.metadata == {"kernelspec": lesson_source.KERNEL, "language_info": {"name": "python"}}
    assert "lines_to_next_cell" not in first[0] and "### STUB" not in first[0]


def test_stubs_stand_in_for_solutions(mini):
    cells = lesson_cells(mini)
    stubs = [cell.source for cell in cells.values() if "your code" in cell.source]
    assert "    ...  # your code here" in stubs[0] and "mean" not in stubs[0].split('"""')[2]
    assert stubs[1] == "columns = ...  # your code here\nmy_width = ...  # your code here"
    assert "    largest = ...  # your code here: the largest absolute value\n    return table / largest" in stubs[2]


def test_metadata_are_those_of_nbgrader(mini):
    metadata = [cell.metadata["nbgrader"] for cell in lesson_cells(mini).values() if "nbgrader" in cell.metadata]
    assert [item["grade_id"] for item in metadata] == [f"{w}-99-{n}" for n in (1, 2, 3) for w in ("exercise", "check")]
    for item in metadata:
        assert item["schema_version"] == 3 and item["task"] is False
        assert (item["solution"], item["grade"], item["locked"]) in ((True, False, False), (False, True, True))
    assert [item.get("points") for item in metadata] == [None, 1, None, 2, None, 3]


def test_cells_can_be_for_one_notebook_only(mini):
    solution, lesson = lesson_source.notebooks(mini / "solutions" / "99_mini.py")
    assert "only in the lesson" not in lesson_source.to_text(solution)
    assert "Another way is" not in lesson_source.to_text(lesson)
    shared = {cell.id for cell in solution.cells} & {cell.id for cell in lesson.cells}
    assert len(shared) == len(solution.cells) - 1 == len(lesson.cells) - 2  # the lesson's own, and the one for Colab


STUBS = {
    "x = 1\ny, _z = f(x)": "x = ...  # your code here\ny = ...  # your code here",
    "def f():\n    inner = 1\n    return inner": "f = ...  # your code here",
    "print('no name')": "...  # your code here",
    "for i in range(3):\n    total = i": "i = ...  # your code here\ntotal = ...  # your code here",
    "### STUB given = None\nx = 1": "given = None",
}


@pytest.mark.parametrize("region", STUBS)
def test_a_stub_names_what_the_region_binds(region):
    cell = f"{lesson_source.BEGIN}\n{region}\n{lesson_source.END}"
    assert lesson_source.with_stubs(cell) == STUBS[region]


def test_inside_a_function_a_stub_names_only_what_is_needed_later():
    cell = (
        "def f(x):\n    ### BEGIN SOLUTION\n    a = x\n    b = a\n    ### END SOLUTION\n    return b\n\nprint(a)\n"
        "def g(x):\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION"
    )
    assert lesson_source.with_stubs(cell) == (
        "def f(x):\n    b = ...  # your code here\n    return b\n\nprint(a)\ndef g(x):\n    ...  # your code here"
    )


FAULTS = {
    "without ### END SOLUTION": ("    ### END SOLUTION\n", "", 1),
    "no solution region": ("### BEGIN SOLUTION", "", 3),
    'no exercise="99.n"': (' exercise="99.2"', "", 1),
    "exercise 99.3 needs heading, exercise cell, check": ("{{exercise 99.3}}", "", 1),
    "it has heading, exercise cell, check, check.": ('check("99.2"', 'check("99.1"', 1),
    "exercise 99.4 is not in 99_mini.yaml": ('check("99.2"', 'check("99.4"', 1),
    "whole statements": ("    return left.mean(0) - right.mean(0)", "    else:\n        return 1", 1),
    "nothing imports it": ("import check, hint  # noqa: F401", "import check", 1),
}


@pytest.mark.parametrize("complaint", FAULTS)
def test_each_fault_of_a_source_is_named(mini, complaint):
    source = mini / "solutions" / "99_mini.py"
    before, after, times = FAULTS[complaint]
    text = source.read_text(encoding="utf-8")
    assert before in text
    source.write_text(text.replace(before, after, times), encoding="utf-8")
    with pytest.raises(lesson_source.SourceError, match="99_mini.py") as caught:
        lesson_source.notebooks(source)
    assert complaint in str(caught.value)


def test_an_end_without_a_beginning_is_named():
    with pytest.raises(lesson_source.SourceError, match="without ### BEGIN SOLUTION"):
        lesson_source.with_stubs("x = 1\n### END SOLUTION")


def test_build_check_and_staleness(mini):
    """One build, and all that is said about it afterwards; then an untouched lesson is run to its end."""
    source, stored = mini / "solutions" / "99_mini.py", mini / "solutions" / "99_mini.ipynb"
    built = run(mini, "99")
    assert built.returncode == 0 and "99_mini: 17 cells, executed" in built.stdout, built.stderr
    assert "WARNING" not in built.stderr
    assert run(mini, "--check").returncode == 0
    solution = nbformat.read(stored, as_version=4)
    _outputs_are_fit_to_store(solution)
    _exports_keep_alt_text(solution)

    again = run(mini)
    assert "unchanged code, outputs kept" in again.stdout and nbformat.read(stored, as_version=4) == solution

    text = source.read_text(encoding="utf-8")  # words alone: another notebook, but no stale outputs
    source.write_text(text.replace("without a model", "quickly"), encoding="utf-8")
    said = run(mini, "--check")
    assert said.returncode == 1 and "lessons/99_mini.ipynb is not" in said.stderr and "stale" not in said.stderr
    assert "outputs kept" in run(mini).stdout and run(mini, "--check").returncode == 0

    quiz = mini / "quizzes" / "99_mini.yaml"
    quiz.write_text(quiz.read_text(encoding="utf-8").replace("swap the two.", "swap."), encoding="utf-8")
    assert "stale, quizzes/99_mini.yaml has changed" in run(mini, "--check").stderr

    before = stored.read_bytes()
    source.write_text(text.replace("return left.mean(0)", "return right.mean(0)"), encoding="utf-8")
    failed = run(mini)
    assert failed.returncode == 1 and "CheckFailed: Exercise 99.1" in failed.stderr
    assert stored.read_bytes() == before  # a build that fails leaves the last good one
    assert run(mini, "--lessons-only").returncode == 0 and stored.read_bytes() == before

    source.rename(source.with_name("98_other.py"))
    (mini / "quizzes" / "98_other.yaml").write_text('lesson: "98"\ntitle: other\n', encoding="utf-8")
    source.with_name("98_other.py").write_text("# %% [markdown]\n# # 98 Other\n", encoding="utf-8")
    assert "lessons/99_mini.ipynb has no source" in run(mini, "--check").stderr
    assert "no source solutions/97_topic.py" in run(mini, "97").stderr


def _outputs_are_fit_to_store(solution: nbformat.NotebookNode) -> None:
    text = json.dumps(solution)
    assert "widget-view" not in text and "application/javascript" not in text and '"error"' not in text
    assert set(solution.metadata) == {"kernelspec", "language_info", "course"}
    made = solution.metadata["course"]["made_from"]
    assert {"code", "quizzes/99_mini.yaml", "checks/lesson_99.py", "helpers/plots.py", "helpers/texts.py"} <= set(made)
    assert "helpers/models.py" not in made  # not imported by this lesson
    pages = pages_of(solution)
    assert sum("<img alt=" in page for page in pages) == 2
    assert sum("<details>" in page for page in pages) == 1  # the quiz as text, where the widget stood
    assert [cell.execution_count for cell in lesson_source.code_cells(solution)] == list(range(1, 12))


def _exports_keep_alt_text(solution: nbformat.NotebookNode) -> None:
    page = HTMLExporter().from_notebook_node(solution)[0]
    body = page[page.index("<body") :]
    assert body.count("<img") == body.count("<img alt=") == 2  # each picture once
    assert body.count("<summary>Answer</summary>") == 4


def test_an_untouched_lesson_reaches_its_end(mini, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("COURSE_PROGRESS", str(tmp_path / "progress.json"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("COURSE_STRICT", raising=False)
    lesson = lesson_source.notebooks(mini / "solutions" / "99_mini.py")[1]
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(lesson, timeout=120, kernel_name="python3", resources=place).execute()
    said = "".join(out.get("text", "") for cell in lesson.cells for out in cell.get("outputs", []))
    assert said.count("not answered yet") == 3
    captions = [page for page in pages_of(lesson) if "figcaption" in page]
    assert "The three differences. (with the course's version of 99.1)" in captions[0]
    assert "(with the course's version of 99.2 and 99.3)" in captions[1]
    stored = json.loads((tmp_path / "progress.json").read_text())["lessons"]["99"]["checks"]
    assert stored == {"99.1": "open", "99.2": "open", "99.3": "open"}


# --- provenance ---------------------------------------------------------------------------------------------


def test_imports_are_followed_through_helpers():
    modules = lesson_provenance.imported([ROOT / "helpers" / "refusal.py"])
    found = {path.relative_to(ROOT).as_posix() for path in modules}
    assert "helpers/prompts.py" in found and "helpers/plots.py" not in found
    found = lesson_provenance.imported([MINI / "solutions" / "99_mini.py"])
    assert {"quiz_widgets.py", "figures.py", "progress.py"} <= {path.name for path in found}


def test_only_the_adapters_that_a_lesson_names_count():
    source = ROOT / "solutions" / "00_meet_the_model.py"
    hashes = lesson_provenance._adapters(
        ROOT / "helpers" / "data" / "adapters", '"smollm2-135m-shallow" smollm2-135m-x'
    )
    assert list(hashes) == ["helpers/data/adapters/shallow"]
    named = lesson_provenance.made_from(source, lesson_source.notebooks(source)[0])
    assert "helpers/data/adapters/refusal" in named and "helpers/data/adapters" not in named


def test_hashes_do_not_depend_on_line_ends_or_cards(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"x\ny\n")
    before = lesson_provenance.hash_of(tmp_path)
    (tmp_path / "a.csv").write_bytes(b"x\r\ny\r\n")
    (tmp_path / "README.md").write_text("a card")
    assert lesson_provenance.hash_of(tmp_path) == before
    (tmp_path / "a.csv").write_bytes(b"x\nz\n")
    assert lesson_provenance.hash_of(tmp_path) != before


def test_tidying_keeps_what_reads_the_same_everywhere():
    stream = {"output_type": "stream", "name": "stdout"}
    widget = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "HBox()"}
    outputs = [
        stream | {"text": f"{ROOT / 'helpers'}\n"},
        stream | {"text": "b\n"},
        {"output_type": "stream", "name": "stderr", "text": "\r 10%|#  | 1/10 [00:01<00:09, 1.00it/s]"},
        {"output_type": "display_data", "metadata": {}, "data": dict(widget)},
        {"output_type": "display_data", "metadata": {}, "data": widget | {"text/html": "<p>twin</p>"}},
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")], metadata={"widgets": {}})
    notebook.cells[0].outputs = [nbformat.from_dict(output) for output in outputs]
    build_lessons.tidy(notebook, "/nowhere")
    kept = notebook.cells[0].outputs
    assert [output.output_type for output in kept] == ["stream", "display_data"]
    assert kept[0].text.replace(os.sep, "/") == "./helpers\nb\n"
    assert set(kept[1].data) == {"text/plain", "text/html"}
