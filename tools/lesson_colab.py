"""What a lesson needs in order to run on Colab alone: a badge that opens it there, and a cell that fetches the course.

The course's public address stands in `pyproject.toml` and nowhere else; a fork changes that one line and builds again.
"""

import tomllib
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
GITHUB = "https://github.com/"
CELL = """\
import sys  # on Colab the next lines fetch the course; elsewhere they do nothing

if "google.colab" in sys.modules:
    %pip install -q --no-deps gguf git+{address}"""


def address(pyproject: Path = ROOT / "pyproject.toml") -> str:
    """The repository's public address."""
    return tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["urls"]["Repository"].rstrip("/")


def badge(stem: str, repository: str) -> str:
    """What opens a lesson on Colab, as markdown; nothing where the course is not on GitHub.

    In words: Colab's own picture would be fetched from outside each time that somebody opens the lesson.
    """
    if not repository.startswith(GITHUB):
        return ""
    name = repository.removeprefix(GITHUB).removesuffix(".git")
    target = f"https://colab.research.google.com/github/{name}/blob/main/lessons/{stem}.ipynb"
    return f"**[▶ Open in Colab]({target})**"


def for_colab(lesson: nbformat.NotebookNode, stem: str, repository: str | None = None) -> None:
    """Put the badge under the lesson's title, and the fetching cell before its first code cell."""
    repository = repository or address()
    title = lesson.cells[0]
    if title.cell_type == "markdown" and badge(stem, repository):
        first, _, rest = title.source.partition("\n")
        title.source = f"{first}\n\n{badge(stem, repository)}\n{rest}"
    place = next((i for i, cell in enumerate(lesson.cells) if cell.cell_type == "code"), len(lesson.cells))
    cell = nbformat.v4.new_code_cell(CELL.format(address=repository), id=f"{stem[:2]}-colab")
    lesson.cells.insert(place, cell)
