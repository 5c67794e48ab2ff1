"""Throughput, where the time of the steps went, memory and nodes, over the steps of a run."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.commands.report.figure import (
    DASHES,
    PALETTE,
    LineFigureStyle,
    LineSeries,
    PageTable,
    ReportFigure,
    StepMark,
    bucket_means,
    line_figure,
    text,
)
from pipeline.commands.report.formats import number, plural, share
from pipeline.commands.report.telemetry_windows import TelemetryWindows

_SHARES = {
    "share_forward_backward": "forward and backward",
    "share_optimizer": "optimizer",
    "share_all_reduce": "all-reduce, not hidden",
    "share_data": "waiting for data",
    "share_saves": "saves",
    "share_validation": "validation",
    "share_other": "other",
}
_SINGLE = {
    "samples_per_second": ("Throughput", "samples per second", 1.0),
    "steps_per_second": ("Throughput", "steps per second", 1.0),
    "mfu": ("Model FLOPs utilization", "%", 100.0),
    "flops_per_second": ("Arithmetic", "TFLOP/s", 1e-12),
    "upload_bytes_per_second": ("Upload of checkpoints", "MB/s", 1e-6),
}
_TIMES = {"step_p50": "median", "step_p95": "95th percentile", "step_max": "slowest"}
_MEMORY = {"host_memory": "host", "device_memory": "device"}
_AREAS = 400


def telemetry_figures(telemetry: TelemetryWindows, marks: Sequence[StepMark]) -> list[ReportFigure]:
    """Return the figures that the windows of a run have numbers for.

    Args:
        telemetry: Of the run.
        marks: Where it was restarted.
    """
    if not len(telemetry.steps):
        return []
    figures = [
        _single(telemetry, key, marks)
        for key in _SINGLE
        if key in telemetry.columns and (key != "steps_per_second" or "samples_per_second" not in telemetry.columns)
    ]
    figures[1:1] = _shares(telemetry, marks)
    figures += _several(telemetry, "Time of a step", _TIMES, ("ms", 1000.0), marks)
    figures += _several(telemetry, "Greatest memory of a process", _MEMORY, ("GB", 1e-9), marks)
    return [*figures, *_nodes(telemetry, marks)]


def _single(telemetry: TelemetryWindows, key: str, marks: Sequence[StepMark]) -> ReportFigure:
    title, unit, factor = _SINGLE[key]
    series = LineSeries(title.lower(), telemetry.steps, factor * telemetry.columns[key])
    return line_figure(title, [series], LineFigureStyle(unit, marks))


def _several(
    telemetry: TelemetryWindows,
    title: str,
    keys: dict[str, str],
    unit: tuple[str, float],
    marks: Sequence[StepMark],
) -> list[ReportFigure]:
    series = [
        LineSeries(name, telemetry.steps, unit[1] * telemetry.columns[key], PALETTE[place], DASHES[place])
        for place, (key, name) in enumerate(keys.items())
        if key in telemetry.columns
    ]
    return [line_figure(title, series, LineFigureStyle(unit[0], marks))] if series else []


def _nodes(telemetry: TelemetryWindows, marks: Sequence[StepMark]) -> list[ReportFigure]:
    series = [
        LineSeries(host, telemetry.steps, columns["samples_per_second"], PALETTE[at % len(PALETTE)], DASHES[at % 4])
        for at, (host, columns) in enumerate(telemetry.hosts.items())
        if "samples_per_second" in columns
    ]
    style = LineFigureStyle("samples per second", marks, most=400)
    return [line_figure("Throughput of each node", series, style)] if len(series) > 1 else []


def _shares(telemetry: TelemetryWindows, marks: Sequence[StepMark]) -> list[ReportFigure]:
    """Return a stacked figure of where the time of the steps went."""
    known = {key: name for key, name in _SHARES.items() if key in telemetry.columns}
    if not known:
        return []
    steps = bucket_means(telemetry.steps, _AREAS)
    traces: list[dict[str, Any]] = []
    rows = []
    for place, (key, name) in enumerate(known.items()):
        values = 100 * np.nan_to_num(bucket_means(telemetry.columns[key], _AREAS))
        mean = float(np.nanmean(telemetry.columns[key]))
        rows.append((name, share(mean), share(float(np.nanmax(telemetry.columns[key])))))
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "stackgroup": "time",
                "fillcolor": PALETTE[place],
                "name": text(name),
                "x": steps.tolist(),
                "y": values.round(2).tolist(),
                "line": {"width": 0.5, "color": PALETTE[place]},
                "hovertemplate": "%{y:.1f} % at step %{x:.0f}",
            }
        )
    frame = line_figure("", [], LineFigureStyle("% of the time", marks))
    layout = {**frame.layout, "showlegend": True, "height": 340}
    layout["yaxis"] = {**layout["yaxis"], "range": [0, 100]}
    summary = "Mean over the run: " + ", ".join(f"{name} {mean}" for name, mean, _ in rows) + "."
    table = PageTable(("part of a window", "mean", "highest"), rows, caption="Where the time of the steps went")
    return [ReportFigure("Where the time of the steps went", summary, traces, layout, table)]


def slowest_sentence(telemetry: TelemetryWindows) -> str:
    """Return which ranks were the slowest most often, empty where that is not known."""
    if not telemetry.slowest:
        return ""
    windows = sum(telemetry.slowest.values())
    named = [f"{name} in {number(times)}" for name, times in list(telemetry.slowest.items())[:3]]
    return f"Slowest most often, of {plural(windows, 'window')}: {', '.join(named)}."
