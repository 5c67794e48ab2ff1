"""The logs of a run: whole lines, each once, across lost connections and the successive pods of a replica.

Kubernetes returns a log from a given second on; each line has a timestamp, by which lines already read are skipped.
"""

import heapq
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import NamedTuple

from torchx.specs import AppState, is_terminal
from urllib3.exceptions import HTTPError

from components.log_lines import whole_lines
from k8s.api_errors import ApiError
from k8s.cluster_api import ClusterAway
from k8s.fields import Object, name_of, phase_of
from k8s.pods import LABEL_ROLE
from k8s.run_ref import RunRef
from k8s.status import RunSnapshot, created, index_of, role_of, specs_of, state_of
from pipeline.errors import UserError

IDLE_TIMEOUT = 300.0
"""Seconds without a line after which a connection is reopened: it may be lost without an error."""
_MAX_POLL = 30.0
"""Seconds between two polls of a run in which nothing happens; a pod that changes is seen at once."""
_TRIES = 8
"""Connections lost in a row, without a line in between, after which a log is given up."""
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ?(.*)", re.DOTALL)


class LogLine(NamedTuple):
    """A line of a log.

    Attributes:
        at: Nanoseconds since 1970; that of the previous line for one without a timestamp.
        text: The line without its end.
    """

    at: int
    text: str


class LogWindow(NamedTuple):
    """Which lines are wanted.

    Attributes:
        since: Nanoseconds since 1970, the earliest.
        until: The latest; None for no end.
        follow: Whether to wait for lines to come.
    """

    since: int = 0
    until: int | None = None
    follow: bool = False

    def is_over(self, at: int) -> bool:
        """Return whether a time is past the end of the window."""
        return self.until is not None and at > self.until


class RunLogs:
    """The logs of one run.

    Args:
        run: The run.
        poll: Seconds until the next poll, at first.
    """

    def __init__(self, run: RunRef, poll: float = 1.0) -> None:
        self._run = run
        self._poll = poll

    def of_replica(self, role: str, index: int, window: LogWindow) -> Iterator[LogLine]:
        """Yield the lines of one replica: of all its pods that exist, and of those that come while it is followed.

        Raises:
            UserError: The run has no such replica, or its logs may not be read.
            ClusterAway: The cluster does not answer, or cuts a log off again and again.
        """
        read, pause = set[str](), self._poll
        while True:
            snapshot = self._run.snapshot()
            replicas = replicas_of(snapshot)
            if snapshot and not 0 <= index < replicas.get(role, 0):
                every = ", ".join(f"{name}/0 to {count - 1}" for name, count in replicas.items())
                raise UserError(f"{role}/{index}: this run has {every}")
            state = state_of(snapshot) if snapshot else AppState.UNKNOWN
            window = window._replace(follow=window.follow and not window.is_over(time.time_ns()))
            unread = [pod for pod in (snapshot.pods if snapshot else ()) if _is_unread(pod, role, index, read)]
            for pod in sorted(unread, key=created):
                read.add(pod["metadata"]["uid"])
                for line in self._of_pod(pod, window):
                    if window.is_over(line.at):
                        return
                    yield line
            if unread:
                pause = self._poll
            elif not window.follow or snapshot is None or is_terminal(state):
                return
            else:
                self._await_pod(role, index, read, pause)
                pause = min(2 * pause, _MAX_POLL)

    def of_role(self, role: str, window: LogWindow) -> Iterator[tuple[int, LogLine]]:
        """Yield the lines of all replicas of a role with the replica's number, by time, or as they come if followed."""
        count = replicas_of(self._run.snapshot()).get(role, 0)
        logs = [self._numbered(role, index, window) for index in range(count)]
        if not window.follow:
            yield from heapq.merge(*logs, key=lambda pair: pair[1].at)
            return
        queue = SimpleQueue[tuple[int, LogLine] | BaseException | None]()
        for log in logs:
            threading.Thread(target=_forward, args=(log, queue), daemon=True).start()
        while count:
            one = queue.get()
            if one is None:
                count -= 1
            elif isinstance(one, BaseException):
                raise one
            else:
                yield one

    def tail(self, pod: Object, lines: int) -> list[str]:
        """Return the last lines of a pod; none if they are gone."""
        name, query = name_of(pod), {"tailLines": str(lines)}
        with suppress(ApiError, HTTPError, ClusterAway):
            pieces = self._run.cluster.log(self._run.namespace, name, query, idle=_MAX_POLL)
            return b"".join(pieces).decode(errors="replace").splitlines()
        return []

    def last_lines(self, pod: Object, lines: int, seconds: float) -> list[str]:
        """Return the last lines of a pod that is about to end, once it has ended."""
        kept, until = list[str](), time.time_ns() + int(seconds * 1e9)
        with suppress(ApiError, HTTPError, ClusterAway):
            for line in self._of_pod(pod, LogWindow(until=until, follow=True), tail=lines):
                kept = [*kept[1 - lines :], line.text]
        return kept

    def _numbered(self, role: str, index: int, window: LogWindow) -> Iterator[tuple[int, LogLine]]:
        for line in self.of_replica(role, index, window):
            yield index, line

    def _await_pod(self, role: str, index: int, read: set[str], seconds: float) -> None:
        """Wait until a pod of a replica has unread lines, for some seconds at most."""
        selector = {**self._run.selector, LABEL_ROLE: role}
        for pods in self._run.cluster.pods(self._run.namespace, selector, seconds):
            if any(_is_unread(pod, role, index, read) for pod in pods):
                return

    def _of_pod(self, pod: Object, window: LogWindow, tail: int = 0) -> Iterator[LogLine]:
        """Yield the lines of one pod until it has ended; resume after a lost connection."""
        name, last, repeated, lost = name_of(pod), window.since, 0, 0
        while True:
            query = {"timestamps": "true", "follow": "true" if window.follow else ""}
            if last:
                query["sinceTime"] = datetime.fromtimestamp(last // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            elif tail:
                query["tailLines"] = str(tail)
            complete, skip, idle = True, repeated, IDLE_TIMEOUT
            if window.until is not None:
                idle = min(idle, max(1.0, (window.until - time.time_ns()) / 1e9))
            try:
                for line in _lines(self._run.cluster.log(self._run.namespace, name, query, idle), last):
                    if line.at < last or (line.at == last and skip):
                        # Read before: `sinceTime` has a resolution of a second.
                        skip -= line.at == last
                        continue
                    # Lines may have the same timestamp: count those that have been read.
                    repeated = repeated + 1 if line.at == last else 1
                    last, lost = line.at, 0
                    yield line
                    if window.is_over(line.at):
                        return
            except ApiError as error:
                # The pod is gone, or its container has never started.
                if error.status in (400, 404):
                    return
                raise
            except HTTPError as error:
                complete, lost = False, lost + 1
                if lost >= _TRIES:
                    raise ClusterAway(f"the log of {name} was cut off {lost} times in a row ({error})") from error
            if (complete and (not window.follow or self._has_ended(pod))) or window.is_over(time.time_ns()):
                return
            time.sleep(min(self._poll * 2**lost, 10.0))

    def _has_ended(self, pod: Object) -> bool:
        """Return whether a pod will write no more lines: a log also ends when its file is rotated."""
        pods = self._run.cluster.items("Pod", self._run.namespace, self._run.selector)
        now = next((one for one in pods if one["metadata"]["uid"] == pod["metadata"]["uid"]), None)
        return now is None or _has_state(now, "terminated")


def replicas_of(snapshot: RunSnapshot | None) -> dict[str, int]:
    """Return the number of replicas of each role."""
    return {role: int(spec["completions"]) for role, spec in specs_of(snapshot)} if snapshot else {}


def _is_unread(pod: Object, role: str, index: int, read: set[str]) -> bool:
    """Return whether a pod of a replica has lines, and is not among those read."""
    mine = role_of(pod) == role and index_of(pod) == index and pod["metadata"]["uid"] not in read
    return mine and _has_state(pod, "running", "terminated")


def _has_state(pod: Object, *states: str) -> bool:
    """Return whether a pod has ended, or one of its containers is in one of some states."""
    statuses = pod["status"].get("containerStatuses") or ()
    ended = phase_of(pod) in ("Succeeded", "Failed")
    return ended or any(status.get("state", {}).keys() & set(states) for status in statuses)


def _forward(
    lines: Iterator[tuple[int, LogLine]], queue: "SimpleQueue[tuple[int, LogLine] | BaseException | None]"
) -> None:
    try:
        for line in lines:
            queue.put(line)
        queue.put(None)
    except BaseException as error:  # noqa: BLE001 - raised by the thread that reads the queue
        queue.put(error)


def _lines(pieces: Iterator[bytes], last: int) -> Iterator[LogLine]:
    for raw in whole_lines(pieces):
        line = _parsed(raw, last)
        last = line.at
        yield line


def _parsed(raw: bytes, last: int) -> LogLine:
    text = raw.decode(errors="replace").rstrip("\r")
    match = _STAMP.fullmatch(text)
    if not match:
        return LogLine(last, text)
    second = datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00"))
    return LogLine(int(second.timestamp()) * 10**9 + int((match[2] or "0").ljust(9, "0")), match[4])
