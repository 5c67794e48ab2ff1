"""What a check is, how it ended, and how that is told: as a table, as JSON, and in the docs."""

import inspect
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.processes import ForkFailed
from tests.benchmarks.report import number

OK, FAILED, NOT_MEASURED = "ok", "FAILED", "not measured"
BEGIN, END = "<!-- made by `make gpu-check`: begin -->", "<!-- made by `make gpu-check`: end -->"
NEEDS_A_DEVICE = "there is no CUDA device"

Figures = dict[str, float | str]
"""What a check has found, by its name with the unit."""


class NotMeasured(Exception):
    """A check cannot be made here: why."""


class CheckFailed(Exception):
    """What should hold does not; with the figures that were found all the same."""

    def __init__(self, why: str, figures: Figures | None = None) -> None:
        super().__init__(why)
        self.figures = figures or {}


class OutOfTime(BaseException):
    """The time for all checks is over. Not an Exception: nothing in between may take it for a failure of its own."""


@dataclass(frozen=True)
class Setting:
    """Where checks run.

    Attributes:
        card: Name of the CUDA device; None: on the CPU, and smaller.
        folder: For what they write, removed afterwards.
    """

    card: str | None
    folder: Path

    @property
    def device(self) -> str:
        """As torch takes it."""
        return "cpu" if self.card is None else "cuda"

    @property
    def accelerator(self) -> str:
        """As Lightning's Trainer takes it."""
        return "cpu" if self.card is None else "gpu"

    @property
    def log(self) -> Path:
        """Where the output of processes goes."""
        return self.folder / "log.txt"

    def pick(self, small: int, full: int) -> int:
        """Choose by what there is: small on the CPU, full on a device."""
        return small if self.card is None else full


@dataclass(frozen=True)
class Check:
    """Something to find out."""

    name: str
    title: str
    function: Callable[[Setting], Figures]


CHECKS: dict[str, Check] = {}


def check(name: str) -> Callable[[Callable[[Setting], Figures]], Callable[[Setting], Figures]]:
    """Register a check; the first line of its docstring is the title."""

    def register(function: Callable[[Setting], Figures]) -> Callable[[Setting], Figures]:
        assert name not in CHECKS
        title = (inspect.getdoc(function) or "").partition("\n")[0].rstrip(".")
        CHECKS[name] = Check(name, title, function)
        return function

    return register


@dataclass(frozen=True)
class Outcome:
    """How a check ended.

    Attributes:
        check: Its name.
        title: What it asks.
        verdict: `ok`, `FAILED` or `not measured`.
        why: In one line; empty if it is ok.
        figures: By name.
        seconds: That it took.
        log: The whole of an error, for the reader of gpu.json.
    """

    check: str
    title: str
    verdict: str
    why: str = ""
    figures: Figures = field(default_factory=dict)
    seconds: float = 0.0
    log: str = ""


def carry_out(one: Check, setting: Setting) -> Outcome:
    """Make one check, whatever comes of it."""
    began = time.monotonic()

    def outcome(verdict: str, why: object = "", figures: Figures | None = None, log: str = "") -> Outcome:
        took = round(time.monotonic() - began, 1)
        return Outcome(one.name, one.title, verdict, _line(why), figures or {}, took, log)

    try:
        return outcome(OK, figures=one.function(setting))
    except (NotMeasured, OutOfTime) as error:
        return outcome(NOT_MEASURED, error)
    except CheckFailed as error:
        return outcome(FAILED, error, error.figures)
    except ForkFailed as error:
        return outcome(FAILED, f"exit status {error.statuses[0]}: {_line(error)}", log=str(error))
    except Exception as error:  # the others are made all the same
        return outcome(FAILED, error, log=traceback.format_exc())


def _line(why: object) -> str:
    """The last line that says anything: of a process that died, that is its error."""
    lines = [line.strip() for line in str(why).splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def told(outcome: Outcome) -> str:
    """The figures of a check, and why it is not ok, in one line."""
    figures = [
        f"{name}: {value if isinstance(value, str) else number(value)}" for name, value in outcome.figures.items()
    ]
    return "; ".join([outcome.why] * bool(outcome.why) + figures)


def print_outcome(outcome: Outcome) -> None:
    """Print one check's lines of the table."""
    print(f"{outcome.verdict:<13} {outcome.check:<18} {outcome.title} ({outcome.seconds:.0f} s)")
    if text := told(outcome):
        print(f"{'':13} {text}", flush=True)


def as_json(where: dict[str, Any], outcomes: list[Outcome]) -> str:
    """All that was found, and where."""
    return json.dumps({"schema": 1, **where, "checks": [asdict(each) for each in outcomes]}, indent=1) + "\n"


def write_docs(about: str, setting: Setting, outcomes: list[Outcome], page: Path) -> None:
    """Put the table between the marks of a page; what ran on the CPU says nothing of a device."""
    rows = ["| Check | What it asks | Verdict | Found |", "| --- | --- | --- | --- |"]
    for each in outcomes:
        verdict, found = (NOT_MEASURED, "") if setting.card is None else (each.verdict, told(each))
        rows.append(f"| `{each.check}` | {each.title} | {verdict} | {found.replace('|', '/')} |")
    head = f"Not measured: {NEEDS_A_DEVICE} where this was written." if setting.card is None else about
    before, _, rest = page.read_text().partition(BEGIN)
    table = "\n".join(rows)
    page.write_text(f"{before}{BEGIN}\n\n{head}\n\n{table}\n\n{END}{rest.partition(END)[2]}")
