"""What a drill has found: a table to read, and drill.json."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from pipeline.commands.drill.compare import Comparison
from pipeline.commands.drill.fault_result import FaultResult
from pipeline.commands.table import table
from pipeline.run.goodput_report import SOURCES

DRILL = "drill.json"

_COLUMNS = ("fault", "kind", "at step", "agents ended", "resumed", "from", "repeated", "seconds", "held")


@dataclass
class DrillReport:
    """Everything that is known of a drill.

    Attributes:
        options: As given.
        created: When it began.
        faults: What became of each.
        comparisons: With the reference.
        findings: What ended it early.
        notes: What the reader must know.
        left_out: Kinds of faults that were not possible, and why.
        seconds: Of each training.
        steps: Of the training.
        repeated_steps: Number of steps that were done again.
        pace: Seconds that each step waited at first.
        logs: Where the logs are kept.
    """

    options: dict[str, Any]
    created: str
    faults: list[FaultResult] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    repeated_steps: int = 0
    pace: float = 0.0
    logs: str | None = None

    @property
    def holds(self) -> bool:
        """Whether every fault was injected, and nothing was lost by any."""
        compared = bool(self.comparisons) and all(each.holds for each in self.comparisons)
        return compared and not self.findings and all(result.held for result in self.faults)

    @property
    def lost(self) -> float:
        """Seconds from the faults to the next new step, all together."""
        return sum(result.seconds or 0.0 for result in self.faults)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of drill.json, without its schema."""
        found = asdict(self)
        options = found.pop("options")
        del found["logs"]
        seconds = {name: round(value, 1) for name, value in {**self.seconds, "lost": self.lost}.items()}
        return {
            **{name: options[name] for name in ("seed", "config", "nodes", "processes", "resize", "recovery", "args")},
            **found,
            "pace": round(self.pace, 3),
            "faults": [_fault(result) for result in self.faults],
            "seconds": seconds,
            "verdict": self.holds,
        }

    def text(self, label: str) -> str:
        """Return the report to be read.

        Args:
            label: Of the directory that was drilled in.
        """
        rows = [_COLUMNS, *map(_row, self.faults)]
        head = f"drill of {self.options['config']} in {label}, seed {self.options['seed']}"
        lines = [head, "", *table(rows, ("kind", "agents ended", "held")), ""]
        for result in self.faults:
            lines += [f"FAILED: fault {result.fault.number}: {problem}" for problem in result.problems]
            if not result.injected:
                lines.append(f"FAILED: fault {result.fault.number} was not injected: training ended before")
        lines += [f"FAILED: {finding}" for finding in self.findings]
        lines += [f"{'ok' if each.holds else 'FAILED'}  {each.name}: {each.found}" for each in self.comparisons]
        lines += ["", *self.notes, *(f"left out: {kind}, {why}" for kind, why in self.left_out.items())]
        if self.pace:
            lines.append(f"each step under faults waited {self.pace:.2g} s at first, to leave time for them")
        reference, drilled = (self.seconds.get(name, 0.0) for name in ("reference", "drilled"))
        lines += filter(None, (_recovered(self.faults, source) for source in SOURCES))
        lines.append(
            f"{self.steps} steps: {reference:.0f} s undisturbed, {drilled:.0f} s under faults, of which "
            f"{self.lost:.0f} s passed between faults and the next new step; {self.repeated_steps} steps were repeated"
        )
        if self.logs is not None:
            lines.append(f"logs are kept in {self.logs}")
        injected = sum(result.injected for result in self.faults)
        lines.append(f"{injected} faults, nothing lost" if self.holds else "FAILED: something was lost")
        return "\n".join(lines)


def progress_line(result: FaultResult) -> str:
    """Return one fault in a line, as soon as it is known."""
    number, kind, step, *_, held = _row(result)
    seconds = "" if result.seconds is None else f", next new step after {result.seconds:.1f} s"
    return f"fault {number}: {kind} at {step}{seconds}: {held}"


def _recovered(faults: Sequence[FaultResult], source: str) -> str:
    """Return what resuming from one source has cost, in words; "" if it never came to that."""
    found = [each for each in faults if each.source == source and each.seconds is not None]
    if not found:
        return ""
    seconds = median(each.seconds or 0.0 for each in found)
    repeated = median(each.repeated for each in found)
    return (
        f"{len(found)} resumed from {source}: median {seconds:.1f} s to the next new step, {repeated:g} steps repeated"
    )


def _fault(result: FaultResult) -> dict[str, Any]:
    planned, found = asdict(result.fault), asdict(result)
    del planned["seconds"], found["fault"]
    seconds = None if result.seconds is None else round(result.seconds, 2)
    moment = "start" if result.fault.planned_step is None else "training"
    return {**planned, "delay": round(result.fault.delay, 3), "moment": moment, **found, "seconds": seconds} | {
        "held": result.held
    }


def _row(result: FaultResult) -> tuple[str, ...]:
    fault = result.fault
    target = {"rank": f" {fault.node}.{fault.process}", "agent": f" {fault.node}"}.get(fault.kind.scope, "")
    return (
        str(fault.number),
        f"{fault.kind}{target}",
        "start" if result.injected and result.step is None else _or_dash(result.step),
        " ".join(map(str, result.ended)) or "none",
        _or_dash(result.resumed),
        result.source or "-",
        str(result.repeated),
        "-" if result.seconds is None else f"{result.seconds:.1f}",
        "yes" if result.held else "NO",
    )


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
