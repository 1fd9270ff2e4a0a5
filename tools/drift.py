"""Do newer versions of the libraries change the course's numbers? Runs solutions anew and compares with what is stored.

    python -m tools.drift               every lesson
    python -m tools.drift 00 03         these only

A lesson that still runs may say something else. Every number of every text output (tables, captions, prints) is set beside
the stored one: it has drifted if it differs by more than 0.02 and by more than 5%. Words that differ are reported too. Nothing
is written. Ends with 1 if anything drifted. The scheduled workflow runs it on the newest versions that requirements.txt allows.
"""

import argparse
import html
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat

from tools.build_lessons import ROOT, execute, sources
from tools.lesson_source import SourceError, code_cells, notebooks

NUMBER = re.compile(r"(?<![\w.])[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
PICTURE = re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=]+")
ABSOLUTE, RELATIVE = 0.02, 0.05
SHARE = 100  # 84% is the number 0.84, so that a point of a percentage is not taken for a whole one


def text_of(cell: dict) -> str:
    """All that a code cell's outputs say in words: prints, tables, captions and alternative texts, without markup."""
    parts = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        part = output.get("text") or data.get("text/html") or data.get("text/markdown") or data.get("text/plain") or ""
        page = PICTURE.sub("", part if isinstance(part, str) else "".join(part))
        page = re.sub(r'alt="([^"]*)"', r">\1<", re.sub(r"<style.*?</style>", "", page, flags=re.DOTALL))
        parts.append(html.unescape(re.sub(r"<[^>]*>", " ", page)))
    return " ".join(" ".join(parts).split())


def numbers_and_words(text: str) -> tuple[list[float], str]:
    """The numbers of a text in their order, and the text with each of them replaced by #."""
    values = []
    for match in NUMBER.finditer(text):
        value = float(match[0].replace(",", "").replace("−", "-"))
        values.append(value / SHARE if text[match.end() : match.end() + 1] == "%" else value)
    return values, NUMBER.sub("#", text)


def drifted(before: float, now: float) -> bool:
    """Whether a number has changed by more than rounding and other machines would change it."""
    return abs(now - before) > max(ABSOLUTE, RELATIVE * max(abs(before), abs(now)))


def differences(before: nbformat.NotebookNode, now: nbformat.NotebookNode) -> Iterator[str]:
    """A sentence for each cell whose outputs say something else."""
    for old, new in zip(code_cells(before), code_cells(now), strict=True):
        (numbers, words), (numbers_now, words_now) = (numbers_and_words(text_of(cell)) for cell in (old, new))
        if len(numbers) != len(numbers_now):
            yield f"cell {old.id}: {len(numbers)} numbers before, {len(numbers_now)} now"
            continue
        moved = [(a, b) for a, b in zip(numbers, numbers_now, strict=True) if drifted(a, b)]
        if moved:
            shown = ", ".join(f"{a:g} → {b:g}" for a, b in moved[:6])
            yield f"cell {old.id}: {len(moved)} of {len(numbers)} numbers drifted: {shown}{' ...' if moved[6:] else ''}"
        elif words != words_now:
            yield f"cell {old.id}: other words"


def compare(source: Path) -> list[str]:
    """Run a solution anew and say where it differs from the stored one."""
    stored = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    fresh = notebooks(source)[0]
    execute(fresh, source)
    return [f"{source.stem}, {finding}" for finding in differences(stored, fresh)]


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", metavar="NN")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    from nbclient.exceptions import CellExecutionError

    found = []
    try:
        for source in sources(options.root.resolve(), options.numbers):
            try:
                found += compare(source)
            except CellExecutionError as error:
                found.append(f"{source.stem}: a cell failed.\n{re.sub(chr(27) + r'.[0-9;]*m', '', str(error))}")
    except SourceError as error:
        found.append(str(error))
    print("\n".join(found) or "No number has drifted.")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
