"""The distribution of each column of scores as a histogram."""

from pipeline.commands.report.figure import PALETTE, PageTable, ReportFigure, bar_axis, text
from pipeline.commands.report.formats import number, plural
from pipeline.commands.report.score_table import ScoreDistribution


def score_figure(scores: ScoreDistribution) -> ReportFigure:
    """Return the histogram of one column."""
    centers = [(low + high) / 2 for low, high in zip(scores.edges, scores.edges[1:], strict=False)]
    trace = {
        "type": "bar",
        "name": text(scores.name),
        "x": centers,
        "y": scores.counts,
        "width": [high - low for low, high in zip(scores.edges, scores.edges[1:], strict=False)],
        "marker": {"color": PALETTE[0]},
        "hovertemplate": "%{y} samples about %{x}",
    }
    layout = {
        "showlegend": False,
        "bargap": 0.05,
        "xaxis": bar_axis(text(scores.name)),
        "yaxis": bar_axis("samples"),
    }
    values = scores.quantiles
    others = f" {plural(scores.others, 'sample')} without a finite number." if scores.others else ""
    summary = (
        f"{plural(scores.samples, 'sample')}: median {number(values['median'])}, mean {number(scores.mean)}, half of "
        f"them from {number(values['25 %'])} to {number(values['75 %'])}, all from {number(values['min'])} to "
        f"{number(values['max'])}.{others}"
    )
    rows = [("mean", number(scores.mean)), *((name, number(value)) for name, value in values.items())]
    table = PageTable(("quantile", scores.name), rows, caption=f"Distribution of {scores.name}")
    return ReportFigure(f"Distribution of {scores.name}", summary, [trace], layout, table)
