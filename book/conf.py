"""The web book: `python course.py book` makes `_site/` from the executed solutions, which are shown as they are stored."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.lesson_colab import address  # noqa: E402

project = "Safety neurons and refusal circuits"
author = "the course's authors"
copyright = author
extensions = ["myst_nb"]
root_doc = "book/index"
include_patterns = [
    "book/*.md",
    "solutions/*.ipynb",
    "README.md",
    "GLOSSARY.md",
    "TEACHING.md",
    "helpers/data/*/README.md",
]
language = "en"

nb_execution_mode = "off"  # the outputs are those that the tests hold against the sources
nb_mime_priority_overrides = [("*", "text/html", 0), ("*", "image/png", 10)]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "myst.xref_missing", "mystnb.unknown_mime_type", "misc.highlighting_failure"]

html_theme = "furo"
html_title = project
html_theme_options = {"source_repository": address(), "source_branch": "main", "source_directory": ""}
html_show_sphinx = False
html_extra_path = ["html"]  # a first page that leads to the book
