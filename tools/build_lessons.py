"""Build the notebooks of lessons from their sources.

    python tools/build_lessons.py                   all lessons: lessons/ (blank) and solutions/ (executed)
    python tools/build_lessons.py 00 03             these only
    python tools/build_lessons.py --lessons-only    lessons/ only; executes nothing
    python tools/build_lessons.py --check           only says what is not as its source

A solution is executed only if its code, or something of helpers/ that it uses, has changed since (`--force`:
always). Its metadata say what it was made from, so that `--check` and the tests see stale outputs.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import nbformat  # noqa: E402

from tools.lesson_provenance import made_from  # noqa: E402
from tools.lesson_source import SourceError, code_cells, notebooks, to_text  # noqa: E402
from tools.lint_lessons import lint_notebook, lint_quiz  # noqa: E402

CELL_SECONDS = 1800
# As text a styled table is an address, another one each time.
STYLER = re.compile(r"<pandas\.io\.formats\.style\.Styler at 0x[0-9a-f]+>")
ENVIRONMENT = {  # for the kernel: strict, silent, and the same on every machine
    "COURSE_STRICT": "1",
    "COURSE_PROGRESS": "off",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONHASHSEED": "0",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
}


def sources(folder: Path, numbers: list[str] = ()) -> list[Path]:
    """The sources of a course folder, all or these numbers. Raises SourceError if one is missing."""
    every = sorted((folder / "solutions").glob("[0-9][0-9]_*.py"))
    numbers = [number.zfill(2) for number in numbers]
    for number in numbers:
        if number not in {path.stem[:2] for path in every}:
            raise SourceError(f"There is no source solutions/{number}_topic.py.")
    return [path for path in every if not numbers or path.stem[:2] in numbers]


def stale(source: Path) -> list[str]:
    """What has changed since the stored outputs of a solution were made: names, none if they are fresh."""
    stored = source.with_suffix(".ipynb")
    if not stored.exists():
        return ["it was never built"]
    before = nbformat.read(stored, as_version=4).metadata.get("course", {}).get("made_from", {})
    now = made_from(source, notebooks(source)[0])
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


# --- comparing and building ---------------------------------------------------------------------------------


def differences(source: Path) -> list[str]:
    """How the stored notebooks of a source differ from it, byte by byte; outputs and counts aside."""
    solution, lesson = notebooks(source)
    stored = source.with_suffix(".ipynb")
    twin = source.parents[1] / "lessons" / stored.name
    found = []
    if not twin.exists() or twin.read_bytes() != to_text(lesson).encode():
        found.append(f"lessons/{twin.name} is not what its source gives: build it again.")
    if not stored.exists() or bare(stored.read_text(encoding="utf-8")) != to_text(solution):
        found.append(f"solutions/{stored.name} is not what its source gives: build it again.")
    return found


def bare(text: str) -> str:
    """A stored solution less outputs, counts, and the note of what it was made from."""
    notebook = nbformat.reads(text, as_version=4)
    notebook.metadata.pop("course", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return to_text(notebook)


def build(source: Path, lessons_only: bool = False, force: bool = False) -> list[str]:
    """Write the notebooks of one source. Returns the lint's findings; a notebook with any is not written."""
    solution, lesson = notebooks(source)
    findings = lint_notebook(lesson, f"lessons/{source.stem}.ipynb")
    twin = source.parents[1] / "lessons" / f"{source.stem}.ipynb"
    if not findings:
        write(twin, to_text(lesson))
    if lessons_only or findings:
        return findings
    began, stored, note = time.time(), source.with_suffix(".ipynb"), made_from(source, solution)
    before = nbformat.read(stored, as_version=4) if stored.exists() else None
    if before and not force and before.metadata.get("course", {}).get("made_from") == note:
        for cell, old in zip(code_cells(solution), code_cells(before), strict=True):
            cell.outputs, cell.execution_count = old.outputs, old.execution_count
        did = "unchanged code, outputs kept"
    else:
        execute(solution, source)
        did = "executed"
    solution.metadata["course"] = {"made_from": note}
    findings = lint_notebook(solution, f"solutions/{stored.name}", harmful_prompts())
    if not findings:
        write(stored, to_text(solution))
        print(f"{source.stem}: {len(solution.cells)} cells, {did}, {time.time() - began:.0f} s", flush=True)
    return findings


def write(path: Path, text: str) -> None:
    """Write to a temporary name and rename: a cut-off build leaves the old notebook whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(text.encode())
    os.replace(temporary, path)


def execute(notebook: nbformat.NotebookNode, source: Path) -> None:
    """Run a notebook in an empty folder and tidy its outputs. Raises nbclient's CellExecutionError."""
    from nbclient import NotebookClient

    code = code_cells(notebook)

    def progress(cell, **_) -> None:
        if sys.stderr.isatty():
            print(f"\r{source.stem}: cell {code.index(cell) + 1} of {len(code)} ", end="", file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder, environment(source.parents[1]):
        NotebookClient(
            notebook,
            timeout=CELL_SECONDS,
            kernel_name="python3",
            record_timing=False,
            store_widget_state=False,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # or it warns about open ports
            resources={"metadata": {"path": folder}},
            on_cell_execute=progress,
        ).execute()
        if sys.stderr.isatty():
            print("\r", end="", file=sys.stderr)
        tidy(notebook, folder)


@contextmanager
def environment(folder: Path) -> Iterator[None]:
    """The kernel's environment, put back afterwards; a course folder other than ours is given to helpers."""
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT, PYTHONPATH=str(ROOT))
    if folder != ROOT:
        os.environ["COURSE_EXTRA"] = str(folder)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def tidy(notebook: nbformat.NotebookNode, folder: str) -> None:
    """Keep what reads the same everywhere: no widgets, scripts, progress bars, or paths of this machine."""
    notebook.metadata["language_info"] = nbformat.from_dict({"name": "python"})
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            kept = [output for output in cell.outputs if _worth_keeping(output)]
            cell.outputs = [_without_paths(output, folder) for output in _merged(kept)]


def _worth_keeping(output: dict) -> bool:
    if output.output_type == "stream":
        return output.name != "stderr" or not re.search(r"\r|it/s|s/it", output.text)
    data = output.get("data", {})
    widget = [key for key in data if key.startswith("application/vnd.jupyter.widget")]
    for key in widget:
        del data[key]
    if widget and "text/html" not in data:
        return False  # a bare widget: nothing is left that could be read
    return "application/javascript" not in data


def _merged(outputs: list) -> list:
    """Neighbouring pieces of one stream as one output: how they were cut is a matter of timing."""
    merged: list = []
    for output in outputs:
        last = merged[-1] if merged else None
        if last and output.output_type == "stream" and last.get("name") == output.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


def _without_paths(output: dict, folder: str) -> dict:
    places = [(folder, "."), (str(ROOT), "."), (str(Path.home()), "~")]
    for holder in (output, output.get("data", {})):
        for key in ("text", "text/plain", "text/html", "text/markdown"):
            if isinstance(holder.get(key), str):
                for place, short in places:
                    holder[key] = holder[key].replace(place, short)
                holder[key] = STYLER.sub("[A table.]", holder[key])
    return output


def harmful_prompts() -> list[str]:
    """Every harmful prompt of the course, for the lint."""
    from helpers import prompts

    pairs = [prompts.load_pairs(split, how) for split in prompts.SPLITS for how in prompts.PHRASINGS]
    return sorted({pair.harmful for some in pairs for pair in some} | set(prompts.load_exam("harmful")))


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", metavar="NN", help="lessons, all if none is named")
    parser.add_argument("--lessons-only", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--force", action="store_true", help="execute even if nothing has changed")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    from nbclient.exceptions import CellExecutionError

    from helpers.texts import LessonTextError, load

    folder = options.root.resolve()
    if folder != ROOT:
        os.environ["COURSE_EXTRA"] = str(folder)
    findings = []
    try:
        for source in sources(folder, options.numbers):
            findings += lint_quiz(load(source.stem[:2]))
            if options.check:
                findings += differences(source)
                findings += [f"{source.stem}: outputs are stale, {name} has changed." for name in stale(source)]
            else:
                findings += build(source, options.lessons_only, options.force)
        if not options.numbers:
            findings += orphans(folder)
    except (SourceError, LessonTextError) as error:
        findings.append(str(error))
    except CellExecutionError as error:
        message = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
        findings.append(f"{source.stem}: a cell failed; the stored notebook was left as it was.\n{message}")
    print(
        "\n".join(findings) or "All notebooks are as their sources.",
        file=sys.stderr if findings else sys.stdout,
    )
    return bool(findings)


def orphans(folder: Path) -> list[str]:
    """Notebooks that have no source."""
    stems = {path.stem for path in sources(folder)}
    stored = [path for room in ("lessons", "solutions") for path in sorted((folder / room).glob("*.ipynb"))]
    return [f"{path.parent.name}/{path.name} has no source." for path in stored if path.stem not in stems]


if __name__ == "__main__":
    sys.exit(main())
