"""What else the cluster knows of a run: why a Job or a pod waits, and how many pods there were.

The state of a run does not depend on it: what may not be read is left out.
"""

from contextlib import suppress
from datetime import datetime

from k8s.api_errors import ApiError
from k8s.fields import Object, condition, label, name_of, phase_of
from k8s.pods import LABEL_QUEUE
from k8s.run_ref import RunRef
from k8s.snapshot import RunSnapshot, created, end_of, index_of, newest, owners_of, role_of

_ASKED = 3
"""Pods whose events are read; the others most likely wait for the same."""
_FIRST_PODS = 60.0
"""Seconds within which a Job creates its first pods; those that came later replace others."""


def diagnosed(run: RunRef, snapshot: RunSnapshot) -> RunSnapshot:
    """Return a run with what else the cluster knows of it."""
    notes: dict[str, str] = {}
    for owner in owners_of(snapshot):
        if owner["spec"].get("suspend") and label(owner, LABEL_QUEUE):
            notes[name_of(owner)] = _of_queue(run, owner)
    latest, made = newest(snapshot), 0
    for job in latest.jobs:
        if job["spec"].get("suspend") or end_of(job):
            continue
        if not latest.pods and (refused := _events(run, job, "FailedCreate")):
            notes[name_of(job)] = f"its pods cannot be created: {refused[-1].get('message', '')}"
        present = {index_of(pod) for pod in latest.pods if role_of(pod) == role_of(job)}
        if len(present) < job["spec"]["completions"] or any(_replaces_another(pod, job) for pod in latest.pods):
            # Of a pod that was deleted nothing else is left.
            made += sum(int(event.get("count") or 1) for event in _events(run, job, "SuccessfulCreate"))
    for pod in [pod for pod in latest.pods if _is_being_created(pod)][:_ASKED]:
        # A volume that cannot be mounted: the status of a container does not say so.
        last = next(reversed(_events(run, pod)), {})
        if last.get("type") == "Warning" and last.get("reason") != "FailedScheduling":
            notes[name_of(pod)] = f"{last.get('reason')}: {last.get('message')}"
    return snapshot._replace(notes={name: text for name, text in notes.items() if text}, created_pods=made)


def _of_queue(run: RunRef, owner: Object) -> str:
    """Return why Kueue has not admitted a Job or a JobSet."""
    selector = {"kueue.x-k8s.io/job-uid": owner["metadata"]["uid"]}
    with suppress(ApiError):
        workloads = run.cluster.items("Workload", run.namespace, selector)
        for workload in workloads or run.cluster.items("EarlierWorkload", run.namespace, selector):
            if waiting := condition(workload, "QuotaReserved", status="False"):
                return str(waiting["message"])
    return ""


def _events(run: RunRef, thing: Object, reason: str = "") -> list[Object]:
    """Return the events of a Job or a pod, for one reason or all, the newest last."""
    fields = f"involvedObject.uid={thing['metadata']['uid']}" + f",reason={reason}" * bool(reason)
    with suppress(ApiError):
        return sorted(run.cluster.items("Event", run.namespace, {}, fields), key=_at)
    return []


def _at(event: Object) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or created(event))


def _replaces_another(pod: Object, job: Object) -> bool:
    started = job["status"].get("startTime")
    first = datetime.fromisoformat(started).timestamp() + _FIRST_PODS if started else 0
    return bool(started) and datetime.fromisoformat(created(pod)).timestamp() > first


def _is_being_created(pod: Object) -> bool:
    states = [one.get("state", {}) for one in pod["status"].get("containerStatuses") or ()]
    reasons = {state.get("waiting", {}).get("reason") for state in states}
    return phase_of(pod) == "Pending" and bool(reasons & {"ContainerCreating", "PodInitializing"})
