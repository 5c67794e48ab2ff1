"""The state of a run, derived from its objects alone: TorchX's state, the reason, and the exit status.

https://kubernetes.io/docs/concepts/workloads/controllers/job/#terminal-job-conditions
"""

import json
import re
from collections.abc import Iterable
from datetime import datetime

from kubernetes.utils.quantity import parse_quantity
from torchx.schedulers.api import DescribeAppResponse
from torchx.specs import AppState, ReplicaStatus, Resource, Role, RoleStatus, is_terminal

from k8s.fields import Object, annotation, name_of, phase_of
from k8s.jobs import DEADLINE
from k8s.pod_exit import PodExit, pod_exit
from k8s.snapshot import (
    RENEWED,
    Replica,
    RunSnapshot,
    end_of,
    failed,
    generation_of,
    index_of,
    newest,
    owners_of,
    replicas_of,
    role_of,
    specs_of,
)
from k8s.waiting import cancelled_at, why_waiting
from pipeline.errors import CRASH, INTERRUPTED, PREEMPTED
from pipeline.process.error_file import content

_FAILED_POD = re.compile(r"pod [^/\s]+/(\S+) failed with exit code (\d+)")


def described(app_id: str, snapshot: RunSnapshot) -> DescribeAppResponse:
    """Return TorchX's description of a run.

    Args:
        app_id: The name of the run, with its namespace.
        snapshot: Its objects.
    """
    specs = specs_of(snapshot)
    replicas = [replica for name, spec in specs for replica in replicas_of(name, spec, snapshot.pods)]
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
        response.msg = f"cancelled at {cancelled_at(snapshot)}"
    elif state in (AppState.PENDING, AppState.RUNNING):
        response.msg = why_waiting(snapshot, replicas) or response.msg
    return response


def state_of(snapshot: RunSnapshot) -> AppState:
    """Return the state of a run, which is running while any part of it is."""
    owners = owners_of(snapshot)
    ended = [end for owner in owners if (end := end_of(owner))]
    if owners and len(ended) == len(owners):
        if all(end["type"] in ("Complete", "Completed") for end in ended):
            return AppState.SUCCEEDED
        return AppState.CANCELLED if cancelled_at(snapshot) else AppState.FAILED
    if any(phase_of(pod) == "Running" for pod in snapshot.pods) or any(
        phase_of(pod) == "Succeeded" for pod in newest(snapshot).pods
    ):
        return AppState.RUNNING
    if cancelled_at(snapshot) and all(owner["spec"].get("suspend") for owner in owners):
        return AppState.CANCELLED
    return AppState.PENDING


def first_failed_pod(snapshot: RunSnapshot) -> tuple[Object | None, PodExit | None]:
    """Return the pod that failed first and its exit; of a Job that ended for one pod's status, that pod.

    Pods that were preempted, or whose node was taken away, count only if no others have failed.
    """
    snapshot = newest(snapshot)
    for owner in (*snapshot.jobs, *owners_of(snapshot)):
        if named := _FAILED_POD.search(end_of(owner).get("message", "")):
            name, status = named[1], int(named[2])
            pod = next((pod for pod in snapshot.pods if name_of(pod) == name), None)
            return pod, pod_exit(pod) if pod else PodExit(status, f"ended with status {status}")
    exits = [(pod, pod_exit(pod)) for pod in snapshot.pods if failed(pod)]
    own = [one for one in exits if not one[1].disrupted and one[1].status != PREEMPTED]
    return min(own or exits, key=lambda one: one[1].at, default=(None, None))


def _restarts(snapshot: RunSnapshot, replicas: Iterable[Replica]) -> int:
    """Return how often the run was started again as a whole, and how many pods were replaced since."""
    if snapshot.job_set:
        return int(snapshot.job_set.get("status", {}).get("restarts", 0))
    generation = max(map(generation_of, owners_of(snapshot)))
    counts = [sum(generation_of(pod) == generation for pod in replica.pods) for replica in replicas]
    replaced = sum(max(0, count - 1) for count in counts)
    return generation - 1 + max(replaced, snapshot.created_pods - len(counts))


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
    failures = [pod for pod in replica.pods if failed(pod)]
    if failures and state != AppState.SUCCEEDED:
        end = pod_exit(failures[-1])
        report = content(end.status, f"{end.how}\n{end.lines}" if end.lines else end.how)
        report["message"]["extraInfo"]["timestamp"] = str(int(datetime.fromisoformat(end.at).timestamp()))
        found.structured_error_msg = json.dumps(report)
    return found


def _why_failed(snapshot: RunSnapshot, replicas: list[Replica]) -> tuple[int, str]:
    """Return the exit status of a run, and the reason."""
    ends = [end for owner in owners_of(snapshot) if (end := end_of(owner)) and end["type"] == "Failed"]
    reasons = {end.get("reason", "") for end in (*ends, *filter(None, map(end_of, newest(snapshot).jobs)))}
    if "DeadlineExceeded" in reasons:
        if successor := next(filter(None, (annotation(job, RENEWED) for job in newest(snapshot).jobs)), ""):
            return INTERRUPTED, f"its pods were to start anew as {successor}, which was deleted"
        allowed = max(map(_deadline, newest(snapshot).jobs), default=0)
        return CRASH, f"exceeded its deadline of {allowed} s (deadline=); submit it again to resume"
    pod, exited = first_failed_pod(snapshot)
    if exited is None:
        return CRASH, "; ".join(f"{one.get('reason', 'Failed')}: {one.get('message', '')}" for one in ends)
    who = f"{role_of(pod)} {index_of(pod)} " if pod else f"{replicas[0].role} " if len(specs_of(snapshot)) == 1 else ""
    spent = "; all its retries are used up" if "BackoffLimitExceeded" in reasons else ""
    return exited.status or CRASH, f"{who}{exited.how}{spent}"


def _deadline(job: Object) -> int:
    """Return the seconds that a run was given at its start."""
    own, pods = job["spec"].get("activeDeadlineSeconds", 0), job["spec"]["template"]["spec"]
    return int(annotation(job, DEADLINE) or pods.get("activeDeadlineSeconds", own))
