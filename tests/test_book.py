"""The web book: made without a complaint, every lesson in it, figures with alternative texts, headings in order."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

pytest.importorskip("myst_nb")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "solutions").glob("[0-9][0-9]_*.ipynb"))
each_lesson = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


class Page(HTMLParser):
    """The headings (1 to 6) and the alternative texts of a page's article."""

    def __init__(self, text: str):
        super().__init__()
        self.headings, self.alts = [], []
        self.feed(text[text.index("<article") : text.index("</article>")])

    def handle_starttag(self, tag, attributes):
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.alts.append(dict(attributes).get("alt") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The book, as `python course.py book` makes it; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", "-d", folder / "doctrees", "-c", ROOT / "book"]
    done = subprocess.run([*command, ROOT, folder / "html"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "html"


@each_lesson
def test_a_lesson_is_in_the_book_with_its_figures(site, path):
    page = Page((site / "solutions" / f"{path.stem}.html").read_text(encoding="utf-8"))
    stored = nbformat.read(path, as_version=4)
    figures = sum("image/png" in out.get("data", {}) for cell in stored.cells for out in cell.get("outputs", []))
    assert len(page.alts) == figures > 0
    assert all(len(alt) > 20 for alt in page.alts)


@each_lesson
def test_headings_are_in_order(site, path):
    found = Page((site / "solutions" / f"{path.stem}.html").read_text(encoding="utf-8")).headings
    assert found[0] == 1 and found.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(found, found[1:], strict=False)), found


def test_one_can_search_it_and_find_one_s_way(site):
    index = (site / "book" / "index.html").read_text(encoding="utf-8")
    assert all(f"solutions/{path.stem}.html" in index for path in NOTEBOOKS)
    assert "GLOSSARY.html" in index and (site / "GLOSSARY.html").exists()
    assert (site / "searchindex.js").stat().st_size > 10_000 and "search.html" in index
    assert "book/index.html" in (site / "index.html").read_text(encoding="utf-8")


def test_the_glossary_is_whole():
    rows = [line for line in (ROOT / "GLOSSARY.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in rows]
    terms = [row for row in rows if row[0] != "term"]
    assert len(terms) >= 60 and all(len(row) == 5 and all(row) for row in terms)
    assert all(
        re.search("[\u4e00-\u9fff]", row[1]) and re.search("[\u4e00-\u9fff]", row[3])
        for row in terms
        if "KL" not in row[0]
    )
    names = [row[0] for row in terms]
    assert len(set(names)) == len(names)
    lessons = {path.stem[:2] for path in [*NOTEBOOKS, *(ROOT / "quizzes").glob("0*.yaml")]} | {"06", "07", "08"}
    assert {row[4] for row in terms} <= lessons
