"""What a run has logged as figures: curves of the same quantity in training and validation share one."""

import re
from collections.abc import Iterable, Mapping, Sequence

from pipeline.commands.report.figure import (
    DASHES,
    PALETTE,
    LineFigureStyle,
    LineSeries,
    ReportFigure,
    StepMark,
    line_figure,
)
from pipeline.run.event_files import LoggedCurve

TELEMETRY = "telemetry/"
"""Begins the names under which telemetry goes to every logger."""
FIGURES = 200
"""Figures of a run at most."""

_STAGE = re.compile(r"(train|training|val|valid|validation|test)([_/ .-])(.+)", re.IGNORECASE)
_SUFFIX = re.compile(r"(.+)[_/](step|epoch)", re.IGNORECASE)
_POINTS = 300_000
"""Points of all curves together, about."""
_FEWEST, _MOST = 200, 2000
_UNFOLDED = 6
_FIRST = ("loss", "acc", "error", "score")
_LAST = re.compile(rf"epoch|hp_metric|checkpoint/.*|{TELEMETRY}.*")
"""What is asked for first is shown first, and what this program and its loggers add comes last."""


def curve_figures(
    curves: Mapping[str, LoggedCurve], marks: Sequence[StepMark], monitor: str | None = None
) -> list[ReportFigure]:
    """Return the figures of a run, the most telling first.

    Args:
        curves: By name.
        marks: Where it was restarted.
        monitor: The name of the value that says which checkpoint is best.
    """
    most = points_of_each(len(curves))
    figures = []
    for group, names in _grouped(curves, monitor):
        series = [
            LineSeries(name, curves[name].steps, curves[name].values, PALETTE[place % len(PALETTE)], _dash(place))
            for place, name in enumerate(names)
        ]
        title = names[0] if len(names) == 1 else group
        figures.append(line_figure(title, series, LineFigureStyle(marks=marks, most=most)))
    return figures


def prominent(figures: Sequence[ReportFigure]) -> int:
    """Return how many of the first figures of a run are shown unfolded: those that a user has logged, if any."""
    own = sum(not _LAST.fullmatch(each.title) for each in figures)
    return min(_UNFOLDED, own or len(figures))


def compared_figures(
    runs: Sequence[tuple[str, Mapping[str, LoggedCurve]]], monitor: str | None = None
) -> list[ReportFigure]:
    """Return a figure for each name under which at least two runs have logged, with a curve of each run.

    Args:
        runs: The name and the curves of each.
        monitor: The name of the value that says which checkpoint is best, whose figure is the first one.
    """
    names = {name: None for _, curves in runs for name in curves}
    shared = [name for name in names if sum(name in curves for _, curves in runs) > 1]
    most = points_of_each(len(shared) * len(runs))
    return [
        line_figure(
            name,
            [
                LineSeries(label, curves[name].steps, curves[name].values, PALETTE[at % len(PALETTE)], _dash(at))
                for at, (label, curves) in enumerate(runs)
                if name in curves
            ],
            LineFigureStyle(most=most),
        )
        for name in sorted(_sorted(shared, monitor), key=lambda name: name != monitor)
    ]


def points_of_each(curves: int) -> int:
    """Return how many points are drawn of each of so many curves."""
    return max(_FEWEST, min(_MOST, _POINTS // max(curves, 1)))


def _dash(place: int) -> str:
    return DASHES[place % len(DASHES)]


def _grouped(curves: Iterable[str], monitor: str | None) -> list[tuple[str, list[str]]]:
    groups: dict[str, list[str]] = {}
    for name in _sorted(curves, monitor):
        groups.setdefault(_quantity(name), []).append(name)
    # Training before validation, whatever made the group come first.
    return [(group, sorted(names)) for group, names in groups.items()]


def _quantity(name: str) -> str:
    """Return what a curve shows, without the stage and without how often it was logged."""
    folder, slash, tag = name.rpartition("/")
    stage = _STAGE.fullmatch(name) or _STAGE.fullmatch(tag)
    if stage:
        name = stage[3] if stage.string == name else f"{folder}{slash}{stage[3]}"
    suffix = _SUFFIX.fullmatch(name)
    return suffix[1] if suffix else name


def _sorted(names: Iterable[str], monitor: str | None) -> list[str]:
    wanted = None if monitor is None else _quantity(monitor)

    def key(name: str) -> tuple[bool, bool, int, str]:
        place = next((at for at, word in enumerate(_FIRST) if word in name.lower()), len(_FIRST))
        return _quantity(name) != wanted, bool(_LAST.fullmatch(name)), place, name

    return sorted(names, key=key)
