"""How a run is, judged from its objects alone: its state in TorchX's words, why, and how it has ended.

https://kubernetes.io/docs/concepts/workloads/controllers/job/#terminal-job-conditions
"""

import json
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from torchx.schedulers.api import DescribeAppResponse
from torchx.specs import AppState, ReplicaStatus, Resource, Role, RoleStatus, is_terminal

from k8s.endings import Ending, ending
from k8s.pods import LABEL_QUEUE, LABEL_ROLE, LABEL_ROLE_INDEX, Object
from pipeline.errors import CRASH, DONE, PREEMPTED
from pipeline.process.error_file import content

CANCELLED = "pipeline/cancelled"
"""The annotation of a Job or a JobSet that somebody has cancelled: when."""
INDEX = "batch.kubernetes.io/job-completion-index"
"""The label, and the annotation, of a pod that says which replica it is."""

_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_BLAMED = re.compile(r"pod [^/\s]+/(\S+) failed with exit code (\d+)")


class Sight(NamedTuple):
    """The objects of a run at one moment.

    Attributes:
        jobs: Its Jobs.
        pods: Its pods, those that were replaced included, as far as they are still there.
        job_set: Its JobSet, where it is one.
        notes: By the name of an object, what else is known of it: why a Job waits, the last lines of a pod.
    """

    jobs: list[Object]
    pods: list[Object]
    job_set: Object | None = None
    notes: Mapping[str, str] = {}


class Replica(NamedTuple):
    """One node of a role, over all pods that it has had.

    Attributes:
        role: The role's name.
        number: Which of them.
        pods: Its pods, the newest last.
    """

    role: str
    number: int
    pods: list[Object]

    @property
    def phase(self) -> str:
        """The phase of its newest pod; Pending where it has none."""
        return str(self.pods[-1]["status"].get("phase", "Pending")) if self.pods else "Pending"

    @property
    def restarted(self) -> bool:
        """Whether a pod of it has failed, and its successor does not run yet."""
        return self.phase not in ("Succeeded", "Running") and any(map(_failed, self.pods))


def described(app_id: str, sight: Sight) -> DescribeAppResponse:
    """All that TorchX wants to know of a run.

    Args:
        app_id: As the scheduler calls it.
        sight: Its objects.
    """
    specs = specs_of(sight)
    replicas = [replica for name, spec in specs for replica in _replicas(name, spec, sight.pods)]
    state = state_of(sight)
    response = DescribeAppResponse(
        app_id=app_id,
        state=state,
        num_restarts=_restarts(sight, replicas),
        roles=[_role(name, spec) for name, spec in specs],
        roles_statuses=[
            RoleStatus(name, [_replica(one, state, sight) for one in replicas if one.role == name]) for name, _ in specs
        ],
    )
    if state == AppState.FAILED:
        status, words = _why_failed(sight, replicas)
        response.msg = words
        # The form that TorchX's local schedulers give, and that says the status to whoever asks for it.
        response.structured_error_msg = json.dumps(content(status, words))
    elif state == AppState.CANCELLED:
        response.msg = f"cancelled at {_cancelled(sight)}"
    elif state in (AppState.PENDING, AppState.RUNNING) and (words := _why_not_yet(sight, replicas)):
        response.msg = words
    return response


def state_of(sight: Sight) -> AppState:
    """The state of a run. One that still runs in part runs."""
    owners = owners_of(sight)
    ended = [end for owner in owners if (end := end_of(owner))]
    if owners and len(ended) == len(owners):
        if all(end["type"] in ("Complete", "Completed") for end in ended):
            return AppState.SUCCEEDED
        return AppState.CANCELLED if _cancelled(sight) else AppState.FAILED
    if any(pod["status"].get("phase") in ("Running", "Succeeded") for pod in sight.pods):
        return AppState.RUNNING
    if _cancelled(sight) and all(owner["spec"].get("suspend") for owner in owners):
        return AppState.CANCELLED
    return AppState.PENDING


def owners_of(sight: Sight) -> list[Object]:
    """The objects whose end is the run's."""
    return [sight.job_set] if sight.job_set else sight.jobs


def end_of(owner: Object) -> Object | None:
    """The condition by which a Job or a JobSet has ended."""
    for condition in owner.get("status", {}).get("conditions") or ():
        if condition["status"] == "True" and condition["type"] in ("Complete", "Completed", "Failed"):
            found: Object = condition
            return found
    return None


def first_failure(sight: Sight) -> tuple[Object | None, Ending | None]:
    """The pod that failed first, and how; of a Job that ended for one pod's status, that pod.

    Those that were preempted, or whose node was taken away, are passed over where others have failed.
    """
    for owner in (*sight.jobs, *owners_of(sight)):
        if blamed := _BLAMED.search((end_of(owner) or {}).get("message", "")):
            name, status = blamed[1], int(blamed[2])
            pod = next((pod for pod in sight.pods if pod["metadata"]["name"] == name), None)
            return pod, ending(pod) if pod else Ending(status, f"ended with status {status}")
    failed = [(pod, ending(pod)) for pod in sight.pods if _failed(pod)]
    own = [one for one in failed if not one[1].disrupted and one[1].status != PREEMPTED]
    return min(own or failed, key=lambda one: one[1].at, default=(None, None))


def index_of(pod: Object) -> int:
    """Which replica a pod is."""
    metadata = pod["metadata"]
    text = metadata.get("labels", {}).get(INDEX) or metadata.get("annotations", {}).get(INDEX)
    return int(text or 0)


def role_of(pod: Object) -> str:
    """The role of a pod or a Job."""
    return str(pod["metadata"].get("labels", {}).get(LABEL_ROLE, ""))


def created(thing: Object) -> str:
    """When an object was created, as a text that sorts."""
    return str(thing["metadata"].get("creationTimestamp", ""))


def _failed(pod: Object) -> bool:
    return bool(pod["status"].get("phase") == "Failed")


def _cancelled(sight: Sight) -> str:
    """When the run was cancelled, if it was."""
    marks = (owner["metadata"].get("annotations", {}).get(CANCELLED) for owner in owners_of(sight))
    return next((mark for mark in marks if mark), "")


def specs_of(sight: Sight) -> list[tuple[str, Object]]:
    """The roles in their order, each with what its Job does."""
    if sight.job_set:
        return [(one["name"], one["template"]["spec"]) for one in sight.job_set["spec"]["replicatedJobs"]]
    jobs = sorted(sight.jobs, key=lambda job: int(job["metadata"].get("labels", {}).get(LABEL_ROLE_INDEX, 0)))
    return [(role_of(job), job["spec"]) for job in jobs]


def _replicas(role: str, spec: Object, pods: Iterable[Object]) -> list[Replica]:
    own = sorted((pod for pod in pods if role_of(pod) == role), key=created)
    return [
        Replica(role, index, [pod for pod in own if index_of(pod) == index]) for index in range(spec["completions"])
    ]


def _restarts(sight: Sight, replicas: Iterable[Replica]) -> int:
    if sight.job_set:
        return int(sight.job_set.get("status", {}).get("restarts", 0))
    return sum(max(0, len(replica.pods) - 1) for replica in replicas)


def _role(name: str, spec: Object) -> Role:
    """A role as far as its pods' template tells."""
    container = spec["template"]["spec"]["containers"][0]
    limits = container.get("resources", {}).get("limits", {})
    requests = {**container.get("resources", {}).get("requests", {})}
    # What we ask for is whole cores, whole MB, and whole devices under names with a domain.
    cpu, memory = (re.match(r"\d+", str(requests.get(one, ""))) for one in ("cpu", "memory"))
    gpus = [int(value) for key, value in limits.items() if key.endswith("/gpu")]
    return Role(
        name=name,
        image=container["image"],
        entrypoint=(container.get("command") or [""])[0],
        args=list(container.get("args") or ()),
        env={one["name"]: one["value"] for one in container.get("env") or () if "value" in one},
        num_replicas=spec["completions"],
        max_retries=spec.get("backoffLimit", 0) // max(1, spec["completions"]),
        resource=Resource(
            cpu=int(cpu[0]) if cpu else 0, memMB=int(memory[0]) if memory else 0, gpu=gpus[0] if gpus else 0
        ),
    )


def _replica(replica: Replica, state: AppState, sight: Sight) -> ReplicaStatus:
    """How one replica is; with the end of its log, where it has failed."""
    pod = replica.pods[-1] if replica.pods else None
    known = {"Running": AppState.RUNNING, "Succeeded": AppState.SUCCEEDED, "Failed": AppState.FAILED}
    found = ReplicaStatus(
        id=replica.number,
        role=replica.role,
        # Where the run is over and the pod is gone it was ended with the run.
        state=known.get(replica.phase, state if is_terminal(state) else AppState.PENDING),
        hostname=str(pod["spec"].get("nodeName", "")) if pod else "",
    )
    failures = [pod for pod in replica.pods if _failed(pod)]
    if failures and state != AppState.SUCCEEDED:
        end = ending(failures[-1])
        lines = end.lines or sight.notes.get(failures[-1]["metadata"]["name"], "")
        report = content(end.status, f"{end.words}\n{lines}" if lines else end.words)
        report["message"]["extraInfo"]["timestamp"] = str(int(_seconds(end.at)))
        found.structured_error_msg = json.dumps(report)
    return found


def _seconds(time: str) -> float:
    try:
        return datetime.fromisoformat(time).timestamp()
    except ValueError:
        return 0


def _why_failed(sight: Sight, replicas: list[Replica]) -> tuple[int, str]:
    """The exit status of a run, and how it came about."""
    failed = [end for owner in owners_of(sight) if (end := end_of(owner)) and end["type"] == "Failed"]
    reasons = {end.get("reason", "") for end in (*failed, *filter(None, map(end_of, sight.jobs)))}
    if "DeadlineExceeded" in reasons:
        allowed = max(spec.get("activeDeadlineSeconds", 0) for _, spec in specs_of(sight))
        return CRASH, f"ran into its deadline of {allowed} s (deadline=); started again, it goes on where it was"
    pod, how = first_failure(sight)
    if how is None:
        return CRASH, "; ".join(f"{one.get('reason', 'Failed')}: {one.get('message', '')}" for one in failed)
    who = f"{role_of(pod)} {index_of(pod)} " if pod else f"{replicas[0].role} " if len(specs_of(sight)) == 1 else ""
    spent = "; all its retries are spent" if "BackoffLimitExceeded" in reasons else ""
    return how.status if how.status != DONE else CRASH, f"{who}{how.words}{spent}"


def _why_not_yet(sight: Sight, replicas: list[Replica]) -> str:
    """What a run waits for."""
    if when := _cancelled(sight):
        return f"cancelled at {when}: its processes save, and end"
    words = [_held(owner, sight.notes) for owner in owners_of(sight) if owner["spec"].get("suspend")]
    if words:
        return "; ".join(dict.fromkeys(words))
    back = [replica for replica in replicas if replica.restarted]
    if back:
        how = (f"{one.role} {one.number} {ending([pod for pod in one.pods if _failed(pod)][-1]).words}" for one in back)
        words.append(f"restarting {len(back)} of {len(replicas)}: {', '.join(how)}")
    reasons: dict[str, list[str]] = {}
    for replica in replicas:
        if replica.phase == "Pending" and replica.pods and (why := _waits(replica.pods[-1])):
            reasons.setdefault(why, []).append(f"{replica.role} {replica.number}")
    words += [f"{', '.join(who)}: {why}" for why, who in reasons.items()]
    words += [note for job in sight.jobs if (note := sight.notes.get(job["metadata"]["name"]))]
    return "; ".join(words)


def _held(owner: Object, notes: Mapping[str, str]) -> str:
    queue = owner["metadata"].get("labels", {}).get(LABEL_QUEUE)
    note = notes.get(owner["metadata"]["name"], "")
    if queue:
        return f"queued by Kueue in {queue!r}" + (f": {note}" if note else "")
    return f"suspended: `kubectl patch {owner['kind'].lower()} {owner['metadata']['name']}` with suspend=false goes on"


def _waits(pod: Object) -> str:
    """Why a pod does not run yet."""
    status: Mapping[str, Any] = pod["status"]
    if pod["metadata"].get("deletionTimestamp"):
        return "is being ended"
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"no node for it: {condition.get('message') or condition.get('reason', '')}"
    for container in status.get("containerStatuses") or ():
        waiting = container.get("state", {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _IMAGE:
            return f"its image cannot be pulled: {message or reason}"
        if reason in ("ContainerCreating", "PodInitializing"):
            return "pulling its image, mounting its volumes"
        if reason:
            return f"{reason}: {message}"
    return ""
