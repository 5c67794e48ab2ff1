"""What else the cluster knows of a run: why a Job waits.

The state of a run does not depend on it: what may not be read is left out.
"""

from contextlib import suppress

from k8s.api_errors import ApiError
from k8s.fields import Object, condition, label, name_of
from k8s.pods import LABEL_QUEUE
from k8s.run_ref import RunRef
from k8s.status import RunSnapshot, end_of, owners_of


def diagnostics_of(run: RunRef, snapshot: RunSnapshot) -> dict[str, str]:
    """Return the diagnostics by the name of an object."""
    found: dict[str, str] = {}
    for owner in owners_of(snapshot):
        if owner["spec"].get("suspend") and label(owner, LABEL_QUEUE):
            found[name_of(owner)] = _of_queue(run, owner)
    if not snapshot.pods:
        for job in snapshot.jobs:
            if not job["spec"].get("suspend") and not end_of(job):
                found[name_of(job)] = _of_events(run, job)
    return {name: text for name, text in found.items() if text}


def _of_queue(run: RunRef, owner: Object) -> str:
    """Return why Kueue has not admitted a Job or a JobSet."""
    selector = {"kueue.x-k8s.io/job-uid": owner["metadata"]["uid"]}
    with suppress(ApiError):
        workloads = run.cluster.items("Workload", run.namespace, selector)
        for workload in workloads or run.cluster.items("EarlierWorkload", run.namespace, selector):
            if waiting := condition(workload, "QuotaReserved", status="False"):
                return str(waiting["message"])
    return ""


def _of_events(run: RunRef, job: Object) -> str:
    """Return why a Job has no pods: they exceed a quota, or violate the pod security."""
    with suppress(ApiError):
        fields = f"involvedObject.uid={job['metadata']['uid']},reason=FailedCreate"
        if events := run.cluster.items("Event", run.namespace, {}, fields):
            return f"its pods cannot be created: {events[-1].get('message', '')}"
    return ""
