"""What a drill has found: a table to read, and drill.json."""

from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.commands.drill.compare import Comparison
from pipeline.commands.drill.course import Outcome

DRILL = "drill.json"

_COLUMNS = ("fault", "kind", "at step", "agents ended", "resumed", "repeated", "seconds", "held")


@dataclass
class Report:
    """Everything that is known of a drill.

    Attributes:
        options: As given.
        created: When it began.
        faults: What became of each.
        comparisons: With the reference.
        findings: What ended it before its time.
        notes: What the reader must know.
        left_out: Kinds of faults that were not possible, and why.
        seconds: That each training took.
        steps: Of the training.
        repeated: Steps that were done again.
        pace: Seconds that each step waited at first.
        logs: Where the logs are kept.
    """

    options: dict[str, Any]
    created: str
    faults: list[Outcome] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    repeated: int = 0
    pace: float = 0.0
    logs: str | None = None

    @property
    def holds(self) -> bool:
        """Whether every fault was carried out, and nothing was lost by any."""
        compared = bool(self.comparisons) and all(each.holds for each in self.comparisons)
        return compared and not self.findings and all(outcome.held for outcome in self.faults)

    @property
    def lost(self) -> float:
        """Seconds from the faults to the next new step, all together."""
        return sum(outcome.seconds or 0.0 for outcome in self.faults)

    def as_dict(self) -> dict[str, Any]:
        """As drill.json says it, without its schema."""
        options = dict(self.options)
        return {
            "created": self.created,
            **{name: options.pop(name) for name in ("seed", "config", "nodes", "processes")},
            "resize": options["resize"],
            "args": options["args"],
            "pace": round(self.pace, 3),
            "faults": [_fault(outcome) for outcome in self.faults],
            "left_out": self.left_out,
            "comparisons": [asdict(each) for each in self.comparisons],
            "findings": self.findings,
            "notes": self.notes,
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()} | {"lost": round(self.lost, 1)},
            "steps": self.steps,
            "repeated_steps": self.repeated,
            "verdict": self.holds,
        }

    def text(self, label: str) -> str:
        """All of it, to be read.

        Args:
            label: Of the directory that was drilled in.
        """
        rows = [_COLUMNS, *(_row(outcome) for outcome in self.faults)]
        lines = [f"drill of {self.options['config']} in {label}, seed {self.options['seed']}", "", *_table(rows), ""]
        for outcome in self.faults:
            lines += [f"FAILED: fault {outcome.fault.number}: {problem}" for problem in outcome.problems]
            if not outcome.injected:
                lines.append(f"FAILED: fault {outcome.fault.number} was not carried out: training ended before")
        lines += [f"FAILED: {finding}" for finding in self.findings]
        lines += [f"{'ok' if each.holds else 'FAILED'}  {each.name}: {each.found}" for each in self.comparisons]
        lines += ["", *self.notes, *(f"left out: {kind}, {why}" for kind, why in self.left_out.items())]
        if self.pace:
            lines.append(f"each step under faults waited {self.pace:.2g} s at first, to leave time for them")
        reference, drilled = (self.seconds.get(name, 0.0) for name in ("reference", "drilled"))
        lines.append(
            f"{self.steps} steps: {reference:.0f} s straight, {drilled:.0f} s under faults, of which {self.lost:.0f} s "
            f"went by from faults to the next new step; {self.repeated} steps were done again"
        )
        if self.logs is not None:
            lines.append(f"logs and notes are kept in {self.logs}")
        carried = sum(outcome.injected for outcome in self.faults)
        lines.append(f"{carried} faults, nothing lost" if self.holds else "FAILED: something was lost")
        return "\n".join(lines)


def line(outcome: Outcome) -> str:
    """One fault in a line, as soon as it is known."""
    number, kind, step, *_, held = _row(outcome)
    seconds = "" if outcome.seconds is None else f", went on after {outcome.seconds:.1f} s"
    return f"fault {number}: {kind} at {step}{seconds}: {held}"


def _fault(outcome: Outcome) -> dict[str, Any]:
    fault = outcome.fault
    return {
        "number": fault.number,
        "kind": str(fault.kind),
        "moment": "start" if fault.step is None else "training",
        "planned_step": fault.step,
        "delay": round(fault.delay, 3),
        "node": fault.node,
        "process": fault.process,
        "injected": outcome.injected,
        "step": outcome.step,
        "ended": outcome.ended,
        "resumed": outcome.resumed,
        "repeated": outcome.repeated,
        "seconds": None if outcome.seconds is None else round(outcome.seconds, 2),
        "held": outcome.held,
        "problems": outcome.problems,
    }


def _row(outcome: Outcome) -> tuple[str, ...]:
    fault = outcome.fault
    target = f"{fault.kind}"
    if fault.kind.one_node:
        target += f" {fault.node}" + (f".{fault.process}" if fault.kind.one_rank else "")
    return (
        str(fault.number),
        target,
        "start" if outcome.injected and outcome.step is None else _or_dash(outcome.step),
        " ".join(map(str, outcome.ended)) or "none",
        _or_dash(outcome.resumed),
        str(outcome.repeated),
        "-" if outcome.seconds is None else f"{outcome.seconds:.1f}",
        "yes" if outcome.held else "NO",
    )


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = {1, 3, 7}
    return [
        "  ".join(
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
