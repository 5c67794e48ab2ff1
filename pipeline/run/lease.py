"""One writer per run: `lease.json` says who it is, and how far it has come (`pipeline.run.attempts`: who it was).

A lease is held by a launch. Another attempt of the same launch takes it over at once; so does anybody where its process
is known to be dead, or where it has not been renewed in time. Everybody else is refused. Who has lost it finds out
before the next commit, also after a stop of any length: `held` does not ask a clock but the storage, and only ever
replaces what it wrote itself.

- The launch is TorchX's handle of the app (on Slurm and Kubernetes the job's, and so the same when the job is started
  anew), else torchrun's `--rdzv-id`, else this process.
- "Dead" is said only of a process of the same host, boot and process namespace, so that two containers of one name
  never judge each other; without these (outside Linux) a leftover expires.
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
from pathlib import Path
from typing import Any

from pipeline.errors import LeaseLost, UserError
from pipeline.run.lease_storage import EXPIRES, Disk, Objects, Seen
from pipeline.run.run_dir import LEASE, SCHEMA, RunDir, now, storage_error

log = logging.getLogger(__name__)

_TRIES = 50


class Lease:
    """The right to write to a run. Made by `take`; renews itself until `release`.

    Attributes:
        attempt: Its number, counted up over all writers that the run has had.
        before: What the lease of the writer before said last, where that was left behind.
    """

    def __init__(self, run: RunDir, launch: str, seconds: float, progress: Callable[[], dict[str, Any]] = dict) -> None:
        self.attempt = 0
        self.before: dict[str, Any] | None = None
        self._progress = progress
        self._run = run
        self._launch = launch
        self._seconds = seconds
        self._token = uuid.uuid4().hex
        self._renewals = 0
        self._length = 0
        self._storage = Disk(run) if run.is_local else Objects(run)
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
            launch: Who asks, see `launch_id`.
            seconds: The lease expires when it has not been renewed for so long.
            progress: How far the writer has come, in JSON's types: what is known of it if it never comes to its end.

        Raises:
            UserError: Another launch is, or the storage refuses.
        """
        lease = Lease(run, launch, seconds, progress)
        try:
            lease._take()
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"run_dir={run.label!r}: {LEASE} cannot be written: {storage_error(error)}. Mend the permissions or "
                "credentials of this user there"
            ) from error
        lease._thread.start()
        return lease

    def held(self) -> None:
        """Make sure, right before a commit, that this is still the writer, and will be for a while. Any thread may ask.

        While the storage is away nobody else can have become the writer before the lease expires. After that nothing is
        known until the storage is back: its own error passes, and whoever tries again may ask again.

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
        """Let the next writer begin at once. Where that cannot be done, the lease expires."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=10)
        if not self._mutex.acquire(timeout=0.1):
            return
        try:
            # Nobody takes a lease that is fresh.
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
            seen = self._storage.look()
            # A storage's client repeats a request whose answer was lost, and is refused by its own success.
            if seen is not None and seen.value.get("token") == self._token:
                self._storage.adopt(seen)
                return
            if seen is not None and not self._free(seen):
                raise UserError(
                    f"run_dir={self._run.label!r} has a writer already, {seen}: stop it, wait until it has not been "
                    f"renewed for {seen.seconds:.0f} s, or give another --run_dir"
                )
            self.attempt = 1 + max([*self._run.attempts(), int(seen.value.get("attempt", 0)) if seen else 0], default=0)
            self._renewed = time.monotonic()
            if self._storage.put(self._text(), seen):
                self.before = None if seen is None else seen.value
                if seen is not None:
                    log.info("attempt %d takes over from %s", self.attempt, seen)
                return
            time.sleep(random.uniform(0.01, 0.05))  # noqa: S311 - only to part those who start at once
        raise UserError(f"run_dir={self._run.label!r}: too many start at once, and none of them holds {LEASE}")

    def _free(self, seen: Seen) -> bool:
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
        # On a disk a renewal is written over the last one: a shorter one would leave the end of that, and be no JSON.
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
            except Exception as error:  # noqa: BLE001 - training goes on without storage; `held` decides
                if not self._away:
                    log.warning("the lease of %s cannot be renewed now: %s", self._run, storage_error(error))
                self._away = True


def launch_id(environment: Mapping[str, str] = os.environ) -> str:
    """What stays the same when a launcher starts its job again, and differs for every other launch."""
    rendezvous = environment.get("TORCHELASTIC_RUN_ID", "none")
    if rendezvous == "none":  # torchrun's default, the same for everybody
        rendezvous = f"{socket.gethostname()}:{os.getpid()}"
    return environment.get("TORCHX_JOB_ID") or rendezvous


def _process(pid: int) -> dict[str, Any] | None:
    """What tells a process from all others that ever were, or None where the system does not say or it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
    # A zombie has ended; its parent has not looked yet.
    return None if state in "ZX" else {"boot": boot, "space": space, "started": fields[18]}


def _dead(value: dict[str, Any]) -> bool:
    """Whether the holder is known to have ended: it was a process that would be seen from here."""
    here, there = _process(os.getpid()), value.get("process")
    if here is None or not isinstance(there, dict) or value.get("host") != socket.gethostname():
        return False
    return all(there.get(key) == here[key] for key in ("boot", "space")) and _process(int(value["pid"])) != there
