"""The tracing's pictures and sliders: what they show is what the table says."""

import numpy as np
import pytest

from helpers import noise, trace_plots, trace_view
from helpers.glassbox import glassbox_prompts, load_glassbox
from helpers.tracing import DIRECTIONS, CausalTracer, table_of

PAIRS = glassbox_prompts("pairs", n=6, split="test")


@pytest.fixture(scope="module")
def traced():
    model, tokenizer, _ = load_glassbox("concentrated")
    tracer = CausalTracer(model, tokenizer)
    return tracer.trace([p.harmful for p in PAIRS], [p.harmless for p in PAIRS], positions="map", layers=[0, 2, 4])


@pytest.mark.parametrize("measure", trace_view.MEASURES)
def test_the_mean_map_is_the_table(traced, measure):
    found = trace_view.grids(traced, None, "mlp_out", measure)
    for one in traced:
        table = table_of(one)
        table = table[table.component == "mlp_out"]
        expected = trace_plots.grid_of(table, one.direction, measure)
        assert np.allclose(found[trace_plots.TITLES[one.direction]], expected, equal_nan=True)


def test_one_pair_is_that_pair_alone(traced):
    model, tokenizer, _ = load_glassbox("concentrated")
    table = CausalTracer(model, tokenizer).trace_safety_circuit(
        PAIRS[3].harmful, PAIRS[3].harmless, positions="map", layers=[0, 2, 4]
    )
    table = table[table.component == "attn_out"]
    for measure in trace_view.MEASURES:
        found = trace_view.grids(traced, 3, "attn_out", measure)
        for direction in DIRECTIONS:
            expected = trace_plots.grid_of(table, direction, measure)
            assert np.allclose(found[trace_plots.TITLES[direction]], expected, atol=1e-3, equal_nan=True)
    with pytest.raises(ValueError, match="no measure 'keywords'"):
        trace_view.measured(traced[0], "keywords")


def test_the_sliders_turn_picture_and_words(traced):
    view = trace_view.TraceView(traced, [p.topic for p in PAIRS])
    pair, site, measure, image, words = view.build().children
    first = bytes(image.value)
    assert first.startswith(b"\x89PNG") and "mean of all" in words.value and "attention" in words.value
    pair.value = f"3: {PAIRS[2].topic}"
    second = bytes(image.value)
    assert second != first and PAIRS[2].topic in words.value
    site.value = "mlp_out"
    third = bytes(image.value)
    assert third != second and "MLP" in words.value
    measure.value = "log_odds_change"
    assert bytes(image.value) != third and "nats" in words.value
    pair.value, site.value, measure.value = trace_view.MEAN, "attn_out", "share_of_gap"
    assert bytes(image.value) == first
    with pytest.raises(ValueError, match="6 traced pairs and 2 names"):
        trace_view.TraceView(traced, ["a", "b"])


def test_tracings_of_other_places_go_together(traced):
    model, tokenizer, _ = load_glassbox("concentrated")
    tracer = CausalTracer(model, tokenizer)
    more = tracer.trace([p.harmful for p in PAIRS], [p.harmless for p in PAIRS], ["resid_pre"], "last", [1])
    both = trace_view.together(traced[0], more[0])
    assert np.array_equal(both.patched, np.concatenate([traced[0].patched, more[0].patched]), equal_nan=True)
    assert trace_view.axes_of(both, "resid_pre") == ([1], [-1])
    assert trace_view.axes_of(both, "attn_out")[0] == [0, 2, 4]
    with pytest.raises(ValueError, match="differ in their pairs"):
        trace_view.together(traced[0], more[1])


def test_without_a_notebook_it_says_where_to_look(traced, capsys):
    trace_view.explore(traced, [p.topic for p in PAIRS])
    assert "one of 6 pairs or their mean" in capsys.readouterr().out


def test_the_pictures_hold_both_directions(traced):
    model, tokenizer, _ = load_glassbox("concentrated")
    table = CausalTracer(model, tokenizer).trace_safety_circuit([PAIRS[0].harmful], [PAIRS[0].harmless])
    fig = trace_plots.lines_by_layer(table)
    assert [ax.get_title("left") for ax in fig.axes] == list(trace_plots.TITLES.values())
    one = table[(table.direction == DIRECTIONS[1]) & (table.component == "mlp_out")]
    assert np.allclose(fig.axes[1].lines[1].get_ydata(), one.share_of_gap)
    fig = trace_plots.lines_of_groups(
        [1, 2], {"a": ([0.1, 0.3], [0.1], np.array([[0.0, 0.1], [0.1, 0.2]]))}, ylabel="x"
    )
    assert fig.axes[0].lines[0].get_ydata().tolist() == [0.1, 0.3] and len(fig.axes[0].lines[1].get_ydata()) == 1
    mended = noise.trace_corrupted(
        model, tokenizer, [PAIRS[0].harmful], [PAIRS[0].harmless], positions="last", windows=(1, 3), draws=1
    )
    fig = trace_plots.mended_panels(mended)
    one = mended[(mended.corruption == "twin") & (mended.window == 3) & (mended.component == "mlp_out")]
    (line,) = [x for x in fig.axes[1].lines if x.get_label() == "twin, 3 layers"]
    assert np.allclose(line.get_ydata(), one.share_of_gap)
    fig = trace_plots.corner({"a": ([0.1], [0.9])}, names={"a": ["here"]}, value="x", line=0.3)
    assert fig.axes[0].collections[0].get_offsets().tolist() == [[0.1, 0.9]]
