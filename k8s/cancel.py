"""Cancelling a run so that its last checkpoint is saved and its logs stay.

A Job that is deleted or suspended takes its pods and their logs with it. But a pod that gets a deadline of its own is
ended by its node, with SIGTERM and its grace period, and stays. So each pod gets one; the Job itself gets one that ends
it in any case, even if the client is gone before all pods have saved, and that is shortened once they have: a Job that
is over starts no pod again, and is deleted in time by its ttl.

A Job that waits in a queue has nothing to save, and is deleted. So is a JobSet under Kueue; without Kueue a JobSet is
suspended, for it would start its pods again: what they write while they save is kept in an annotation.
"""

import json
import logging
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from k8s.api_errors import ApiError
from k8s.fields import Object, annotation, label, name_of, phase_of
from k8s.logs import RunLogs
from k8s.pods import LABEL_QUEUE
from k8s.run_ref import RunRef
from k8s.status import CANCELLED, RunSnapshot, end_of, index_of, role_of

LAST_LINES = "pipeline/last-lines"
"""The annotation with the last lines of the pods of a cancelled JobSet."""

_MARGIN = 10
"""Seconds beyond the pods' grace period after which the Job ends those that are left."""
_LINES, _BYTES = 50, 128 * 1024
"""Limits per pod, and for all pods: the annotations of an object may have 256 KiB together."""
_log = logging.getLogger(__name__)


def cancel(run: RunRef, snapshot: RunSnapshot, logs: RunLogs) -> None:
    """Cancel a run; return once its processes have saved, or their grace period is over."""
    now = datetime.now(UTC).replace(microsecond=0)
    mark = {"annotations": {CANCELLED: now.isoformat().replace("+00:00", "Z")}}
    active = [pod for pod in snapshot.pods if _is_active(pod)]
    grace = max((pod["spec"].get("terminationGracePeriodSeconds", 30) for pod in active), default=0)
    if snapshot.job_set:
        _cancel_job_set(run, snapshot.job_set, active, grace + _MARGIN, mark, logs)
        return
    running = list[str]()
    for job in snapshot.jobs:
        name = name_of(job)
        if end_of(job):
            continue
        if job["spec"].get("suspend") and not active:
            run.cluster.delete("Job", run.namespace, name)
            continue
        started = job.get("status", {}).get("startTime")
        age = (now - datetime.fromisoformat(started)).total_seconds() if started else 0
        deadline = min(max(1, int(age) + grace + _MARGIN), job["spec"].get("activeDeadlineSeconds") or 2**31 - 1)
        run.cluster.patch("Job", run.namespace, name, {"metadata": mark, "spec": {"activeDeadlineSeconds": deadline}})
        running.append(name)
    if running:
        _end_pods(run, active)
        # Not those by which the Job has replaced one that has ended with 75 meanwhile.
        ours = {pod["metadata"]["uid"] for pod in active}
        for pods in run.cluster.pods(run.namespace, run.selector, grace + _MARGIN):
            if not any(_is_active(pod) for pod in pods if pod["metadata"]["uid"] in ours):
                break
        for name in running:
            run.cluster.patch("Job", run.namespace, name, {"spec": {"activeDeadlineSeconds": 1}})


def _end_pods(run: RunRef, pods: Iterable[Object]) -> None:
    """Make the nodes end the pods, all at the same time."""

    def end(pod: Object) -> None:
        try:
            run.cluster.patch("Pod", run.namespace, name_of(pod), {"spec": {"activeDeadlineSeconds": 1}})
        except ApiError as error:
            if error.status != 404:
                _log.warning("%s; the pod ends with its Job and loses its log", error)

    with ThreadPoolExecutor(max_workers=32) as pool:
        list(pool.map(end, pods))


def _cancel_job_set(
    run: RunRef, job_set: Object, active: list[Object], seconds: float, mark: Object, logs: RunLogs
) -> None:
    if label(job_set, LABEL_QUEUE):
        # Kueue would resume a suspended one.
        run.cluster.delete("JobSet", run.namespace, run.name)
        return
    with ThreadPoolExecutor(max_workers=max(1, len(active))) as pool:
        lines = [pool.submit(logs.last_lines, pod, _LINES, seconds) for pod in active]
        # The logs must be open before the pods go.
        time.sleep(min(1.0, 0.1 * len(active)))
        run.cluster.patch("JobSet", run.namespace, run.name, {"metadata": mark, "spec": {"suspend": True}})
        size = _BYTES // max(1, len(active))
        kept = {
            f"{role_of(pod)}/{index_of(pod)}": "\n".join(last.result())[-size:]
            for pod, last in zip(active, lines, strict=True)
        }
    change = {"metadata": {"annotations": {LAST_LINES: json.dumps(kept)}}}
    run.cluster.patch("JobSet", run.namespace, run.name, change)


def kept_lines(snapshot: RunSnapshot, role: str, index: int) -> list[str]:
    """Return the last lines of a replica whose pod went with a cancelled JobSet."""
    kept: dict[str, str] = json.loads((snapshot.job_set and annotation(snapshot.job_set, LAST_LINES)) or "{}")
    return kept.get(f"{role}/{index}", "").splitlines()


def _is_active(pod: Object) -> bool:
    """Return whether processes of a pod may still run; one without a node goes with its Job."""
    return bool(pod["spec"].get("nodeName")) and phase_of(pod) not in ("Succeeded", "Failed")
