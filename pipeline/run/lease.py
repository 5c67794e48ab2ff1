"""One writer per run: `lease.json` names it and how far it has come (`pipeline.run.attempts` keeps the earlier ones).

A launch holds the lease. Another attempt of the same launch takes it over at once; any other launch takes it over if
the holder's process is known to be dead or has not renewed it in time, waits for that where the holder may be gone, and
is refused where it is alive. A writer that has lost
its lease finds out before its next commit, however long it was stopped: `held` asks the storage, not a clock, and only
ever replaces what this process wrote.

- The launch is TorchX's handle of the app (on Slurm and Kubernetes the job's, which a restart of the job keeps), else
  torchrun's `--rdzv-id`, else this process.
- Only a process of the same host, boot and process namespace is taken for dead, so that two containers of one name
  never judge each other; without these (outside Linux) a leftover lease expires.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import LeaseLost, UserError
from pipeline.process.patience import JITTER
from pipeline.run import retry
from pipeline.run.lease_storage import EXPIRES, LeaseFile, LeaseObject, StoredLease
from pipeline.run.retry import patiently
from pipeline.run.run_dir import LEASE, SCHEMA, RunDir, now
from pipeline.run.storage_errors import raise_for_user, storage_error

log = logging.getLogger(__name__)

_TRIES = 50
_BETWEEN_LOOKS = 1.0
"""Seconds between two looks at a lease whose holder may be gone."""


class _Holder(Enum):
    """What is known of the process that holds a lease; only one of this host, boot and process namespace is seen."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


class Lease:
    """The right to write to a run. Made by `take`; renews itself until `release`.

    Attributes:
        attempt: Its number, counted up over all writers of the run.
        before: The last content of the previous writer's lease, if it left one behind.
    """

    def __init__(self, run: RunDir, launch: str, seconds: float, progress: Callable[[], dict[str, Any]] = dict) -> None:
        self.attempt = 0
        self.before: dict[str, Any] | None = None
        self._progress = progress
        self._run = run
        self._label = f"run_dir={run.label!r}"
        self._launch = launch
        self._seconds = seconds
        self._token = uuid.uuid4().hex
        self._renewals = 0
        self._length = 0
        self._storage = LeaseFile(run) if run.is_local else LeaseObject(run)
        self._lost: str | None = None
        self._away = False
        self._renewed = time.monotonic()
        self._mutex = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew_in_time, name="lease", daemon=True)

    @staticmethod
    def take(
        run: RunDir, launch: str, seconds: float = EXPIRES, progress: Callable[[], dict[str, Any]] = dict
    ) -> "Lease":
        """Become the writer of a run.

        Args:
            run: The run directory.
            launch: The launch of this process, see `launch_id`.
            seconds: The lease expires when it has not been renewed for so long.
            progress: Returns how far the writer has come, in JSON's types; each renewal stores it, for the next
                writer to read if this one is killed.

        Raises:
            UserError: Another launch is, or the storage refuses.
            StorageAway: The storage does not answer.
        """
        lease = Lease(run, launch, seconds, progress)
        try:
            lease._take()
        except Exception as error:  # noqa: BLE001 - every storage has errors of its own
            raise_for_user(
                error,
                f"run_dir={run.label!r}: {LEASE} cannot be written",
                "Fix the permissions or credentials of this user there",
            )
        lease._thread.start()
        return lease

    def held(self) -> None:
        """Verify, right before a commit, that this is still the writer, and will be for a while. Safe in any thread.

        While the storage is away no other process can have become the writer before the lease expires. After that
        nothing is known until the storage is back: its own error passes through, and a retry asks again.

        Raises:
            LeaseLost: It is not.
        """
        with self._mutex:
            try:
                self._renew()
            except LeaseLost:
                raise
            except Exception:
                if time.monotonic() - self._renewed >= self._seconds:
                    raise

    def release(self) -> None:
        """Let the next writer start at once; where the storage fails, the lease expires."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=10)
        if not self._mutex.acquire(timeout=0.1):
            return
        try:
            # No other process takes over a fresh lease.
            self._renew()
            self._storage.remove(self._token)
        except LeaseLost:
            pass
        except Exception as error:  # noqa: BLE001 - every storage has errors of its own
            log.warning("the lease of %s expires in %.0f s: %s", self._run, self._seconds, storage_error(error))
        finally:
            self._lost = f"the lease of {self._run} has been released"
            self._storage.close()
            self._mutex.release()

    def _take(self) -> None:
        for _ in range(_TRIES):
            seen = patiently(self._label, self._storage.look)
            # A client repeats a request whose answer was lost, and is refused because it succeeded.
            if seen is not None and seen.value.get("token") == self._token:
                return
            if seen is not None and not self._free(seen):
                seen = self._outlast(seen)
            self.attempt = 1 + max([*self._run.attempts(), 0 if seen is None else seen.attempt], default=0)
            self._renewed = time.monotonic()
            if patiently(self._label, partial(self._storage.put, self._text(), seen)):
                self.before = None if seen is None else seen.value
                if seen is not None:
                    log.info("attempt %d takes over from %s", self.attempt, seen)
                return
            time.sleep(JITTER.uniform(0.01, 0.05))  # to separate those that start at once
        raise UserError(f"run_dir={self._run.label!r}: too many launches start at once, and none of them holds {LEASE}")

    def _outlast(self, seen: StoredLease) -> StoredLease | None:
        """Wait until a lease expires whose holder may be gone; return what is in its place then.

        Raises:
            UserError: Its holder is alive: a process of this host, or it renews the lease meanwhile.
        """
        began, first = time.monotonic(), seen
        refusal = (
            f"run_dir={self._run.label!r} has a writer already, {first}: stop it, wait until it has not been renewed "
            f"for {first.seconds:.0f} s, or give another --run_dir"
        )
        if _state(seen.value) is _Holder.ALIVE:
            raise UserError(refusal)
        log.warning(
            "%s: waiting up to %.0f s for the lease of %s, which may be gone",
            self._label,
            max(0.0, seen.seconds - seen.age),
            seen,
        )
        # Where its age is not known it is old when it has not changed for as long as it lasts.
        while not self._free(seen) and time.monotonic() - began < seen.seconds:
            retry.pause(_BETWEEN_LOOKS)
            now = patiently(self._label, self._storage.look)
            if now is None:
                return None
            if now.version != first.version:
                if now.value.get("token") == first.value.get("token") or not self._free(now):
                    raise UserError(refusal)
                return now
            seen = now
        return seen

    def _free(self, seen: StoredLease) -> bool:
        ours = seen.value.get("launch") == self._launch
        return ours or seen.age >= seen.seconds or _state(seen.value) is _Holder.DEAD

    def _text(self) -> bytes:
        value = {
            "schema": SCHEMA,
            "attempt": self.attempt,
            "launch": self._launch,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process": _process(os.getpid()),
            "token": self._token,
            "seconds": self._seconds,
            "renewed": now(),
            "renewals": self._renewals,
            **self._progress(),
        }
        text = json.dumps(value, indent=2)
        # On a disk a renewal overwrites the last one: a shorter one would leave the tail of that, and be no JSON.
        self._length = max(self._length, len(text))
        return text.ljust(self._length).encode() + b"\n"

    def _renew(self) -> None:
        """Renew, with the mutex held; errors of the storage pass through."""
        if self._lost is None:
            started = time.monotonic()
            self._renewals += 1
            if self._storage.renew(self._text(), self._token):
                self._renewed = started
                return
            seen = self._storage.look()
            by = "is gone" if seen is None else f"was taken over by {seen}"
            self._lost = (
                f"the lease of {self._run} {by}: attempt {self.attempt} did not renew it in time, is no longer the "
                "writer and stops before its next commit"
            )
        raise LeaseLost(self._lost)

    def _renew_in_time(self) -> None:
        while not self._over.wait(self._seconds / 3):
            try:
                with self._mutex:
                    self._renew()
                self._away = False
            except LeaseLost as error:
                log.warning("%s", error)
                return
            except Exception as error:  # noqa: BLE001 - training continues without storage; `held` decides
                if not self._away:
                    log.warning("the lease of %s cannot be renewed now: %s", self._run, storage_error(error))
                self._away = True


def launch_id(environment: Mapping[str, str] = os.environ) -> str:
    """Return what stays the same when a launcher restarts its job, and differs for every other launch."""
    rendezvous = environment.get("TORCHELASTIC_RUN_ID", "none")
    if rendezvous == "none":  # torchrun's default, the same for every job
        rendezvous = f"{socket.gethostname()}:{os.getpid()}"
    return environment.get("TORCHX_JOB_ID") or rendezvous


def is_live(seen: StoredLease) -> bool:
    """Return whether a run has a writer now: one that renews its lease in time, and is not known to be dead."""
    return seen.age < seen.seconds and _state(seen.value) is not _Holder.DEAD


def _process(pid: int) -> dict[str, Any] | None:
    """Return what identifies a process among all that ever ran; None where the system does not say, or it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
    # A zombie has ended; its parent has not waited for it yet.
    return None if state in "ZX" else {"boot": boot, "space": space, "started": fields[18]}


def _state(value: dict[str, Any]) -> _Holder:
    """Return what is known from here of the process that holds a lease."""
    here, there, pid = _process(os.getpid()), value.get("process"), value.get("pid")
    if here is None or not isinstance(there, dict) or not isinstance(pid, int):
        return _Holder.UNKNOWN
    if value.get("host") != socket.gethostname() or any(there.get(key) != here[key] for key in ("boot", "space")):
        return _Holder.UNKNOWN
    return _Holder.ALIVE if _process(pid) == there else _Holder.DEAD
