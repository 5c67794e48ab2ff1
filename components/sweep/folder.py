"""What a sweep keeps in its folder: what was asked for, and a small record of each trial; its runs lie beside them.

    <sweep>/
      sweep.json        what is tried, by which metric, under which name
      lease.json        which process runs the sweep, as in a run directory
      trials/0001.json  values, how the trial stands, its value of the metric
      0001/             its run directory

On any fsspec URL. A record is written before what it says is begun: whenever the sweep is killed, the same command
finds each trial either ended, or still running, or to be started again.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from torchx.schedulers.ids import make_unique

from components.sweep.preview import MonitoredMetric
from components.sweep.space import Value
from pipeline.errors import UserError
from pipeline.run.lease import Lease
from pipeline.run.run_dir import SWEEP, RunDir

_TRIALS = "trials"
_TRIAL = re.compile(r"\d{4,}")


class TrialState(StrEnum):
    """How a trial stands."""

    RUNNING = "running"
    """It was begun; if the sweep was cut, it is begun again and resumes from its checkpoint."""
    FINISHED = "finished"
    PRUNED = "pruned"
    """Stopped early: its values were worse than those of others."""
    FAILED = "failed"


@dataclass
class TrialRecord:
    """One trial.

    Attributes:
        trial: Its number, from 1.
        values: Of the keys that differ between trials.
        state: How it stands.
        starts: How often it was begun.
        status: The exit status of its training; None before it has ended.
        reason: Why it failed, was pruned or cancelled.
        value: Of the metric, at its best checkpoint, or where it was pruned.
        reported: The metric at each validation, as far as pruning has looked at it; None where it is no number.
    """

    trial: int
    values: dict[str, Value]
    state: TrialState = TrialState.RUNNING
    starts: int = 0
    status: int | None = None
    reason: str | None = None
    value: float | None = None
    reported: list[float | None] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of its run directory, within the sweep's folder."""
        return f"{self.trial:04d}"

    @property
    def ended(self) -> bool:
        """Whether it is not to be begun again."""
        return self.state is not TrialState.RUNNING

    def retry(self) -> None:
        """Have a trial that has failed begun again."""
        if self.state is TrialState.FAILED:
            self.state = TrialState.RUNNING

    @staticmethod
    def of_dict(value: Mapping[str, Any]) -> "TrialRecord":
        """Return what `as_dict` made a mapping of.

        Raises:
            KeyError: A field is missing.
            TypeError: A field is of another type.
            ValueError: A field has a value that it cannot have.
        """
        status, reason, found = value["status"], value["reason"], value["value"]
        return TrialRecord(
            trial=int(value["trial"]),
            values={str(key): each for key, each in value["values"].items() if isinstance(each, str | int | float)},
            state=TrialState(value["state"]),
            starts=int(value["starts"]),
            status=None if status is None else int(status),
            reason=None if reason is None else str(reason),
            value=None if found is None else float(found),
            reported=[None if each is None else float(each) for each in value["reported"]],
        )


class SweepFolder:
    """The folder of a sweep, of which this process is the only writer from `take` to `release`.

    Args:
        url: A path or an fsspec URL, as this machine reaches it.

    Attributes:
        name: By which launchers that know names find its trials again.
        metric: What trials are compared by.
        flags: Those by which fit monitors it.

    Raises:
        UserError: The URL is none.
    """

    def __init__(self, url: str) -> None:
        self.files = RunDir(url)
        self.label = self.files.label
        self.name = ""
        self.metric = MonitoredMetric("", "min")
        self.flags: list[str] = []
        self._lease: Lease | None = None

    def url(self, trial: TrialRecord) -> str:
        """Return the run directory of a trial, as this machine reaches it."""
        return f"{self.label}/{trial.name}"

    def asked(self) -> dict[str, Any] | None:
        """Return what the sweep in this folder was asked for; None where there is none yet.

        Raises:
            UserError: `sweep.json` is damaged, or the folder is a run's.
        """
        data = self.files.read(SWEEP)
        if data is None:
            if self.files.attempts() or self.files.read(RunDir.config("fit")) is not None:
                raise UserError(f"run_dir={self.label!r} is the directory of a run: give a sweep a folder of its own")
            if taken := sorted(filter(_TRIAL.fullmatch, self.files.names(""))):
                raise UserError(
                    f"run_dir={self.label!r} has {', '.join(taken[:3])} in it, which are trials of no sweep: give a "
                    "folder of its own"
                )
            return None
        found = self.files.read_json(SWEEP) or {}
        try:
            self.name, self.flags = str(found["name"]), [str(flag) for flag in found["flags"]]
            self.metric = MonitoredMetric(str(found["metric"]["name"]), str(found["metric"]["mode"]))
            return dict(found["asked"])
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{self.label}/{SWEEP} is damaged, or of another version: restore it, or give another --run_dir"
            ) from None

    def take(self) -> None:
        """Become the only writer.

        Raises:
            UserError: Another process runs the sweep, or the storage refuses.
            StorageAway: The storage does not answer.
        """
        try:
            self._lease = Lease.take(self.files, make_unique("sweep"))
        except UserError as error:
            raise UserError(*(f"another sweep runs here: {problem}" for problem in error.problems)) from error

    def release(self) -> None:
        """Let another process continue the sweep."""
        if self._lease is not None:
            self._lease.release()

    def begin(self, asked: Mapping[str, Any], metric: MonitoredMetric, flags: Sequence[str]) -> None:
        """Keep what was asked for.

        Args:
            asked: In JSON's types.
            metric: What trials are compared by.
            flags: Those by which fit monitors it.
        """
        self.name, self.metric, self.flags = self.name or make_unique("sweep"), metric, list(flags)
        value = {"name": self.name, "metric": metric._asdict(), "flags": self.flags, "asked": dict(asked)}
        self.files.write_json(SWEEP, value)

    def records(self, keys: Collection[str]) -> list[TrialRecord]:
        """Return the records of all trials that were begun, by their numbers.

        Args:
            keys: Those that differ between trials.

        Raises:
            UserError: One is damaged.
        """
        names = sorted(name for name in self.files.names(_TRIALS) if name.endswith(".json"))
        found, problems = [], []
        for name, value in self.files.read_jsons(f"{_TRIALS}/{name}" for name in names).items():
            try:
                found.append(TrialRecord.of_dict(value or {}))
                if _record(found[-1]) != name or found[-1].values.keys() != set(keys):
                    raise ValueError(name)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
                problems.append(f"{self.label}/{name} is damaged: delete it, and the trial is asked again")
        if problems:
            raise UserError(*problems)
        return found

    def write(self, trial: TrialRecord) -> None:
        """Keep how a trial stands.

        Raises:
            LeaseLost: Another process runs the sweep.
        """
        assert self._lease is not None
        self._lease.held()
        self.files.write_json(_record(trial), asdict(trial))


def differences(before: Mapping[str, Any], now: Mapping[str, Any], key: str = "") -> list[str]:
    """Return what is asked for in another way than before, a sentence each. More trials than before are allowed."""
    found = []
    for name in dict.fromkeys([*before, *now]):
        old, new, called = before.get(name), now.get(name), f"{key}.{name}".lstrip(".")
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, called)
        elif old != new and not (name == "trials" and isinstance(old, int) and isinstance(new, int) and new > old):
            found.append(f"{called}: {old!r} before, {new!r} now")
    return found


def _record(trial: TrialRecord) -> str:
    return f"{_TRIALS}/{trial.name}.json"
