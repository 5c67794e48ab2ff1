"""Read what the records of many runs say together: a listing, and the small files that matter, all at once.

Needs no torch. What is damaged in one run is named in its summary, counts for nothing, and harms no other run.
"""

import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import yaml

from pipeline.checkpoint.commit import Monitor, parse_record
from pipeline.checkpoint.run_summary import RunCondition, RunSummary
from pipeline.errors import DONE, INTERRUPTED, PREEMPTED
from pipeline.run.flat_config import flatten
from pipeline.run.goodput_report import AttemptGoodput
from pipeline.run.lease import is_live
from pipeline.run.lease_storage import StoredLease, parse_lease
from pipeline.run.run_dir import ATTEMPTS, CHECKPOINTS, LEASE, NEWEST, RECEIPT, RunDir, parse_json
from pipeline.run.run_listing import RunListing, RunTree
from pipeline.run.run_totals import Commits, EarlierAttempts
from pipeline.run.storage_errors import storage_error

_CONFIG = RunDir.config("fit")
_STATES = {DONE: RunCondition.FINISHED, PREEMPTED: RunCondition.PREEMPTED, INTERRUPTED: RunCondition.INTERRUPTED}
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def summarize(url: str) -> list[RunSummary]:
    """Return every run beneath a folder or bucket, or the run itself that the URL names, in the order of their names.

    Args:
        url: A local path or any fsspec URL.

    Raises:
        UserError: There is nothing at the URL, or the storage refuses.
        StorageAway: The storage does not answer.
    """
    tree = RunTree(url)
    return summaries(tree, tree.listings())


def summaries(tree: RunTree, listings: list[RunListing], evaluations: bool = True) -> list[RunSummary]:
    """Return what the records of these runs say, in their order.

    Of each run the newest attempt's record is read, which knows most; what it does not know is read then.

    Args:
        tree: Where the runs are.
        listings: The runs.
        evaluations: Whether to read what evaluations have measured, too.

    Raises:
        UserError: The storage refuses.
        StorageAway: It does not answer.
    """
    runs = {listing.url: _RunRecords(listing) for listing in listings}
    for wanted in (lambda run: run.first(evaluations), _RunRecords.missing):
        for listing, name, data in tree.read((run.listing, name) for run in runs.values() for name in wanted(run)):
            runs[listing.url].take(name, data)
    return [run.summary() for run in runs.values()]


def sketched(tree: RunTree, evaluations: bool = True) -> list[RunSummary]:
    """Return what the runs beneath a URL say of themselves, without listing their files where that can be avoided.

    On S3 the time for a listing grows with the files of all runs, so a thousand of them take seconds. What is known
    without one: `bytes` are those of the checkpoints alone, when the record was written last, and `updated` tells when
    that was; a run within another run is not found; damage is not looked for.

    Args:
        tree: Where the runs are.
        evaluations: Whether to read what evaluations have measured, too.

    Raises:
        UserError: There is nothing at the URL, or the storage refuses.
        StorageAway: The storage does not answer.
    """
    found = tree.sketches()
    if found is None or not any(found):
        return summaries(tree, tree.listings(), evaluations)
    runs = {listing.url: _RunRecords(listing, files) for listing, files in found[0]}
    if evaluations:
        for listing, name, data in tree.read((run.listing, RECEIPT) for run in runs.values()):
            runs[listing.url].take(name, data)
    every = [*(run.summary() for run in runs.values()), *summaries(tree, found[1], evaluations)]
    return sorted(every, key=lambda run: run.label)


class _RunRecords:
    """The records of one run, as they are read.

    Args:
        listing: Its files, or those that were asked for.
        sketch: What was read of it already, where its files are not listed: `run.json`, and its lease.
    """

    def __init__(self, listing: RunListing, sketch: Mapping[str, bytes] | None = None) -> None:
        self.listing = listing
        names = [name for name in listing.files if name.startswith(f"{ATTEMPTS}/")]
        self._attempts = sorted(number for number in map(RunDir.attempt_number, names) if number is not None)
        self._sizes: dict[str, dict[int, int]] = {"ckpt": {}, "json": {}}
        for name, file in listing.files.items():
            if name.startswith(f"{CHECKPOINTS}/") and (found := RunDir.checkpoint_file(name)) is not None:
                self._sizes[found[1]][found[0]] = file.size
        self._json: dict[str, dict[str, Any] | None] = {}
        self._data: dict[str, bytes] = {}
        self._problems = [
            f"{RunDir.checkpoint(step)} is missing, but has a commit record"
            for step in sorted(self._sizes["json"].keys() - self._sizes["ckpt"].keys())
        ]
        for name, data in (sketch or {}).items():
            self.take(name, data)
        if sketch is not None:
            self._attempts = [_integer((self._json.get(NEWEST) or {}).get("attempt")) or 1]
            self._json[RunDir.attempt(self._attempts[-1])] = self._json.get(NEWEST)

    def first(self, evaluations: bool) -> list[str]:
        """Return the names of the files that are read of every run."""
        names = [LEASE, *([RECEIPT] if evaluations else []), *map(RunDir.attempt, self._attempts[-1:])]
        return [name for name in names if name in self.listing.files]

    def missing(self) -> list[str]:
        """Return the names of the files that say what those do not."""
        names = []
        if self._newest.get("config") is None and _CONFIG in self.listing.files:
            names.append(_CONFIG)
        if EarlierAttempts.parse(self._newest.get("earlier")) is None:
            names += map(RunDir.attempt, self._attempts[:-1])
        return names + [RunDir.record(step) for step in self._unknown_steps]

    def take(self, name: str, data: bytes | Exception) -> None:
        """Keep what was read of a file; one that was removed since the listing does not exist."""
        if isinstance(data, FileNotFoundError):
            return
        if isinstance(data, Exception):
            self._problems.append(f"{name} cannot be read: {storage_error(data)}")
            return
        self._data[name] = data
        if name.endswith(".json") and name != LEASE:
            self._json[name] = parse_json(data)
            if self._json[name] is None:
                self._problems.append(f"{name} is damaged, or of another schema")

    def summary(self) -> RunSummary:
        """Return what all that was read says together."""
        lease, newest, config = self._lease, self._newest, self._config()
        commits, state = self._all_commits(), _state(newest, lease)
        others = {
            number: record for number in self._attempts[:-1] if (record := self._json.get(RunDir.attempt(number)))
        }
        earlier = EarlierAttempts.parse(newest.get("earlier")) or EarlierAttempts.of(others)
        heard = [newest, *others.values(), *([] if lease is None else [lease.value])]
        started = [time for time in map(_time, (earlier.started, newest.get("started"))) if time is not None]
        times = [file.modified for file in self.listing.files.values() if file.modified is not None]
        whole = self._sizes["json"].keys() & self._sizes["ckpt"].keys()
        runs, best, stored = state is RunCondition.RUNNING, commits.best, self._stored(whole)
        return RunSummary(
            url=self.listing.url,
            label=self.listing.label,
            state=state,
            status=None if runs else _integer(newest.get("status")),
            reason=None if runs else _text(newest.get("reason")),
            started=min(started, default=None),
            updated=datetime.fromtimestamp(max(times), UTC) if times else None,
            attempts=max(self._attempts, default=0),
            world_size=_integer(newest.get("world_size")),
            step=_greatest(
                *(each.get(key) for each in heard for key in ("reached_step", "last_step", "committed_step")), *whole
            ),
            committed_step=max(whole, default=None) if self.listing.whole else commits.through or None,
            epoch=commits.epoch,
            max_steps=_limit(config.get("trainer.max_steps")),
            max_epochs=_limit(config.get("trainer.max_epochs")),
            best=None if best is None else Monitor(best["name"], best["value"], best["mode"]),
            best_step=None if best is None else best["step"],
            goodput=earlier.share(self._ended_attempt()),
            bytes=stored["bytes"],
            checkpoints=stored["checkpoints"],
            config=config,
            metrics=_metrics(self._json.get(RECEIPT)),
            problems=tuple(self._problems),
        )

    def _stored(self, whole: Collection[int]) -> dict[str, int]:
        """Return the bytes of the run, and its committed checkpoints."""
        if self.listing.whole:
            return {"bytes": sum(file.size for file in self.listing.files.values()), "checkpoints": len(whole)}
        found = self._newest.get("stored")
        known = found if isinstance(found, dict) else {}
        return {name: max(0, _integer(known.get(name)) or 0) for name in ("bytes", "checkpoints")}

    @property
    def _newest(self) -> Mapping[str, Any]:
        """The newest attempt's record; empty where it cannot be read."""
        return (self._json.get(RunDir.attempt(self._attempts[-1])) if self._attempts else None) or {}

    @cached_property
    def _known_commits(self) -> Commits | None:
        """What the newest attempt knows of all commits, as long as the best of them is there."""
        known = Commits.parse(self._newest.get("commits"))
        if (lease := self._lease) is not None and self._attempts and lease.attempt == self._attempts[-1]:
            known = Commits.parse(lease.value.get("commits")) or known
        if known is None or (known.best is not None and not self._is_whole(known.best["step"])):
            return None
        return known

    @property
    def _unknown_steps(self) -> list[int]:
        through = 0 if self._known_commits is None else self._known_commits.through
        return sorted(step for step in self._sizes["json"] if step > through)

    def _is_whole(self, step: int) -> bool:
        return not self.listing.whole or (step in self._sizes["json"] and step in self._sizes["ckpt"])

    def _all_commits(self) -> Commits:
        found = self._known_commits or Commits()
        for step in self._unknown_steps:
            if (value := self._json.get(name := RunDir.record(step))) is None:
                continue
            record = parse_record(step, value)
            if record is None:
                self._problems.append(f"{name} is no commit record")
            elif record.bytes == self._sizes["ckpt"].get(step):
                found = found.and_one(step, record.epoch, None if record.monitor is None else asdict(record.monitor))
            elif self._is_whole(step):
                self._problems.append(f"{record.name} is not as long as its commit record says")
        return found

    def _ended_attempt(self) -> AttemptGoodput | None:
        """Return where the time of the newest attempt went; until it has ended its lease says how far it is."""
        record, lease = self._newest, self._lease
        if not self._attempts:
            return None
        if record.get("ended") is None and lease is not None and lease.attempt == self._attempts[-1]:
            record = {**record, "ended": lease.value.get("renewed"), "goodput": lease.value.get("goodput")}
        return AttemptGoodput.parse(self._attempts[-1], record)

    @cached_property
    def _lease(self) -> StoredLease | None:
        if LEASE not in self._data:
            return None
        value = parse_lease(self._data[LEASE])
        age = self.listing.age(LEASE)
        if age is None:  # as `pipeline.run.lease_storage` does where the storage has no clock
            renewed = _time(value.get("renewed"))
            age = 0.0 if renewed is None else max(0.0, (datetime.now(UTC) - renewed).total_seconds())
        return StoredLease(value, age, None)

    def _config(self) -> dict[str, Any]:
        if isinstance(known := self._newest.get("config"), dict):
            return known
        if _CONFIG not in self._data:
            return {}
        try:
            value = yaml.load(self._data[_CONFIG], _LOADER)  # noqa: S506 - the safe one, by its C name
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            self._problems.append(f"{_CONFIG} is damaged: {' '.join(str(error).split())}")
            return {}
        if not isinstance(value, dict):
            self._problems.append(f"{_CONFIG} is no configuration")
            return {}
        return flatten(value)


def _state(newest: Mapping[str, Any], lease: StoredLease | None) -> RunCondition:
    ended = newest.get("ended") is not None
    if lease is not None and is_live(lease) and not (ended and newest.get("attempt") == lease.attempt):
        return RunCondition.RUNNING
    if not newest:
        return RunCondition.UNKNOWN
    status = _integer(newest.get("status"))
    # The next writer completes the record of one that was killed, without a status.
    return RunCondition.LOST if not ended or status is None else _STATES.get(status, RunCondition.FAILED)


def _metrics(receipt: Mapping[str, Any] | None) -> dict[str, float] | None:
    found = (receipt or {}).get("metrics")
    if not isinstance(found, dict):
        return None
    numbers = {str(name): value for name, value in found.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def _limit(value: Any) -> int | None:
    """Return a limit of Lightning's Trainer, for which -1 is none."""
    number = _integer(value)
    return number if number is not None and number >= 0 else None


def _greatest(*values: Any) -> int | None:
    return max((number for value in values if (number := _integer(value)) is not None), default=None)


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _time(value: Any) -> datetime | None:
    """Return a time of a record, in UTC, or None where it is none."""
    with suppress(TypeError, ValueError):
        time = datetime.fromisoformat(value)
        return time.replace(tzinfo=time.tzinfo or UTC)
    return None
