"""What a run consists of in a cluster at one moment: its Jobs, of which the newest counts, and their pods."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from k8s.fields import Object, annotation, condition, label, phase_of
from k8s.pods import LABEL_GENERATION, LABEL_ROLE, LABEL_ROLE_INDEX

CANCELLED = "pipeline/cancelled"
"""The annotation of a cancelled Job or JobSet: when."""
RENEWED = "pipeline/renewed-by"
"""The annotation of a Job whose pods are ended, so that the next Job of the run can start: its name."""
WAITS_FOR = "pipeline/waits-for"
"""The annotation of the next Job of a run until it starts: the one whose pods are to end before."""
ALL_CREATED = "pipeline/all-created"
"""The annotation of a Job of which each pod was there."""
INDEX = "batch.kubernetes.io/job-completion-index"
"""The label, and the annotation, with the number of a pod's replica."""

_OVERDUE = timedelta(seconds=30)
"""How long after its grace period a pod that is still there is on a node that does not answer."""


class RunSnapshot(NamedTuple):
    """The objects of a run at one moment.

    Attributes:
        jobs: Its Jobs; of one that was made anew (`k8s.renewal`) also the earlier ones.
        pods: Its pods, including those that were replaced, as far as they still exist.
        job_set: Its JobSet, if it is one.
        notes: Why a Job, a JobSet or a pod waits, by its name.
        created_pods: How many pods its Job has created, as far as events tell.
    """

    jobs: list[Object]
    pods: list[Object]
    job_set: Object | None = None
    notes: Mapping[str, str] = {}
    created_pods: int = 0


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
        return self.phase not in ("Succeeded", "Running") and any(map(failed, self.pods))


def owners_of(snapshot: RunSnapshot) -> list[Object]:
    """Return the objects whose end is the end of the run: of each role the newest Job, or the JobSet."""
    if snapshot.job_set:
        return [snapshot.job_set]
    newest: dict[str, Object] = {}
    for job in sorted(snapshot.jobs, key=generation_of):
        before = newest.get(role_of(job))
        if before is None or not (annotation(job, WAITS_FOR) and is_final(before)):
            newest[role_of(job)] = job
    return list(newest.values())


def newest(snapshot: RunSnapshot) -> RunSnapshot:
    """Return a run without the Jobs that were replaced by newer ones, and without their pods."""
    if snapshot.job_set:
        return snapshot
    jobs = owners_of(snapshot)
    generations = set(map(generation_of, jobs))
    return snapshot._replace(jobs=jobs, pods=[pod for pod in snapshot.pods if generation_of(pod) in generations])


def is_final(job: Object) -> bool:
    """Return whether no Job follows this one: it has ended by itself, or was cancelled."""
    end = end_of(job)
    made_way = end.get("reason") == "DeadlineExceeded" and annotation(job, RENEWED)
    return bool(annotation(job, CANCELLED) or (end and not made_way))


def end_of(owner: Object) -> Object:
    """Return the condition by which a Job or a JobSet has ended; empty while it has not."""
    return condition(owner, "Complete", "Completed", "Failed")


def specs_of(snapshot: RunSnapshot) -> list[tuple[str, Object]]:
    """Return the roles in their order, each with the spec of its Job."""
    if snapshot.job_set:
        return [(one["name"], one["template"]["spec"]) for one in snapshot.job_set["spec"]["replicatedJobs"]]
    jobs = sorted(owners_of(snapshot), key=lambda job: int(label(job, LABEL_ROLE_INDEX) or 0))
    return [(role_of(job), job["spec"]) for job in jobs]


def replicas_of(role: str, spec: Object, pods: Iterable[Object]) -> list[Replica]:
    """Return the replicas of a role, each with its pods."""
    own = sorted((pod for pod in pods if role_of(pod) == role), key=created)
    return [
        Replica(role, index, [pod for pod in own if index_of(pod) == index]) for index in range(spec["completions"])
    ]


def generation_of(thing: Object) -> int:
    """Return how often the run of a Job or a pod was made anew when it came, from 1 on."""
    return int(label(thing, LABEL_GENERATION) or 1)


def index_of(pod: Object) -> int:
    """Return the number of a pod's replica."""
    return int(label(pod, INDEX) or annotation(pod, INDEX) or 0)


def role_of(thing: Object) -> str:
    """Return the role of a pod or a Job."""
    return label(thing, LABEL_ROLE)


def created(thing: Object) -> str:
    """Return when an object was created, as a text that sorts."""
    return str(thing["metadata"].get("creationTimestamp", ""))


def failed(pod: Object) -> bool:
    """Return whether a pod has failed."""
    return phase_of(pod) == "Failed"


def runs(pod: Object) -> bool:
    """Return whether the processes of a pod run, as far as is known, and so have something to save."""
    return phase_of(pod) == "Running"


def unanswered_since(pod: Object) -> str:
    """Return since when the node of a pod that ran there does not answer; empty if it does.

    The cluster then says that the pod is not ready, and leaves everything else as the node has last said it. A node
    gives a reason, and says so of the containers, too.
    """
    if not runs(pod):
        return ""
    deleted = pod["metadata"].get("deletionTimestamp")
    if deleted and datetime.fromisoformat(deleted) + _OVERDUE < datetime.now(UTC):
        return str(deleted)
    lost = condition(pod, "Ready", status="False") or condition(pod, "Ready", status="Unknown")
    if lost and not lost.get("reason") and condition(pod, "ContainersReady"):
        return str(lost.get("lastTransitionTime", "")) or "a while ago"
    return ""
