"""What an attempt's record says of its whole run, so that a list of runs reads one record of each.

`earlier` stands for the attempts before it, and is written once. `commits` stands for all that the run has committed,
also by earlier attempts; it is renewed with the lease.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.run.goodput import USEFUL
from pipeline.run.goodput_report import AttemptGoodput, GoodputReport
from pipeline.run.run_dir import RunDir

_MOST_READ = 64
"""Commit records that a start reads for this, at most: where more are unknown, nothing is said of the best one."""


@dataclass(frozen=True)
class EarlierAttempts:
    """The attempts before one.

    Attributes:
        started: When the first one started, RFC 3339; None if there was none, or it does not say.
        useful: Seconds in useful steps.
        seconds: From the first start to the last end, of those that trained.
        ended: That end, in seconds since 1970; None if none has trained.
    """

    started: str | None = None
    useful: float = 0.0
    seconds: float = 0.0
    ended: float | None = None

    @staticmethod
    def of(records: Mapping[int, Mapping[str, Any]]) -> "EarlierAttempts":
        """Return what records say together, by the numbers of their attempts."""
        parsed = [AttemptGoodput.parse(number, record) for number, record in sorted(records.items())]
        report = GoodputReport([each for each in parsed if each is not None])
        started = [each["started"] for each in records.values() if isinstance(each.get("started"), str)]
        return EarlierAttempts(
            started=min(started, default=None),
            useful=sum(each.seconds[USEFUL] for each in report.attempts),
            seconds=report.whole,
            ended=report.attempts[-1].ended if report.attempts else None,
        )

    @staticmethod
    def parse(found: Any) -> "EarlierAttempts | None":
        """Return what a record holds; None where that is something else."""
        try:
            started, useful, seconds, ended = (found[name] for name in ("started", "useful", "seconds", "ended"))
            if not 0 <= useful <= seconds < math.inf or not (started is None or isinstance(started, str)):
                return None
            return EarlierAttempts(started, float(useful), float(seconds), None if ended is None else float(ended))
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)

    def share(self, last: AttemptGoodput | None) -> float | None:
        """Return the useful share of the time of all attempts; None before one has trained.

        Args:
            last: The attempt that came after these, if it has trained.
        """
        useful, seconds = self.useful, self.seconds
        if last is not None:
            down = 0.0 if self.ended is None else max(0.0, last.ended - last.wall - self.ended)
            useful, seconds = useful + last.seconds[USEFUL], seconds + last.wall + down
        return useful / seconds if seconds > 0 else None


@dataclass(frozen=True)
class Commits:
    """All checkpoints that a run has committed.

    Attributes:
        through: The newest step among them; 0 before there is one.
        epoch: The epoch that training resumes in from there; None where that is not known.
        best: `name`, `value`, `mode` and `step` of the one with the best monitored value; None without one.
    """

    through: int = 0
    epoch: int | None = None
    best: Mapping[str, Any] | None = None

    @staticmethod
    def before(run: RunDir, committed: Iterable[int], newest: Mapping[str, Any] | None) -> "Commits | None":
        """Return those that a run has, as far as a start can tell at once; None where they are too many to be read.

        Args:
            run: The run directory.
            committed: The steps that have a commit record.
            newest: The newest record of an attempt, which may know most of them.
        """
        known = None if newest is None else Commits.parse(newest.get("commits"))
        found = known or Commits()
        steps = sorted(step for step in committed if step > found.through)
        if len(steps) > _MOST_READ:
            return None
        records = run.read_jsons(map(RunDir.record, steps)) if steps else {}
        for step in steps:
            record = records[RunDir.record(step)] or {}
            found = found.and_one(step, record.get("epoch"), record.get("monitor"))
        return found

    @staticmethod
    def parse(found: Any) -> "Commits | None":
        """Return what a record or a lease holds; None where that is something else."""
        try:
            through, epoch, best = found["through"], found["epoch"], found["best"]
            if not isinstance(through, int) or not isinstance(epoch, int | None):
                return None
            return Commits(through, epoch, None if best is None else _parsed(best, best["step"]))
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    def and_one(self, step: int, epoch: Any, monitor: Any) -> "Commits":
        """Return these and one more, or one whose monitored value has become known.

        Args:
            step: Its step.
            epoch: The epoch that training resumes in from there.
            monitor: Its `name`, `value` and `mode`; None without a monitored value.
        """
        best = self.best
        try:
            new = None if monitor is None else _parsed(monitor, step)
        except (KeyError, TypeError, ValueError, OverflowError):
            new = None
        if new is not None and (best is None or best["step"] == step or _is_better(new, best)):
            best = new
        return Commits(max(self.through, step), epoch if isinstance(epoch, int) else None, best)

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"through": self.through, "epoch": self.epoch, "best": self.best}


def _is_better(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Return whether a value comes before an older one; those of another monitor are not compared."""
    if (new["name"], new["mode"]) != (old["name"], old["mode"]):
        return True
    return bool(new["value"] >= old["value"] if new["mode"] == "max" else new["value"] <= old["value"])


def _parsed(monitor: Mapping[str, Any], step: int) -> dict[str, Any] | None:
    value = float(monitor["value"])
    if not math.isfinite(value):
        return None
    return {"name": str(monitor["name"]), "value": value, "mode": str(monitor.get("mode", "min")), "step": int(step)}
