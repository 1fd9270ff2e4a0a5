"""Colab, played: a fresh environment with torch and a `google.colab`, an empty folder, a notebook and nothing else.

What Colab brings is lent from the environment of the tests, except for gguf and the course itself, which the
notebook's own first cell has to fetch: from a local git address, set as a fork would, in `pyproject.toml`.
Nothing else may be installed or changed by it. The widgets are those of ipywidgets 7.7, which Colab had for long.

`COURSE_SCHEDULED=1` runs every lesson whole, not only lesson 01.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest
from local_git import git

from tools import lesson_colab, lesson_source

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "solutions").glob("[0-9][0-9]_*.py"))
WHOLE = SOURCES if os.environ.get("COURSE_SCHEDULED") else [s for s in SOURCES if s.stem[:2] == "01"]
SHIPPED = ("pyproject.toml", "requirements.txt", "README.md", "LICENSE", "helpers", "quizzes")
NOT_ON_COLAB = (
    "gguf",
    "helpers",
    "quizzes",
    "safety_neurons_course",
    "ipywidgets",
    "widgetsnbextension",
    "__pycache__",
)
OLD_WIDGETS = ("ipywidgets==7.7.1", "widgetsnbextension==3.6.10", "ipython_genutils==0.2.0")


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """A local git address that holds the course as it stands here."""
    folder = tmp_path_factory.mktemp("git") / "course"
    folder.mkdir()
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "the course")
    return folder.as_uri()


@pytest.fixture(scope="module")
def colab(tmp_path_factory) -> dict:
    """The environment: its Python, what it held before, and the variables for a kernel in it."""
    folder = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    python = folder / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    inside = Path(subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip())
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        plain = entry.name.lower().replace("-", "_")
        if not plain.startswith(("__editable__", *NOT_ON_COLAB)) and not (inside / entry.name).exists():
            (inside / entry.name).symlink_to(entry)
    (inside / "google" / "colab").mkdir(parents=True)
    (inside / "google" / "colab" / "__init__.py").write_text("")
    pip = [python, "-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, *OLD_WIDGETS], check=True)
    start = folder / "ipython" / "profile_default" / "startup"
    start.mkdir(parents=True)
    (start / "00_colab.py").write_text("import google.colab\n")  # Colab's kernel has it loaded from the start
    spec = folder / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    command = f'["{python.as_posix()}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"]'
    (spec / "kernel.json").write_text(f'{{"argv": {command}, "display_name": "Colab", "language": "python"}}')
    env = {"IPYTHONDIR": str(folder / "ipython"), "JUPYTER_PATH": str(folder / "jupyter"), "PYTHONPATH": ""}
    return {"python": python, "env": env, "had": packages(python), "folder": folder}


def packages(python: Path) -> dict[str, str]:
    """Every installed distribution with its version."""
    code = "import importlib.metadata as m; print('\\n'.join(d.name + ' ' + d.version for d in m.distributions()))"
    listed = subprocess.run([python, "-I", "-c", code], check=True, capture_output=True, text=True).stdout.split("\n")
    return dict(line.split(" ", 1) for line in listed if line)


def play(lesson: nbformat.NotebookNode, colab: dict, folder: Path, monkeypatch) -> str:
    """Run a notebook as Colab would, in an empty folder; returns what it printed."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient

    for name, value in colab["env"].items():
        monkeypatch.setenv(name, value)
    specs = KernelSpecManager(kernel_dirs=[str(colab["folder"] / "jupyter" / "kernels")], ensure_native_kernel=False)
    manager = KernelManager(kernel_name="python3", kernel_spec_manager=specs)
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(lesson, km=manager, timeout=900, resources=where).execute()
    return "".join(out.get("text", "") for cell in lesson.cells for out in cell.get("outputs", []))


def lesson_of(source: Path, address: str, monkeypatch) -> nbformat.NotebookNode:
    """A lesson as a fork at this address would build it."""
    monkeypatch.setattr(lesson_colab, "address", lambda: address)
    return lesson_source.notebooks(source)[1]


def place_of_fetching(lesson: nbformat.NotebookNode) -> int:
    return next(i for i, cell in enumerate(lesson.cells) if "%pip" in cell.source)


@pytest.fixture(scope="module")
def fetched(colab, address, tmp_path_factory) -> str:
    """The course is installed by the first cell of lesson 00, whose source this is."""
    with pytest.MonkeyPatch.context() as patch:
        lesson = lesson_of(SOURCES[0], address, patch)
        lesson.cells = [lesson.cells[place_of_fetching(lesson)]]
        play(lesson, colab, tmp_path_factory.mktemp("fetch"), patch)
    return lesson.cells[0].source


def test_set_up_twice_changes_nothing_that_colab_has(fetched, colab, address, tmp_path, monkeypatch):
    assert len(fetched.splitlines()) <= 4 and address in fetched
    again = nbformat.v4.new_notebook()  # as after a restart
    again.cells = [nbformat.v4.new_code_cell(code) for code in (fetched, "import helpers; print(helpers.__file__)")]
    assert str(colab["folder"]) in play(again, colab, tmp_path, monkeypatch)
    now = packages(colab["python"])
    assert {name for name in now if now[name] != colab["had"].get(name)} == {"gguf", "safety-neurons-course"}
    assert colab["had"].items() <= now.items()


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_each_lesson_can_be_set_up(source, fetched, colab, address, tmp_path, monkeypatch):
    lesson = lesson_of(source, address, monkeypatch)
    assert lesson.cells.pop(place := place_of_fetching(lesson)).source == fetched  # played once, the same in all
    assert all(cell.cell_type == "markdown" for cell in lesson.cells[:place])
    start = next(i for i, cell in enumerate(lesson.cells) if "load_model(" in cell.source or "mystery(" in cell.source)
    first = [cell for cell in lesson.cells[: start + 1] if cell.cell_type == "code"]
    imports = "\n".join(line for line in lesson_source.code_cells(lesson) for line in imports_in(line.source))
    lesson.cells = [*first, nbformat.v4.new_code_cell(f"{imports}\nprint('set up')")]
    assert "set up" in play(lesson, colab, tmp_path, monkeypatch)


def imports_in(source: str) -> list[str]:
    """The imports at the left margin of a cell, those over several lines whole."""
    import ast

    return [ast.unparse(node) for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize("source", WHOLE, ids=lambda path: path.stem)
def test_a_whole_lesson_runs(source, colab, address, tmp_path, monkeypatch):
    said = play(lesson_of(source, address, monkeypatch), colab, tmp_path, monkeypatch)
    assert "not answered yet" in said and "The course's version is used for now" in said


def test_the_address_stands_in_one_place(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nRepository = "https://github.com/a-fork/of-it/"\n')
    fork = lesson_colab.address(tmp_path / "pyproject.toml")
    assert fork == "https://github.com/a-fork/of-it"
    assert "colab.research.google.com/github/a-fork/of-it/blob/main/lessons/03_probing.ipynb" in lesson_colab.badge(
        "03_probing", fork
    )
    assert lesson_colab.badge("03_probing", "file:///elsewhere") == ""
    ours = lesson_colab.address().removeprefix("https://github.com/")
    by_hand = [
        p for p in [*ROOT.glob("*.md"), *ROOT.glob("*/*.py"), *ROOT.glob("*/*.yaml")] if ours in p.read_text("utf-8")
    ]
    assert by_hand == []
