"""What all attempts at a run have cost together, and what that says about how often to save."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any

from pipeline.errors import NO_FAILURE
from pipeline.run.checkpoint_interval import RunCosts, compare, duration, suggest
from pipeline.run.goodput import OTHER, PURPOSES, REPEATED, SAVING, STARTING, USEFUL, VALIDATING, WAITING
from pipeline.run.run_dir import RunDir

MEMORY, STORAGE = SOURCES = ("memory", "storage")
"""From where an attempt may resume, as its record has it."""
_DOWN = "down_between_attempts"
_IN_WORDS = {
    STARTING: "starting up",
    REPEATED: "repeating steps",
    WAITING: "waiting for data",
    SAVING: "saving",
    VALIDATING: "validating",
    OTHER: "all else",
    _DOWN: "the time between attempts",
}
"""Of the purposes on which time was spent, for whoever sees them for the first time."""
_LONGEST = 1e10
"""More seconds than any attempt has."""


@dataclass(frozen=True)
class AttemptGoodput:
    """One attempt that trained and has ended, as its record says.

    Attributes:
        number: Of the attempt.
        seconds: By purpose, see `pipeline.run.goodput`.
        ended: When, in seconds since 1970.
        failed: Whether it neither finished nor was ended on purpose.
        saves: Their number.
        pause: Seconds for which they stopped training, all together.
        upload: Seconds that the last one needed in the background, None if there was none.
        resumed_from: `storage` or `memory`; None where it began from nothing, or that is not known.
    """

    number: int
    seconds: Mapping[str, float]
    ended: float
    failed: bool
    saves: int
    pause: float
    upload: float | None
    resumed_from: str | None = None

    @property
    def wall(self) -> float:
        """Seconds from the start of the process to the end."""
        return sum(self.seconds.values())

    @staticmethod
    def parse(number: int, record: Mapping[str, Any] | None) -> "AttemptGoodput | None":
        """Parse a record; return None for an attempt that did not train, and for a record that is not one."""
        try:
            if record is None or record["first_step"] is None:
                return None
            found = record["goodput"]
            attempt = AttemptGoodput(
                number=number,
                seconds={purpose: _number(found["seconds"][purpose]) for purpose in PURPOSES},
                ended=datetime.fromisoformat(record["ended"]).timestamp(),
                failed=record["status"] not in NO_FAILURE,
                saves=int(_number(found["saves"])),
                pause=_number(found["stop_seconds"]),
                upload=None if found["behind_seconds"] is None else _number(found["behind_seconds"]),
                resumed_from=source if (source := record.get("resumed_from")) in SOURCES else None,
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return attempt if attempt.wall > 0 else None


@dataclass(frozen=True)
class GoodputReport:
    """All attempts at a run that trained and have ended, in order."""

    attempts: Sequence[AttemptGoodput]

    @staticmethod
    def of(run: RunDir) -> "GoodputReport":
        """Read the attempts of a run; a record that cannot be parsed is left out."""
        numbers = sorted(run.attempts())
        records = run.read_jsons(RunDir.attempt(number) for number in numbers)
        parsed = (AttemptGoodput.parse(number, records[RunDir.attempt(number)]) for number in numbers)
        return GoodputReport([attempt for attempt in parsed if attempt is not None])

    @property
    def down(self) -> float:
        """Seconds between the end of an attempt and the start of the next one's process."""
        pairs = zip(self.attempts, self.attempts[1:], strict=False)
        return sum(max(0.0, after.ended - after.wall - before.ended) for before, after in pairs)

    @property
    def whole(self) -> float:
        """Seconds from the first start to the last end."""
        return sum(attempt.wall for attempt in self.attempts) + self.down

    @property
    def costs(self) -> RunCosts | None:
        """What the suggested interval rests on; None before there was a save."""
        saves = sum(attempt.saves for attempt in self.attempts)
        if not saves:
            return None
        starts = [attempt.seconds[STARTING] for attempt in self.attempts]
        wall = sum(attempt.wall for attempt in self.attempts)
        uploads = [attempt.upload for attempt in self.attempts if attempt.upload is not None]
        return RunCosts(
            # Not all that saves have cost: the end waits for the last one, however seldom a run saves.
            pause=sum(attempt.pause for attempt in self.attempts) / saves,
            upload=median(uploads) if uploads else 0.0,
            # A restart begins where the last attempt has ended, so it includes the launcher's own time.
            restart=median(starts) + self.down / max(len(self.attempts) - 1, 1),
            interval=(wall - sum(starts)) / saves,
            wall=wall,
            failures=sum(attempt.failed for attempt in self.attempts),
        )

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of all attempts by purpose, and those between them."""
        seconds = {purpose: sum(each.seconds[purpose] for each in self.attempts) for purpose in PURPOSES}
        return {**seconds, _DOWN: self.down}

    def lines(self, mtbf_hours: float | None = None) -> list[str]:
        """Return where all of the time went, and how often to save, with what that rests on.

        Args:
            mtbf_hours: Hours between two failures, as the user knows them.
        """
        if not self.attempts:
            return []
        count = f" of {len(self.attempts)} attempts" if len(self.attempts) > 1 else ""
        lines = [_line(f"goodput{count}{_resumed(self.attempts)}", self.seconds)]
        if (costs := self.costs) is not None:
            lines.append(suggest(costs, mtbf_hours))
        return lines

    def summary(self, where: str) -> list[str]:
        """Return the same in two short lines: the end of an attempt.

        Args:
            where: The run directory, of which `verify` says more.
        """
        if not self.attempts:
            return []
        seconds = self.seconds
        whole = sum(seconds.values())
        most, lost = max(((name, value) for name, value in seconds.items() if name != USEFUL), key=lambda each: each[1])
        over = f" over {len(self.attempts)} attempts" if len(self.attempts) > 1 else ""
        lines = [
            f"goodput {100 * seconds[USEFUL] / whole:.1f} %{over}: {duration(seconds[USEFUL])} of {duration(whole)} "
            f"trained new steps, {_IN_WORDS[most]} took {duration(lost)}"
        ]
        if (costs := self.costs) is not None:
            more = f"more: python -m pipeline verify --run_dir {where}"
            lines.append(f"suggested checkpoint interval: {compare(costs)}; {more}")
        return lines


def _resumed(attempts: Sequence[AttemptGoodput]) -> str:
    """Return from where attempts have resumed, in words."""
    sources = [each.resumed_from for each in attempts]
    if len(attempts) == 1:
        return f" (resumed from {sources[0]})" if sources[0] else ""
    counts = (f"{sources.count(source)} resumed from {source}" for source in SOURCES if source in sources)
    return f" ({said})" if (said := ", ".join(counts)) else ""


def _number(value: object) -> float:
    """Return a figure of a record, which anything may have written.

    Raises:
        ValueError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LONGEST:
        raise ValueError(value)
    return float(value)


def _line(name: str, seconds: Mapping[str, float]) -> str:
    whole = sum(seconds.values())
    shown = (f"{duration(value)} {name.replace('_', ' ')}" for name, value in seconds.items() if value >= 0.001 * whole)
    return f"{name} {100 * seconds[USEFUL] / whole:.1f} % of {duration(whole)}: {', '.join(shown)}"
