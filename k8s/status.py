"""The state of a run, derived from its objects alone: TorchX's state, the reason, and the exit status.

https://kubernetes.io/docs/concepts/workloads/controllers/job/#terminal-job-conditions
"""

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from kubernetes.utils.quantity import parse_quantity
from torchx.schedulers.api import DescribeAppResponse
from torchx.specs import AppState, ReplicaStatus, Resource, Role, RoleStatus, is_terminal

from k8s.fields import Object, annotation, condition, label, name_of, phase_of
from k8s.pod_exit import PodExit, pod_exit
from k8s.pods import LABEL_QUEUE, LABEL_ROLE, LABEL_ROLE_INDEX
from pipeline.errors import CRASH, PREEMPTED
from pipeline.process.error_file import content

CANCELLED = "pipeline/cancelled"
"""The annotation of a cancelled Job or JobSet: when."""
INDEX = "batch.kubernetes.io/job-completion-index"
"""The label, and the annotation, with the number of a pod's replica."""

_IMAGE_ERRORS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_FAILED_POD = re.compile(r"pod [^/\s]+/(\S+) failed with exit code (\d+)")


class RunSnapshot(NamedTuple):
    """The objects of a run at one moment.

    Attributes:
        jobs: Its Jobs.
        pods: Its pods, including those that were replaced, as far as they still exist.
        job_set: Its JobSet, if it is one.
        notes: Why a Job or a JobSet waits, by its name.
    """

    jobs: list[Object]
    pods: list[Object]
    job_set: Object | None = None
    notes: Mapping[str, str] = {}


class Replica(NamedTuple):
    """One node of a role, across all its pods.

    Attributes:
        role: The role's name.
        number: Its number in the role.
        pods: Its pods, the newest last.
    """

    role: str
    number: int
    pods: list[Object]

    @property
    def phase(self) -> str:
        """The phase of its newest pod; Pending if it has none."""
        return phase_of(self.pods[-1]) if self.pods else "Pending"

    @property
    def restarted(self) -> bool:
        """Whether a pod of it has failed and its successor does not run yet."""
        return self.phase not in ("Succeeded", "Running") and any(map(_failed, self.pods))


def described(app_id: str, snapshot: RunSnapshot) -> DescribeAppResponse:
    """Return TorchX's description of a run.

    Args:
        app_id: The name of the run, with its namespace.
        snapshot: Its objects.
    """
    specs = specs_of(snapshot)
    replicas = [replica for name, spec in specs for replica in _replicas(name, spec, snapshot.pods)]
    state = state_of(snapshot)
    response = DescribeAppResponse(
        app_id=app_id,
        state=state,
        num_restarts=_restarts(snapshot, replicas),
        roles=[_role(name, spec) for name, spec in specs],
        roles_statuses=[
            RoleStatus(name, [_replica(one, state) for one in replicas if one.role == name]) for name, _ in specs
        ],
    )
    if state == AppState.FAILED:
        status, response.msg = _why_failed(snapshot, replicas)
        # In the form of TorchX's local schedulers, from which `components.launch` reads the status.
        response.structured_error_msg = json.dumps(content(status, response.msg))
    elif state == AppState.CANCELLED:
        response.msg = f"cancelled at {_cancelled(snapshot)}"
    elif state in (AppState.PENDING, AppState.RUNNING):
        response.msg = _why_pending(snapshot, replicas) or response.msg
    return response


def state_of(snapshot: RunSnapshot) -> AppState:
    """Return the state of a run, which is running while any part of it is."""
    owners = owners_of(snapshot)
    ended = [end for owner in owners if (end := end_of(owner))]
    if owners and len(ended) == len(owners):
        if all(end["type"] in ("Complete", "Completed") for end in ended):
            return AppState.SUCCEEDED
        return AppState.CANCELLED if _cancelled(snapshot) else AppState.FAILED
    if any(phase_of(pod) in ("Running", "Succeeded") for pod in snapshot.pods):
        return AppState.RUNNING
    if _cancelled(snapshot) and all(owner["spec"].get("suspend") for owner in owners):
        return AppState.CANCELLED
    return AppState.PENDING


def owners_of(snapshot: RunSnapshot) -> list[Object]:
    """Return the objects whose end is the end of the run."""
    return [snapshot.job_set] if snapshot.job_set else snapshot.jobs


def end_of(owner: Object) -> Object:
    """Return the condition by which a Job or a JobSet has ended; empty while it has not."""
    return condition(owner, "Complete", "Completed", "Failed")


def first_failed_pod(snapshot: RunSnapshot) -> tuple[Object | None, PodExit | None]:
    """Return the pod that failed first and its exit; of a Job that ended for one pod's status, that pod.

    Pods that were preempted, or whose node was taken away, count only if no others have failed.
    """
    for owner in (*snapshot.jobs, *owners_of(snapshot)):
        if named := _FAILED_POD.search(end_of(owner).get("message", "")):
            name, status = named[1], int(named[2])
            pod = next((pod for pod in snapshot.pods if name_of(pod) == name), None)
            return pod, pod_exit(pod) if pod else PodExit(status, f"ended with status {status}")
    failed = [(pod, pod_exit(pod)) for pod in snapshot.pods if _failed(pod)]
    own = [one for one in failed if not one[1].disrupted and one[1].status != PREEMPTED]
    return min(own or failed, key=lambda one: one[1].at, default=(None, None))


def index_of(pod: Object) -> int:
    """Return the number of a pod's replica."""
    return int(label(pod, INDEX) or annotation(pod, INDEX) or 0)


def role_of(pod: Object) -> str:
    """Return the role of a pod or a Job."""
    return label(pod, LABEL_ROLE)


def created(thing: Object) -> str:
    """Return when an object was created, as a text that sorts."""
    return str(thing["metadata"].get("creationTimestamp", ""))


def _failed(pod: Object) -> bool:
    return phase_of(pod) == "Failed"


def _cancelled(snapshot: RunSnapshot) -> str:
    """Return when the run was cancelled; empty if it was not."""
    return next(filter(None, (annotation(owner, CANCELLED) for owner in owners_of(snapshot))), "")


def specs_of(snapshot: RunSnapshot) -> list[tuple[str, Object]]:
    """Return the roles in their order, each with the spec of its Job."""
    if snapshot.job_set:
        return [(one["name"], one["template"]["spec"]) for one in snapshot.job_set["spec"]["replicatedJobs"]]
    jobs = sorted(snapshot.jobs, key=lambda job: int(label(job, LABEL_ROLE_INDEX) or 0))
    return [(role_of(job), job["spec"]) for job in jobs]


def _replicas(role: str, spec: Object, pods: Iterable[Object]) -> list[Replica]:
    own = sorted((pod for pod in pods if role_of(pod) == role), key=created)
    return [
        Replica(role, index, [pod for pod in own if index_of(pod) == index]) for index in range(spec["completions"])
    ]


def _restarts(snapshot: RunSnapshot, replicas: Iterable[Replica]) -> int:
    if snapshot.job_set:
        return int(snapshot.job_set.get("status", {}).get("restarts", 0))
    return sum(max(0, len(replica.pods) - 1) for replica in replicas)


def _role(name: str, spec: Object) -> Role:
    """Return a role, as far as it can be read from its pod template."""
    container = spec["template"]["spec"]["containers"][0]
    limits = container.get("resources", {}).get("limits", {})
    requests = container.get("resources", {}).get("requests", {})
    # This scheduler requests whole cores, whole MB, and whole devices under names with a domain.
    cpu, memory = (int(parse_quantity(requests.get(one, 0))) for one in ("cpu", "memory"))
    gpus = [int(value) for key, value in limits.items() if key.endswith("/gpu")]
    return Role(
        name=name,
        image=container["image"],
        entrypoint=(container.get("command") or [""])[0],
        args=list(container.get("args") or ()),
        env={one["name"]: one["value"] for one in container.get("env") or () if "value" in one},
        num_replicas=spec["completions"],
        max_retries=spec.get("backoffLimit", 0) // max(1, spec["completions"]),
        resource=Resource(cpu=cpu, memMB=memory >> 20, gpu=sum(gpus)),
    )


def _replica(replica: Replica, state: AppState) -> ReplicaStatus:
    """Return the status of a replica; with the last lines of its log if it has failed."""
    pod = replica.pods[-1] if replica.pods else None
    known = {"Running": AppState.RUNNING, "Succeeded": AppState.SUCCEEDED, "Failed": AppState.FAILED}
    found = ReplicaStatus(
        id=replica.number,
        role=replica.role,
        # A pod that is gone after the run is over has ended with it.
        state=known.get(replica.phase, state if is_terminal(state) else AppState.PENDING),
        hostname=str(pod["spec"].get("nodeName", "")) if pod else "",
    )
    failures = [pod for pod in replica.pods if _failed(pod)]
    if failures and state != AppState.SUCCEEDED:
        end = pod_exit(failures[-1])
        report = content(end.status, f"{end.how}\n{end.lines}" if end.lines else end.how)
        report["message"]["extraInfo"]["timestamp"] = str(int(datetime.fromisoformat(end.at).timestamp()))
        found.structured_error_msg = json.dumps(report)
    return found


def _why_failed(snapshot: RunSnapshot, replicas: list[Replica]) -> tuple[int, str]:
    """Return the exit status of a run, and the reason."""
    failed = [end for owner in owners_of(snapshot) if (end := end_of(owner)) and end["type"] == "Failed"]
    reasons = {end.get("reason", "") for end in (*failed, *filter(None, map(end_of, snapshot.jobs)))}
    if "DeadlineExceeded" in reasons:
        allowed = max(spec.get("activeDeadlineSeconds", 0) for _, spec in specs_of(snapshot))
        return CRASH, f"exceeded its deadline of {allowed} s (deadline=); submit it again to resume"
    pod, exited = first_failed_pod(snapshot)
    if exited is None:
        return CRASH, "; ".join(f"{one.get('reason', 'Failed')}: {one.get('message', '')}" for one in failed)
    who = f"{role_of(pod)} {index_of(pod)} " if pod else f"{replicas[0].role} " if len(specs_of(snapshot)) == 1 else ""
    spent = "; all its retries are used up" if "BackoffLimitExceeded" in reasons else ""
    return exited.status or CRASH, f"{who}{exited.how}{spent}"


def _why_pending(snapshot: RunSnapshot, replicas: list[Replica]) -> str:
    """Return why a run does not run yet, or not as a whole."""
    if when := _cancelled(snapshot):
        return f"cancelled at {when}: its processes save a checkpoint and end"
    reasons = [_why_suspended(owner, snapshot.notes) for owner in owners_of(snapshot) if owner["spec"].get("suspend")]
    if reasons:
        return "; ".join(dict.fromkeys(reasons))
    back = [replica for replica in replicas if replica.restarted]
    if back:
        how = (f"{one.role} {one.number} {pod_exit([pod for pod in one.pods if _failed(pod)][-1]).how}" for one in back)
        reasons.append(f"restarting {len(back)} of {len(replicas)}: {', '.join(how)}")
    pending: dict[str, list[str]] = {}
    for replica in replicas:
        if replica.phase == "Pending" and replica.pods and (why := _why_pod_pending(replica.pods[-1])):
            pending.setdefault(why, []).append(f"{replica.role} {replica.number}")
    reasons += [f"{', '.join(who)}: {why}" for why, who in pending.items()]
    reasons += [note for job in snapshot.jobs if (note := snapshot.notes.get(name_of(job)))]
    return "; ".join(reasons)


def _why_suspended(owner: Object, notes: Mapping[str, str]) -> str:
    note = notes.get(name_of(owner), "")
    if queue := label(owner, LABEL_QUEUE):
        return f"queued by Kueue in {queue!r}" + (f": {note}" if note else "")
    return f"suspended: `kubectl patch {owner['kind'].lower()} {name_of(owner)}` with suspend=false resumes it"


def _why_pod_pending(pod: Object) -> str:
    """Return why a pod does not run yet."""
    status: Mapping[str, Any] = pod["status"]
    if pod["metadata"].get("deletionTimestamp"):
        return "terminating"
    if unscheduled := condition(pod, "PodScheduled", status="False"):
        return f"no node fits: {unscheduled.get('message') or unscheduled.get('reason', '')}"
    for container in status.get("containerStatuses") or ():
        waiting = container.get("state", {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _IMAGE_ERRORS:
            return f"image cannot be pulled: {message or reason}"
        if reason in ("ContainerCreating", "PodInitializing"):
            return "pulling the image, mounting volumes"
        if reason:
            return f"{reason}: {message}"
    return ""
