"""A lesson in a real browser: JupyterLab and Chromium, with no outside network. It needs no model.

The miniature lesson is run, its quiz answered by keyboard alone, the kernel restarted, and the answers found
again. Screenshots are left in the test's temporary folder.
"""

import re
import shutil
from pathlib import Path

import pytest
from browsing import focused, opened, restart_kernel, run_all, running_lab, tab_to

from tools import build_lessons, lesson_source

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "tests" / "fixtures" / "mini"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab over a folder with the miniature lesson: its address, the folder, the number of cells."""
    folder = tmp_path_factory.mktemp("lessons")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_EXTRA", str(MINI))
        lesson = lesson_source.notebooks(MINI / "solutions" / "99_mini.py")[1]
    (folder / "99_mini.ipynb").write_text(lesson_source.to_text(lesson), encoding="utf-8")
    with running_lab(folder, tmp_path_factory.mktemp("home"), COURSE_EXTRA=str(MINI)) as address:
        yield address, folder, len(lesson.cells)


@pytest.fixture
def page(request, view, lab):
    """The miniature lesson, opened."""
    address, folder, cells = lab
    (folder / ".progress.json").unlink(missing_ok=True)
    name = f"{request.node.name}.ipynb"  # a session of its own
    shutil.copy(folder / "99_mini.ipynb", folder / name)
    return opened(view, address, name, cells)


def question(page, words: str):
    """The box of a question by its words (the last one on the page: the quiz at the lesson's end)."""
    return page.locator(".course-question", has_text=words).last


def test_a_lesson_from_run_all_to_a_kernel_restart(page, lab, tmp_path):
    _, folder, cells = lab
    run_all(page, "Score:")
    assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").count() == 0
    page.screenshot(path=tmp_path / "1_run_all.png")
    pictures_have_alt_text(page)

    # by keyboard alone: Tab to the first radio button of the last quiz, arrows to choose, Tab and Space to check
    first = question(page, "What does")
    button = question(page, "And as a number").locator("button")
    button.focus()
    radios = first.locator("input[type=radio]")
    tab_to(page, radios.nth(0))
    page.keyboard.press("Space")
    assert radios.nth(0).is_checked()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert radios.nth(2).is_checked() and focused(page) == "radio"
    page.keyboard.press("d")
    page.keyboard.press("d")
    page.keyboard.press("x")
    page.keyboard.press("m")
    page.wait_for_timeout(400)
    assert page.locator(".jp-Notebook .jp-Cell").count() == cells  # `d d` and `x` would delete the cell
    tab_to(page, first.locator("button"))
    page.keyboard.press("Enter")
    first.locator(".course-wrong", has_text="without an axis").wait_for()
    page.keyboard.press("Shift+Tab")
    assert focused(page) == "radio"
    page.keyboard.press("ArrowUp")
    assert radios.nth(1).is_checked()
    tab_to(page, first.locator("button"))
    page.keyboard.press("Space")
    first.locator(".course-right", has_text="Axis 0 counts the rows").wait_for()
    tab_to(page, first.locator("summary"))
    page.keyboard.press("Enter")
    assert first.locator("details").get_attribute("open") is not None
    page.screenshot(path=tmp_path / "2_answered.png")

    boxes = question(page, "Which of these").locator("input[type=checkbox]")
    for place in (0, 2):
        tab_to(page, boxes.nth(place))
        page.keyboard.press("Space")
    tab_to(page, question(page, "Which of these").locator("button"))
    page.keyboard.press("Space")
    question(page, "Which of these").locator(".course-right").wait_for()
    number = question(page, "How many numbers")
    tab_to(page, number.locator("input[type=text]"))
    page.keyboard.type("7")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    number.locator(".course-wrong", has_text="they are multiplied").wait_for()
    assert page.locator(".jp-Notebook .jp-Cell").count() == cells
    page.get_by_text("Score: 2 of 4 questions right.").wait_for()
    page.screenshot(path=tmp_path / "3_score.png")

    restart_kernel(page)
    run_all(page, "Score:")
    page.get_by_text("Score: 2 of 4 questions right.").wait_for()
    first = question(page, "What does")
    assert first.locator("input[type=radio]").nth(1).is_checked()
    assert first.locator(".course-right").is_visible()
    assert number.locator("input[type=text]").input_value() == "7"
    assert (folder / ".progress.json").exists()
    page.screenshot(path=tmp_path / "4_after_restart.png")
    assert page.complaints == []


def pictures_have_alt_text(page) -> None:
    pictures = page.locator(".jp-OutputArea img")
    assert [len(pictures.nth(n).get_attribute("alt") or "") > 20 for n in range(pictures.count())] == [True, True]
    assert "course's version of 99.1" in page.locator("figcaption").first.inner_text()


def test_a_screen_reader_finds_groups_names_and_news(page):
    run_all(page, "Score:")
    page.wait_for_selector(".course-question input[data-lm-suppress-shortcuts]")
    group = page.get_by_role("radiogroup", name=re.compile("What does x.mean"))
    assert group.get_by_role("radio", name="the rows").count() == 1
    names = page.locator(".course-question").evaluate_all(
        "boxes => boxes.map(box => [...new Set([...box.querySelectorAll('input[type=radio]')].map(r => r.name))])"
    )
    named = [name for box in names for name in box]
    assert all(len(box) <= 1 for box in names) and "" not in named and len(set(named)) == len(named)
    assert page.get_by_role("group", name=re.compile("Which of these")).get_by_role("checkbox").count() == 3
    assert page.get_by_role("textbox", name=re.compile("How many numbers")).count() == 1
    assert question(page, "What does").get_by_role("status").count() == 1
    bare = page.locator(".course-question :is(input, button, summary):not([data-lm-suppress-shortcuts])")
    assert bare.count() == 0
    assert page.complaints == []


def test_a_prediction_is_recorded_and_found_again(page):
    run_all(page, "Score:")
    box = question(page, "Which share")
    tab_to_first = box.locator("input[type=radio]").first
    tab_to_first.focus()
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    tab_to(page, box.locator("button"))
    page.keyboard.press("Enter")
    box.get_by_text("Recorded: a third to a half").wait_for()
    run_all(page, "Score:")
    page.get_by_text("You predicted: a third to a half. Measured: 42%. That fits.").wait_for()
    assert page.complaints == []


def test_a_stored_solution_can_be_read_without_running_it(view, lab):
    """As after a `git clone`: the notebook is not trusted, and there is no kernel."""
    address, folder, _ = lab
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_EXTRA", str(MINI))
        source = MINI / "solutions" / "99_mini.py"
        solution = lesson_source.notebooks(source)[0]
        build_lessons.execute(solution, source)
    (folder / "solution.ipynb").write_text(lesson_source.to_text(solution), encoding="utf-8")
    view.goto(f"{address}/lab/tree/solution.ipynb?reset")
    view.wait_for_function(f"document.querySelectorAll('.jp-Notebook .jp-Cell').length === {len(solution.cells)}")
    pictures = view.locator(".jp-OutputArea img")
    pictures.nth(1).wait_for()
    assert [len(pictures.nth(n).get_attribute("alt") or "") > 20 for n in range(pictures.count())] == [True, True]
    assert pictures.evaluate_all("all => all.every(picture => picture.naturalWidth > 100)")
    answers = view.locator(".jp-OutputArea details")
    assert answers.count() == 4
    answers.first.locator("summary").click()
    assert answers.first.get_by_text("Axis 0 counts the rows").is_visible()
    assert view.complaints == []
