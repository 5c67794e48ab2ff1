"""Making the Job of a run anew when pods were taken away, so that all pods of the next one start at once.

The Job controller delays the replacement of a pod by 10 seconds, doubled with each pod of the Job that has ended, for
whatever reason, up to 10 minutes, and never replaces one whose node is gone without a word. The pods that are left
cannot go on meanwhile: they save and end, and a new Job, of the next generation, knows nothing of the old one's delay.

Whoever waits for the run calls `step` again and again. Each call judges by the objects alone and does what comes next:

1. The next Job is created, suspended, under a name of its own, so that a second caller cannot create it, too.
2. The pods that are left of the old one are asked to end, by which they save (`k8s.cancel.end_pods`): their logs stay.
3. Once they have, the new Job is resumed. If the old one has ended by itself meanwhile, it is deleted instead.

So a caller may die at any moment, and the next one goes on from there. Two writers are excluded by the lease of the run
directory, also where a node that does not answer still runs a pod.

Jobs under Kueue are left alone, for a new one would be the last in the queue; so are those of a JobSet, which restarts
all pods without delay by itself, and apps of several roles. Crashes are left to the Job controller and its delay, as
are pods that ended by themselves within seconds: started without delay they would end and start for ever.

At the deadline of the run the pods are asked to end in the same way.
"""

import copy
import re
from collections.abc import Iterable
from datetime import UTC, datetime

from k8s.api_errors import ApiError
from k8s.cancel import deadline_in, end_pods, grace_of, is_saving
from k8s.fields import Object, annotation, condition, label, name_of, phase_of
from k8s.jobs import DEADLINE, MIN_NODES, companions_of
from k8s.manifests import owned
from k8s.pod_exit import pod_exit
from k8s.pods import LABEL_GENERATION, LABEL_QUEUE, RANK0
from k8s.run_ref import RunRef
from k8s.snapshot import (
    ALL_CREATED,
    CANCELLED,
    RENEWED,
    WAITS_FOR,
    Replica,
    RunSnapshot,
    end_of,
    failed,
    generation_of,
    index_of,
    is_final,
    newest,
    replicas_of,
    role_of,
)
from pipeline.errors import PREEMPTED, USER_MUST_CHANGE

_KIND = {"apiVersion": "batch/v1", "kind": "Job"}
"""What the items of a list lack."""
_LEAST_LIFE = 30.0
"""Seconds below which a pod that has ended by itself is left to the Job controller and its delay."""
_NAMED = 3
"""Pods that a message names."""
_SERVERS_OWN = re.compile(
    r"(batch\.kubernetes\.io/)?(controller-uid|job-name)|pipeline/(request|waits-for|renewed-by|all-created)|kubectl\..*"
)
"""The labels and annotations that the server, kubectl or this project have added to a Job."""


class Renewal:
    """The renewal of one run, as far as one caller has seen it.

    Args:
        run: The run.
    """

    def __init__(self, run: RunRef) -> None:
        self._run = run
        self._asked = set[str]()

    def step(self, snapshot: RunSnapshot) -> str:
        """Do what comes next, if anything.

        Returns:
            What was done, in words; empty for nothing that is worth a line.

        Raises:
            ApiError: The cluster rejects it.
            ClusterAway: The cluster does not answer.
        """
        if snapshot.job_set or len({role_of(job) for job in snapshot.jobs}) != 1:
            return ""
        *earlier, job = sorted(snapshot.jobs, key=generation_of)
        if annotation(job, WAITS_FOR):
            return self._go_on(job, earlier, snapshot.pods)
        if _is_late(job):
            return self._end_late(job, snapshot.pods)
        replicas = replicas_of(role_of(job), job["spec"], newest(snapshot).pods)
        if not annotation(job, ALL_CREATED) and all(replica.pods for replica in replicas):
            # Whoever comes later knows by this that a pod that is not there was deleted.
            change = {"metadata": {"annotations": {ALL_CREATED: "true"}}}
            self._run.cluster.patch("Job", self._run.namespace, name_of(job), change)
        gone = _gone(job, replicas)
        if not gone or not (job := self._renewable(job)):
            return ""
        made = renewed(job, datetime.now(UTC), _crashes(job, newest(snapshot).pods))
        try:
            self._run.cluster.create(made, self._run.namespace)
        except ApiError as error:
            # Another caller was faster.
            if error.status != 409:
                raise
        self._end(job, name_of(made), snapshot.pods)
        more = f" and {len(gone) - _NAMED} more" if len(gone) > _NAMED else ""
        return f"{', '.join(gone[:_NAMED])}{more}: all pods save, and start anew as {name_of(made)}"

    def _renewable(self, job: Object) -> Object:
        """Return a Job as it is now; empty if it is about to end, or no longer there, or not ours to renew."""
        now = self._run.cluster.read("Job", self._run.namespace, name_of(job)) or {}
        if (
            not now
            or now["metadata"]["uid"] != job["metadata"]["uid"]
            or now["metadata"].get("deletionTimestamp")
            or now["spec"].get("suspend")
            or label(now, LABEL_QUEUE)
            or annotation(now, CANCELLED)
            or end_of(now)
            or condition(now, "FailureTarget", "SuccessCriteriaMet")
            or not now.get("status", {}).get("startTime")
            or _is_late(now)
        ):
            return {}
        return now

    def _end(self, job: Object, successor: str, pods: Iterable[Object]) -> None:
        """Ask the pods of a Job to save and end, and the Job to end after that, also without this process."""
        saving = [pod for pod in pods if generation_of(pod) <= generation_of(job) and is_saving(pod)]
        if not annotation(job, RENEWED):
            spec = {} if end_of(job) else {"spec": {"activeDeadlineSeconds": deadline_in(job, grace_of(saving))}}
            change = {"metadata": {"annotations": {RENEWED: successor}}, **spec}
            self._run.cluster.patch("Job", self._run.namespace, name_of(job), change)
        self._ask_to_end(saving)

    def _ask_to_end(self, pods: list[Object]) -> bool:
        """Ask those pods to save and end that were not yet asked; return whether there were any."""
        new = [pod for pod in pods if pod["metadata"]["uid"] not in self._asked]
        self._asked.update(pod["metadata"]["uid"] for pod in new)
        end_pods(self._run, (pod for pod in new if not pod["metadata"].get("deletionTimestamp")))
        return bool(new)

    def _end_late(self, job: Object, pods: list[Object]) -> str:
        """End a run at its deadline so that its logs stay: pods that had to wait for a node have a later one."""
        saving = [pod for pod in pods if is_saving(pod)]
        if not saving:
            self._run.cluster.patch("Job", self._run.namespace, name_of(job), {"spec": {"activeDeadlineSeconds": 1}})
        return f"{name_of(job)} has reached its deadline: its pods save and end" if self._ask_to_end(saving) else ""

    def _go_on(self, job: Object, earlier: list[Object], pods: list[Object]) -> str:
        """Start a Job that waits once the pods before it have ended; delete it if it is not needed."""
        cluster, namespace, name = self._run.cluster, self._run.namespace, name_of(job)
        before = earlier[-1] if earlier else None
        old = [pod for pod in pods if generation_of(pod) < generation_of(job)]
        if before is not None:
            if is_final(before):
                cluster.delete("Job", namespace, name)
                return f"{name} is not needed: {name_of(before)} has ended by itself"
            self._end(before, name, old)
            if not end_of(before) and _ends_by_itself(before, old):
                return ""
        if any(map(is_saving, old)):
            return ""
        if before is not None and not end_of(before):
            cluster.patch("Job", namespace, name_of(before), {"spec": {"activeDeadlineSeconds": 1}})
        keeps = before is not None and self._has_budget(name_of(before))
        for one in companions_of(job, keep_nodes=keeps):
            try:
                cluster.create(owned(one, {**_KIND, **job}, job["metadata"]["uid"]), namespace)
            except ApiError as error:
                if error.status != 409:
                    raise
        resumed = {"metadata": {"annotations": {WAITS_FOR: None}}, "spec": {"suspend": False}}
        cluster.patch("Job", namespace, name, resumed)
        # The last one is kept for its logs.
        for one in earlier[:-1]:
            cluster.delete("Job", namespace, name_of(one))
        return f"{name} starts"

    def _has_budget(self, name: str) -> bool:
        try:
            return self._run.cluster.read("PodDisruptionBudget", self._run.namespace, name) is not None
        except ApiError:
            # Whoever may not read them has created none.
            return False


def _gone(job: Object, replicas: list[Replica]) -> list[str]:
    """Return which replicas have no pod any more that will go on, and why, if the run cannot go on without them."""
    done, every = _completed(job), annotation(job, ALL_CREATED)
    gone = {
        one.number: how
        for one in replicas
        if one.number not in done
        and (how := _how_gone(one.pods[-1]) if one.pods else "has lost its pod" if every else "")
    }
    least = annotation(job, MIN_NODES)
    # With fewer nodes training goes on, unless those are too few, or the host of the rendezvous is gone.
    if least and 0 not in gone and len(replicas) - len(gone) >= int(least):
        return []
    return [f"{role_of(job)} {number} {how}" for number, how in gone.items()]


def _how_gone(pod: Object) -> str:
    """Return how a pod was taken away or preempted; empty for one that goes on, or has ended otherwise."""
    deleted = pod["metadata"].get("deletionTimestamp")
    if phase_of(pod) in ("Pending", "Running"):
        if taken := condition(pod, "DisruptionTarget"):
            return f"is taken from its node ({taken.get('reason', '')}: {taken.get('message', '')})"
        return "is deleted" if deleted else ""
    end = pod_exit(pod)
    if not failed(pod) or end.status == USER_MUST_CHANGE:
        return ""
    started = pod["status"].get("startTime") or pod["metadata"]["creationTimestamp"]
    lived = (datetime.fromisoformat(end.at) - datetime.fromisoformat(started)).total_seconds()
    return end.how if deleted or ((end.disrupted or end.status == PREEMPTED) and lived >= _LEAST_LIFE) else ""


def _crashes(job: Object, pods: Iterable[Object]) -> int:
    """Return how many pods have crashed: the Job controller also counts those that were deleted by force."""
    exits = [pod_exit(pod) for pod in pods if failed(pod)]
    own = sum(not end.disrupted and end.status != PREEMPTED for end in exits)
    return min(own, int(job["status"].get("failed", 0)))


def _completed(job: Object) -> set[int]:
    """Return the indexes that are done."""
    ranges = [part.split("-") for part in job["status"].get("completedIndexes", "").split(",") if part]
    return {number for ends in ranges for number in range(int(ends[0]), int(ends[-1]) + 1)}


def renewed(job: Object, now: datetime, crashes: int) -> Object:
    """Return the next Job of a run, suspended: what its crashes and its age have used up is gone.

    Args:
        job: The one before, as the cluster has it.
        now: The time.
        crashes: How many of its retries are used up.
    """
    generation, name = generation_of(job), name_of(job)
    following = f"{name.removesuffix(f'-g{generation}')}-g{generation + 1}"
    spec = {key: copy.deepcopy(value) for key, value in job["spec"].items() if key != "selector"}
    template = spec["template"]
    template["metadata"] = _own_part(template["metadata"], generation + 1)
    template["spec"]["subdomain"] = following
    for variable in template["spec"]["containers"][0]["env"]:
        if variable["name"] == RANK0:
            variable["value"] = f"{following}-0.{following}"
    spec["backoffLimit"] = max(0, spec["backoffLimit"] - crashes)
    spec["suspend"] = True
    metadata = {"name": following, **_own_part(job["metadata"], generation + 1)}
    metadata["annotations"] = {**metadata.get("annotations", {}), WAITS_FOR: name}
    if "activeDeadlineSeconds" in template["spec"]:
        metadata["annotations"].setdefault(DEADLINE, str(template["spec"]["activeDeadlineSeconds"]))
    for timed in (spec, template["spec"]):
        if "activeDeadlineSeconds" in timed:
            timed["activeDeadlineSeconds"] = max(1, timed["activeDeadlineSeconds"] - int(_age(job, now)))
    return {**_KIND, "metadata": metadata, "spec": spec}


def _own_part(metadata: Object, generation: int) -> Object:
    """Return the labels and annotations that were given to a Job or its pods, with another generation."""
    found = {
        kind: {key: value for key, value in metadata[kind].items() if not _SERVERS_OWN.fullmatch(key)}
        for kind in ("labels", "annotations")
        if metadata.get(kind)
    }
    found["labels"][LABEL_GENERATION] = str(generation)
    return found


def _ends_by_itself(job: Object, pods: Iterable[Object]) -> bool:
    """Return whether a Job is about to end for another reason than that it is made anew."""
    target = condition(job, "FailureTarget", "SuccessCriteriaMet")
    if target and target.get("reason") != "DeadlineExceeded":
        return True
    own = [pod for pod in pods if generation_of(pod) == generation_of(job)]
    mistaken = any(failed(pod) and pod_exit(pod).status == USER_MUST_CHANGE for pod in own)
    return mistaken or any(phase_of(pod) == "Succeeded" and index_of(pod) == 0 for pod in own)


def _is_late(job: Object) -> bool:
    """Return whether a Job that runs has reached the deadline of its run, some time before that of its own."""
    ended = end_of(job) or condition(job, "FailureTarget", "SuccessCriteriaMet") or job["spec"].get("suspend")
    deadline = job["spec"]["template"]["spec"].get("activeDeadlineSeconds")
    started = job.get("status", {}).get("startTime")
    return bool(deadline and started and not ended) and _age(job) >= deadline


def _age(job: Object, now: datetime | None = None) -> float:
    """Return the seconds since a Job has started."""
    return ((now or datetime.now(UTC)) - datetime.fromisoformat(job["status"]["startTime"])).total_seconds()
