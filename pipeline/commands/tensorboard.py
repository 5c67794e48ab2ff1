"""`python -m pipeline tensorboard <url>`: TensorBoard over one run, or over all the runs of a folder or a bucket.

TensorBoard reads a local disk. The event files of another storage are copied to a temporary folder, in increments: a
file that has grown is read from where its copy ends. So endpoint, credentials, certificates and proxies are those that
every other command uses.
"""

import argparse
import logging
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import DONE, UserError
from pipeline.run import storage
from pipeline.run.retry import patiently
from pipeline.run.storage_errors import raise_for_user, storage_error

log = logging.getLogger(__name__)

_EVENTS = "tfevents"
"""In the name of each file that TensorBoard reads."""
_AT_ONCE = 8
_SECONDS_BETWEEN_COPIES = 5.0
_PATIENCE = 10
"""A listing that took long is repeated after so many times as long: a bucket may hold more than runs."""


class EventCopy:
    """A local copy of all event files below a folder of any storage.

    Args:
        fs: The fsspec filesystem of the storage.
        path: The folder in it.
        label: What to call that folder in a message.
        folder: The local folder.
    """

    def __init__(self, fs: Any, path: str, label: str, folder: Path) -> None:
        self._fs, self._path, self._label, self._folder = fs, path.rstrip("/"), label, folder
        self._away = False
        self._stopped = threading.Event()

    def refresh(self) -> int:
        """Copy what is new; return how many event files there are.

        Raises:
            Exception: The storage refuses, or does not answer.
        """
        found = self._fs.find(self._path, detail=True)
        files = {name: int(info["size"] or 0) for name, info in found.items() if _EVENTS in name.rpartition("/")[2]}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(self._copy, files, files.values()))
        return len(files)

    def keep_fresh(self) -> None:
        """Copy what is new again and again, until `stop`. A storage that is away is a warning, and tried again."""
        took = 0.0
        while not self._stopped.wait(max(_SECONDS_BETWEEN_COPIES, _PATIENCE * took)):
            began = time.monotonic()
            try:
                self.refresh()
                self._away = False
            except Exception as error:  # noqa: BLE001 - every storage has errors of its own
                if not self._away:
                    log.warning("%s cannot be read, trying again: %s", self._label, storage_error(error))
                self._away = True
            took = time.monotonic() - began

    def stop(self) -> None:
        """Have `keep_fresh` return."""
        self._stopped.set()

    def _copy(self, name: str, size: int) -> None:
        inside = PurePosixPath(name.removeprefix(self._path).lstrip("/"))
        if ".." in inside.parts:  # an object store takes any name
            return
        copy = self._folder / inside
        have = copy.stat().st_size if copy.exists() else 0
        if have < size:
            copy.parent.mkdir(parents=True, exist_ok=True)
            data = self._fs.cat_file(name, start=have, end=size)
            with copy.open("ab") as file:
                file.write(data)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("url", help="A run directory, or a folder or bucket of runs: a path or any fsspec URL.")
    parser.add_argument("--port", type=int, help="Of TensorBoard. Default: 6006, or the next one that is free.")
    parser.add_argument("--host", help="The address to listen on; 0.0.0.0 for all. Default: this machine's own.")


def run(arguments: argparse.Namespace) -> int:
    """Show what is there until Ctrl-C, or until TensorBoard ends.

    Raises:
        UserError: There is no such folder, or it cannot be read.
        StorageAway: The storage does not answer.
    """
    options = [
        *([] if arguments.port is None else [f"--port={arguments.port}"]),
        *([] if arguments.host is None else [f"--host={arguments.host}"]),
    ]
    fs, path = storage.open_filesystem(arguments.url, f"url={arguments.url!r}")
    if storage.is_local(fs):
        if not Path(path).is_dir():
            raise UserError(f"url={arguments.url!r} is no folder: give a run directory, or a folder of runs")
        return _show(Path(path), options)
    with tempfile.TemporaryDirectory(prefix="pipeline-tensorboard-", ignore_cleanup_errors=True) as folder:
        copy = EventCopy(fs, path, arguments.url, Path(folder))
        try:
            files = patiently(arguments.url, copy.refresh)
        except Exception as error:  # noqa: BLE001 - every storage has errors of its own
            raise_for_user(error, f"url={arguments.url!r} cannot be read", "Fix the name, or this user's credentials")
        if not files:
            log.info("no event files below %s yet: those that come are shown", arguments.url)
        threading.Thread(target=copy.keep_fresh, name="event-copy", daemon=True).start()
        try:
            return _show(Path(folder), options)
        finally:
            copy.stop()


def _show(folder: Path, options: list[str]) -> int:
    """Run TensorBoard on a local folder to its end."""
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={folder}", "--reload_interval=5", *options]
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # which must leave no process running
    process = subprocess.Popen(command)
    try:
        return process.wait()
    except KeyboardInterrupt:  # how one leaves it
        return DONE
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        signal.signal(signal.SIGTERM, before)
