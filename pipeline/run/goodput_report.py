"""What all attempts at a run have cost together, and what that says about how often to save."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any

from pipeline.errors import NO_FAILURE
from pipeline.run.checkpoint_interval import Costs, advice, duration
from pipeline.run.goodput import OTHER, PURPOSES, REPEATED, SAVING, STARTING, USEFUL, VALIDATING, WAITING
from pipeline.run.run_dir import RunDir

_WORDS = {
    USEFUL: "in useful steps",
    VALIDATING: "validating",
    STARTING: "starting",
    WAITING: "waiting for data",
    SAVING: "stopped by saves",
    REPEATED: "repeating steps",
    OTHER: "otherwise",
}
_MANY = 1e10
"""More seconds than any attempt has."""


@dataclass(frozen=True)
class Attempt:
    """One attempt that trained, as its record says.

    Attributes:
        number: Of the attempt.
        seconds: By purpose, see `pipeline.run.goodput`.
        ended: When, in seconds since 1970.
        failed: Whether it came neither to its end nor to one that somebody asked for.
        saves: How often it saved.
        stop: Seconds for which that stopped training, all saves together.
        behind: Seconds that its last save needed behind training, None if it never saved.
    """

    number: int
    seconds: Mapping[str, float]
    ended: float
    failed: bool
    saves: int
    stop: float
    behind: float | None

    @property
    def wall(self) -> float:
        """Seconds from the start of the process to the end."""
        return sum(self.seconds.values())

    @staticmethod
    def parsed(number: int, record: Mapping[str, Any] | None) -> "Attempt | None":
        """From a record; None for one that did not train, or that cannot be understood."""
        try:
            if record is None or record["first_step"] is None or record["ended"] is None:
                return None
            found = record["goodput"]
            seconds = {purpose: _number(found["seconds"][purpose]) for purpose in PURPOSES}
            ended = datetime.fromisoformat(record["ended"]).timestamp()
            behind = found["behind_seconds"]
            attempt = Attempt(
                number,
                seconds,
                ended,
                record["status"] not in NO_FAILURE,
                int(_number(found["saves"])),
                _number(found["stop_seconds"]),
                None if behind is None else _number(behind),
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
        return attempt if attempt.wall > 0 else None


@dataclass(frozen=True)
class History:
    """All attempts at a run that trained and have ended, in their order."""

    attempts: Sequence[Attempt]

    @staticmethod
    def of(run: RunDir) -> "History":
        """Read it from a run directory; a record that cannot be understood is left out."""
        numbers = sorted(run.attempts())
        records = run.read_jsons(RunDir.attempt(number) for number in numbers)
        parsed = (Attempt.parsed(number, records[RunDir.attempt(number)]) for number in numbers)
        return History([attempt for attempt in parsed if attempt is not None])

    @property
    def down(self) -> float:
        """Seconds between the end of an attempt and the start of the next one's process."""
        pairs = zip(self.attempts, self.attempts[1:], strict=False)
        return sum(max(0.0, after.ended - after.wall - before.ended) for before, after in pairs)

    @property
    def costs(self) -> Costs | None:
        """What advice needs; None before there was a save."""
        saves = sum(attempt.saves for attempt in self.attempts)
        if not saves:
            return None
        wall = sum(attempt.wall for attempt in self.attempts)
        trained = sum(attempt.wall - attempt.seconds[STARTING] for attempt in self.attempts)
        # A restart begins where the last attempt has ended: the launcher's own time belongs to it.
        restart = median(attempt.seconds[STARTING] for attempt in self.attempts)
        restart += self.down / max(len(self.attempts) - 1, 1)
        behind = [attempt.behind for attempt in self.attempts if attempt.behind is not None]
        return Costs(
            # Not all that saves have cost: the last one is waited for, however seldom one saves.
            stop=sum(attempt.stop for attempt in self.attempts) / saves,
            behind=median(behind) if behind else 0.0,
            restart=restart,
            interval=trained / saves,
            wall=wall,
            failures=sum(attempt.failed for attempt in self.attempts),
        )

    def after(self, number: int) -> list[str]:
        """What to say at the end of an attempt: where its time went, where that of all went, and how often to save."""
        own = [attempt for attempt in self.attempts if attempt.number == number]
        if not own:
            return []
        return [_line("goodput", own[0].seconds, 0.0), *self.whole(alone=False)]

    def whole(self, mtbf_hours: float | None = None, alone: bool = True) -> list[str]:
        """Where the time of all attempts went, and how often to save.

        Args:
            mtbf_hours: Hours between two failures, if somebody knows better than what was seen.
            alone: Say it also where there is one attempt.
        """
        lines = []
        if len(self.attempts) > 1 or (alone and self.attempts):
            seconds = {purpose: sum(each.seconds[purpose] for each in self.attempts) for purpose in PURPOSES}
            count = f" of {len(self.attempts)} attempts" if len(self.attempts) > 1 else ""
            lines.append(_line(f"goodput{count}", seconds, self.down))
        if (costs := self.costs) is not None:
            lines.append(advice(costs, mtbf_hours))
        return lines


def _number(value: object) -> float:
    """A figure of a record, which anybody may have written.

    Raises:
        ValueError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _MANY:
        raise ValueError(value)
    return float(value)


def _line(name: str, seconds: Mapping[str, float], down: float) -> str:
    whole = sum(seconds.values()) + down
    parts = [(seconds[purpose], words) for purpose, words in _WORDS.items()] + [(down, "down between attempts")]
    told = ", ".join(f"{duration(value)} {words}" for value, words in parts if value >= 0.001 * whole)
    return f"{name} {100 * seconds[USEFUL] / whole:.1f} % of {duration(whole)}: {told}"
