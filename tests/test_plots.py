"""Figures: alt text always, one picture each, colours that stay apart, and a second cue besides them."""

import ast
import base64
import itertools
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest

from helpers import figures, plots, progress

matplotlib.use("Agg")
ROOT = Path(__file__).parents[1]
ALT = "Two bars, the first nine times as high as the second."


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setattr(progress, "_notes", [])
    yield
    plt.close("all")


@pytest.fixture
def sent(monkeypatch):
    """What show() hands to the notebook."""
    found = []
    monkeypatch.setattr("IPython.get_ipython", lambda: object())
    monkeypatch.setattr("IPython.display.display", lambda data, raw=False: found.append(data))
    return found


def two_bars():
    return plots.bars(["a", "b"], [0.9, 0.1], ylabel="share")


# --- show ---------------------------------------------------------------------------------------------------


def test_show_sends_one_picture_with_alt_text_and_closes_it(sent):
    fig = two_bars()
    plots.show(fig, 'Two bars: "a" is higher than b & c, by far.', caption="a < b")
    (bundle,) = sent
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    page = bundle["text/html"]
    assert page.count("<img") == 1 and 'alt="Two bars: &quot;a&quot; is higher than b &amp; c, by far."' in page
    assert "<figcaption>a &lt; b</figcaption>" in page
    assert base64.b64decode(bundle["image/png"])[:4] == b"\x89PNG" and bundle["image/png"] in page
    assert not plt.fignum_exists(fig.number)


@pytest.mark.parametrize("alt", ["", "   ", "figure", None, 3])
def test_show_wants_a_real_alt_text(alt):
    with pytest.raises(ValueError, match="what is to be seen"):
        plots.show(two_bars(), alt)


def test_the_caption_says_where_the_courses_version_stands_in(sent):
    progress.note_course_version("00.2")
    plots.show(two_bars(), ALT, "A caption.")
    plots.show(two_bars(), ALT)
    assert "A caption. (with the course's version of 00.2)" in sent[0]["text/html"]
    assert "course's version" not in sent[1]["text/html"] and "figcaption" not in sent[1]["text/html"]


def test_without_a_notebook_show_prints_the_alt_text(capsys):
    plots.show(two_bars(), ALT, "A caption.")
    assert capsys.readouterr().out == f"[Figure: {ALT}] A caption.\n"


def test_the_same_figure_gives_the_same_bytes(sent):
    for _ in range(2):
        plots.show(two_bars(), ALT)
    assert sent[0] == sent[1]


# --- colours ------------------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
)
PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)


def linear(color) -> np.ndarray:
    rgb = np.array(matplotlib.colors.to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of a linear RGB colour."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one, other) -> float:
    """Of two colours, 1 to 21, as WCAG defines it."""
    dark, light = sorted(float(linear(color) @ [0.2126, 0.7152, 0.0722]) for color in (one, other))
    return (light + 0.05) / (dark + 0.05)


def pairs(colors):
    return itertools.combinations(colors, 2)


def test_the_first_colours_stay_apart_in_grey():
    for one, other in pairs(plots.PALETTE[:4]):
        assert abs(lab(linear(one))[0] - lab(linear(other))[0]) > 10, (one, other)
    assert abs(lab(linear(plots.HARMFUL))[0] - lab(linear(plots.HARMLESS))[0]) > 20


@pytest.mark.parametrize("eye", [np.eye(3), DEUTERANOPIA, PROTANOPIA], ids=["all", "deuteranopia", "protanopia"])
def test_colours_stay_apart_for_colour_blind_readers(eye):
    for one, other in pairs(plots.PALETTE[:5]):
        assert np.linalg.norm(lab(eye @ linear(one)) - lab(eye @ linear(other))) > 20, (one, other)


def test_the_map_rises_in_lightness_for_every_eye():
    steps = matplotlib.colormaps[plots.SEQUENTIAL](np.linspace(0, 1, 32))[:, :3]
    for eye in (np.eye(3), DEUTERANOPIA, PROTANOPIA):
        lightness = [lab(eye @ linear(step))[0] for step in steps]
        assert (np.diff(lightness) > 0).all()


def test_writing_in_cells_can_be_read():
    fig, ax = plt.subplots()
    for name in (plots.SEQUENTIAL, plots.DIVERGING):
        image = ax.imshow([[0.0, 1.0]], cmap=name)
        for value in np.linspace(0, 1, 21):
            found = contrast(plots._ink(image, value), image.cmap(value)[:3])
            assert found > 4.0, (name, value, found)


# --- makers -------------------------------------------------------------------------------------------------


def test_series_differ_without_colour():
    x = np.arange(5)
    fig = plots.lines_with_band(
        x, {name: (x * k, x * k - 1, x * k + 1) for k, name in enumerate("abcd")}, xlabel="x", ylabel="y",
        band=("random", x - 1, x + 1),
    )  # fmt: skip
    lines = fig.axes[0].get_lines()
    assert len({line.get_marker() for line in lines}) == len({line.get_linestyle() for line in lines}) == 4
    assert [text.get_text() for text in fig.axes[0].get_legend().get_texts()] == ["random", "a", "b", "c", "d"]
    fig = plots.bars(["x", "y"], {"a": [1, 2], "b": [2, float("nan")]}, ylabel="n", intervals={"a": ([0, 1], [2, 3])})
    groups = fig.axes[0].containers
    assert {bar.get_hatch() for group in groups for bar in getattr(group, "patches", [])} == {"", "//"}
    assert "-" in [text.get_text() for text in fig.axes[0].texts]  # nan: no bar, but no gap either


def test_heat_maps_mark_cells_and_write_numbers():
    values = np.arange(6.0).reshape(2, 3) - 2
    fig = plots.heatmap(values, xlabel="x", ylabel="y", colorbar="c", center=0, marked=[(1, 2)], fmt="{:.1f}")
    axes = fig.axes[0]
    assert [text.get_text() for text in axes.texts] == [f"{value:.1f}" for value in values.ravel()]
    assert axes.images[0].get_clim() == (-3, 3) and len(axes.patches) == 2
    large = plots.heatmap(np.linspace(-1, 1, 400).reshape(20, 20), xlabel="x", ylabel="y", colorbar="c", center=0)
    assert {text.get_text() for text in large.axes[0].texts} == {"", "\u2212"}
    empty = plots.heatmap(np.zeros((2, 2)), xlabel="x", ylabel="y", colorbar="c", center=0)
    assert empty.axes[0].images[0].get_clim() == (-1, 1)


def test_tokens_are_shown_as_they_are():
    fig = plots.logit_lens_grid([[" I", "\n"], ["$x$", "a" * 30]], [[0.1, 0.6], [0.2, 0.9]], positions=["a", " b"])
    assert [text.get_text() for text in fig.axes[0].texts] == ["␣I", "↵", "$x$", "aaaaaaaa…"]
    fig.canvas.draw()
    strip = plots.token_strip([" a"] * 13, np.arange(13), label="value")
    strip.canvas.draw()
    assert len(strip.axes[0].texts) == 26


def test_makers_leave_the_style_outside_alone():
    before = dict(matplotlib.rcParams)
    two_bars()
    assert dict(matplotlib.rcParams) == before
    assert figures.figure()[0].get_size_inches().tolist() == list(figures.STYLE["figure.figsize"])


# --- what lessons and helpers draw themselves ------------------------------------------------------------------

LINES = set("plot axhline axvline hlines vlines text annotate scatter errorbar add_line step".split())
INK = {"color", "c", "edgecolor", "edgecolors", "ecolor", "markeredgecolor"}


def drawn_colours(source: str):
    """(line, colour) of every colour that is written out in a call that draws a line, a mark or a word."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in LINES:
            for given in node.keywords:
                if (
                    given.arg in INK
                    and isinstance(given.value, ast.Constant)
                    and str(given.value.value).startswith("#")
                ):
                    yield node.lineno, given.value.value


@pytest.mark.parametrize(
    "path", sorted([*(ROOT / "solutions").glob("*.py"), *(ROOT / "helpers").glob("*.py")]), ids=lambda p: p.stem
)
def test_lines_and_words_stand_out_from_white(path):
    """3:1, as WCAG asks of graphics. The palette's own light colours always come with a mark, a dash or a hatch."""
    for line, colour in drawn_colours(path.read_text(encoding="utf-8")):
        found = contrast(colour, "white")
        assert found >= 3, f"{path.name}, line {line}: {colour} has a contrast of {found:.1f} to white"


def test_a_pale_line_is_found():
    assert list(drawn_colours('ax.axhline(0, color="#CCCCCC")\nax.fill_between(x, y, color="#DDDDDD")')) == [
        (1, "#CCCCCC")
    ]
