"""What is known of a run, by the names that filters and columns give it, and how each value is written."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from pipeline.checkpoint.run_summary import RunSummary

MISSING: Any = object()
"""The value of what a run does not have."""

FIELDS: dict[str, str] = {
    "name": "its path below the URL",
    "state": "running, finished, preempted, interrupted, failed, lost or unknown",
    "status": "the exit status of the newest attempt",
    "reason": "why the newest attempt ended",
    "step": "optimizer steps done",
    "epoch": "the epoch that training resumes in",
    "metric": "the monitored value of the best checkpoint",
    "goodput": "the useful share of the time of all attempts",
    "size": "bytes of all files",
    "checkpoints": "how many are committed",
    "attempts": "how many starts",
    "world_size": "processes of the newest attempt",
    "started": "when the first attempt started",
    "updated": "when anything was written last",
}
"""What every run has, beside its configuration and the metrics of its evaluation."""

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def value(run: RunSummary, key: str, base: str) -> Any:
    """Return what a run has under a name: one of FIELDS, a key of its configuration, or a metric of its evaluation.

    Args:
        run: The run.
        key: The name.
        base: The label of the URL that was listed.

    Returns:
        The value, MISSING where it has none.
    """
    if key in FIELDS:
        known = {
            "name": name(run, base),
            "state": str(run.state),
            "size": run.bytes,
            "metric": None if run.best is None else run.best.value,
        }
        found = known[key] if key in known else getattr(run, key)
        return MISSING if found is None else found
    if key in run.config:
        return run.config[key]
    return (run.metrics or {}).get(key, MISSING)


def name(run: RunSummary, base: str) -> str:
    """Return the path of a run below the URL that was listed; its whole label where that is the run itself."""
    return run.label.removeprefix(f"{base}/")


def known_names(runs: Iterable[RunSummary]) -> list[str]:
    """Return every name under which any of the runs has a value."""
    found = dict.fromkeys(FIELDS)
    for run in runs:
        found |= dict.fromkeys([*run.config, *(run.metrics or ())])
    return list(found)


def text(found: Any) -> str:
    """Return a value as it is shown, and as filters compare it: as YAML has it, on one line and printable."""
    if found is MISSING:
        return ""
    if isinstance(found, datetime):
        return found.astimezone().strftime("%Y-%m-%d %H:%M")
    shown = found if isinstance(found, str) else json.dumps(found, default=str, ensure_ascii=False)
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in " ".join(shown.split()))


def size(count: int) -> str:
    """Return a number of bytes as `999 B`, `1.5 kB` or `12.3 GB`, by powers of 1,000."""
    number, unit = float(count), 0
    while number >= 999.95 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.1f} {_UNITS[unit]}" if unit else f"{count} B"


def bytes_of(written: str) -> float | None:
    """Return the bytes of a size such as `1.5GB` or `200 MB`, or None where a text is none."""
    for power, unit in reversed(list(enumerate(_UNITS))):
        if written.lower().endswith(unit.lower()):
            number = _number(written[: -len(unit)])
            return None if number is None else number * 1000**power
    return _number(written)


def ago(then: datetime) -> str:
    """Return how long ago a time is, as `5 s ago`, `12 min ago`, `7 h ago` or `3 d ago`."""
    seconds = max(0.0, (datetime.now(UTC) - then).total_seconds())
    for unit, length, until in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 48 * 3600)):
        if seconds < until:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds / 86400:.0f} d ago"


def rfc3339(time: datetime | None) -> str | None:
    """Return a time in UTC, as the JSON files of a run have it."""
    return None if time is None else time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _number(written: str) -> float | None:
    try:
        return float(written)
    except ValueError:
        return None
