"""The record of each attempt at a run, `attempts/<nnnn>.json`: one for each start, written by the run's only writer.

The newest one lies in `run.json`, too, so that a list of a thousand runs needs to list none of them.

An attempt that is killed cannot record how it ended. Its lease, which is renewed anyway, says how far it had come, and
the next writer, which finds that lease, completes the record.
"""

import logging
import socket
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pipeline.errors import LeaseLost, Preempted, outcome
from pipeline.process import end_facts
from pipeline.process.patience import Patience, patience
from pipeline.run import lineage
from pipeline.run.flat_config import flatten
from pipeline.run.goodput import Goodput
from pipeline.run.goodput_report import MEMORY, GoodputReport
from pipeline.run.lease import Lease, launch_id
from pipeline.run.provenance import provenance
from pipeline.run.run_dir import NEWEST, RunDir, now
from pipeline.run.run_totals import Commits, EarlierAttempts
from pipeline.run.storage_errors import storage_error

if TYPE_CHECKING:
    from pipeline.process.topology import Topology

log = logging.getLogger(__name__)

_FINISHED = outcome(None).reason
"""The reason of an attempt that trained to its end."""
_AT_THE_END = 10.0
"""Seconds that an attempt which is done waits for its storage; of any other one the lease tells how far it came."""

_FIRST_SKIPPED = 10
"""Steps left out of which a record tells more than that."""


class AttemptLog:
    """This process as the writer of its run, from `take` to the end of the `with` block.

    Only rank 0 holds a lease and writes attempts; on the other ranks everything here does nothing.

    Args:
        goodput: Where the time of this process goes.

    Attributes:
        attempt: The number of this attempt, on all ranks; 0 before it is known.
    """

    def __init__(self, goodput: Goodput | None = None) -> None:
        self.goodput = goodput or Goodput()
        self._lease: Lease | None = None
        self._run: RunDir | None = None
        self._attempt: dict[str, Any] = {}
        self._trains = False
        self._is_newest = True
        self._committed: int | None = None
        self._commits: Commits | None = None
        self._skipped: dict[str, Any] = {}
        self.attempt = 0

    def take(self, run: RunDir, topology: "Topology", config: Mapping[str, Any] | None = None) -> None:
        """Take the lease and start the record of this attempt, for all ranks.

        Args:
            run: The run directory.
            topology: Which process this is.
            config: What was asked for, as fit.yaml has it.

        Raises:
            UserError: Another launch holds the lease, or the storage refuses.
            StorageAway: The storage does not answer.
        """

        def decide() -> int:
            self._run, self._lease = run, Lease.take(run, launch_id(), progress=self._progress)
            self._attempt = {
                "attempt": self._lease.attempt,
                "launch": launch_id(),
                "host": socket.gethostname(),
                "world_size": topology.world_size,
                "nodes": topology.nodes,
                "started": now(),
                **provenance(),
                **dict.fromkeys(
                    ("ended", "status", "reason", "first_step", "resumed_from", "last_step", "reached_step")
                ),
                **dict.fromkeys(("committed_step", "goodput")),
            }
            if self._lease.before is not None:
                _complete(run, self._lease.before)
            earlier, stored = _earlier(run, self._lease.attempt), run.steps()
            steps = stored["json"]
            self.goodput.known = _reached(earlier, steps)
            self._commits = Commits.before(run, steps, earlier[max(earlier)] if earlier else None)
            self._attempt |= {
                "earlier": EarlierAttempts.of(earlier).as_dict(),
                **({} if config is None else {"config": flatten(config)}),
                "stored": _checkpoints(stored),
                **self._known_commits(),
            }
            self._write()
            return self._lease.attempt

        self.attempt = topology.agree("attempt", decide)
        end_facts.note(run_dir=run.url, attempt=self.attempt)

    def begin(self, step: int | None, source: str | None = None) -> None:
        """Record that the attempt trains.

        Args:
            step: From which one; None: it is not known.
            source: One of `goodput_report.SOURCES`; None where it does not resume.
        """
        self._attempt |= {"first_step": step, "resumed_from": source}
        self._trains = True
        self._write()

    def committed(self, step: int, epoch: int | None = None, monitor: Mapping[str, Any] | None = None) -> None:
        """Record what this attempt has committed: its first commit at once, later ones as the lease is renewed.

        Args:
            step: That is durable now, or whose monitored value is known now.
            epoch: The epoch that training resumes in from there.
            monitor: Its `name`, `value` and `mode`; None without a monitored value.
        """
        if self._commits is not None:
            self._commits = self._commits.and_one(step, epoch, monitor)
        first, self._committed = self._committed is None, step
        end_facts.note(step=step)
        if first:
            self._attempt |= {"committed_step": step, **self._known_commits()}
            self._write()

    def skipped(self, step: int, losses: list[dict[str, Any]]) -> None:
        """Record a step that was left out, as the lease is renewed: how many there were, and the first ones.

        Args:
            step: That changed no weights.
            losses: Those that are not finite, with their ranks and samples.
        """
        known = self._skipped.get("first", [])
        first = [*known, {"step": step, "losses": losses}] if len(known) < _FIRST_SKIPPED else known
        self._skipped = {"count": self._skipped.get("count", 0) + 1, "first": first}

    def held(self) -> None:
        """Verify, right before a commit, that this process may still commit.

        Raises:
            LeaseLost: It may not.
        """
        if self._lease is not None:
            self._lease.held()

    def leave(self) -> None:
        """Record, from another thread, that this process was preempted while its main thread was blocked in a start."""
        self.__exit__(Preempted, Preempted("preempted before the first step: nothing to save"), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Record how the attempt ended, and let the next writer start."""
        if self._lease is None:
            return
        try:
            with patience(Patience(_AT_THE_END) if error is None else None):
                self._end(error)
        except Exception as failure:  # noqa: BLE001 - it must not hide why the attempt ended
            log.warning("attempt %d: its end could not be recorded: %s", self._lease.attempt, storage_error(failure))
        finally:
            self._lease.release()

    def _end(self, error: BaseException | None) -> None:
        assert self._lease is not None
        assert self._run is not None
        result = outcome(error)
        last, stored = None, self._attempt["stored"]
        try:
            self._lease.held()
            found = self._run.steps()
            last, stored = max(found["json"], default=None), _checkpoints(found)
        except LeaseLost:
            self._is_newest = False  # the newest step is another writer's
        reason = "nothing to do" if error is None and not self._trains else result.reason
        ended = {"ended": now(), "status": result.status, "reason": reason, "last_step": last}
        end_facts.note(step=last)
        self._attempt |= ended | self._progress() | {"stored": stored}
        self._write()
        if self._attempt["first_step"] is not None:
            for line in GoodputReport.of(self._run).summary(str(self._run)):
                log.info("%s", line, extra={"ends": True})

    def _progress(self) -> dict[str, Any]:
        """Return how far this attempt has come, and where its time went."""
        reached = max(self.goodput.step, self.goodput.known)
        known = {"reached_step": reached, "committed_step": self._committed, "goodput": self.goodput.as_dict()}
        skipped = {"skipped_steps": self._skipped} if self._skipped else {}
        return {**known, **skipped, **self._known_commits()}

    def _known_commits(self) -> dict[str, Any]:
        return {} if self._commits is None else {"commits": self._commits.as_dict()}

    def _write(self) -> None:
        if self._lease is None or self._run is None:
            return
        names = [*([NEWEST] if self._is_newest else []), RunDir.attempt(self._lease.attempt)]
        # Killed in between, a run may look as if it continued, and its lease tells; never as if it had ended.
        for name in names if self._attempt["ended"] is None else reversed(names):
            self._run.write_json(name, self._attempt)
        lineage.of_attempt(self._run, self._attempt)


def _checkpoints(steps: Mapping[str, Mapping[int, int]]) -> dict[str, int]:
    """Return how many checkpoints are committed, and their bytes."""
    whole = steps["json"].keys() & steps["ckpt"].keys()
    return {"checkpoints": len(whole), "bytes": sum(steps["ckpt"][step] for step in whole)}


def finished_at(run: RunDir) -> int | None:
    """Return the step at which the last attempt that trained finished; None if it did not, or there was none."""
    for number in sorted(run.attempts(), reverse=True):
        attempt = run.read_json(RunDir.attempt(number)) or {}
        finished, step = attempt.get("reason") == _FINISHED, attempt.get("last_step")
        if finished or attempt.get("first_step") is not None:
            return step if finished and isinstance(step, int) else None
    return None


def reported_commits(run: RunDir) -> dict[int, int]:
    """Return the steps that attempts report as committed, each with the number of the latest attempt that does.

    Retention may have deleted all of them but the greatest.
    """
    numbers = {RunDir.attempt(number): number for number in sorted(run.attempts())}
    records = run.read_jsons(numbers) if numbers else {}
    steps = [(step, number) for at, number in numbers.items() for step in _committed_steps(records[at] or {})]
    return {step: number for step, number in steps if isinstance(step, int) and step > 0}


def _committed_steps(record: Mapping[str, Any]) -> list[Any]:
    """Return what a record says of committed steps; a state in memory, from which an attempt began, was none."""
    began = [] if record.get("resumed_from") == MEMORY else [record.get("first_step")]
    return [*began, record.get("committed_step"), record.get("last_step")]


def _earlier(run: RunDir, attempt: int) -> dict[int, dict[str, Any]]:
    """Return the records of the attempts before one by their numbers; a damaged one is empty.

    All of them are read: one that was killed before its first renewal knew nothing of those before it.
    """
    numbers = {RunDir.attempt(number): number for number in run.attempts() if number < attempt}
    records = run.read_jsons(numbers) if numbers else {}
    return {number: records[name] or {} for name, number in numbers.items()}


def _reached(earlier: Mapping[int, Mapping[str, Any]], committed: Iterable[int]) -> int:
    """Return the newest step that any earlier attempt had done, committed or not, as far as that is known."""
    steps = [record.get(name) for record in earlier.values() for name in ("reached_step", "last_step")]
    return max([step for step in steps if isinstance(step, int)] + [*committed], default=0)


def _complete(run: RunDir, lease: Mapping[str, Any]) -> None:
    """Complete the record of an attempt that was killed with the last content of its lease."""
    number = lease.get("attempt")
    if not isinstance(number, int) or number not in run.attempts():
        return
    found = run.read_json(RunDir.attempt(number))
    if found is None or found.get("ended") is not None:
        return
    renewed = str(lease.get("renewed"))
    # No other process has committed since: this one is the next writer.
    last = max(run.steps()["json"], default=None)
    ended = {"ended": renewed, "reason": f"vanished: last heard of at {renewed}", "last_step": last}
    names = ("reached_step", "committed_step", "goodput", "commits", "skipped_steps")
    known = {name: lease[name] for name in names if lease.get(name) is not None}
    run.write_json(RunDir.attempt(number), {**found, **ended, **known})
