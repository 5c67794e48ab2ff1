"""One writer per run: `lease.json` names it and how far it has come (`pipeline.run.attempts` keeps the earlier ones).

A launch holds the lease. Another attempt of the same launch takes it over at once; any other launch takes it over if
the holder's process is known to be dead or has not renewed it in time, and is refused otherwise. A writer that has lost
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
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import LeaseLost, UserError
from pipeline.run.lease_storage import EXPIRES, LeaseFile, LeaseObject, StoredLease
from pipeline.run.retry import patiently
from pipeline.run.run_dir import LEASE, SCHEMA, RunDir, now
from pipeline.run.storage_errors import raise_for_user, storage_error

log = logging.getLogger(__name__)

_TRIES = 50


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
                raise UserError(
                    f"run_dir={self._run.label!r} has a writer already, {seen}: stop it, wait until it has not been "
                    f"renewed for {seen.seconds:.0f} s, or give another --run_dir"
                )
            self.attempt = 1 + max([*self._run.attempts(), int(seen.value.get("attempt", 0)) if seen else 0], default=0)
            self._renewed = time.monotonic()
            if patiently(self._label, partial(self._storage.put, self._text(), seen)):
                self.before = None if seen is None else seen.value
                if seen is not None:
                    log.info("attempt %d takes over from %s", self.attempt, seen)
                return
            time.sleep(random.uniform(0.01, 0.05))  # noqa: S311 - only to separate those that start at once
        raise UserError(f"run_dir={self._run.label!r}: too many launches start at once, and none of them holds {LEASE}")

    def _free(self, seen: StoredLease) -> bool:
        return seen.value.get("launch") == self._launch or seen.age >= seen.seconds or _dead(seen.value)

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


def _dead(value: dict[str, Any]) -> bool:
    """Return whether the holder is known to have ended: it was a process that would be visible from here."""
    here, there = _process(os.getpid()), value.get("process")
    if here is None or not isinstance(there, dict) or value.get("host") != socket.gethostname():
        return False
    return all(there.get(key) == here[key] for key in ("boot", "space")) and _process(int(value["pid"])) != there
