"""The logs of a run: whole lines, each once, across lost connections and the successive pods of a replica."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import TypeVar

from torchx.specs import is_terminal
from urllib3.exceptions import HTTPError

from components.log_lines import LogCursor, LogLine
from k8s.api_errors import ApiError
from k8s.cluster_api import ClusterAway, NodeAway
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
"""Connections lost in a row, without a line in between, after which a log that is not followed is given up."""
_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


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

        A log that is followed waits for a cluster, or the node of its pod, that does not answer.

        Raises:
            UserError: There is no such run or replica, or its logs may not be read.
            ClusterAway: The cluster, or the node of the pod, does not answer, or cuts a log off again and again.
        """
        pause, known = self._poll, False
        while snapshot := self._answer(self._run.snapshot, follow):
            known = True
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
        if not known:
            raise UserError(
                f"namespace {self._run.namespace!r}: there is no run {self._run.name!r}, or it has been deleted; "
                "`python -m components.jobs list -s kubernetes_job` lists those that are there"
            )

    def _answer(self, ask: Callable[[], _Answer], follow: bool) -> _Answer:
        """Return what the cluster answers; ask again and again if the log is followed."""
        while True:
            try:
                return ask()
            except NodeAway:
                raise
            except ClusterAway as error:
                if not follow or self._run.cluster.closed:
                    raise
                _log.warning("%s; the log of %s/%d goes on once it answers", error, self._role, self._index)

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
            if self._unread(self._answer(lambda: self._pods(selector), True)):
                return

    def _pods(self, selector: dict[str, str]) -> list[Object]:
        return self._run.cluster.items("Pod", self._run.namespace, selector)

    def _of_pod(self, pod: Object, start: datetime | None, follow: bool) -> Iterator[LogLine]:
        """Yield the lines of one pod until it has ended; resume after a lost connection."""
        name, cursor, lost = name_of(pod), LogCursor(start), 0
        while True:
            complete = True
            try:
                for line in cursor.unread(self._answer(lambda: self._pieces(name, cursor, follow), follow)):
                    lost = 0
                    yield line
            except ApiError as error:
                # The pod is gone, or its container has never started.
                if error.status in (400, 404):
                    return
                raise
            except NodeAway as error:
                complete = False
                if self._is_given_up(pod, error, follow, said=bool(lost)):
                    return
                lost += 1
            except HTTPError as error:
                complete, lost = False, lost + 1
                if lost % _TRIES == 0:
                    what = f"the log of {name} was cut off {lost} times in a row ({error})"
                    if not follow:
                        raise ClusterAway(what) from None
                    _log.warning("%s; trying on", what)
            if complete and (not follow or self._has_ended(pod)):
                return
            time.sleep(min(self._poll * 2 ** min(lost, _TRIES), 10.0))

    def _pieces(self, pod: str, cursor: LogCursor, follow: bool) -> Iterator[bytes]:
        query = {"timestamps": "true", "follow": "true" if follow else ""}
        if since := cursor.since:
            query["sinceTime"] = since.strftime("%Y-%m-%dT%H:%M:%SZ")
        return self._run.cluster.log(self._run.namespace, pod, query, IDLE_TIMEOUT)

    def _is_given_up(self, pod: Object, error: NodeAway, follow: bool, *, said: bool) -> bool:
        """Return whether the log of a pod whose node does not answer is not waited for, as another pod took over.

        Raises:
            NodeAway: Nobody follows the log, or the run has ended: there is nothing to wait for.
        """
        what = f"node {pod['spec'].get('nodeName', '')!r} of pod {name_of(pod)!r} does not answer ({error})"
        snapshot = self._answer(self._run.snapshot, follow)
        if any(created(one) >= created(pod) for one in self._unread(snapshot.pods if snapshot else ())):
            _log.warning("%s: its log is left out from here on", what)
            return True
        if not follow or snapshot is None or is_terminal(state_of(snapshot)):
            raise NodeAway(f"{what}: its log can be read once the node is back") from None
        if not said:
            _log.warning("%s: its log goes on once the node is back, or with the pod that replaces this one", what)
        return False

    def _has_ended(self, pod: Object) -> bool:
        """Return whether a pod will write no more lines: a log also ends when its file is rotated."""
        pods = self._answer(lambda: self._pods(self._run.selector), True)
        now = next((one for one in pods if one["metadata"]["uid"] == pod["metadata"]["uid"]), None)
        return now is None or _has_state(now, "terminated")


def _has_state(pod: Object, *states: str) -> bool:
    """Return whether a pod has ended, or one of its containers is in one of some states."""
    statuses = pod["status"].get("containerStatuses") or ()
    ended = phase_of(pod) in ("Succeeded", "Failed")
    return ended or any(status.get("state", {}).keys() & set(states) for status in statuses)
