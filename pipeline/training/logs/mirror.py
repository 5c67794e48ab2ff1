"""A local folder that is mirrored to any storage, for what can be written to a local disk only.

A file is sent once it has changed, whole: object stores cannot append. One that keeps growing is sent again only after
it has grown by a quarter, so that all copies together are a few times its size however long a run takes.
"""

import logging
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.profilers import PyTorchProfiler

from pipeline.process.patience import Patience, patience
from pipeline.run import storage
from pipeline.run.retry import patiently
from pipeline.run.storage_errors import storage_error

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_COPIES = 30.0
_SMALL = 1 << 20
"""Bytes below which a file is sent whenever it has changed."""
_GROWTH = 1.25
_LIMIT, _LIMIT_AFTER_ERROR = 120.0, 10.0
"""Seconds for the last copy. After an error, a preemption for one, the process has little time left."""


class Mirror:
    """Sends what changes in a local folder to a storage, behind training.

    What cannot be sent is a warning, never an error: what is mirrored are logs.

    Args:
        fs: The fsspec filesystem of the storage.
        path: The folder in it.
        label: What to call that folder in a message.
        folder: The local folder, None: a new temporary one. It is removed with this object.
    """

    def __init__(self, fs: Any, path: str, label: str, folder: str | None = None) -> None:
        self._fs, self._path, self._label = fs, path, label
        self.folder = folder or tempfile.mkdtemp(prefix="pipeline-logs-")
        os.makedirs(self.folder, exist_ok=True)
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._sent: dict[Path, tuple[int, int]] = {}
        self._began = self._last = time.monotonic()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._again = False

    @property
    def is_due(self) -> bool:
        """Whether the last copy is old: by 30 s, and after some hours by up to five minutes."""
        now = time.monotonic()
        interval = storage.seconds_between_copies(now - self._began, _SECONDS_BETWEEN_COPIES)
        return now - self._last >= interval and (self._thread is None or not self._thread.is_alive())

    def start(self, final: bool = False) -> threading.Thread:
        """Send what has changed, in a thread: a storage that is away may take minutes to say so.

        Args:
            final: Also send files that have grown by little.
        """
        self._last = time.monotonic()
        thread = threading.Thread(target=self._send, args=(final,), name="mirror", daemon=True)
        thread.start()
        self._thread = thread  # only now: a saver may wait for it at any moment
        return thread

    def request(self) -> None:
        """Have what has changed until now sent: by the copy that is under way, or by another one."""
        if self._thread is not None and self._thread.is_alive():
            self._again, self._last = True, time.monotonic()
        else:
            self.start()

    def recover(self) -> None:
        """Send what an attempt that was killed on this machine has left in the folder."""
        if any(Path(self.folder).iterdir()):
            self.start(final=True).join(_LIMIT_AFTER_ERROR)

    def wait(self, limit: float) -> None:
        """Wait for the copy that is under way, but no longer than until `limit` seconds after it was asked for."""
        if self._thread is not None:
            self._thread.join(max(0.0, self._last + limit - time.monotonic()))

    def finish(self, limit: float) -> None:
        """Send what is left, and wait for it, but no longer than `limit` seconds."""
        thread = self.start(final=True)
        thread.join(limit)
        if thread.is_alive():
            log.warning("not all logs were copied to %s: the storage did not take them within %g s", self._label, limit)

    def _send(self, final: bool) -> None:
        # Nothing sends later what the last copy could not: `finish` bounds how long it waits.
        with self._lock, patience(Patience(_LIMIT) if final else None):  # a copy that is still under way goes first
            self._again = True
            while self._again:
                self._again = False
                self._send_all(final)

    def _send_all(self, final: bool) -> None:
        for path in sorted(Path(self.folder).rglob("*")):
            name = str(path.relative_to(self.folder)).replace(os.sep, "/")
            try:
                if path.is_file():
                    self._send_file(path, name, final)
            except Exception as error:  # noqa: BLE001 - every storage has errors of its own
                if not path.exists():
                    continue  # removed in the meantime
                log.warning("logs were not copied to %s/%s: %s", self._label, name, storage_error(error))

    def _send_file(self, path: Path, name: str, final: bool) -> None:
        stat = path.stat()
        state, (size, _) = (stat.st_size, stat.st_mtime_ns), self._sent.get(path, (0, 0))
        if self._sent.get(path) == state:
            return
        if final or state[0] <= _SMALL or not _SMALL < size <= state[0] < _GROWTH * size:
            data = path.read_bytes()
            patiently(f"{self._label}/{name}", lambda: storage.write(self._fs, f"{self._path}/{name}", data))
            self._sent[path] = state


@contextmanager
def mirrored(trainer: pl.Trainer) -> Iterator[None]:
    """Have all that loggers and profiler wrote to mirrored folders sent when the trainer has ended, in whatever way."""
    found = [getattr(each, "mirror", None) for each in trainer.loggers]
    mirrors = [each for each in found if isinstance(each, Mirror)]
    profiler: Any = getattr(trainer, "profiler", None)
    if isinstance(profiler, PyTorchProfiler):
        url = str(profiler.dirpath or trainer.log_dir or "")
        fs, path = storage.open_filesystem(url, f"trainer.profiler.dirpath={url!r}")
        if not storage.is_local(fs):  # torch writes its traces to local disks only
            mirrors.append(Mirror(fs, path, url))
            profiler.dirpath = mirrors[-1].folder
    done = False
    try:
        yield
        done = True
    finally:
        if done:
            trainer.strategy.barrier("logs")  # one process of a node sends what all of them wrote
        for each in mirrors:
            each.finish(_LIMIT if done else _LIMIT_AFTER_ERROR)
