"""Where the time of all attempts went, as bars, in words and in numbers."""

from pipeline.commands.report.time_figure import goodput_figure, goodput_share
from pipeline.run.goodput import PURPOSES
from pipeline.run.goodput_report import AttemptGoodput, GoodputReport


def spent(number: int, ended: float, **seconds: float) -> AttemptGoodput:
    return AttemptGoodput(number, {**dict.fromkeys(PURPOSES, 0.0), **seconds}, ended, False, 1, 0.1, None)


def test_one_attempt_is_one_bar() -> None:
    report = GoodputReport([spent(1, 100, useful=75, starting=25)])
    figure = goodput_figure(report)
    assert figure is not None
    assert [(trace["name"], trace["y"], trace["x"]) for trace in figure.traces] == [
        ("useful steps", ["the run"], [75.0]),
        ("starting", ["the run"], [25.0]),
    ]
    assert "Of 1 min 40 s in 1 attempt, 75.0 % were useful steps; starting 25.0 %." in figure.summary
    assert ("starting", "25 s", "25.0 %") in figure.table.rows
    assert goodput_share(report) == "75.0 %"


def test_several_attempts_have_bars_of_their_own_and_the_time_between_them_counts() -> None:
    report = GoodputReport([spent(1, 100, useful=50), spent(2, 200, useful=25, repeated=25)])
    figure = goodput_figure(report)
    assert figure is not None
    assert figure.traces[0]["y"] == ["attempt 2", "attempt 1", "all attempts"], "plotly draws from below"
    down = next(trace for trace in figure.traces if trace["name"] == "down between attempts")
    assert down["x"] == [0.0, 0.0, 33.33]
    assert goodput_share(report) == "50.0 %"


def test_a_run_that_never_trained_has_no_figure() -> None:
    assert goodput_figure(GoodputReport([])) is None
    assert goodput_share(GoodputReport([])) == "-"
