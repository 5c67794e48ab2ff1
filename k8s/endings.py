"""How a pod has ended, in a status and in words."""

from typing import NamedTuple

from k8s.pods import Object
from pipeline.errors import CRASH

_KILLED = 137
"""128 and SIGKILL."""


class Ending(NamedTuple):
    """How a pod has ended.

    Attributes:
        status: The exit status of its container; 1 where that never ran.
        words: The same, with the reason, as what comes after the replica's name.
        disrupted: Whether the cluster took it away: preempted, evicted, drained, or its node gone.
        lines: The end of its log, as far as its status has it.
        at: When, as a text that sorts.
    """

    status: int
    words: str
    disrupted: bool = False
    lines: str = ""
    at: str = ""


def ending(pod: Object) -> Ending:
    """How a pod has ended that has failed."""
    status = pod["status"]
    statuses = status.get("containerStatuses") or [{}]
    ended = statuses[0].get("state", {}).get("terminated") or {}
    code = ended.get("exitCode", CRASH)
    taken = _condition(pod, "DisruptionTarget")
    at = str(ended.get("finishedAt") or status.get("startTime") or pod["metadata"].get("creationTimestamp", ""))
    return Ending(code, _words(pod, ended, code, taken), bool(taken), str(ended.get("message", "")).rstrip("\n"), at)


def _words(pod: Object, ended: Object, code: int, taken: Object | None) -> str:
    reason, message = pod["status"].get("reason", ""), pod["status"].get("message", "")
    if ended.get("reason") == "OOMKilled":
        container = pod["spec"]["containers"][0]
        limit = container.get("resources", {}).get("limits", {}).get("memory", "that of its node")
        return f"was killed for memory: its limit is {limit}; give it more by --memory"
    if reason == "Evicted":
        return f"was evicted: {message}"
    if taken:
        return f"was taken from its node with status {code} ({taken.get('reason', '')}: {taken.get('message', '')})"
    if reason == "DeadlineExceeded":
        # Only a cancel gives pods a deadline of their own.
        return f"was cancelled, and ended with status {code}"
    if ended.get("reason") in ("ContainerCannotRun", "StartError", "ContainerStatusUnknown"):
        return f"could not be started ({ended.get('message', ended['reason'])})"
    if not ended:
        return f"never ran ({reason}: {message})"
    return f"ended with status {code}" + (" (killed)" if code == _KILLED else "")


def _condition(pod: Object, kind: str) -> Object | None:
    for condition in pod["status"].get("conditions") or ():
        if condition["type"] == kind and condition["status"] == "True":
            found: Object = condition
            return found
    return None
