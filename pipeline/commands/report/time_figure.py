"""Where the time of all attempts went, as bars."""

from typing import Any

from pipeline.commands.report.figure import PALETTE, PageTable, ReportFigure, bar_axis, text
from pipeline.commands.report.formats import NONE, plural, seconds, share
from pipeline.run.goodput import PURPOSES, USEFUL
from pipeline.run.goodput_report import GoodputReport

_BARS = 12
"""Attempts that have a bar of their own, at most."""
_NAMES = {
    "useful": "useful steps",
    "repeated": "repeated steps",
    "starting": "starting",
    "waiting_for_data": "waiting for data",
    "stopped_by_saves": "stopped by saves",
    "validating": "validating",
    "other": "other",
    "down": "down between attempts",
}
_COLORS = dict(zip(_NAMES, (PALETTE[at] for at in (0, 1, 4, 5, 3, 2, 9, 7)), strict=True))


def goodput_figure(report: GoodputReport) -> ReportFigure | None:
    """Return the figure; None for a run of which no attempt has trained and ended."""
    if not report.attempts:
        return None
    several = len(report.attempts) > 1
    total = {purpose: sum(each.seconds[purpose] for each in report.attempts) for purpose in PURPOSES}
    bars = [("all attempts" if several else "the run", {**total, "down": report.down})]
    if several:
        bars += [(f"attempt {each.number}", {**each.seconds, "down": 0.0}) for each in report.attempts[-_BARS:]]
    bars.reverse()  # plotly draws from below
    traces: list[dict[str, Any]] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": text(name),
            "marker": {"color": _COLORS[purpose]},
            "y": [label for label, _ in bars],
            "x": [_share(spent, purpose) for _, spent in bars],
            "hovertemplate": "%{x:.1f} % of %{y}",
        }
        for purpose, name in _NAMES.items()
        if any(spent[purpose] > 0 for _, spent in bars)
    ]
    layout = {
        "barmode": "stack",
        "showlegend": True,
        "height": 130 + 28 * len(bars),
        "bargap": 0.35,
        "xaxis": {**bar_axis("% of the time"), "range": [0, 100]},
        "yaxis": {"automargin": True},
    }
    whole = sum(total.values()) + report.down
    parts = {**total, "down": report.down}
    rows = [(_NAMES[purpose], seconds(value), share(value / whole)) for purpose, value in parts.items() if value > 0]
    rest = ", ".join(f"{name} {part}" for name, _, part in rows if name != _NAMES[USEFUL])
    summary = (
        f"Of {seconds(whole)} in {plural(len(report.attempts), 'attempt')}, {share(total[USEFUL] / whole)} were useful "
        f"steps{f'; {rest}' if rest else ''}."
    )
    table = PageTable(("purpose", "time", "share"), rows, caption="Where the time went")
    return ReportFigure("Where the time went", summary, traces, layout, table)


def goodput_share(report: GoodputReport) -> str:
    """Return the useful share of the time from the first start to the last end."""
    whole = sum(each.wall for each in report.attempts) + report.down
    return share(sum(each.seconds[USEFUL] for each in report.attempts) / whole) if whole else NONE


def _share(spent: dict[str, float], purpose: str) -> float:
    whole = sum(spent.values())
    return round(100 * spent[purpose] / whole, 2) if whole else 0.0
