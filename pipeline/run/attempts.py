"""What became of each attempt at a run: `attempts/<nnnn>.json`, written by the run's one writer, one for each start.

An attempt that is killed cannot say how it ended. Its lease, which is renewed anyway, says how far it had come, and the
next writer, which finds that lease, completes the record.
"""

import logging
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from pipeline.errors import (
    CRASH,
    DONE,
    INTERRUPTED,
    USER_MUST_CHANGE,
    LeaseLost,
    NothingToDo,
    Preempted,
    ProofFailed,
    UserError,
)
from pipeline.process.topology import Topology
from pipeline.run.goodput import Goodput
from pipeline.run.goodput_report import History
from pipeline.run.lease import Lease, launch_id
from pipeline.run.run_dir import RunDir, now
from pipeline.run.storage_errors import storage_error

log = logging.getLogger(__name__)

_WELL = "done"
"""The reason of an attempt that trained to its end."""


class Writer:
    """This process as the writer of its run, from `take` to the end of the `with` block.

    Only rank 0 holds a lease and writes attempts; on the other ranks everything here does nothing.

    Args:
        goodput: Where the time of this process goes.
    """

    def __init__(self, goodput: Goodput | None = None) -> None:
        self.goodput = goodput or Goodput()
        self._lease: Lease | None = None
        self._run: RunDir | None = None
        self._attempt: dict[str, Any] = {}

    def take(self, run: RunDir, topology: Topology) -> None:
        """Become the writer, for all ranks.

        Raises:
            UserError: Another launch is.
        """

        def decide() -> int:
            self._run, self._lease = run, Lease.take(run, launch_id(), progress=self._progress)
            if self._lease.before is not None:
                _complete(run, self._lease.before)
            self.goodput.known = _reached(run, self._lease.attempt)
            self._attempt = {
                "attempt": self._lease.attempt,
                "launch": launch_id(),
                "host": socket.gethostname(),
                "world_size": topology.world_size,
                "started": now(),
                **dict.fromkeys(("ended", "status", "reason", "first_step", "last_step", "reached_step", "goodput")),
            }
            self._write()
            return self._lease.attempt

        topology.agree("attempt", decide)

    def begin(self, step: int | None) -> None:
        """Write down that the attempt trains, from a step that may be unknown."""
        self._attempt["first_step"] = step
        self._write()

    def held(self) -> None:
        """To be called right before each commit.

        Raises:
            LeaseLost: Do not commit.
        """
        if self._lease is not None:
            self._lease.held()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write down how the attempt ended, and let the next writer begin."""
        if self._lease is None:
            return
        try:
            self._end(error)
        except Exception as trouble:  # noqa: BLE001 - it must not hide why the attempt ended
            log.warning("the end of attempt %d is not written: %s", self._lease.attempt, storage_error(trouble))
        finally:
            self._lease.release()

    def _end(self, error: BaseException | None) -> None:
        assert self._lease is not None
        assert self._run is not None
        status, reason = _ending(error)
        last = None
        try:
            self._lease.held()
            last = max(self._run.steps()["json"], default=None)
        except LeaseLost:
            pass  # the newest step is another writer's
        ended = {"ended": now(), "status": status, "reason": reason, "last_step": last}
        self._attempt |= ended | self._progress()
        self._write()
        if self._attempt["first_step"] is not None:
            for line in History.of(self._run).after(self._lease.attempt):
                log.info("%s", line)

    def _progress(self) -> dict[str, Any]:
        """How far this attempt has come, and where its time went."""
        reached = max(self.goodput.step, self.goodput.known)
        return {"reached_step": reached, "goodput": self.goodput.as_dict()}

    def _write(self) -> None:
        if self._lease is not None and self._run is not None:
            self._run.write_json(RunDir.attempt(self._lease.attempt), self._attempt)


def ended_well_at(run: RunDir) -> int | None:
    """The step at which the last attempt that trained came to its end; None if it did not, or there was none."""
    for number in sorted(run.attempts(), reverse=True):
        attempt = run.read_json(RunDir.attempt(number)) or {}
        well, step = attempt.get("reason") == _WELL, attempt.get("last_step")
        if well or attempt.get("first_step") is not None:
            return step if well and isinstance(step, int) else None
    return None


def _ending(error: BaseException | None) -> tuple[int, str]:
    """The exit status that follows from an error, and the reason in words."""
    if error is None:
        return DONE, _WELL
    if isinstance(error, NothingToDo):
        return error.status, "nothing to do"
    if isinstance(error, UserError):
        return USER_MUST_CHANGE, f"user must change: {error}"
    if isinstance(error, ProofFailed):
        return CRASH, f"proof failed: {error}"
    if isinstance(error, LeaseLost):
        return CRASH, f"lease lost: {error}"
    if isinstance(error, Preempted):
        return error.status, str(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted by a person"
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else CRASH, "interrupted"
    return CRASH, f"crash: {storage_error(error)}"


def _reached(run: RunDir, attempt: int) -> int:
    """The newest step that any attempt before had done, committed or not, as far as that is known.

    All of them are asked: one that was killed before its first renewal knew of none before it.
    """
    earlier = [RunDir.attempt(number) for number in run.attempts() if number < attempt]
    records = [record or {} for record in run.read_jsons(earlier).values()] if earlier else []
    steps = [record.get(name) for record in records for name in ("reached_step", "last_step")]
    return max([step for step in steps if isinstance(step, int)] + [*run.steps()["json"]], default=0)


def _complete(run: RunDir, lease: Mapping[str, Any]) -> None:
    """Write down of an attempt that has vanished what its lease said last."""
    number = lease.get("attempt")
    if not isinstance(number, int) or number not in run.attempts():
        return
    found = run.read_json(RunDir.attempt(number))
    if found is None or found.get("ended") is not None:
        return
    heard = str(lease.get("renewed"))
    # Nobody else has committed since: this process is the next writer.
    last = max(run.steps()["json"], default=None)
    ended = {"ended": heard, "reason": f"vanished: last heard of at {heard}", "last_step": last}
    known = {name: lease[name] for name in ("reached_step", "goodput") if name in lease}
    run.write_json(RunDir.attempt(number), {**found, **ended, **known})
