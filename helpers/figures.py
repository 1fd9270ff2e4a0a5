"""How every figure of the course looks and is shown: the palette, the style, and `show`.

Colours are those of Okabe and Ito (2008) and the map cividis, which stay apart for colour-blind readers.
"""

import base64
import html
import io

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from helpers import progress

BLACK, BLUE, ORANGE, GREEN = "#000000", "#0072B2", "#E69F00", "#009E73"
VERMILION, PURPLE, SKY, GREY = "#D55E00", "#CC79A7", "#56B4E9", "#8A8A8A"
# The first four differ in lightness too, so they stay apart in grey; the others lean on the second cue.
PALETTE = (BLUE, ORANGE, BLACK, GREEN, SKY, VERMILION, PURPLE)
HARMFUL, HARMLESS, CONTROL = ORANGE, BLUE, GREY
MARKERS, DASHES = "osD^vPX", ("-", "--", ":", "-.", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")
SEQUENTIAL, DIVERGING = "cividis", "PuOr"

STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "figure.figsize": (7.2, 4.0),
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": False,
    "grid.color": "#DDDDDD",
    "axes.axisbelow": True,
    "axes.prop_cycle": mpl.cycler(color=PALETTE, marker=list(MARKERS), linestyle=list(DASHES)),
    "lines.linewidth": 2.0,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "hatch.linewidth": 0.8,
    "text.parse_math": False,
}


def style():
    """The course's look, as a context: `with style(): fig, ax = plt.subplots()`."""
    return mpl.rc_context(STYLE)


def figure(rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None, **options):
    """`plt.subplots` in the course's style: returns the figure and its axes."""
    with style():
        return plt.subplots(rows, columns, figsize=size, **options)


def show(fig: Figure, alt: str, caption: str | None = None) -> None:
    """Display a figure with its alternative text, and close it.

    The picture is sent once, as HTML with `<img alt>` (what JupyterLab, Colab and HTML exports show) beside
    the bare PNG (what PDF exports take). After an exercise for which the course's version stands in, the
    caption says so. Raises ValueError if `alt` does not say in a sentence what is to be seen.
    """
    if not isinstance(alt, str) or len(alt.strip()) < 20:
        raise ValueError("show() needs alt=, a sentence that says what is to be seen (at least 20 characters).")
    words = " ".join(part for part in (caption or "", progress.take_note()) if part)
    with style():
        buffer = io.BytesIO()
        fig.savefig(buffer, format="png", bbox_inches="tight", facecolor="white", metadata={"Software": None})
    plt.close(fig)
    _display(buffer.getvalue(), " ".join(alt.split()), words)


def _display(png: bytes, alt: str, words: str) -> None:
    from IPython import get_ipython
    from IPython.display import display

    text = f"[Figure: {alt}]" + (f" {words}" if words else "")
    if get_ipython() is None:
        print(text)
        return
    data = base64.b64encode(png).decode("ascii")
    below = f"<figcaption>{html.escape(words, quote=False)}</figcaption>" if words else ""
    page = (
        f'<figure style="margin: 0"><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}" '
        f'style="max-width: 100%; height: auto; background: white">{below}</figure>'
    )
    display({"text/html": page, "image/png": data, "text/plain": text}, raw=True)
