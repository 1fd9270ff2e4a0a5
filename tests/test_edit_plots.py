"""Pictures of edits: they show what they are given, with a second cue beside colour."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers.edit_plots import OUTCOMES, VERDICTS, cost_plane, dose_panels, outcome_bars

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def texts(fig):
    return [t.get_text() for ax in fig.axes for t in ax.texts]


def doses():
    row = {"odds": [4.0, -2.0], "low": [3.0, -3.0], "high": [5.0, -1.0]}
    drawn = {"random": [4.0, 3.0], "random_low": [4.0, 2.0], "random_high": [4.0, 3.5]}
    return pd.DataFrame({"count": [0, 2304]} | row | drawn)


def test_dose_panels_show_each_table_at_equal_distances():
    fig = dose_panels({"one": doses(), "two": doses()}, xlabel="neurons", threshold=-1.4)
    assert [ax.get_title(loc="left") or ax.get_title() for ax in fig.axes] == ["one", "two"]
    for ax in fig.axes:
        ranked = next(line for line in ax.lines if line.get_label().startswith("ranked"))
        assert ranked.get_xdata().tolist() == [0, 1] and ranked.get_ydata().tolist() == [4.0, -2.0]
        assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "2,304"]
        assert any(set(np.asarray(line.get_ydata())) == {-1.4} for line in ax.lines)
    named = dose_panels({"one": doses()}, xlabel="neurons", shown=[2304]).axes[0]
    assert [t.get_text() for t in named.get_xticklabels()] == ["2,304"]


def edits():
    return pd.DataFrame(
        {
            "refused": [0.9, 0.9, 0.1, 0.0],
            "KL": [0.0, 0.0, 0.2, 7.0],
            "facts known": [1.0, 1.0, 0.9, 0.3],
            "verdict": ["nothing", "chance", "effect", "broken"],
        },
        index=["intact", "random", "direction", "everywhere"],
    )


def test_the_plane_numbers_every_edit_and_marks_its_verdict():
    fig = cost_plane(edits(), most_kl=0.5, intact=0.9)
    assert len(fig.axes) == 2
    words = texts(fig)
    assert any(all(f"{n}  {name}" in text for n, name in enumerate(edits().index, 1)) for text in words)
    assert words.count("1") == words.count("4") == 2
    left, right = fig.axes
    shown = {c.get_label(): c.get_offsets().tolist() for c in left.collections if c.get_label() in VERDICTS}
    assert shown["broken"] == [[7.0, 0.0]] and shown["nothing"] == [[1e-3, 0.9]]  # no zero on a log axis
    facts = {c.get_label(): c.get_offsets().tolist() for c in right.collections if c.get_label() in VERDICTS}
    assert facts["effect"] == [[0.9, 0.1]]
    assert len({marker for _, marker in VERDICTS.values()}) == len(VERDICTS)


def test_labels_of_points_at_one_place_stand_apart():
    left = cost_plane(edits(), most_kl=0.5, intact=0.9).axes[0]
    offsets = [t.xyann for t in left.texts if t.get_text() in ("1", "2")]
    assert len(set(offsets)) == 2


def test_outcome_bars_stack_to_the_number_of_answers():
    counts = {"intact": {"refusal": 9, "answer": 1}, "cut": {"answer": 6, "broken": 3, "late refusal": 1}}
    ax = outcome_bars(counts).axes[0]
    for row in range(2):
        widths = [box.patches[row].get_width() for box in ax.containers]
        assert sum(widths) == 10
    assert sorted(t.get_text() for t in ax.texts) == ["1", "1", "3", "6", "9"]
    assert [box.get_label() for box in ax.containers] == list(OUTCOMES)
    assert len({box.patches[0].get_hatch() for box in ax.containers}) == len(OUTCOMES)
