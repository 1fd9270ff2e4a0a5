"""From the one source of a lesson to its two notebooks, without running anything.

`solutions/NN_topic.py` is a percent script. A cell marked `exercise="NN.n"` holds regions between
`### BEGIN SOLUTION` and `### END SOLUTION` (nbgrader's markers): the solution keeps them, the lesson gets a
stub in their place. Both notebooks are the same bytes at each call. `solutions/README.md` has the details.
"""

import ast
import copy
import re
import textwrap
from pathlib import Path

import jupytext
import nbformat

from helpers import texts
from tools.lesson_colab import for_colab

BEGIN, END, STUB = "### BEGIN SOLUTION", "### END SOLUTION", "### STUB"
YOURS = "# your code here"
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
HEADING = re.compile(r"^\{\{exercise (\S+)\}\}$", re.MULTILINE)
CHECK = re.compile(r"\bcheck\(\s*[\"'](\d\d\.\d+)[\"']")


class SourceError(ValueError):
    """A lesson's source breaks a rule; the message names the file and the cell."""


def notebooks(source: Path) -> tuple[nbformat.NotebookNode, nbformat.NotebookNode]:
    """The solution (not executed) and the lesson of a source. Raises SourceError or LessonTextError."""
    number = source.stem[:2]
    words = texts.load(number)
    cells = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent").cells
    _exercises_match(cells, words, source.name)
    solution, lesson = nbformat.v4.new_notebook(), nbformat.v4.new_notebook()
    for place, cell in enumerate(cells):
        where = f"{source.name}, cell {place} ({_first_line(cell.source)})"
        cell.id = f"{number}-{place:03d}"
        tags, exercise = list(cell.metadata.get("tags", [])), cell.metadata.get("exercise")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "markdown":
            cell.source = HEADING.sub(lambda match: heading(words.exercises[match[1]]), cell.source)
        else:
            cell.metadata.update(_nbgrader(cell.source, exercise, words))
            cell.execution_count, cell.outputs = None, []
        blank = copy.deepcopy(cell)
        if exercise:
            cell.source = without_stubs(cell.source)
            blank.source = with_stubs(blank.source, where)
        if "lesson-only" not in tags:
            solution.cells.append(cell)
        if "solution-only" not in tags:
            lesson.cells.append(blank)
    for_colab(lesson, source.stem)
    for notebook in (solution, lesson):
        notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
        notebook.nbformat, notebook.nbformat_minor = 4, 5
    return solution, lesson


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The code cells of a notebook, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def to_text(notebook: nbformat.NotebookNode) -> str:
    """The bytes of a notebook as it is stored: sorted keys, one final line end."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def heading(exercise: texts.Exercise) -> str:
    """What stands above an exercise."""
    dots = "●" * exercise.difficulty + "○" * (3 - exercise.difficulty)
    return (
        f"### Exercise {exercise.id}: {exercise.title}\n\n"
        f"*About {exercise.minutes} minute{'s' if exercise.minutes > 1 else ''} · "
        f"difficulty {dots} ({exercise.difficulty} of 3) · "
        f'stuck? Run `hint("{exercise.id}")` in a new cell.*'
    )


def with_stubs(source: str, where: str = "cell") -> str:
    """A cell for the lesson: every solution region replaced by its stub. It is valid Python."""
    lines, out = source.split("\n"), []
    while lines:
        line = lines.pop(0)
        if line.strip() != BEGIN:
            out.append(line)
            continue
        region = []
        while lines and lines[0].strip() != END:
            region.append(lines.pop(0))
        if not lines:
            raise SourceError(f"{where}: {BEGIN} without {END}.")
        lines.pop(0)
        indent = line[: len(line) - len(line.lstrip())]
        out += [indent + text for text in _stub(region, indent, lines, where)]
    if any(line.strip() == END for line in out):
        raise SourceError(f"{where}: {END} without {BEGIN}.")
    blank = "\n".join(out)
    try:
        compile(blank, where, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise SourceError(f"{where}: without its solution the cell is not valid Python ({error.msg}).") from error
    return blank


def without_stubs(source: str) -> str:
    """A cell for the solution: the STUB lines, which are for the lesson only, are gone."""
    return "\n".join(line for line in source.split("\n") if not line.strip().startswith(STUB))


def _stub(region: list[str], indent: str, after: list[str], where: str) -> list[str]:
    """The lines in a region's place: those given by STUB, else `name = ...` for each name that is needed."""
    given = [line.strip()[len(STUB) :].removeprefix(" ") for line in region if line.strip().startswith(STUB)]
    if given:
        return given
    try:
        body = ast.parse(textwrap.dedent("\n".join(region))).body
    except SyntaxError as error:
        raise SourceError(f"{where}: a solution region must be whole statements ({error.msg}).") from error
    names = [name for statement in body for name in _assigned(statement)]
    if indent:
        later = []
        for line in after:
            if line.strip() and not line.startswith(indent):
                break
            later.append(line)
        names = [name for name in names if re.search(rf"\b{name}\b", "\n".join(later))]
    else:
        names = [name for name in names if not name.startswith("_")]
    return [f"{name} = ...  {YOURS}" for name in dict.fromkeys(names)] or [f"...  {YOURS}"]


def _assigned(statement: ast.stmt) -> list[str]:
    """The names that a statement binds, not looking into functions and classes."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    return [node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def _nbgrader(source: str, exercise: str | None, words: texts.LessonText) -> dict:
    """nbgrader's metadata: exercise cells are the learner's, check cells are locked and carry the points."""
    common = {"schema_version": 3, "task": False}
    if exercise:
        grade_id = f"exercise-{exercise.replace('.', '-')}"
        return {"nbgrader": common | {"grade": False, "grade_id": grade_id, "locked": False, "solution": True}}
    checked = CHECK.search(source)
    if checked:
        grade_id, points = f"check-{checked[1].replace('.', '-')}", words.exercises[checked[1]].difficulty
        own = {"grade": True, "grade_id": grade_id, "locked": True, "points": points, "solution": False}
        return {"nbgrader": common | own}
    return {}


def _exercises_match(cells: list, words: texts.LessonText, name: str) -> None:
    """Each exercise of the YAML has a heading, an exercise cell and a check, in three cells in this order."""
    places: dict[str, list[tuple[int, str]]] = {}
    for place, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            found = [(match, "heading") for match in HEADING.findall(cell.source)]
        else:
            own = cell.metadata.get("exercise")
            found = [(own, "exercise cell")] if own else []
            found += [(match, "check") for match in CHECK.findall(cell.source)]
            if bool(own) != (BEGIN in cell.source):
                fault = "has no solution region" if own else f'has a solution region but no exercise="{words.lesson}.n"'
                raise SourceError(f"{name}, cell {place} ({_first_line(cell.source)}): it {fault}.")
        for exercise, what in found:
            places.setdefault(exercise, []).append((place, what))
    wanted = ["heading", "exercise cell", "check"]
    if words.exercises and not any(re.search(r"import .*\bhint\b", cell.source) for cell in cells):
        raise SourceError(f"{name}: the headings tell learners to run hint(...), but nothing imports it.")
    for exercise in sorted(set(places) - set(words.exercises)):
        raise SourceError(f"{name}: exercise {exercise} is not in {words.path.name}.")
    for exercise in words.exercises:
        steps = [what for _, what in places.get(exercise, [])]
        if steps != wanted or len({place for place, _ in places[exercise]}) != 3:
            raise SourceError(
                f"{name}: exercise {exercise} needs {', '.join(wanted)}, in three cells in this order; "
                f"it has {', '.join(steps) or 'nothing'}."
            )


def _first_line(source: str) -> str:
    return source.strip().split("\n")[0][:50]
