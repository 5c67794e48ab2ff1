"""The windows of a run's telemetry as columns, one row for each window that no later attempt repeated."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.commands.report.formats import finite
from pipeline.run.telemetry_record import AttemptTelemetry

_NODES = 64
"""Hosts that get a curve of their own, at most."""

Column = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TelemetryWindows:
    """All windows of a run.

    Attributes:
        headers: The header of each attempt, by its number.
        columns: By key, (n,) numbers with NaN where a window has none; `step` is one of them.
        hosts: By host, numbered where it has several nodes, the same for what windows hold of each node.
        slowest: By `host, rank`, in how many windows it was the slowest.
    """

    headers: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    columns: dict[str, Column] = field(default_factory=dict)
    hosts: dict[str, dict[str, Column]] = field(default_factory=dict)
    slowest: dict[str, int] = field(default_factory=dict)

    @property
    def steps(self) -> Column:
        """(n,) The optimizer step at the end of each window."""
        return self.columns.get("step", np.empty(0))


def telemetry_windows(attempts: Sequence[AttemptTelemetry], first_steps: Mapping[int, int]) -> TelemetryWindows:
    """Return the windows of all attempts, each step once.

    Args:
        attempts: What each has recorded.
        first_steps: From which step each attempt trained: it hides what earlier ones did after that.
    """
    kept: list[Mapping[str, Any]] = []
    for each in attempts:
        last = min((step for number, step in first_steps.items() if number > each.attempt), default=np.inf)
        kept += [window for window in each.windows if window["step"] <= last]
    headers = {each.attempt: each.header for each in attempts if each.header}
    return TelemetryWindows(headers, _columns(kept), _hosts(kept), _slowest(kept))


def _columns(windows: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    names = dict.fromkeys(name for window in windows for name, value in window.items() if finite(value) is not None)
    return {name: _column(windows, name) for name in names}


def _column(windows: Sequence[Mapping[str, Any]], name: str) -> Column:
    values = (finite(window.get(name)) for window in windows)
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _hosts(windows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Column]]:
    """Return the columns of each node, of the first ones where there are very many."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for at, window in enumerate(windows):
        nodes, seen = window.get("nodes"), Counter[str]()
        for node in nodes if isinstance(nodes, list) else []:
            if not isinstance(node, dict) or not isinstance(node.get("host"), str):
                continue
            seen[node["host"]] += 1
            number = seen[node["host"]]
            host = node["host"] if number == 1 else f"{node['host']} ({number})"
            if host in rows or len(rows) < _NODES:
                row = rows.setdefault(host, [{}] * len(windows))
                row[at] = node
    return {host: _columns(row) for host, row in sorted(rows.items())}


def _slowest(windows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for window in windows:
        rank = window.get("slowest_rank")
        if isinstance(rank, int):
            name = f"rank {rank} on {window.get('slowest_host', 'an unknown host')}"
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda each: -each[1]))
