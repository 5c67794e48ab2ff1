"""A figure says in words and numbers what it draws, in colours that can be told from the page."""

import numpy as np
import pytest

from pipeline.commands.report.figure import (
    PALETTE,
    LineFigureStyle,
    LineSeries,
    StepMark,
    bucket_means,
    line_figure,
    text,
)


def series(name: str, *values: float) -> LineSeries:
    return LineSeries(name, np.arange(len(values)) * 10, np.array(values))


def test_curves_are_told_in_words_and_numbers() -> None:
    figure = line_figure("loss", [series("train", 4, 1, 2), series("val", 3, np.nan, np.inf)], LineFigureStyle("nats"))
    assert "train: last 2 nats at step 20, lowest 1 at step 10, highest 4 at step 0." in figure.summary
    assert "val: last 3 nats at step 0" in figure.summary
    assert "2 not finite." in figure.summary
    assert figure.table.rows[0] == ("train", "3", "2", "1", "10", "4", "0")
    assert figure.layout["showlegend"]
    assert figure.traces[1]["y"] == [3.0, None, None]


def test_a_single_value_is_a_dot_and_no_value_is_said() -> None:
    figure = line_figure("loss", [series("one", 1), series("none", np.nan)])
    assert figure.traces[0]["mode"] == "markers"
    assert "none: no finite value." in figure.summary
    assert figure.table.rows[1] == ("none", "1", "-", "-", "-", "-", "-")
    assert not figure.logarithmic


def test_a_logarithmic_scale_is_offered_for_positive_values_only() -> None:
    assert line_figure("loss", [series("one", 1, 0.1)]).logarithmic
    assert not line_figure("loss", [series("one", 1, 0.0)]).logarithmic


def test_each_restart_is_a_line_and_few_have_a_label() -> None:
    few = line_figure("loss", [series("one", 1)], LineFigureStyle(marks=[StepMark(5, "attempt 2")]))
    assert few.layout["shapes"][0]["x0"] == 5
    assert few.layout["annotations"][0]["text"] == "attempt 2"
    many = line_figure("loss", [series("one", 1)], LineFigureStyle(marks=[StepMark(at, "x") for at in range(100)]))
    assert len(many.layout["shapes"]) == 100
    assert many.layout["annotations"] == []


def test_plotly_gets_no_tags_of_a_run() -> None:
    assert text("<a href='x'>&") == "&lt;a href='x'&gt;&amp;"
    assert line_figure("x", [series("<b>", 1, 2)]).traces[0]["name"] == "&lt;b&gt;"


def test_plotly_accepts_what_it_is_given() -> None:
    graph_objects = pytest.importorskip("plotly.graph_objects")
    figure = line_figure("loss", [series("one", 1, 2)], LineFigureStyle("x", marks=[StepMark(1, "attempt 2")]))
    drawn = graph_objects.Figure(figure.data)
    assert len(drawn.data) == 1
    assert drawn.layout.height == 260


def luminance(color: str) -> float:
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", ["#ffffff", "#14171a"])
@pytest.mark.parametrize("color", PALETTE)
def test_each_colour_stands_out_from_a_light_and_a_dark_page(color: str, page: str) -> None:
    light, dark = sorted((luminance(color), luminance(page)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_means_of_neighbours_leave_out_what_is_missing() -> None:
    values = np.array([1.0, 3.0, np.nan, 5.0, np.nan, np.nan])
    assert bucket_means(values, 3).tolist()[:2] == [2.0, 5.0]
    assert np.isnan(bucket_means(values, 3)[2])
    assert len(bucket_means(np.array([]), 3)) == 0
