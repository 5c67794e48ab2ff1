"""A figure: what plotly draws, and the same in words and as a table, for who cannot see it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.commands.report.formats import count, number
from pipeline.commands.report.thinning import CurveDigest, Numbers, thinned

PALETTE = (
    *("#3b7dd8", "#c8641c", "#2f9160", "#b552a0", "#8a72d8", "#8f7a12", "#20909e", "#d0525a", "#a0683c", "#7b828c"),
)
"""Colours with a contrast of at least 3 to 1 on the page, be it light or dark."""
DASHES = ("solid", "dash", "dot", "dashdot")
POINTS = 2000
"""Points of a curve that are drawn, about."""

_HEIGHT = 260
_LABELLED = 8
"""Restarts whose numbers are written beside their lines, at most."""


@dataclass(frozen=True)
class PageTable:
    """A table of the page.

    Attributes:
        header: The names of the columns.
        rows: The cells, as text.
        left: Which columns are aligned to the left; the others hold numbers.
        caption: What it shows, for who cannot see the page.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: Sequence[int] = (0,)
    caption: str = ""


@dataclass(frozen=True)
class ReportFigure:
    """One figure of the page.

    Attributes:
        title: A few words.
        summary: What it shows, in sentences.
        traces: Of plotly.
        layout: Of plotly, beside what all figures have in common.
        table: The same in numbers.
        logarithmic: Whether a logarithmic scale is offered.
    """

    title: str
    summary: str
    traces: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    table: PageTable
    logarithmic: bool = False

    @property
    def data(self) -> dict[str, Any]:
        """What plotly draws, for JSON."""
        return {"data": list(self.traces), "layout": _common() | self.layout}


@dataclass(frozen=True)
class LineSeries:
    """A curve of a figure: (n,) steps and values, some of which may be NaN."""

    name: str
    steps: npt.NDArray[Any]
    values: Numbers
    color: str = PALETTE[0]
    dash: str = "solid"


@dataclass(frozen=True)
class StepMark:
    """A step that is marked in a figure, such as a restart."""

    step: float
    label: str


@dataclass(frozen=True)
class LineFigureStyle:
    """How curves are drawn.

    Attributes:
        unit: Of the values.
        marks: Steps that are marked.
        most: Points of a curve, about.
        layout: Of plotly, what is particular.
        extra: Of each trace.
    """

    unit: str = ""
    marks: Sequence[StepMark] = ()
    most: int = POINTS
    layout: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def text(value: str) -> str:
    """Return a text of a run as plotly is to show it: plotly takes tags in it for its own."""
    return escape(value, quote=False)


def line_figure(title: str, series: Sequence[LineSeries], style: LineFigureStyle | None = None) -> ReportFigure:
    """Return a figure of curves over steps.

    Args:
        title: A few words.
        series: The curves.
        style: How they are drawn.
    """
    style = style or LineFigureStyle()
    digests = [CurveDigest.of(each.steps, each.values) for each in series]
    traces = []
    for each in series:
        steps, values = thinned(each.steps, each.values, style.most)
        single = len(each.values) == 1
        traces.append(
            {
                "type": "scatter",
                "mode": "markers" if single else "lines",
                "name": text(each.name),
                "x": steps,
                "y": values,
                "line": {"color": each.color, "width": 1.6, "dash": each.dash},
                "marker": {"color": each.color, "size": 7},
                **style.extra,
            }
        )
    positive = [each.least is not None and each.least[0] > 0 for each in digests]
    layout = {
        "showlegend": len(series) > 1,
        "xaxis": _axis("step"),
        "yaxis": _axis(style.unit) | _range(digests),
        **_marked(style.marks),
        **style.layout,
    }
    rows = [_row(each.name, digest) for each, digest in zip(series, digests, strict=True)]
    header = ("curve", "points", "last", "lowest", "at step", "highest", "at step")
    summary = " ".join(_sentence(each.name, digest, style.unit) for each, digest in zip(series, digests, strict=True))
    table = PageTable(header, rows, caption=f"{title} in numbers")
    return ReportFigure(title, summary, traces, layout, table, all(positive))


def _row(name: str, digest: CurveDigest) -> tuple[str, ...]:
    values = [digest.last or (None, None), digest.least or (None, None), digest.greatest or (None, None)]
    (last, _), (least, least_step), (greatest, greatest_step) = values
    numbers = last, least, least_step, greatest, greatest_step
    return (name, count(digest.points), *map(number, numbers))


def _sentence(name: str, digest: CurveDigest, unit: str) -> str:
    if digest.last is None or digest.least is None or digest.greatest is None:
        return f"{name}: no finite value."
    unit = f" {unit}" if unit else ""
    gaps = f", {digest.not_finite:,} not finite" if digest.not_finite else ""
    return (
        f"{name}: last {number(digest.last[0])}{unit} at step {number(digest.last[1])}, lowest "
        f"{number(digest.least[0])} at step {number(digest.least[1])}, highest {number(digest.greatest[0])} at step "
        f"{number(digest.greatest[1])}{gaps}."
    )


def _marked(marks: Sequence[StepMark]) -> dict[str, Any]:
    shapes = [
        {
            "type": "line",
            "layer": "below",
            "xref": "x",
            "yref": "paper",
            "x0": mark.step,
            "x1": mark.step,
            "y0": 0,
            "y1": 1,
            "line": {"color": PALETTE[-1], "width": 1.5, "dash": "dash"},
        }
        for mark in marks
    ]
    labels = [
        {
            "xref": "x",
            "yref": "paper",
            "x": mark.step,
            "y": 1,
            "xanchor": "left",
            "yanchor": "top",
            "text": text(mark.label),
            "showarrow": False,
            "font": {"size": 10},
        }
        for mark in (marks if len(marks) <= _LABELLED else ())
    ]
    return {"shapes": shapes, "annotations": labels}


def _range(digests: Sequence[CurveDigest]) -> dict[str, Any]:
    """Return the range of an axis on which all values are the same: plotly would show one to either side."""
    least = {each.least[0] for each in digests if each.least is not None}
    greatest = {each.greatest[0] for each in digests if each.greatest is not None}
    if len(least) != 1 or least != greatest or 0 in least:
        return {}
    (value,) = least
    return {"range": sorted((0.5 * value, 1.5 * value))}


def _axis(title: str) -> dict[str, Any]:
    return {"title": {"text": title, "standoff": 8}, "automargin": True, "zeroline": False}


def bar_axis(title: str) -> dict[str, Any]:
    """Return an axis of plotly with a title."""
    return _axis(title)


def _common() -> dict[str, Any]:
    clear = "rgba(0,0,0,0)"
    return {
        "height": _HEIGHT,
        "margin": {"l": 48, "r": 12, "t": 8, "b": 36},
        "paper_bgcolor": clear,
        "plot_bgcolor": clear,
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "hovermode": "closest",
        "hoverlabel": {"namelength": -1},
        "legend": {"orientation": "h", "traceorder": "normal", "x": 0, "y": 1.02, "yanchor": "bottom"},
    }


def bucket_means(values: npt.NDArray[np.float64], most: int) -> npt.NDArray[np.float64]:
    """Return the means of at most `most` runs of neighbours, without those that are NaN."""
    parts = np.array_split(values, min(most, len(values))) if len(values) else []
    return np.array([np.nan if np.isnan(part).all() else np.nanmean(part) for part in parts], np.float64)
