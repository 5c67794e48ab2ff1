"""The exit of a pod, as a status and a sentence."""

from typing import NamedTuple

from k8s.fields import Object, condition
from pipeline.errors import CRASH

_KILLED = 137
"""128 and SIGKILL."""


class PodExit(NamedTuple):
    """The exit of a pod.

    Attributes:
        status: The exit status of its container; 1 where that never ran.
        how: The same with the reason, as the predicate of a sentence.
        disrupted: Whether the cluster took it away: preempted, evicted, drained, or its node gone.
        lines: The last lines of its log, as far as its status has them.
        at: When, as a text that sorts.
    """

    status: int
    how: str
    disrupted: bool = False
    lines: str = ""
    at: str = ""


def pod_exit(pod: Object) -> PodExit:
    """Return the exit of a pod that has failed."""
    status = pod["status"]
    statuses = status.get("containerStatuses") or [{}]
    ended = statuses[0].get("state", {}).get("terminated") or {}
    code = ended.get("exitCode", CRASH)
    disruption = condition(pod, "DisruptionTarget")
    at = str(ended.get("finishedAt") or status.get("startTime") or pod["metadata"].get("creationTimestamp", ""))
    lines = str(ended.get("message", "")).rstrip("\n")
    return PodExit(code, _how(pod, ended, code, disruption), bool(disruption), lines, at)


def _how(pod: Object, ended: Object, code: int, disruption: Object) -> str:
    reason, message = pod["status"].get("reason", ""), pod["status"].get("message", "")
    if ended.get("reason") == "OOMKilled":
        container = pod["spec"]["containers"][0]
        limit = container.get("resources", {}).get("limits", {}).get("memory", "that of its node")
        return f"was killed for memory: its limit is {limit}; give it more by --memory"
    if reason == "Evicted":
        return f"was evicted: {message}"
    if disruption:
        why = f"{disruption.get('reason', '')}: {disruption.get('message', '')}"
        return f"was taken from its node with status {code} ({why})"
    if reason == "DeadlineExceeded":
        # `k8s.cancel.end_pods` gives pods this one.
        asked = "was asked to save and end" if pod["spec"].get("activeDeadlineSeconds") == 1 else "reached its deadline"
        return f"{asked}, and ended with status {code}"
    if ended.get("reason") in ("ContainerCannotRun", "StartError", "ContainerStatusUnknown"):
        return f"could not be started ({ended.get('message', ended['reason'])})"
    if not ended:
        return f"never ran ({reason}: {message})"
    return f"ended with status {code}" + (" (killed)" if code == _KILLED else "")
