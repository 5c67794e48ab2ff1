"""The histogram of a column of scores, in words as well."""

from pipeline.commands.report.score_figure import score_figure
from pipeline.commands.report.score_table import QUANTILES, ScoreDistribution


def test_a_histogram_tells_the_same_in_words_and_numbers() -> None:
    quantiles = dict(zip(QUANTILES, (0.0, 0.1, 1.0, 2.0, 3.0, 9.0, 10.0), strict=True))
    figure = score_figure(ScoreDistribution("<loss>", 1200, 3, 2.5, quantiles, [0.0, 5.0, 10.0], [900, 300]))
    (trace,) = figure.traces
    assert (trace["x"], trace["y"], trace["width"]) == ([2.5, 7.5], [900, 300], [5.0, 5.0])
    assert trace["name"] == "&lt;loss&gt;"
    assert figure.layout["xaxis"]["title"]["text"] == "&lt;loss&gt;"
    assert "1,200 samples: median 2, mean 2.5, half of them from 1 to 3, all from 0 to 10." in figure.summary
    assert "3 samples without a finite number" in figure.summary
    assert ("99 %", "9") in figure.table.rows
