"""Drift is seen in numbers and words, and not in rounding."""

import shutil
from pathlib import Path

import nbformat
import pytest

from tools import build_lessons, drift

MINI = Path(__file__).parent / "fixtures" / "mini"


def notebook(*texts, html=False):
    """A notebook whose cells have these outputs."""
    made = nbformat.v4.new_notebook()
    for place, text in enumerate(texts):
        data = {"text/html": text, "text/plain": "a table"} if html else {"text/plain": text}
        cell = nbformat.v4.new_code_cell("x", id=f"00-{place}")
        cell.outputs = [nbformat.v4.new_output("display_data", data)]
        made.cells.append(cell)
    return made


@pytest.mark.parametrize(
    "before, now, finding",
    [
        ("refused 84%, KL 0.07", "refused 84%, KL 0.08", None),
        ("refused 84%, KL 0.07", "refused 70%, KL 0.07", "1 of 2 numbers drifted: 0.84 → 0.7"),
        ("1,234 neurons", "1,250 neurons", None),
        ("1,234 neurons", "1,834 neurons", "1234 → 1834"),
        ("layer 16 of 30", "layer 16", "2 numbers before, 1 now"),
        ("it mattered", "it did not matter", "other words"),
        ("a difference of -0.4", "a difference of −0.4", None),
    ],
)
def test_what_has_drifted(before, now, finding):
    found = list(drift.differences(notebook("same 1", before), notebook("same 1", now)))
    assert len(found) == (finding is not None)
    assert finding is None or finding in found[0] and "00-1" in found[0]


def test_tables_and_alternative_texts_are_read_and_pictures_are_not():
    page = '<style>td {{ width: {}px }}</style><td>0.5</td><img alt="Bars: {}" src="data:image/png;base64,{}">'
    same = drift.differences(
        notebook(page.format(3, 0.3, "AA12"), html=True), notebook(page.format(9, 0.3, "BB99"), html=True)
    )
    assert list(same) == []
    other = drift.differences(
        notebook(page.format(3, 0.3, "AA"), html=True), notebook(page.format(3, 0.6, "AA"), html=True)
    )
    assert "0.3 → 0.6" in next(iter(other))


@pytest.mark.slow
def test_a_lesson_run_anew(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "mini"
    shutil.copytree(MINI, folder, ignore=shutil.ignore_patterns("__pycache__", "*.ipynb"))
    monkeypatch.setenv("COURSE_EXTRA", str(folder))
    assert build_lessons.main(["--root", str(folder)]) == 0
    assert drift.main(["--root", str(folder)]) == 0
    assert "No number has drifted" in capsys.readouterr().out
    stored = folder / "solutions" / "99_mini.ipynb"
    changed = nbformat.read(stored, as_version=4)
    cell = next(
        cell for cell in changed.cells if cell.get("outputs") and drift.numbers_and_words(drift.text_of(cell))[0]
    )
    cell.outputs = [nbformat.v4.new_output("stream", text="77 and nothing else")]
    nbformat.write(changed, stored)
    before = stored.read_bytes()
    assert drift.main(["--root", str(folder)]) == 1
    assert cell.id in capsys.readouterr().out and stored.read_bytes() == before
