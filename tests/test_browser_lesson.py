"""A whole lesson of the course in a real browser, as a learner goes through it, and a slider. No outside network.

It is the capstone: glass boxes alone, and so the one lesson that runs in half a minute. Screenshots are left in the test's
temporary folder.
"""

import shutil
from pathlib import Path

import nbformat
import pytest
from browsing import SECONDS, opened, restart_kernel, run_all, running_lab

from tools.lesson_source import KERNEL

pytestmark = [pytest.mark.browser, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[1]
LESSON = ROOT / "lessons" / "08_capstone.ipynb"
ERROR = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"
DRAWN = """from matplotlib.figure import Figure
from helpers.picker import pick
figures = {}
for name in "abc":
    figures[name] = Figure(figsize=(2, 1 + ord(name) % 3))
    figures[name].subplots().bar([0], [1])
pick(figures, "which one", {name: f"A bar in picture {name}, and nothing else." for name in figures})"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab over an empty folder: its address, and the folder."""
    folder = tmp_path_factory.mktemp("my_lessons")
    with running_lab(folder, tmp_path_factory.mktemp("home")) as address:
        yield address, folder


def write_cell(page, cell, text: str) -> None:
    """Put a text in place of a code cell's, and run it."""
    cell.locator(".cm-content").click()
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.insert_text(text)
    page.keyboard.press("Control+Enter")


def test_the_capstone_from_run_all_to_a_kernel_restart(view, lab, tmp_path):
    address, folder = lab
    shutil.copy(LESSON, folder)
    count = len(nbformat.read(LESSON, as_version=4).cells)
    page = opened(view, address, LESSON.name, count)
    run_all(page, "Score:", 4 * SECONDS)
    assert page.locator(ERROR).count() == 0, page.locator(ERROR).first.inner_text()
    pictures = page.locator(".jp-OutputArea img")
    assert pictures.count() > 3
    assert all(len(pictures.nth(n).get_attribute("alt") or "") > 20 for n in range(pictures.count()))
    page.screenshot(path=tmp_path / "1_untouched.png")

    # an answer that is wrong in a known way, a hint, and the right one
    answer = page.locator(".jp-CodeCell", has_text="def my_passes").first
    checked = page.locator(".jp-CodeCell", has_text='check("08.1", my_passes)').first
    write_cell(page, answer, "my_passes = lambda prompts, blocks, n_blocks, backward: prompts")
    write_cell(page, checked, 'passes = check("08.1", my_passes)')
    checked.get_by_text("you count the prompts. A run through two of six blocks costs a third").wait_for()
    page.screenshot(path=tmp_path / "2_wrong.png")
    write_cell(page, checked, 'hint("08.1"); hint("08.1"); passes = check("08.1", my_passes)')
    checked.get_by_text("A batch of 48 prompts is not one pass.").wait_for()
    answer = page.locator(".jp-CodeCell", has_text="my_passes = lambda").first
    right = "prompts * blocks / n_blocks * (3 if backward else 1)"
    write_cell(page, answer, f"my_passes = lambda prompts, blocks, n_blocks, backward: {right}")
    write_cell(page, checked, 'passes = check("08.1", my_passes)')
    checked.get_by_text("Exercise 08.1: right. Your version is used from here on.").wait_for()

    # the quiz: one wrong, then the right one, with the reason
    box = page.locator(".course-question", has_text="A neuron reacts strongly to every harmful request").last
    box.locator("input[type=radio]").nth(0).check()
    box.locator("button").click()
    box.locator(".course-wrong", has_text="Decoys do just that").wait_for()
    box.locator("input[type=radio]").nth(1).check()
    box.locator("button").click()
    box.locator(".course-right", has_text="Reacting is half of it").wait_for()
    page.screenshot(path=tmp_path / "3_answered.png")

    restart_kernel(page)
    run_all(page, "Score:", 4 * SECONDS)
    box = page.locator(".course-question", has_text="A neuron reacts strongly to every harmful request").last
    assert box.locator("input[type=radio]").nth(1).is_checked() and box.locator(".course-right").is_visible()
    assert page.locator(ERROR).count() == 0
    checked.get_by_text("Exercise 08.1: right.").wait_for()
    assert page.complaints == []


def test_a_slider_changes_the_picture_and_its_words_by_keyboard(view, lab, tmp_path):
    address, folder = lab
    # with a kernel named, or the page asks for one
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": KERNEL}, cells=[nbformat.v4.new_code_cell(DRAWN)])
    nbformat.write(notebook, folder / "slider.ipynb")
    page = opened(view, address, "slider.ipynb", 1)
    page.locator(".jp-CodeCell .cm-content").click()
    page.keyboard.press("Control+Enter")
    picture, handle = page.locator(".jp-OutputArea img").first, page.locator(".noUi-handle").first
    handle.wait_for()
    page.get_by_text("A bar in picture a").wait_for()
    before = picture.get_attribute("src")
    handle.focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("A bar in picture b").wait_for()
    page.wait_for_function(
        "before => document.querySelector('.jp-OutputArea img').getAttribute('src') !== before", arg=before
    )
    page.screenshot(path=tmp_path / "slider.png")
    assert page.complaints == []
