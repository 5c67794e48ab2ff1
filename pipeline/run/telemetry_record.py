"""The telemetry of a run on its storage: JSON Lines in `logs/telemetry/`, compact and appended, one file an attempt.

An object store cannot append: there, an attempt has several parts, which begin with the same header. The last line of a
killed attempt may be torn, and a later attempt begins at an earlier step than the one before it had reached.
"""

import json
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.run import storage
from pipeline.run.run_dir import LOGS, SCHEMA, RunDir

TELEMETRY = f"{LOGS}/telemetry"
_NAME = re.compile(r"(\d{4,})-(\d{4,})\.jsonl")
_BETWEEN_PARTS = 30.0
"""Seconds between the first parts of an attempt."""


class AttemptTelemetry(NamedTuple):
    """The telemetry of one attempt: what its header says, and its windows in order."""

    attempt: int
    header: dict[str, Any]
    windows: list[dict[str, Any]]


class TelemetryWriter:
    """Writes the windows of one attempt, behind training.

    Args:
        run: The run directory.
        attempt: Its number.
        header: What holds for all windows.
    """

    def __init__(self, run: RunDir, attempt: int, header: Mapping[str, Any]) -> None:
        self._run, self._attempt = run, attempt
        self._header = _line({"schema": SCHEMA, "attempt": attempt, **header})
        self._lines: list[bytes] = []
        self._part = 1
        self._began = self._last = time.monotonic()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.problem: Exception | None = None
        """Why the last write failed, None if it did not: its windows are written with the next ones."""

    def add(self, window: Mapping[str, Any]) -> None:
        """Write one more window, or keep it for the next part."""
        self._lines.append(_line(window))
        now = time.monotonic()
        between = 0.0 if self._run.is_local else storage.seconds_between_copies(now - self._began, _BETWEEN_PARTS)
        if now - self._last >= between and not (self._thread is not None and self._thread.is_alive()):
            self._start()

    def finish(self, seconds: float) -> None:
        """Write what is left, and wait for it, but no longer than so many seconds."""
        thread = self._start()
        thread.join(seconds)

    def _start(self) -> threading.Thread:
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._write, name="telemetry", daemon=True)
        self._thread.start()
        return self._thread

    def _write(self) -> None:
        with self._lock:
            lines = list(self._lines)
            if not lines:
                return
            try:
                self._store(b"".join(lines))
            except Exception as error:  # noqa: BLE001 - every storage has errors of its own, and this is a log
                self.problem = error
                return
            del self._lines[: len(lines)]
            self.problem = None

    def _store(self, lines: bytes) -> None:
        name = f"{TELEMETRY}/{self._attempt:04d}-{self._part:04d}.jsonl"
        if not self._run.is_local:
            self._run.write(name, self._header + lines)
            self._part += 1
            return
        path = Path(self._run.path, name)
        storage.make_folder(path.parent)
        with path.open("ab") as file:
            file.write(lines if file.tell() else self._header + lines)


def read_telemetry(run: RunDir) -> list[AttemptTelemetry]:
    """Return the telemetry of all attempts at a run, in order; what cannot be parsed is left out.

    Raises:
        Exception: The storage does not answer.
    """
    names = (match for match in map(_NAME.fullmatch, run.names(TELEMETRY)) if match)
    parts = sorted((int(match[1]), int(match[2]), f"{TELEMETRY}/{match[0]}") for match in names)
    files = run.read_all(name for *_, name in parts)
    found: dict[int, AttemptTelemetry] = {}
    for attempt, _, name in parts:
        known = found.setdefault(attempt, AttemptTelemetry(attempt, {}, []))
        for value in map(_parsed, (files[name] or b"").splitlines()):
            if "schema" in value:
                known.header.update(value)
            elif all(_is_number(value.get(name)) for name in ("step", "time")):
                known.windows.append(value)
    return [found[attempt] for attempt in sorted(found)]


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any]:
    """Return one line; nothing for a line that is torn or none of ours."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
