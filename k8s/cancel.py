"""Cancelling a run so that its last checkpoint is saved and its logs stay.

A Job that is deleted or suspended takes its pods and their logs with it. But a pod that gets a deadline of its own is
ended by its node, with SIGTERM and its grace period, and stays. So each pod gets one; the Job itself gets one that ends
it in any case, even if the client is gone before all pods have saved, and that is shortened once they have: a Job that
is over starts no pod again, and is deleted in time by its ttl.

A Job that waits in a queue has nothing to save, and is deleted. So is a JobSet under Kueue; without Kueue a JobSet is
suspended, for it would start its pods again: they save, and go with their logs.
"""

import logging
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from k8s.api_errors import ApiError
from k8s.fields import Object, label, name_of, phase_of
from k8s.pods import LABEL_QUEUE
from k8s.run_ref import RunRef
from k8s.status import CANCELLED, RunSnapshot, end_of

_MARGIN = 10
"""Seconds beyond the pods' grace period after which the Job ends those that are left."""
_log = logging.getLogger(__name__)


def cancel(run: RunRef, snapshot: RunSnapshot, poll: float) -> None:
    """Cancel a run; return once its processes have saved, or their grace period is over.

    Args:
        run: The run.
        snapshot: Its objects.
        poll: Seconds between two looks at its pods.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    mark = {"annotations": {CANCELLED: now.isoformat().replace("+00:00", "Z")}}
    active = [pod for pod in snapshot.pods if _is_active(pod)]
    seconds = _MARGIN + max((pod["spec"].get("terminationGracePeriodSeconds", 30) for pod in active), default=0)
    if snapshot.job_set:
        if label(snapshot.job_set, LABEL_QUEUE):
            # Kueue would resume a suspended one.
            run.cluster.delete("JobSet", run.namespace, run.name)
            return
        run.cluster.patch("JobSet", run.namespace, run.name, {"metadata": mark, "spec": {"suspend": True}})
        _await_end(run, active, seconds, poll)
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
        deadline = min(max(1, int(age) + seconds), job["spec"].get("activeDeadlineSeconds") or 2**31 - 1)
        run.cluster.patch("Job", run.namespace, name, {"metadata": mark, "spec": {"activeDeadlineSeconds": deadline}})
        running.append(name)
    if running:
        _end_pods(run, active)
        _await_end(run, active, seconds, poll)
        for name in running:
            run.cluster.patch("Job", run.namespace, name, {"spec": {"activeDeadlineSeconds": 1}})


def _await_end(run: RunRef, pods: Iterable[Object], seconds: float, poll: float) -> None:
    """Wait until some pods have ended, for some seconds at most; not for those that replace them meanwhile."""
    ours, until = {pod["metadata"]["uid"] for pod in pods}, time.monotonic() + seconds
    while time.monotonic() < until:
        now = run.cluster.items("Pod", run.namespace, run.selector)
        if not any(_is_active(pod) for pod in now if pod["metadata"]["uid"] in ours):
            return
        time.sleep(poll)


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


def _is_active(pod: Object) -> bool:
    """Return whether processes of a pod may still run; one without a node goes with its Job."""
    return bool(pod["spec"].get("nodeName")) and phase_of(pod) not in ("Succeeded", "Failed")
