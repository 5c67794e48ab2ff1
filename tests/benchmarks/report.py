"""What was found: as a table, as JSON, in comparison with an earlier result, and in the docs."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.processes import forked
from tests.benchmarks.subject import Found, Row, Spread
from tests.support.commands import ROOT

BEGIN, END = "<!-- made by `make bench`: begin -->", "<!-- made by `make bench`: end -->"
HEADLINES = ("step", "step_heavy", "first_step", "recovery", "save", "load")
"""The subjects that the README tells of."""
BEYOND = 0.03
"""A change of the median that is smaller is never told, however little the rounds are spread."""


def machine() -> dict[str, Any]:
    """Describe this machine."""
    named = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    with tempfile.TemporaryDirectory() as folder:  # a fork: this process stays without a device
        gpu = forked(
            lambda: torch.cuda.get_device_name() if torch.cuda.is_available() else None, log=Path(folder, "log")
        )
    return {"cores": os.cpu_count(), "cpu": named[0] if named else platform.machine(), "gpu": gpu}


def versions() -> dict[str, str]:
    """Name what was measured, and on what it rests."""
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    packages = {name: importlib.metadata.version(name) for name in ("torch", "lightning", "numpy")}
    return {"commit": commit or "unknown", "python": platform.python_version(), **packages}


def as_json(found: Found, scale: str, load: tuple[float, float], url: str) -> dict[str, Any]:
    """One subject, by itself: results of several runs can be put together.

    Args:
        found: What its rounds found.
        scale: At which they ran.
        load: Of the machine, over a minute, before and after.
        url: Of the storage, which the title names where it was used.
    """
    return {
        "subject": found.subject.name,
        "title": found.subject.title
        + (f", on {url.partition('://')[0]}" if "://" in url and found.subject.stores else ""),
        "unit": found.subject.unit,
        "reference": found.subject.reference,
        "scale": scale,
        "rounds": len(next(iter(found.readings.values()))),
        "load": [round(each, 1) for each in load],
        "commit": versions()["commit"],
        "made": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "rows": [asdict(row) for row in found.rows()],
    }


def load_rows(one: dict[str, Any]) -> list[Row]:
    """The rows of a subject that comes from JSON."""

    def spread(values: dict[str, float] | None) -> Spread | None:
        return None if values is None else Spread(**values)

    return [Row(**{**row, "cost": Spread(**row["cost"]), "ratio": spread(row["ratio"])}) for row in one["rows"]]


def number(value: float) -> str:
    """Three digits, as people read them."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def lines(one: dict[str, Any]) -> list[tuple[str, ...]]:
    """A subject's lines of the table: contender, cost, spread, ratio, its spread, bar."""
    told = []
    for row in load_rows(one):
        timed = row.quantity in ("wall", "cpu")
        unit = f"{one['unit']}, {row.quantity}" if timed else row.quantity
        cost, ratio = row.cost, row.ratio
        told.append(
            (
                row.contender,
                f"{number(cost.value)} {unit}",
                f"{number(cost.low)} .. {number(cost.high)}",
                "" if ratio is None else f"{ratio.value:.3g}",
                "" if ratio is None else f"{ratio.low:.3g} .. {ratio.high:.3g}",
                "" if row.bar is None else f"{row.bar}{'' if row.met else ' MISSED'}",
            )
        )
    return told


def print_table(one: dict[str, Any]) -> None:
    """Print one subject."""
    against = f"; ratio: {one['reference']} / contender" if one["reference"] else ""
    print(f"\n{one['subject']}: {one['title']} ({one['rounds']} rounds, load {one['load'][1]}{against})")
    told = lines(one)
    widths = [max(len(line[column]) for line in told) for column in range(len(told[0]))]
    for line in told:
        print("  " + "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def changes(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Say what has moved beyond the noise since an earlier result.

    Compared are ratios where both have one, for these tell less of the machine, else costs. Beyond the noise is a
    median that lies outside of all rounds of the other result, in both directions.
    """
    moved = []
    earlier = {
        (one["subject"], row.contender, row.quantity): row for one in theirs["subjects"] for row in load_rows(one)
    }
    for one in ours["subjects"]:
        for row in load_rows(one):
            before = earlier.get((one["subject"], row.contender, row.quantity))
            if before is None:
                continue
            relative = row.ratio is not None and before.ratio is not None
            old, new = (before.ratio, row.ratio) if relative else (before.cost, row.cost)
            assert old is not None
            assert new is not None
            apart = not old.low <= new.value <= old.high and not new.low <= old.value <= new.high
            if not apart or abs(new.value - old.value) <= BEYOND * abs(old.value):
                continue
            better = (new.value > old.value) == relative
            unit = f"x {one['reference']}" if relative else one["unit"]
            moved.append(
                f"{one['subject']}, {row.contender}, {row.quantity}: {number(old.value)} -> {number(new.value)} {unit} "
                f"({'better' if better else 'WORSE'} by {100 * abs(new.value / old.value - 1):.0f} %)"
            )
    return moved


def print_changes(ours: dict[str, Any], path: Path) -> None:
    """Compare with an earlier result, and print."""
    if not path.exists():
        print(f"\nthere is no earlier result {path} to compare with")
        return
    theirs = json.loads(path.read_text())
    print(f"\nagainst {path} (commit {theirs['versions']['commit']}):")
    if theirs["machine"] != ours["machine"]:
        print(f"  it was made on another machine: {theirs['machine']}")
    print("\n".join(f"  {line}" for line in changes(ours, theirs) or ["nothing has moved beyond the noise"]))


def write_docs(result: dict[str, Any], project: Path) -> None:
    """Put a result beside the kept ones of other subjects, and the tables of all into the docs.

    Args:
        result: What was measured now.
        project: Its README.md and docs/performance.md have a marked section each: the first for the headlines, the
            second for everything. docs/performance.json keeps what they are made of. A table is of one machine:
            what was kept of another one is dropped.
    """
    kept_in = project / "docs/performance.json"
    kept = json.loads(kept_in.read_text()) if kept_in.exists() else result
    fresh = {one["subject"]: one for one in result["subjects"]}
    same = kept["subjects"] if kept["machine"] == result["machine"] else []
    merged = {**result, "subjects": [fresh.pop(one["subject"], one) for one in same] + list(fresh.values())}
    kept_in.write_text(json.dumps(merged, indent=1) + "\n")
    for page, table in (("docs/performance.md", whole_table(merged)), ("README.md", headlines(merged))):
        before, _, rest = (project / page).read_text().partition(BEGIN)
        (project / page).write_text(f"{before}{BEGIN}\n\n{table}\n{END}{rest.partition(END)[2]}")


def about(result: dict[str, Any]) -> str:
    """The machine and the versions, as a sentence."""
    of, used = result["machine"], result["versions"]
    names = ", ".join(f"{name} {version}" for name, version in used.items() if name != "commit")
    loads = [one["load"][1] for one in result.get("subjects", ())]
    load = f", load {min(loads)} to {max(loads)}" if loads else ""
    return f"{of['cpu']}, {of['cores']} cores, {of['gpu'] or 'no GPU'}{load}; {names}."


def headlines(result: dict[str, Any]) -> str:
    """Wall times that are held to a bar, of a few subjects: one line each."""
    told = [about(result), "", "| What | Cost | Ratio to | Bar |", "| --- | --- | --- | --- |"]
    for one in (each for each in result["subjects"] if each["subject"] in HEADLINES):
        for row, line in zip(load_rows(one), lines(one), strict=True):
            if row.bar is not None and row.ratio is not None and row.quantity != "cpu":
                told.append(f"| {one['title']} | {line[1]} | {row.ratio.value:.3g} x {one['reference']} | {line[-1]} |")
    return "\n".join(told) + "\n"


def whole_table(result: dict[str, Any]) -> str:
    """All subjects with all contenders."""
    told = [
        about(result),
        "",
        "| Subject | Contender | Median | Range | Ratio | Range | Bar |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in result["subjects"]:
        scale = "" if one["scale"] == "full" else f", {one['scale']}"
        run = f"{one['rounds']} rounds, load {one['load'][1]}, commit {one['commit'][:8]}"
        head = f"{one['title']} (`{one['subject']}`{scale}: {run})"
        told += [f"| {' | '.join((head if place == 0 else '', *line))} |" for place, line in enumerate(lines(one))]
    return "\n".join(told) + "\n"
