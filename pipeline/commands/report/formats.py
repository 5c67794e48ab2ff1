"""Numbers, sizes and times as the report prints them; what is not one becomes a dash."""

import math
from datetime import UTC, datetime
from typing import Any

from pipeline.run.checkpoint_interval import duration

NONE = "-"
"""Stands for what is not known."""

_LONGEST = 1e10
"""More seconds than any run has."""


def finite(value: Any) -> float | None:
    """Return a number that a file may hold in any form; None for anything else, and for NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def number(value: Any) -> str:
    """Return `1,257`, `0.0381402` or `3.2e-07`."""
    found = finite(value)
    if found is None:
        return NONE
    if found == int(found) and abs(found) < 1e15:
        return f"{int(found):,}"
    return f"{found:.6g}"


def count(value: Any) -> str:
    """Return a whole number, `1,257`."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else NONE


def size(value: Any) -> str:
    """Return a number of bytes as `532 B`, `1.4 MB` or `20 GB`."""
    found = finite(value)
    if found is None:
        return NONE
    for unit in ("B", "kB", "MB", "GB"):
        if abs(found) < 999.5:
            return f"{found:.3g} {unit}"
        found /= 1000
    return f"{found:.3g} TB"


def share(value: Any) -> str:
    """Return a share of one as `87.3 %`."""
    found = finite(value)
    return NONE if found is None else f"{100 * found:.1f} %"


def seconds(value: Any) -> str:
    """Return a duration."""
    found = finite(value)
    return NONE if found is None or not 0 <= found < _LONGEST else duration(found)


def moment(value: Any) -> str:
    """Return an RFC 3339 time to the second, in UTC."""
    found = parsed_time(value)
    return NONE if found is None else found.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def parsed_time(value: Any) -> datetime | None:
    """Return an RFC 3339 time; None for anything else."""
    try:
        found = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo is not None else None


def plural(amount: int, word: str) -> str:
    """Return `1 checkpoint` or `1,257 checkpoints`."""
    return f"{amount:,} {word}{'' if amount == 1 else 's'}"
