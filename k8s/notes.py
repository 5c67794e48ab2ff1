"""What is asked of the cluster besides a run's own objects: why a Job waits, and the last lines of what has failed.

None of it is needed to judge a run: what may not be read is left out.
"""

from contextlib import suppress

from k8s.cluster_api import Cluster
from k8s.logs import Logs
from k8s.pods import LABEL_QUEUE, Object
from k8s.refusals import Refused
from k8s.status import Sight, end_of, first_failure, owners_of

_LINES = 20


def notes_of(cluster: Cluster, namespace: str, sight: Sight, logs: Logs) -> dict[str, str]:
    """By the name of an object, what else is known of it."""
    found: dict[str, str] = {}
    for owner in owners_of(sight):
        metadata = owner["metadata"]
        if owner["spec"].get("suspend") and metadata.get("labels", {}).get(LABEL_QUEUE):
            found[metadata["name"]] = _of_queue(cluster, namespace, owner)
    if not sight.pods:
        for job in sight.jobs:
            if not job["spec"].get("suspend") and not end_of(job):
                found[job["metadata"]["name"]] = _of_events(cluster, namespace, job)
    if any((end_of(owner) or {}).get("type") == "Failed" for owner in owners_of(sight)):
        pod, end = first_failure(sight)
        if pod and end and not end.lines:
            found[pod["metadata"]["name"]] = "\n".join(logs.tail(pod, _LINES))
    return {name: note for name, note in found.items() if note}


def _of_queue(cluster: Cluster, namespace: str, owner: Object) -> str:
    """Why Kueue has not let something start."""
    selector = {"kueue.x-k8s.io/job-uid": owner["metadata"]["uid"]}
    with suppress(Refused):
        workloads = cluster.items("Workload", namespace, selector)
        for workload in workloads or cluster.items("EarlierWorkload", namespace, selector):
            for condition in workload.get("status", {}).get("conditions", ()):
                if condition["type"] == "QuotaReserved" and condition["status"] == "False":
                    return str(condition["message"])
    return ""


def _of_events(cluster: Cluster, namespace: str, job: Object) -> str:
    """Why a Job has no pods: they are beyond a quota, or against the pod security."""
    with suppress(Refused):
        fields = f"involvedObject.uid={job['metadata']['uid']},reason=FailedCreate"
        events = cluster.items("Event", namespace, {}, fields)
        if events:
            return f"its pods cannot be created: {events[-1].get('message', '')}"
    return ""
