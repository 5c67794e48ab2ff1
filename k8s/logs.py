"""The logs of a run: whole lines, each once, across lost connections and the successive pods of a replica."""

import time
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from torchx.specs import AppState, is_terminal
from urllib3.exceptions import HTTPError

from components.log_lines import LogCursor, LogLine, nanoseconds
from k8s.api_errors import ApiError
from k8s.cluster_api import ClusterAway
from k8s.fields import Object, name_of, phase_of
from k8s.pods import LABEL_ROLE
from k8s.run_ref import RunRef
from k8s.status import INDEX, created, index_of, role_of, specs_of, state_of
from pipeline.errors import UserError

IDLE_TIMEOUT = 300.0
"""Seconds without a line after which a connection is reopened: it may be lost without an error."""
_MAX_POLL = 30.0
"""Seconds between two polls of a run in which nothing happens; a new pod of the replica is seen within one poll."""
_TRIES = 8
"""Connections lost in a row, without a line in between, after which a log is given up."""


class LogWindow(NamedTuple):
    """Which lines are wanted.

    Attributes:
        since: The earliest; None for all.
        until: The latest; None for no end.
        follow: Whether to wait for lines to come.
    """

    since: datetime | None
    until: datetime | None
    follow: bool

    def is_over(self, at: int) -> bool:
        """Return whether a time, in nanoseconds since 1970, is past the end of the window."""
        return self.until is not None and at > nanoseconds(self.until)


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
            replicas = {name: int(spec["completions"]) for name, spec in specs_of(snapshot)} if snapshot else {}
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

    def _await_pod(self, role: str, index: int, read: set[str], seconds: float) -> None:
        """Wait until a pod of a replica has unread lines, for some seconds at most."""
        until = time.monotonic() + seconds
        selector = {**self._run.selector, LABEL_ROLE: role, INDEX: str(index)}
        while time.monotonic() < until:
            time.sleep(self._poll)
            pods = self._run.cluster.items("Pod", self._run.namespace, selector)
            if any(_is_unread(pod, role, index, read) for pod in pods):
                return

    def _of_pod(self, pod: Object, window: LogWindow) -> Iterator[LogLine]:
        """Yield the lines of one pod until it has ended; resume after a lost connection."""
        name, cursor, lost = name_of(pod), LogCursor(window.since), 0
        while True:
            query = {"timestamps": "true", "follow": "true" if window.follow else ""}
            if since := cursor.since:
                query["sinceTime"] = since.strftime("%Y-%m-%dT%H:%M:%SZ")
            complete, idle = True, IDLE_TIMEOUT
            if window.until is not None:
                idle = min(idle, max(1.0, window.until.timestamp() - time.time()))
            try:
                for line in cursor.unread(self._run.cluster.log(self._run.namespace, name, query, idle)):
                    lost = 0
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


def _is_unread(pod: Object, role: str, index: int, read: set[str]) -> bool:
    """Return whether a pod of a replica has lines, and is not among those read."""
    mine = role_of(pod) == role and index_of(pod) == index and pod["metadata"]["uid"] not in read
    return mine and _has_state(pod, "running", "terminated")


def _has_state(pod: Object, *states: str) -> bool:
    """Return whether a pod has ended, or one of its containers is in one of some states."""
    statuses = pod["status"].get("containerStatuses") or ()
    ended = phase_of(pod) in ("Succeeded", "Failed")
    return ended or any(status.get("state", {}).keys() & set(states) for status in statuses)
