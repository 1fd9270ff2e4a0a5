"""Look at a tracing pair by pair: sliders for the pair, the site and the measure. Used in lesson 02.

A mean over pairs can hide that a place does all in half of them and nothing in the others. Each picture is drawn when
it is asked for, and kept. What is stored and exported is a line of text: the lesson shows the mean map as its twin.
"""

import html
import io
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from .figures import style
from .trace_plots import COMPONENTS, NAMES, TITLES, two_maps
from .tracing import Traced, refusal_change

MEASURES = tuple(NAMES)
MEAN = "mean of all"


def measured(traced: Traced, measure: str) -> np.ndarray:
    """One of MEASURES for every place and pair, [place, pair]; a pair's share is of that pair's own gap."""
    if measure not in MEASURES:
        raise ValueError(f"There is no measure {measure!r}: choose one of {', '.join(MEASURES)}.")
    if measure == "refusal_change":
        return refusal_change(traced.patched, traced.baseline, traced.direction)
    sign = -1 if traced.direction == "benign_into_harmful" else 1
    odds = sign * (traced.patched - traced.baseline)
    return odds if measure == "log_odds_change" else odds / (sign * (traced.donor - traced.baseline))


def axes_of(traced: Traced, component: str) -> tuple[list[int], list]:
    """The layers and the positions at which a component was traced."""
    here = [place for place in traced.places if place.component == component]
    return sorted({place.layer for place in here}), list(dict.fromkeys(place.position for place in here))


def grids(traced: Sequence[Traced], pair: int | None, component: str, measure: str) -> dict[str, np.ndarray]:
    """{title: [layer, position]} for both directions, of one pair or (None) the mean.

    The mean of shares is the mean change over the mean gap, as in the table: a pair with hardly a gap must not
    outweigh the others.
    """
    out = {}
    for one in traced:
        if pair is not None:
            values = measured(one, measure)[:, pair]
        else:
            values = _mean(measured(one, "log_odds_change" if measure == "share_of_gap" else measure))
            if measure == "share_of_gap":
                values = values / abs(np.mean(one.donor - one.baseline))
        layers, positions = axes_of(one, component)
        grid = np.full((len(layers), len(positions)), np.nan)
        for place, value in zip(one.places, values, strict=True):
            if place.component == component:
                grid[layers.index(place.layer), positions.index(place.position)] = value
        out[TITLES[one.direction]] = grid
    return out


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over pairs, [place]; nan where no pair has the place."""
    has = ~np.isnan(values)
    return np.where(has.any(-1), np.nansum(values, -1) / np.maximum(has.sum(-1), 1), np.nan)


def together(*parts: Traced) -> Traced:
    """Tracings of other places with the same pairs and direction, as one. Raises ValueError if those differ."""
    first = parts[0]
    for part in parts[1:]:
        if part.direction != first.direction or not np.allclose(part.baseline, first.baseline, atol=1e-2):
            raise ValueError("These tracings differ in their pairs, their score or their direction.")
    places = [place for part in parts for place in part.places]
    patched, control = np.concatenate([p.patched for p in parts]), np.concatenate([p.control for p in parts], 1)
    return Traced(first.direction, places, patched, first.baseline, first.donor, control)


class TraceView:
    """Three sliders and a picture. names: what each pair is called, its topic, say."""

    def __init__(self, traced: Sequence[Traced], names: Sequence[str]):
        if not traced or len(names) != len(traced[0].baseline):
            pairs = len(traced[0].baseline) if traced else 0
            raise ValueError(f"There are {pairs} traced pairs and {len(names)} names: give each pair its own.")
        self.traced, self._kept = list(traced), {}
        self.pairs = {MEAN: None} | {f"{i + 1}: {name}": i for i, name in enumerate(names)}
        self.components = list(dict.fromkeys(place.component for place in traced[0].places))

    def words(self, pair: str, component: str, measure: str) -> str:
        """A sentence that says what the picture shows."""
        found = grids(self.traced, self.pairs[pair], component, measure)
        layers, positions = axes_of(self.traced[0], component)
        parts = []
        for title, grid in found.items():
            row, column = np.unravel_index(np.nanargmax(grid), grid.shape)
            parts.append(
                f"{title.split(':')[0]}, the greatest is {grid[row, column]:.2f} at layer {layers[row]}, {positions[column]}"
            )
        return f"{COMPONENTS.get(component, component)}, {NAMES[measure]}, {pair}. " + "; ".join(parts) + "."

    def picture(self, pair: str, component: str, measure: str) -> bytes:
        """The map as a PNG."""
        key = pair, component, measure
        if key not in self._kept:
            found = grids(self.traced, self.pairs[pair], component, measure)
            layers, positions = axes_of(self.traced[0], component)
            reach = max(1.0, max(float(np.nanmax(np.abs(grid))) for grid in found.values()))
            if measure == "refusal_change":
                reach = 1.0
            fig = two_maps(found, xlabel="place", colorbar=NAMES[measure], xticks=positions, yticks=layers, reach=reach)  # fmt: skip
            with style():
                buffer = io.BytesIO()
                fig.savefig(buffer, format="png", bbox_inches="tight", facecolor="white", metadata={"Software": None})
            plt.close(fig)
            self._kept[key] = buffer.getvalue()
        return self._kept[key]

    def build(self):
        """The widget, an ipywidgets VBox: the three sliders, the picture, the words."""
        import ipywidgets as widgets

        def slider(options, label):
            look = {"style": {"description_width": "60px"}, "layout": {"width": "520px"}}
            return widgets.SelectionSlider(options=options, description=label, continuous_update=False, **look)

        options = [list(self.pairs), [(COMPONENTS.get(c, c), c) for c in self.components],
                   [(NAMES[m], m) for m in MEASURES]]  # fmt: skip
        sliders = [slider(some, label) for some, label in zip(options, ("pair", "site", "measure"), strict=True)]
        image, words = widgets.Image(format="png"), widgets.HTML()

        def turn(_=None) -> None:
            now = [one.value for one in sliders]
            image.value = self.picture(*now)
            words.value = f'<p aria-live="polite">{html.escape(self.words(*now))}</p>'

        turn()
        for one in sliders:
            one.observe(turn, names="value")
        return widgets.VBox([*sliders, image, words])


def explore(traced: Sequence[Traced], names: Sequence[str]) -> None:
    """Show the sliders in a notebook, and a line of text where widgets cannot be shown."""
    from IPython import get_ipython
    from IPython.display import display

    view = TraceView(traced, names)
    text = (
        f"[Sliders: one of {len(names)} pairs or their mean, the site, the measure. The figure below shows the mean.]"
    )
    if get_ipython() is None:
        print(text)
        return
    bundle = {"text/plain": text, "text/html": f"<p><em>{text}</em></p>"}
    try:
        key = "application/vnd.jupyter.widget-view+json"
        bundle[key] = {"version_major": 2, "version_minor": 0, "model_id": view.build().model_id}
    except ImportError:  # no ipywidgets here: the line of text alone
        pass
    display(bundle, raw=True)
