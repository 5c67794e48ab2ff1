"""Ending a run so that its last checkpoint is saved and its logs stay.

A Job that is deleted or suspended takes its pods with it, and their logs. But a pod that gets a deadline of its own is
ended by its node, with SIGTERM and its grace period, and stays where it is. So each pod gets one; the Job itself gets
one that ends it in any case, should whoever cancels be gone before all of them have saved, and that is drawn in once
they have: a Job that is over starts no pod again, whoever may have suspended it, and is deleted in time by its ttl.

A Job that waits in a queue has nothing to save, and is deleted. So is a JobSet under Kueue; without it a JobSet is
suspended, for it would start its pods again: what they write while they save is kept in an annotation.
"""

import json
import logging
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from k8s.cluster_api import Cluster
from k8s.logs import Logs
from k8s.pods import LABEL_QUEUE, Object
from k8s.refusals import Refused
from k8s.status import CANCELLED, Sight, end_of, index_of, role_of

LAST_LINES = "pipeline/last-lines"
"""The annotation with the last lines of the pods of a JobSet that was cancelled."""

_MARGIN = 10
"""Seconds beyond their grace period after which pods that have not ended are ended with their Job."""
_LINES, _BYTES = 50, 128 * 1024
"""Of each pod, and of all of them: the annotations of an object may have 256 KiB together."""
_log = logging.getLogger(__name__)


def cancel(cluster: Cluster, namespace: str, sight: Sight, selector: dict[str, str], logs: Logs) -> None:
    """End a run; comes back once its processes have saved, or have had the time to.

    Args:
        cluster: Where it runs.
        namespace: Where there.
        sight: Its objects.
        selector: The labels of its pods.
        logs: Its logs.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    if sight.job_set:
        _cancel_set(cluster, namespace, sight, logs, now)
        return
    running, active = list[str](), [pod for pod in sight.pods if _is_active(pod)]
    grace = _grace(active)
    for job in sight.jobs:
        name = job["metadata"]["name"]
        if end_of(job):
            continue
        if job["spec"].get("suspend") and not active:
            cluster.delete("Job", namespace, name)
            continue
        started = job.get("status", {}).get("startTime")
        age = (now - datetime.fromisoformat(started)).total_seconds() if started else 0
        deadline = min(max(1, int(age) + grace + _MARGIN), job["spec"].get("activeDeadlineSeconds") or 2**31 - 1)
        mark = {"metadata": {"annotations": {CANCELLED: _text(now)}}, "spec": {"activeDeadlineSeconds": deadline}}
        cluster.patch("Job", namespace, name, mark)
        running.append(name)
    if running:
        _end_pods(cluster, namespace, active)
        # Not those that the Job has put in the place of one that has ended with 75 meanwhile.
        ours = {pod["metadata"]["uid"] for pod in active}
        for pods in cluster.pods(namespace, selector, grace + _MARGIN):
            if not any(_is_active(pod) for pod in pods if pod["metadata"]["uid"] in ours):
                break
        for name in running:
            cluster.patch("Job", namespace, name, {"spec": {"activeDeadlineSeconds": 1}})


def _end_pods(cluster: Cluster, namespace: str, pods: Iterable[Object]) -> None:
    """Have the pods ended by their nodes, all at the same time."""

    def end(pod: Object) -> None:
        try:
            cluster.patch("Pod", namespace, pod["metadata"]["name"], {"spec": {"activeDeadlineSeconds": 1}})
        except Refused as error:
            if error.status != 404:
                _log.warning("%s; it is ended with its Job, and its log with it", error)

    with ThreadPoolExecutor(max_workers=32) as pool:
        list(pool.map(end, pods))


def _cancel_set(cluster: Cluster, namespace: str, sight: Sight, logs: Logs, now: datetime) -> None:
    assert sight.job_set is not None
    name, active = sight.job_set["metadata"]["name"], [pod for pod in sight.pods if _is_active(pod)]
    if sight.job_set["metadata"].get("labels", {}).get(LABEL_QUEUE):
        # Kueue would let it go on.
        cluster.delete("JobSet", namespace, name)
        return
    with ThreadPoolExecutor(max_workers=max(1, len(active))) as pool:
        seconds = float(_grace(active) + _MARGIN)
        lines = [pool.submit(logs.last_lines, pod, _LINES, seconds) for pod in active]
        change = {"metadata": {"annotations": {CANCELLED: _text(now)}}, "spec": {"suspend": True}}
        # The logs are open before their pods go.
        time.sleep(min(1.0, 0.1 * len(active)))
        cluster.patch("JobSet", namespace, name, change)
        each = _BYTES // max(1, len(active))
        kept = {
            f"{role_of(pod)}/{index_of(pod)}": "\n".join(last.result())[-each:]
            for pod, last in zip(active, lines, strict=True)
        }
    cluster.patch("JobSet", namespace, name, {"metadata": {"annotations": {LAST_LINES: json.dumps(kept)}}})


def kept_lines(sight: Sight, role: str, index: int) -> list[str]:
    """The last lines of a replica whose pod went with a cancelled JobSet."""
    annotations = (sight.job_set or {}).get("metadata", {}).get("annotations", {})
    kept: dict[str, str] = json.loads(annotations.get(LAST_LINES, "{}"))
    return kept.get(f"{role}/{index}", "").splitlines()


def _is_active(pod: Object) -> bool:
    """Whether processes of a pod may still run; one that has no node yet goes with its Job."""
    return bool(pod["spec"].get("nodeName")) and pod["status"].get("phase") not in ("Succeeded", "Failed")


def _grace(pods: Iterable[Object]) -> int:
    """Seconds that the pods have to end."""
    return max((pod["spec"].get("terminationGracePeriodSeconds", 30) for pod in pods), default=0)


def _text(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")
