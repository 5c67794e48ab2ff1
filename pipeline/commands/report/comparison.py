"""Several runs beside each other: how each stands, in which flags they differ, and their curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoint.run_summary import RunSummary, differing_keys
from pipeline.commands.report.curve_figures import compared_figures
from pipeline.commands.report.figure import PageTable, ReportFigure
from pipeline.commands.report.formats import NONE, count, number
from pipeline.commands.report.run_facts import RunFacts
from pipeline.commands.report.time_figure import goodput_share
from pipeline.run.flat_config import flatten

_LONGEST = 120
"""Characters of a value that are shown."""
_IN_LEGEND, _IN_LEGEND_LONGEST = 2, 24
"""Flags that a legend shows at most, and characters of each."""


@dataclass(frozen=True)
class RunComparison:
    """Several runs beside each other.

    Attributes:
        results: A row for each run: how it stands, and what was measured.
        config: A row for each flag in which they differ; where there are more runs than such flags, one for each run.
        curves: Of the names under which at least two of them have logged.
    """

    results: PageTable
    config: PageTable | None
    curves: Sequence[ReportFigure]


def compared(runs: Sequence[tuple[RunFacts, RunSummary | None]]) -> RunComparison | None:
    """Return several runs beside each other; None for a single one.

    Args:
        runs: What the directory of each holds, and how it stands.
    """
    if len(runs) < 2:
        return None
    labels = distinct_labels([facts.run.label for facts, _ in runs])
    configs = [flatten(facts.config) if facts.config else {} for facts, _ in runs]
    differing = differing_keys(configs)
    rows = [(key, *(_value(config, key) for config in configs)) for key in differing]
    header: tuple[str, ...] = ("flag", *labels)
    if len(runs) > len(rows):
        header, *rows = zip(("run", *labels), *rows, strict=True)
    every = range(len(header))
    config = PageTable(header, rows, every, "Flags in which the runs differ") if len(header) > 1 and rows else None
    legends = [_legend(label, config, differing) for label, config in zip(labels, configs, strict=True)]
    monitors = [each.monitor.name for facts, _ in runs for each in facts.checkpoints if each.monitor is not None]
    curves = compared_figures(
        [(legend, facts.scalars.curves) for legend, (facts, _) in zip(legends, runs, strict=True)],
        max(monitors, key=monitors.count) if monitors else None,
    )
    return RunComparison(_results(labels, runs), config, curves)


def _legend(label: str, config: Mapping[str, Any], differing: Sequence[str]) -> str:
    """Return the name of a run with the values by which it is known, where these are few."""
    if not 0 < len(differing) <= _IN_LEGEND:
        return label
    values = (f"{key.rpartition('.')[2]}={_value(config, key)[:_IN_LEGEND_LONGEST]}" for key in differing)
    return f"{label}: {', '.join(values)}"


def distinct_labels(labels: Sequence[str]) -> list[str]:
    """Return the names of runs without the folders that all of them have in common."""
    parts = [label.rstrip("/").split("/") for label in labels]
    common = 0
    while all(len(each) > common + 1 for each in parts) and len({each[common] for each in parts}) == 1:
        common += 1
    return ["/".join(each[common:]) for each in parts]


def _results(labels: Sequence[str], runs: Sequence[tuple[RunFacts, RunSummary | None]]) -> PageTable:
    measured = [_measured(*run) for run in runs]
    names = list(dict.fromkeys(name for each in measured for name in each))
    header = ("run", "state", "steps", "processes", "attempts", "goodput", *names)
    rows = [
        (
            *(label, str(summary.state) if summary else NONE, count(summary.step) if summary else NONE),
            *(count(summary.world_size) if summary else NONE, count(len(facts.attempts))),
            *(goodput_share(facts.goodput), *(number(values.get(name)) for name in names)),
        )
        for label, (facts, summary), values in zip(labels, runs, measured, strict=True)
    ]
    return PageTable(header, rows, (0, 1), "The runs and what was measured")


def _measured(facts: RunFacts, summary: RunSummary | None) -> dict[str, Any]:
    """Return the monitored value of the best and of the newest checkpoint, and what the evaluation measured."""
    best = None if summary is None else summary.best
    found: dict[str, Any] = {} if best is None else {f"{best.name} (best)": best.value}
    newest = next((each.monitor for each in facts.checkpoints if each.monitor is not None), None)
    if newest is not None:
        found[f"{newest.name} (last)"] = newest.value
    metrics = (facts.receipt or {}).get("metrics")
    return {**found, **{str(name): value for name, value in metrics.items()}} if isinstance(metrics, dict) else found


def _value(config: Mapping[str, Any], key: str) -> str:
    if key not in config:
        return NONE
    shown = str(config[key])
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}…"
