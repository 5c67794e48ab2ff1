"""The lines of a run's logs, whole and each once, over lost connections and over the pods that a replica has had.

Kubernetes asks for a log from a second on; each line comes with its time, by which those that were read are left out.
"""

import heapq
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import NamedTuple

from torchx.specs import AppState, is_terminal
from urllib3.exceptions import HTTPError

from k8s.cluster_api import Cluster, ClusterAway
from k8s.pods import LABEL_ROLE, Object
from k8s.refusals import Refused
from k8s.status import Sight, created, index_of, role_of, specs_of, state_of
from pipeline.errors import UserError

QUIET = 300.0
"""Seconds without a line after which a connection is opened anew: it may be lost without anybody having said so."""
_LONGEST = 30.0
"""Seconds between two looks at a run in which nothing happens; a pod that changes is seen at once."""
_TRIES = 8
"""How often in a row a connection may be lost without a line having come."""
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ?(.*)", re.DOTALL)


class Line(NamedTuple):
    """A line of a log.

    Attributes:
        at: Nanoseconds since 1970; that of the line before for one that says nothing.
        text: Without its end.
    """

    at: int
    text: str


class Wanted(NamedTuple):
    """Which lines are wanted.

    Attributes:
        since: Nanoseconds since 1970, the earliest.
        until: The latest; None for no end.
        follow: Whether those to come are, too.
    """

    since: int = 0
    until: int | None = None
    follow: bool = False


class Logs:
    """The logs of one run.

    Args:
        cluster: Where it runs.
        namespace: Where there.
        selector: The labels of its pods.
        look: How it is; None where it is gone.
        poll: Seconds until the next look, at first.
    """

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        selector: dict[str, str],
        look: Callable[[], Sight | None],
        poll: float = 1.0,
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._selector = selector
        self._look = look
        self._poll = poll

    def of_replica(self, role: str, index: int, wanted: Wanted) -> Iterator[Line]:
        """The lines of one replica: of all its pods that are there, and of those that come while it is followed.

        Raises:
            UserError: The run has no such replica, or its logs may not be read.
            ClusterAway: The cluster does not answer, or cuts a log off again and again.
        """
        read, pause = set[str](), self._poll
        while True:
            sight = self._look()
            if sight and not 0 <= index < replicas_of(sight, role):
                every = ", ".join(f"{name}/0 to {count - 1}" for name, count in _replicas_of_all(sight).items())
                raise UserError(f"{role}/{index}: this run has {every}")
            state = state_of(sight) if sight else AppState.UNKNOWN
            if wanted.until is not None and time.time_ns() > wanted.until:
                wanted = wanted._replace(follow=False)
            over = not wanted.follow or sight is None or is_terminal(state)
            fresh = [pod for pod in (sight.pods if sight else ()) if self._is_fresh(pod, role, index, read)]
            for pod in sorted(fresh, key=created):
                read.add(pod["metadata"]["uid"])
                for line in self._of_pod(pod, wanted):
                    if wanted.until is not None and line.at > wanted.until:
                        return
                    yield line
            if fresh:
                pause = self._poll
            elif over:
                return
            else:
                self._await_pod(role, index, read, pause)
                pause = min(2 * pause, _LONGEST)

    def of_role(self, role: str, wanted: Wanted) -> Iterator[tuple[int, Line]]:
        """The lines of all replicas of a role, each with its replica's number.

        In the order of their times; where they are followed, as they come.
        """
        sight = self._look()
        count = replicas_of(sight, role) if sight else 0
        logs = [self._numbered(role, index, wanted) for index in range(count)]
        if not wanted.follow:
            yield from heapq.merge(*logs, key=lambda pair: pair[1].at)
            return
        queue = SimpleQueue[tuple[int, Line] | BaseException | None]()
        for log in logs:
            threading.Thread(target=_pour, args=(log, queue), daemon=True).start()
        while count:
            one = queue.get()
            if one is None:
                count -= 1
            elif isinstance(one, BaseException):
                raise one
            else:
                yield one

    def tail(self, pod: Object, lines: int) -> list[str]:
        """The last lines of a pod; none where it has none any more."""
        query = {"tailLines": str(lines)}
        try:
            pieces = self._cluster.log(self._namespace, pod["metadata"]["name"], query, quiet=_LONGEST)
            return b"".join(pieces).decode(errors="replace").splitlines()
        except (Refused, HTTPError, ClusterAway):
            return []

    def last_lines(self, pod: Object, lines: int, seconds: float) -> list[str]:
        """The last lines of a pod that is about to end, once it has."""
        kept, until = list[str](), time.time_ns() + int(seconds * 1e9)
        with suppress(Refused, HTTPError, ClusterAway):
            for line in self._of_pod(pod, Wanted(until=until, follow=True), tail=lines):
                kept = [*kept[1 - lines :], line.text]
        return kept

    def _numbered(self, role: str, index: int, wanted: Wanted) -> Iterator[tuple[int, Line]]:
        for line in self.of_replica(role, index, wanted):
            yield index, line

    def _is_fresh(self, pod: Object, role: str, index: int, read: set[str]) -> bool:
        """Whether a pod of a replica has lines that nobody has read yet."""
        metadata = pod["metadata"]
        mine = role_of(pod) == role and index_of(pod) == index and metadata["uid"] not in read
        begun = _has_state(pod, "running", "terminated") or pod["status"].get("phase") in ("Succeeded", "Failed")
        return mine and begun

    def _await_pod(self, role: str, index: int, read: set[str], seconds: float) -> None:
        """Wait for a pod of a replica that has something to say, or for the time to pass."""
        for pods in self._cluster.pods(self._namespace, {**self._selector, LABEL_ROLE: role}, seconds):
            if any(self._is_fresh(pod, role, index, read) for pod in pods):
                return

    def _of_pod(self, pod: Object, wanted: Wanted, tail: int = 0) -> Iterator[Line]:
        """The lines of one pod until it has ended; a connection that is lost is opened again where it was."""
        name, last, repeated, lost = pod["metadata"]["name"], wanted.since, 0, 0
        while True:
            query = {"timestamps": "true", "follow": "true" if wanted.follow else ""}
            if last:
                query["sinceTime"] = datetime.fromtimestamp(last // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            elif tail:
                query["tailLines"] = str(tail)
            clean, skip = True, repeated
            quiet = QUIET if wanted.until is None else min(QUIET, max(1.0, (wanted.until - time.time_ns()) / 1e9))
            try:
                for line in _whole(self._cluster.log(self._namespace, name, query, quiet), last):
                    if line.at < last or (line.at == last and skip):
                        # Of this second, and read before: asked for by the second, it comes again.
                        skip -= line.at == last
                        continue
                    # Times may be the same: then their number tells how many have been read.
                    repeated = repeated + 1 if line.at == last else 1
                    last, lost = line.at, 0
                    yield line
                    if wanted.until is not None and line.at > wanted.until:
                        return
            except Refused as error:
                # Gone, or it has never started.
                if error.status in (400, 404):
                    return
                raise
            except HTTPError as error:
                clean, lost = False, lost + 1
                if lost >= _TRIES:
                    raise ClusterAway(f"the log of {name} is cut off again and again ({error})") from error
            if clean and (not wanted.follow or self._has_ended(pod)):
                return
            if wanted.until is not None and time.time_ns() > wanted.until:
                return
            time.sleep(min(self._poll * 2**lost, 10.0))

    def _has_ended(self, pod: Object) -> bool:
        """Whether a pod has nothing more to say: a log may also end because its file was changed, or a server was."""
        pods = self._cluster.items("Pod", self._namespace, self._selector)
        now = next((one for one in pods if one["metadata"]["uid"] == pod["metadata"]["uid"]), None)
        return now is None or _has_state(now, "terminated") or now["status"].get("phase") in ("Succeeded", "Failed")


def replicas_of(sight: Sight, role: str) -> int:
    """How many replicas a role has."""
    return _replicas_of_all(sight).get(role, 0)


def _replicas_of_all(sight: Sight) -> dict[str, int]:
    return {role: int(spec["completions"]) for role, spec in specs_of(sight)}


def _has_state(pod: Object, *states: str) -> bool:
    """Whether a container of a pod is in one of some states."""
    statuses = pod["status"].get("containerStatuses") or ()
    return any(status.get("state", {}).keys() & set(states) for status in statuses)


def _pour(lines: Iterator[tuple[int, Line]], queue: "SimpleQueue[tuple[int, Line] | BaseException | None]") -> None:
    try:
        for line in lines:
            queue.put(line)
        queue.put(None)
    except BaseException as error:  # noqa: BLE001 - raised where the lines are read
        queue.put(error)


def _whole(pieces: Iterator[bytes], last: int) -> Iterator[Line]:
    """The whole lines of a log; what follows the last end of a line is one, too, once the log has ended well."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for text in whole:
            line = _parsed(text.decode(errors="replace"), last)
            last = line.at
            yield line
    if rest:
        yield _parsed(rest.decode(errors="replace"), last)


def _parsed(text: str, last: int) -> Line:
    match = _STAMP.fullmatch(text)
    if not match:
        return Line(last, text.rstrip("\r"))
    second = datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00"))
    return Line(int(second.timestamp()) * 10**9 + int((match[2] or "0").ljust(9, "0")), match[4].rstrip("\r"))
