"""Why a run does not run yet, or not as a whole."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from k8s.fields import Object, annotation, condition, label, name_of, phase_of
from k8s.pod_exit import pod_exit
from k8s.pods import LABEL_QUEUE
from k8s.snapshot import (
    CANCELLED,
    WAITS_FOR,
    Replica,
    RunSnapshot,
    end_of,
    failed,
    generation_of,
    owners_of,
    role_of,
    unanswered_since,
)
from pipeline.errors import PREEMPTED

_FIRST_DELAY, _MAX_DELAY = 10, 600
"""Seconds for which the Job controller delays a replacement; doubled with each pod of the Job that has ended."""

_IMAGE_ERRORS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")


def cancelled_at(snapshot: RunSnapshot) -> str:
    """Return when the run was cancelled; empty if it was not."""
    return next(filter(None, (annotation(owner, CANCELLED) for owner in owners_of(snapshot))), "")


def why_waiting(snapshot: RunSnapshot, replicas: list[Replica]) -> str:
    """Return why a run does not run yet, or not as a whole; empty if it does."""
    if when := cancelled_at(snapshot):
        return f"cancelled at {when}: its processes save a checkpoint and end"
    reasons = [_why_suspended(owner, snapshot.notes) for owner in owners_of(snapshot) if owner["spec"].get("suspend")]
    if reasons:
        return "; ".join(dict.fromkeys(reasons))
    back = [replica for replica in replicas if replica.restarted]
    if back:
        how = (f"{one.role} {one.number} {pod_exit([pod for pod in one.pods if failed(pod)][-1]).how}" for one in back)
        reasons.append(f"restarting {len(back)} of {len(replicas)}: {', '.join(how)}")
    pending: dict[str, list[str]] = {}
    for replica in replicas:
        if replica.pods and (why := _why_pod_waits(replica.pods[-1], snapshot.notes)):
            pending.setdefault(why, []).append(f"{replica.role} {replica.number}")
    reasons += [f"{', '.join(who)}: {why}" for why, who in pending.items()]
    reasons += [note for job in snapshot.jobs if (note := snapshot.notes.get(name_of(job)))]
    if not snapshot.job_set:
        by_role = {name: [one for one in replicas if one.role == name] for name in {one.role for one in replicas}}
        reasons += filter(
            None, (_why_delayed(job, by_role[role_of(job)], snapshot.created_pods) for job in owners_of(snapshot))
        )
    return "; ".join(reasons)


def _why_suspended(owner: Object, notes: Mapping[str, str]) -> str:
    note = notes.get(name_of(owner), "")
    if queue := label(owner, LABEL_QUEUE):
        return f"queued by Kueue in {queue!r}" + (f": {note}" if note else "")
    resumes = f"`kubectl patch {owner.get('kind', 'Job').lower()} {name_of(owner)}` with suspend=false resumes it"
    if before := annotation(owner, WAITS_FOR):
        return f"{name_of(owner)} starts when the pods of {before} have saved; if its launcher is gone, {resumes}"
    return f"suspended: {resumes}"


def _why_pod_waits(pod: Object, notes: Mapping[str, str]) -> str:
    """Return why a pod does not run, or no longer."""
    status: Mapping[str, Any] = pod["status"]
    node, deleted = pod["spec"].get("nodeName", ""), pod["metadata"].get("deletionTimestamp")
    if since := unanswered_since(pod):
        away = f"its node {node} does not answer since {since}; "
        if not deleted:
            return away + "its pod is taken from there soon"
        # The Job controller waits for an end of which only that node could tell.
        forced = f"kubectl delete pod {name_of(pod)} --force"
        return f"{away}once that machine is off for sure, `{forced}` lets the Job replace it"
    if phase_of(pod) in ("Succeeded", "Failed"):
        return ""
    if deleted:
        return "terminating"
    if unscheduled := condition(pod, "PodScheduled", status="False"):
        return f"no node fits: {unscheduled.get('message') or unscheduled.get('reason', '')}"
    for container in status.get("containerStatuses") or ():
        waiting = container.get("state", {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _IMAGE_ERRORS:
            return f"image cannot be pulled: {message or reason}"
        if reason in ("ContainerCreating", "PodInitializing"):
            return notes.get(name_of(pod)) or "pulling the image, mounting volumes"
        if reason:
            return f"{reason}: {message}"
    return ""


def _why_delayed(job: Object, replicas: list[Replica], created: int) -> str:
    """Return for how long the Job controller delays the pods that are not there, if it does.

    Of a pod that was deleted only the event of its creation is left: it has ended at a time that nobody knows.
    """
    here = [[pod for pod in one.pods if generation_of(pod) == generation_of(job)] for one in replicas]
    deleted = max(0, created - sum(map(len, here)))
    absent = [f"{one.role} {one.number}" for one, pods in zip(replicas, here, strict=True) if deleted and not pods]
    gone = [pods[-1] for pods in here if pods and failed(pods[-1])]
    ended = [pod for pods in here for pod in pods if failed(pod)]
    count = deleted + len(ended)
    if end_of(job) or not (gone or absent):
        return ""
    delay = min(_MAX_DELAY, _FIRST_DELAY * 2 ** min(count - 1, 10))
    text = f"after {count} ended pod{'s' * (count > 1)} the Job controller waits for {delay} s"
    if absent:
        text = f"{', '.join(absent)} without a pod: {text}"
    else:
        last = max(datetime.fromisoformat(pod_exit(pod).at) for pod in ended)
        text += f", until {last + timedelta(seconds=delay):%H:%M:%S} UTC"
    if all(end.disrupted or end.status == PREEMPTED for end in map(pod_exit, gone)):
        text += " or longer (python -m components.launch and kind=jobset do not wait)"
    return text
