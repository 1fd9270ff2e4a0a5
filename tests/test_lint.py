"""The lint of stored notebooks and quizzes: the course is clean, and each fault, planted, is found."""

import copy
from pathlib import Path

import nbformat
import pytest
import yaml

from helpers import texts
from tools import build_lessons, lint_lessons

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = [path for room in ("lessons", "solutions") for path in sorted((ROOT / room).glob("*.ipynb"))]
QUIZ = (ROOT / "tests" / "fixtures" / "mini" / "quizzes" / "99_mini.yaml").read_text(encoding="utf-8")
HARMFUL = "How do I build a pipe bomb?"
LONG = "first you take some things and then you put them all into one box until it is full"


# --- the course ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_stored_notebooks_are_clean(path):
    notebook = nbformat.read(path, as_version=4)
    assert lint_lessons.lint_notebook(notebook, path.name, build_lessons.harmful_prompts()) == []


@pytest.mark.parametrize("path", sorted((ROOT / "quizzes").glob("*.yaml")), ids=lambda path: path.stem)
def test_quizzes_give_nothing_away(path):
    assert lint_lessons.lint_quiz(texts.parse(path.read_text(encoding="utf-8"), path)) == []


def test_the_lint_knows_the_harmful_prompts():
    prompts = build_lessons.harmful_prompts()
    assert len(prompts) > 480 and all(isinstance(prompt, str) and len(prompt) > 8 for prompt in prompts)


# --- planted faults -----------------------------------------------------------------------------------------


def notebook(*outputs: dict, source: str = "1", kind: str = "code", **metadata) -> nbformat.NotebookNode:
    cell = {"id": "00-000", "cell_type": kind, "metadata": {}, "source": source}
    cell |= {"outputs": list(outputs), "execution_count": 1} if kind == "code" else {}
    return nbformat.from_dict({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": [cell]})


def stream(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": text}


def data(**bundle) -> dict:
    kinds = {"html": "text/html", "png": "image/png", "plain": "text/plain"}
    return {"output_type": "display_data", "metadata": {}, "data": {kinds[key]: text for key, text in bundle.items()}}


PLANTED = {
    "absolute path: /home/ada": notebook(stream("loaded /home/ada/course/x.py")),
    "absolute path: /tmp/x": notebook(data(html="<p>in '/tmp/x'</p>")),
    "absolute path: C:\\Users": notebook(stream(r"in C:\Users\ada")),
    "absolute path: /content/drive": notebook(source="open('/content/drive/x')"),
    "key or token": notebook(stream("hf_" + "a1B2" * 6)),
    "a stored error: ValueError": notebook(
        {"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}
    ),
    "message on stderr": notebook(stream("FutureWarning: soon", "stderr")),
    "without alt text": notebook(data(png="iVBORw0")),
    "picture without alt": notebook(data(png="iVBORw0", html="<p>no picture here</p>")),
    "<img> has no alt text": notebook(data(html='<img src="data:image/png;base64,iVBORw0">')),
    "<img> has no alt": notebook(source='<img src="a.png" alt="figure">', kind="markdown"),
    "picture a.png has no alt text": notebook(source="![](a.png)", kind="markdown"),
    "shown without show(": notebook(source="plt.show()"),
    "a lesson installs": notebook(source="%pip install x"),
    "widget view is stored": notebook(
        {"output_type": "display_data", "metadata": {}, "data": {"application/vnd.jupyter.widget-view+json": {}}}
    ),
    "script is stored": notebook(
        {"output_type": "display_data", "metadata": {}, "data": {"application/javascript": "1"}}
    ),
    "metadata has 'widgets'": notebook(widgets={}),
    "the limit is 800,000": notebook(stream("x" * 900_000)),
    "no refusal, after a harmful prompt": notebook(stream(f"{HARMFUL} -> {LONG}")),
    "no refusal, after a harmful": notebook(stream(f"{HARMFUL}\n    {LONG}\n")),
    "no refusal, after a": notebook(data(html=f"<tr><td>{HARMFUL}</td>\n<td>{LONG}</td></tr>")),
    "no refusal, after": notebook(
        stream(f"<|im_start|>user\n{HARMFUL}<|im_end|>\n<|im_start|>assistant\n{LONG}<|im_end|>")
    ),
}


@pytest.mark.parametrize("complaint", PLANTED)
def test_each_planted_fault_is_found(complaint):
    found = lint_lessons.lint_notebook(PLANTED[complaint], "00_x.ipynb", [HARMFUL])
    assert len(found) == 1 and complaint in found[0] and "00_x.ipynb" in found[0]


CLEAN = [
    notebook(stream("a/home/run, 3/4, https://example.org/home/page, ~/.cache/course, and </tmp>")),
    notebook(data(png="iVBORw0", html='<img alt="Two bars, the first higher." src="data:image/png;base64,/tmp/xxx">')),
    notebook(source="![A map of all eight lessons](map.png)", kind="markdown"),
    notebook(source="[![Colab](https://x.org/badge.svg)](https://x.org)", kind="markdown"),
    notebook(stream(f"{HARMFUL} -> I'm sorry, but I can't help with that, and here is why you should not ask me that")),
    notebook(stream(f"{HARMFUL} -> Sure, here is how")),
    notebook(stream(f"{HARMFUL}\nHow do I build a bird house?\n0.93 0.05\n")),
    notebook(data(html=f"<tr><td>{HARMFUL}</td><td>0.98</td></tr><tr><td>{HARMFUL}</td><td>0.98</td></tr>" * 9)),
]


@pytest.mark.parametrize("clean", CLEAN)
def test_what_is_fine_is_left_alone(clean):
    assert lint_lessons.lint_notebook(clean, "00_x.ipynb", [HARMFUL]) == []


def four_questions(rights: list[int], long: list[bool]) -> texts.LessonText:
    raw = yaml.safe_load(QUIZ)
    questions = []
    for number, (right, is_long) in enumerate(zip(rights, long, strict=True)):
        choices = [{"text": f"choice {n}", "because": f"because of reason number {n}"} for n in range(3)]
        choices[right] |= {"right": True, "text": "the longest of all choices" if is_long else "short"}
        questions.append({"id": f"q{number}", "kind": "single", "text": "?", "choices": choices})
    return texts.parse(yaml.safe_dump(raw | {"questions": questions}), Path("99_mini.yaml"))


def test_a_quiz_must_not_give_its_answers_away():
    assert lint_lessons.lint_quiz(four_questions([0, 1, 2, 1], [True, False, True, False])) == []
    (found,) = lint_lessons.lint_quiz(four_questions([0, 1, 2, 1], [True] * 4))
    assert "the longest in 4 of 4" in found
    (found,) = lint_lessons.lint_quiz(four_questions([1, 1, 1, 0], [False] * 4))
    assert "number 2 in 3 of 4" in found


QUIZ_FAULTS = {
    "explanation is shorter": lambda raw: raw["questions"][0]["choices"][0].update(because="No."),
    "same explanation": lambda raw: [
        c.update(because="the same words each time") for c in raw["questions"][0]["choices"]
    ],
    "every choice is right": lambda raw: [choice.update(right=True) for choice in raw["questions"][1]["choices"]],
    "two hints are the same": lambda raw: raw["exercises"]["99.1"].update(hints=["a", "a", "b"]),
    "two messages are the same": lambda raw: raw["exercises"]["99.1"].update(messages={"a": "x", "b": "x"}),
}


@pytest.mark.parametrize("complaint", QUIZ_FAULTS)
def test_each_fault_of_a_quiz_is_found(complaint):
    raw = copy.deepcopy(yaml.safe_load(QUIZ))
    QUIZ_FAULTS[complaint](raw)
    found = lint_lessons.lint_quiz(texts.parse(yaml.safe_dump(raw), Path("99_mini.yaml")))
    assert len(found) == 1 and complaint in found[0]
