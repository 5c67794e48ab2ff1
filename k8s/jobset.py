"""All roles of an app as one JobSet (v1alpha2, JobSet 0.10 or newer), which restarts all pods of a role together.

A role that comes after another starts once that is complete. Its Job retries it, as with `kind=job`, for a restart of
the JobSet would repeat the training. (JobSet 0.12 can restart a single Job, but only behind a feature gate that is off
by default.)

    https://jobset.sigs.k8s.io/docs/tasks/failure_policy/
"""

from torchx.specs import Role

from components.role import LaunchRequirements
from k8s.fields import Object
from k8s.jobs import job_spec, leader_of, metadata, pod_failure_policy, queue
from k8s.pods import Run, labels

_USER_ERROR_RULE = 0
"""The index of the rule for status 2 in the pod failure policy, with which a Job's message ends."""


def jobset_objects(run: Run) -> list[Object]:
    """Return the JobSet, whose controller creates the Jobs and a headless Service."""
    opts = run.opts
    spec: Object = {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "successPolicy": {"operator": "All"},
        "failurePolicy": _failure_policy(run),
        "replicatedJobs": [_replicated_job(run, role) for role in run.app.roles],
    }
    if opts.ttl:
        spec["ttlSecondsAfterFinished"] = opts.ttl
    made: Object = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata(run, run.app_id)}
    made["metadata"]["labels"].update(queue(opts))
    return [{**made, "spec": spec}]


def _failure_policy(run: Run) -> Object:
    """Return what happens when a Job of the set has failed: the first rule that matches, else a restart."""
    later = [role.name for role in run.app.roles if LaunchRequirements.of(role).after]
    rules: list[Object] = [
        {
            "name": "mistake",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
            "onJobFailureMessagePatterns": [f"matching FailJob rule at index {_USER_ERROR_RULE}$"],
        },
        {"name": "deadline", "action": "FailJobSet", "onJobFailureReasons": ["DeadlineExceeded"]},
        {
            "name": "preempted",
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["PodFailurePolicy"],
        },
    ]
    if later:
        rules.insert(1, {"name": "later", "action": "FailJobSet", "targetReplicatedJobs": later})
    retries = [role.max_retries for role in run.app.roles if role.name not in later]
    return {"maxRestarts": max(retries), "rules": rules}


def _replicated_job(run: Run, role: Role) -> Object:
    after = LaunchRequirements.of(role).after
    spec = job_spec(run, role, f"{run.app_id}-{leader_of(run, role).name}-0-0.{run.app_id}")
    if not after:
        # The first failed pod fails the Job, and the JobSet decides.
        spec["backoffLimit"] = 0
        spec["podFailurePolicy"] = pod_failure_policy(role, "FailJob")
    made: Object = {"name": role.name, "replicas": 1}
    if after:
        made["dependsOn"] = [{"name": after, "status": "Complete"}]
    marked: Object = {"labels": labels(run, role)}
    if run.opts.annotations:
        marked["annotations"] = dict(run.opts.annotations)
    return {**made, "template": {"metadata": marked, "spec": spec}}
