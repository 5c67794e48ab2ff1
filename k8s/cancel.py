"""Ending the pods of a run so that they save and their logs stay, and cancelling a run so.

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
from k8s.fields import Object, annotation, label, name_of
from k8s.pods import LABEL_QUEUE
from k8s.run_ref import RunRef
from k8s.snapshot import CANCELLED, WAITS_FOR, RunSnapshot, end_of, runs, unanswered_since

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
    mark = {"annotations": {CANCELLED: datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")}}
    saving = [pod for pod in snapshot.pods if is_saving(pod)]
    seconds = grace_of(saving)
    if snapshot.job_set:
        if label(snapshot.job_set, LABEL_QUEUE):
            # Kueue would resume a suspended one.
            run.cluster.delete("JobSet", run.namespace, run.name)
            return
        run.cluster.patch("JobSet", run.namespace, run.name, {"metadata": mark, "spec": {"suspend": True}})
        _await_end(run, saving, seconds, poll)
        return
    waiting = [job for job in snapshot.jobs if annotation(job, WAITS_FOR)]
    running = list[str]()
    for job in snapshot.jobs:
        name = name_of(job)
        if job in waiting or (end_of(job) and not (waiting and annotation(waiting[0], WAITS_FOR) == name)):
            continue
        if job["spec"].get("suspend") and not saving:
            run.cluster.delete("Job", run.namespace, name)
            continue
        ends = {} if end_of(job) else {"spec": {"activeDeadlineSeconds": deadline_in(job, seconds)}}
        run.cluster.patch("Job", run.namespace, name, {"metadata": mark, **ends})
        running += [name] if ends else []
    for job in waiting:
        # After the one that it waits for has been marked: whoever would start this one sees that.
        run.cluster.delete("Job", run.namespace, name_of(job))
    if running:
        end_pods(run, saving)
        _await_end(run, saving, seconds, poll)
        for name in running:
            run.cluster.patch("Job", run.namespace, name, {"spec": {"activeDeadlineSeconds": 1}})


def is_saving(pod: Object) -> bool:
    """Return whether the processes of a pod run, so that they have something to save, on a node that answers."""
    return runs(pod) and not unanswered_since(pod)


def grace_of(pods: Iterable[Object]) -> int:
    """Return the seconds after which pods that are asked to end have ended."""
    return _MARGIN + max((pod["spec"].get("terminationGracePeriodSeconds", 30) for pod in pods), default=0)


def deadline_in(job: Object, seconds: int) -> int:
    """Return the deadline by which a Job ends after some seconds from now, or earlier if it has one."""
    started = job.get("status", {}).get("startTime")
    age = (datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds() if started else 0
    return min(max(1, int(age) + seconds), job["spec"].get("activeDeadlineSeconds") or 2**31 - 1)


def end_pods(run: RunRef, pods: Iterable[Object]) -> None:
    """Make the nodes end the pods, all at the same time."""

    def end(pod: Object) -> None:
        try:
            run.cluster.patch("Pod", run.namespace, name_of(pod), {"spec": {"activeDeadlineSeconds": 1}})
        except ApiError as error:
            if error.status != 404:
                _log.warning("%s; the pod ends with its Job and loses its log", error)

    with ThreadPoolExecutor(max_workers=32) as pool:
        list(pool.map(end, pods))


def _await_end(run: RunRef, pods: Iterable[Object], seconds: float, poll: float) -> None:
    """Wait until some pods have ended, for some seconds at most; not for those that replace them meanwhile."""
    ours, until = {pod["metadata"]["uid"] for pod in pods}, time.monotonic() + seconds
    while time.monotonic() < until:
        now = run.cluster.items("Pod", run.namespace, run.selector)
        if not any(is_saving(pod) for pod in now if pod["metadata"]["uid"] in ours):
            return
        time.sleep(poll)
