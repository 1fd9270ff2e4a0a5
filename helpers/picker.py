"""A row of figures with a slider to pick one. Taught nowhere; used by lesson 01 and others after it.

All figures are drawn beforehand, so that the slider answers at once and works in Colab as well. What is stored and
exported is a line of text in its place: the lesson shows a static twin beside it.
"""

import html
import io
from collections.abc import Mapping

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from helpers.figures import style


def pick(figures: Mapping[str, Figure], label: str, alts: Mapping[str, str]) -> None:
    """Show one of the figures, chosen by a slider over their names; closes them all.

    alts: for each name a sentence that says what is to be seen; it is read out as the slider moves. Raises ValueError
    if a figure has none.
    """
    missing = [name for name in figures if len(alts.get(name, "").strip()) < 20]
    if missing:
        raise ValueError(f"pick() needs in alts a sentence for each figure; {missing[0]!r} has none.")
    pictures = {name: _png(figure) for name, figure in figures.items()}
    from IPython import get_ipython
    from IPython.display import display

    text = f"[Slider: {label}, one of {', '.join(pictures)}. The figure below shows all of them at once.]"
    if get_ipython() is None:
        print(text)
        return
    bundle = {"text/plain": text, "text/html": f"<p><em>{text}</em></p>"}
    try:
        view = _view(pictures, label, alts)
        key = "application/vnd.jupyter.widget-view+json"
        bundle[key] = {"version_major": 2, "version_minor": 0, "model_id": view.model_id}
    except ImportError:  # no ipywidgets here: the line of text alone
        pass
    display(bundle, raw=True)


def _png(figure: Figure) -> bytes:
    with style():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", bbox_inches="tight", facecolor="white", metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()


def _view(pictures: Mapping[str, bytes], label: str, alts: Mapping[str, str]):
    import ipywidgets as widgets

    names = list(pictures)
    slider = widgets.SelectionSlider(
        options=names, description=label, style={"description_width": "initial"}, layout={"width": "520px"}
    )
    image = widgets.Image(value=pictures[names[0]], format="png")
    words = widgets.HTML(f'<p aria-live="polite">{html.escape(alts[names[0]])}</p>')

    def turn(change) -> None:
        image.value = pictures[change["new"]]
        words.value = f'<p aria-live="polite">{html.escape(alts[change["new"]])}</p>'

    slider.observe(turn, names="value")
    return widgets.VBox([slider, image, words])
