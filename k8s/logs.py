"""The logs of a run: whole lines, each once, across lost connections and the successive pods of a replica."""

import time
from collections.abc import Iterable, Iterator
from datetime import datetime

from torchx.specs import is_terminal
from urllib3.exceptions import HTTPError

from components.log_lines import LogCursor, LogLine
from k8s.api_errors import ApiError
from k8s.cluster_api import ClusterAway
from k8s.fields import Object, name_of, phase_of
from k8s.pods import LABEL_ROLE
from k8s.run_ref import RunRef
from k8s.snapshot import INDEX, created, index_of, role_of, specs_of
from k8s.status import state_of
from pipeline.errors import UserError

IDLE_TIMEOUT = 300.0
"""Seconds without a line after which a connection is reopened: it may be lost without an error."""
_MAX_POLL = 30.0
"""Seconds between two polls of a run in which nothing happens; a new pod of the replica is seen within one poll."""
_TRIES = 8
"""Connections lost in a row, without a line in between, after which a log is given up."""


class ReplicaLog:
    """The log of one replica of a run, across all its pods.

    Args:
        run: The run.
        role: The role.
        index: The number of the replica.
        poll: Seconds until the next poll, at first.
    """

    def __init__(self, run: RunRef, role: str, index: int, poll: float) -> None:
        self._run, self._role, self._index, self._poll = run, role, index, poll
        self._read = set[str]()

    def lines(self, since: datetime | None, *, follow: bool) -> Iterator[LogLine]:
        """Yield the lines of all pods that exist, and of those that come while the log is followed.

        Raises:
            UserError: The run has no such replica, or its logs may not be read.
            ClusterAway: The cluster does not answer, or cuts a log off again and again.
        """
        pause = self._poll
        while snapshot := self._run.snapshot():
            replicas = {name: int(spec["completions"]) for name, spec in specs_of(snapshot)}
            if not 0 <= self._index < replicas.get(self._role, 0):
                every = ", ".join(f"{name}/0 to {count - 1}" for name, count in replicas.items())
                raise UserError(f"{self._role}/{self._index}: this run has {every}")
            unread = self._unread(snapshot.pods)
            for pod in unread:
                self._read.add(pod["metadata"]["uid"])
                yield from self._of_pod(pod, since, follow)
            if unread:
                pause = self._poll
            elif not follow or is_terminal(state_of(snapshot)):
                return
            else:
                self._await_pod(pause)
                pause = min(2 * pause, _MAX_POLL)

    def _unread(self, pods: Iterable[Object]) -> list[Object]:
        """Return the pods of this replica that have lines and are not read yet, the oldest first."""
        mine = (pod for pod in pods if role_of(pod) == self._role and index_of(pod) == self._index)
        new = (pod for pod in mine if pod["metadata"]["uid"] not in self._read)
        return sorted((pod for pod in new if _has_state(pod, "running", "terminated")), key=created)

    def _await_pod(self, seconds: float) -> None:
        """Wait until a pod of this replica has unread lines, for some seconds at most."""
        until = time.monotonic() + seconds
        selector = {**self._run.selector, LABEL_ROLE: self._role, INDEX: str(self._index)}
        while time.monotonic() < until:
            time.sleep(self._poll)
            if self._unread(self._run.cluster.items("Pod", self._run.namespace, selector)):
                return

    def _of_pod(self, pod: Object, start: datetime | None, follow: bool) -> Iterator[LogLine]:
        """Yield the lines of one pod until it has ended; resume after a lost connection."""
        name, cursor, lost = name_of(pod), LogCursor(start), 0
        while True:
            query = {"timestamps": "true", "follow": "true" if follow else ""}
            if since := cursor.since:
                query["sinceTime"] = since.strftime("%Y-%m-%dT%H:%M:%SZ")
            complete = True
            try:
                for line in cursor.unread(self._run.cluster.log(self._run.namespace, name, query, IDLE_TIMEOUT)):
                    lost = 0
                    yield line
            except ApiError as error:
                # The pod is gone, or its container has never started.
                if error.status in (400, 404):
                    return
                raise
            except HTTPError as error:
                complete, lost = False, lost + 1
                if lost >= _TRIES:
                    raise ClusterAway(f"the log of {name} was cut off {lost} times in a row ({error})") from error
            if complete and (not follow or self._has_ended(pod)):
                return
            time.sleep(min(self._poll * 2**lost, 10.0))

    def _has_ended(self, pod: Object) -> bool:
        """Return whether a pod will write no more lines: a log also ends when its file is rotated."""
        pods = self._run.cluster.items("Pod", self._run.namespace, self._run.selector)
        now = next((one for one in pods if one["metadata"]["uid"] == pod["metadata"]["uid"]), None)
        return now is None or _has_state(now, "terminated")


def _has_state(pod: Object, *states: str) -> bool:
    """Return whether a pod has ended, or one of its containers is in one of some states."""
    statuses = pod["status"].get("containerStatuses") or ()
    ended = phase_of(pod) in ("Succeeded", "Failed")
    return ended or any(status.get("state", {}).keys() & set(states) for status in statuses)
