"""What a benchmark is made of: subjects, whose contenders do the same work in turns, and what was found of them.

Everything that is measured is a cost (microseconds, megabytes, requests): less is better. A ratio is the reference's
cost over a contender's own, taken within each round, so that 2 means twice as good, and a busy moment of the machine
meets both.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

Reading = dict[str, float]
"""What one round found, by quantity: `wall` and `cpu` in the subject's unit, others in the unit they are named by."""
OURS = "this pipeline"
"""The contender that the bars are for."""
SCALES = ("tiny", "quick", "full")


@dataclass(frozen=True)
class Context:
    """What a subject is measured with.

    Attributes:
        scale: One of `SCALES`: tiny shows that a subject runs, quick what has become of it, full is what docs tell.
        folder: Empty, removed afterwards.
        url: Of an empty folder on the storage to measure, which is removed afterwards as well.
    """

    scale: str
    folder: Path
    url: str

    def pick(self, tiny: int, quick: int, full: int) -> int:
        """Choose by the scale."""
        return {"tiny": tiny, "quick": quick, "full": full}[self.scale]


class Bar(NamedTuple):
    """What a contender is held to: a least ratio to the reference, or a limit of the cost itself."""

    contender: str
    quantity: str
    ratio: float | None = None
    limit: float | None = None

    def __str__(self) -> str:
        return f">= {self.ratio:.3g} x" if self.ratio is not None else f"<= {self.limit:,g}"


Contenders = Mapping[str, Callable[[], Reading]]


@dataclass(frozen=True)
class Subject:
    """One thing to measure.

    Attributes:
        name: On the command line.
        prepare: Makes what the contenders need, and returns each one's round.
        title: What is measured, for the table.
        unit: Of `wall` and `cpu`.
        reference: The contender whose costs the ratios are of; None: costs alone.
        bars: What contenders are held to.
        rounds: At each of `SCALES`; 0: left out, unless it is asked for by name.
        stores: Whether it uses the storage; the bars are then those of a remote one.
    """

    name: str
    prepare: Callable[[Context], Contenders]
    title: str
    unit: str
    reference: str | None = None
    bars: tuple[Bar, ...] = ()
    rounds: tuple[int, int, int] = (1, 3, 7)
    stores: bool = False


SUBJECTS: dict[str, Subject] = {}


def subject(
    name: str,
    unit: str,
    reference: str | None = None,
    bars: tuple[Bar, ...] = (),
    rounds: tuple[int, int, int] = (1, 3, 7),
    stores: bool = False,
) -> Callable[[Callable[[Context], Contenders]], Callable[[Context], Contenders]]:
    """Register a function that prepares a subject; the first line of its docstring is the title."""

    def register(prepare: Callable[[Context], Contenders]) -> Callable[[Context], Contenders]:
        assert name not in SUBJECTS
        title = (inspect.getdoc(prepare) or "").partition("\n")[0].rstrip(".")
        SUBJECTS[name] = Subject(name, prepare, title, unit, reference, bars, rounds, stores)
        return prepare

    return register


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and how far they lie apart."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """What was found of one quantity of one contender.

    Attributes:
        ratio: To the reference; None for the reference itself, and where it does not have that quantity.
        bar: What it is held to, in words.
        met: Whether it is; None without a bar.
    """

    contender: str
    quantity: str
    cost: Spread
    ratio: Spread | None
    bar: str | None = None
    met: bool | None = None


@dataclass
class Found:
    """The readings of each contender, by round, and what they are held to."""

    subject: Subject
    bars: tuple[Bar, ...] = ()
    readings: dict[str, list[Reading]] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """Summarize the rounds."""
        return [
            self._row(contender, quantity) for contender, readings in self.readings.items() for quantity in readings[0]
        ]

    def _row(self, contender: str, quantity: str) -> Row:
        own, ratio = self._costs(contender, quantity), None
        reference = self.subject.reference
        if reference not in (None, contender) and quantity in self.readings[str(reference)][0]:
            theirs = self._costs(str(reference), quantity)
            ratio = Spread.of([other / max(mine, 1e-9) for other, mine in zip(theirs, own, strict=True)])
        cost = Spread.of(own)
        for bar in self.bars:
            if (bar.contender, bar.quantity) == (contender, quantity):
                held = cost.value <= bar.limit if bar.limit is not None else ratio and ratio.value >= (bar.ratio or 0)
                return Row(contender, quantity, cost, ratio, str(bar), bool(held))
        return Row(contender, quantity, cost, ratio)

    def _costs(self, contender: str, quantity: str) -> list[float]:
        return [reading[quantity] for reading in self.readings[contender]]


def measure(one: Subject, context: Context, rounds: int) -> Found:
    """Let the contenders of a subject take turns, each round beginning with another one."""
    contenders = list(one.prepare(context).items())
    holds = not one.stores or "://" in context.url
    found = Found(one, one.bars if holds else (), {name: [] for name, _ in contenders})
    for number in range(rounds):
        first = number % len(contenders)
        for name, contender in contenders[first:] + contenders[:first]:
            found.readings[name].append(contender())
    return found
