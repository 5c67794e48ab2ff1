"""All roles of an app as one JobSet (v1alpha2, JobSet 0.10 or newer), which restarts all pods of a role together.

A role that comes after another starts once that is complete. Its own failures are its Job's affair, as with `kind=job`,
for a restart of the JobSet would train again what is trained. (JobSet 0.12 can restart a single Job, but only behind a
feature gate that is off by default.)

    https://jobset.sigs.k8s.io/docs/tasks/failure_policy/
"""

from torchx.specs import Role

from components.role import Needs
from k8s.jobs import DISRUPTED, exit_code, job_spec, leader_of, metadata, queue
from k8s.pods import Object, Run, labels
from pipeline.errors import PREEMPTED, USER_MUST_CHANGE

_MISTAKE = 0
"""The place of the user's mistakes among the rules for pods; a Job's message ends with it."""


def objects_of(run: Run) -> list[Object]:
    """The JobSet, which makes Jobs and a headless Service by itself."""
    opts = run.opts
    spec: Object = {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "successPolicy": {"operator": "All"},
        "failurePolicy": _failure_policy(run),
        "replicatedJobs": [_replicated_job(run, role) for role in run.app.roles],
    }
    if opts["ttl"]:
        spec["ttlSecondsAfterFinished"] = opts["ttl"]
    made: Object = {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata(run, run.app_id)}
    made["metadata"]["labels"].update(queue(opts))
    return [{**made, "spec": spec}]


def _failure_policy(run: Run) -> Object:
    """What becomes of the set when one of its Jobs has failed: what the first rule that fits says, else a new start."""
    later = [role.name for role in run.app.roles if Needs.of(role).after]
    rules: list[Object] = [
        {
            "name": "mistake",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
            "onJobFailureMessagePatterns": [f"matching FailJob rule at index {_MISTAKE}$"],
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
    after = Needs.of(role).after
    spec = job_spec(run, role, f"{run.app_id}-{leader_of(run, role).name}-0-0.{run.app_id}")
    if not after:
        # Any pod's end is the Job's, and the JobSet decides.
        spec["backoffLimit"] = 0
        spec["podFailurePolicy"] = {
            "rules": [
                {"action": "FailJob", "onExitCodes": exit_code(role, USER_MUST_CHANGE)},
                {"action": "FailJob", "onExitCodes": exit_code(role, PREEMPTED)},
                {"action": "FailJob", "onPodConditions": [DISRUPTED]},
            ]
        }
    made: Object = {"name": role.name, "replicas": 1}
    if after:
        made["dependsOn"] = [{"name": after, "status": "Complete"}]
    marked: Object = {"labels": labels(run, role)}
    if run.opts["annotations"]:
        marked["annotations"] = dict(run.opts["annotations"])
    return {**made, "template": {"metadata": marked, "spec": spec}}
