"""What a curve is, how it is measured, and what comes of it."""

import gc
import inspect
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.benchmarks.processes import ForkFailed, forked
from tests.benchmarks.report import versions
from tests.benchmarks.subject import Reading, Spread
from tests.support.fits import Fit, fit

LONGEST = 120
"""Seconds that one size may take."""
_LARGE = 0.2
"""An error of a law that is told."""


class OutOfReach(Exception):
    """A size is not for this machine: why."""


@dataclass(frozen=True)
class Curve:
    """Costs over a size.

    Attributes:
        name: On the command line, and of its plot.
        title: What is measured.
        over: What the sizes count.
        lines: The unit of each quantity: `s`, `bytes`, or what is counted.
        sizes: At each scale.
        rounds: At the full scale; once at the others.
        check: Raises OutOfReach.
        measure: Returns the quantities at a size; it may write into the folder.
    """

    name: str
    title: str
    over: str
    lines: Mapping[str, str]
    sizes: Mapping[str, tuple[int, ...]]
    rounds: int
    measure: Callable[[int, Path], Reading]
    check: Callable[[int, Path], None]


ORDER = ("agents", "ranks", "samples", "batch", "state", "checkpoints", "epochs", "attempts")
"""Of the curves in the docs."""
CURVES: dict[str, Curve] = {}


def curve(
    name: str,
    over: str,
    lines: Mapping[str, str],
    sizes: Mapping[str, tuple[int, ...]],
    rounds: int = 1,
    check: Callable[[int, Path], None] = lambda *_: None,
) -> Callable[[Callable[[int, Path], Reading]], Callable[[int, Path], Reading]]:
    """Register a function that measures a curve at a size; the first line of its docstring is the title."""

    def register(measure: Callable[[int, Path], Reading]) -> Callable[[int, Path], Reading]:
        assert name in ORDER
        title = (inspect.getdoc(measure) or "").partition("\n")[0].rstrip(".")
        CURVES[name] = Curve(name, title, over, lines, sizes, rounds, measure, check)
        return measure

    return register


def counted(least: int, most: int) -> tuple[int, ...]:
    """The powers of two from one to another."""
    return tuple(1 << power for power in range(least.bit_length() - 1, most.bit_length()))


def measure(one: Curve, scale: str) -> dict[str, Any]:
    """Measure a curve, each size in processes of its own, until one is out of reach, and print each point."""
    before, points, ends = os.getloadavg()[0], [], ""
    for size in one.sizes[scale]:
        try:
            readings = [_at(one, size) for _ in range(one.rounds if scale == "full" else 1)]
        except OutOfReach as error:
            ends = f"{size:,} {one.over}: {error}"
            print(f"  ends before {ends}", flush=True)
            break
        costs = {line: Spread.of([each[line] for each in readings]).__dict__ for line in one.lines}
        points.append({"size": size, "costs": costs})
        told = ", ".join(f"{line} {amount(cost['value'], one.lines[line])}" for line, cost in costs.items())
        print(f"  {size:,} {one.over}: {told}", flush=True)
    return {
        "curve": one.name,
        "title": one.title,
        "over": one.over,
        "scale": scale,
        "load": [round(before, 1), round(os.getloadavg()[0], 1)],
        "commit": versions()["commit"],
        "made": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "ends": ends,
        "lines": [{"name": line, "unit": unit} for line, unit in one.lines.items()],
        "points": points,
    }


def _at(one: Curve, size: int) -> Reading:
    """Measure one size in a fork, whose cache is its own, and leave nothing."""
    with TemporaryDirectory(prefix="growth-") as folder:
        one.check(size, Path(folder))
        try:
            found: Reading = forked(_cached, one, size, Path(folder), log=Path(folder, "log"), limit=LONGEST)
        except ForkFailed as error:
            if error.statuses[0] in (None, -9):
                raise OutOfReach(f"not done within {LONGEST} s, or too little memory") from error
            raise
    return found


def _cached(one: Curve, size: int, folder: Path) -> Reading:
    os.environ["PIPELINE_CACHE_DIR"] = str(folder / "cache")
    gc.freeze()  # else a collection of all that torch has made falls into what is measured, once in a while
    return one.measure(size, folder)


def costs_of(found: dict[str, Any], line: str) -> tuple[list[float], list[float]]:
    """The sizes and the costs of one quantity."""
    points = found["points"]
    return [each["size"] for each in points], [max(each["costs"][line]["value"], 1e-9) for each in points]


def fits(found: dict[str, Any]) -> dict[str, Fit]:
    """The law of each quantity of a curve."""
    return {line["name"]: fit(*costs_of(found, line["name"])) for line in found["lines"]}


def as_text(result: dict[str, Any]) -> str:
    """All that was found, as JSON."""
    return json.dumps(result, indent=1) + "\n"


_PREFIXES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")),
    "bytes": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
}


def amount(value: float, unit: str) -> str:
    """A cost as people read it: three digits."""
    for factor, short in _PREFIXES.get(unit, ()):
        if value >= factor or factor == _PREFIXES[unit][-1][0]:
            value, unit = value / factor, short
            break
    digits = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{digits} {unit}"


def law(found: Fit, unit: str) -> str:
    """A fit in words, with its error where that is large."""
    error = f" (± {found.error:.0%})" if found.error > _LARGE else ""
    if found.growth == "constant":
        return f"constant, {amount(found.base, unit)}{error}"
    base = f"{amount(found.base, unit)} + " if found.base else ""
    grown = {"linear": "n", "quadratic": "n²", "cubic": "n³"}.get(found.growth, found.growth.replace("log", "log2"))
    return f"{found.growth}, {base}{amount(found.factor, unit)} x {grown}{error}"
