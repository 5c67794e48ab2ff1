"""A role as an Indexed Job and its headless Service, which need nothing installed in a cluster.

A pod that ends is replaced on its own, and the others wait for it in the rendezvous; or whoever waits for the run makes
the Job anew (`k8s.renewal`).
"""

import re

from torchx.specs import Role, macros

from components.role import LaunchRequirements
from k8s.fields import Object
from k8s.options import RunOptions
from k8s.pods import (
    LABEL_APP_ID,
    LABEL_GENERATION,
    LABEL_QUEUE,
    LABEL_QUEUE_PRIORITY,
    LABEL_ROLE,
    Run,
    labels,
    pod_template,
)
from pipeline.errors import PREEMPTED, USER_MUST_CHANGE

MIN_NODES = "pipeline/min-nodes"
"""The annotation of a Job that may run with fewer pods: how many at least."""
DEADLINE = "pipeline/deadline"
"""The annotation of a Job that was made anew: the deadline that the run had at first."""

_OWN = re.compile(r"(pipeline|kueue\.x-k8s\.io)/")
"""The annotations that mean something on a Job only."""
_DEADLINE_MARGIN = 10
"""Seconds beyond deadline and grace after which the Job ends what is left."""


def job_name(app_id: str, role: Role) -> str:
    """Return the name of a role's Job and its Service, which is also the prefix of its pods' names."""
    return f"{app_id}-{role.name}"


def job_objects(run: Run, role: Role) -> list[Object]:
    """Return the Job of a role and its Service; with `keep_nodes` its PodDisruptionBudget, too."""
    name, opts = job_name(run.app_id, role), run.opts
    leader = job_name(run.app_id, leader_of(run, role))
    spec = job_spec(run, role, f"{leader}-0.{leader}")
    pod = spec["template"]["spec"]
    pod["subdomain"] = name
    if opts.ttl:
        spec["ttlSecondsAfterFinished"] = opts.ttl
    if opts.deadline:
        # A Job that reaches its deadline deletes its pods with their logs; a pod that reaches its own one stays.
        pod["activeDeadlineSeconds"] = opts.deadline
        spec["activeDeadlineSeconds"] = opts.deadline + pod["terminationGracePeriodSeconds"] + _DEADLINE_MARGIN
    job: Object = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata(run, name, role), "spec": spec}
    job["metadata"]["labels"].update(queue(opts))
    for labelled in (job, spec["template"]):
        labelled["metadata"]["labels"][LABEL_GENERATION] = "1"
    if elastic(role):
        annotations = {**opts.annotations, MIN_NODES: str(role.min_replicas)}
        if opts.queue:
            # Kueue may admit fewer nodes, but at least this many.
            annotations["kueue.x-k8s.io/job-min-parallelism"] = str(role.min_replicas)
            annotations["kueue.x-k8s.io/job-completions-equal-parallelism"] = "true"
        job["metadata"]["annotations"] = annotations
    return [job, *companions_of(job, keep_nodes=opts.keep_nodes)]


def companions_of(job: Object, *, keep_nodes: bool) -> list[Object]:
    """Return what belongs to a Job: its Service, and the PodDisruptionBudget that makes a drain wait for its end."""
    given, labelled = job["metadata"], job["spec"]["template"]["metadata"]["labels"]
    metadata = {name: given[name] for name in ("name", "namespace") if name in given}
    metadata["labels"] = labelled
    if annotations := {name: text for name, text in given.get("annotations", {}).items() if not _OWN.match(name)}:
        metadata["annotations"] = annotations
    pods = {name: labelled[name] for name in (LABEL_APP_ID, LABEL_ROLE, LABEL_GENERATION)}
    # Only gives the pods DNS names, also before they are ready.
    names = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": pods}
    found: list[Object] = [{"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": names}]
    if keep_nodes:
        found.append(disruption_budget(metadata, job["spec"]["completions"], pods))
    return found


def job_spec(run: Run, role: Role, rank0: str) -> Object:
    """Return the spec of a role's Job.

    Status 2 ends it at once; 75 and disruptions by the cluster are not counted; any other status counts, up to nodes x
    retries. Its deadline includes all replacements, so that no status lets it run forever.

    Args:
        run: The run.
        role: The role.
        rank0: The host of the rendezvous.
    """
    nodes = role.num_replicas
    spec: Object = {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": nodes * role.max_retries,
        # Never two pods of one index at the same time.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": pod_failure_policy(role, "Ignore"),
    }
    if elastic(role):
        # A node that never joined would otherwise keep the Job open, waiting for nodes that have ended.
        # (Not with a fixed number of nodes: a pod that ends after rank 0 would be removed with its log.)
        spec["successPolicy"] = {"rules": [{"succeededIndexes": "0"}]}
    if run.opts.deadline:
        spec["activeDeadlineSeconds"] = run.opts.deadline
    spec["template"] = pod_template(run, role, rank0)
    return spec


def pod_failure_policy(role: Role, on_preemption: str) -> Object:
    """Return the rules for the exit of a pod: the action for preemptions and disruptions, and FailJob for status 2."""

    def exits_with(status: int) -> Object:
        return {"containerName": role.name, "operator": "In", "values": [status]}

    # Preempted, evicted, drained, or its node gone.
    disrupted = {"type": "DisruptionTarget", "status": "True"}
    return {
        "rules": [
            {"action": "FailJob", "onExitCodes": exits_with(USER_MUST_CHANGE)},
            {"action": on_preemption, "onExitCodes": exits_with(PREEMPTED)},
            {"action": on_preemption, "onPodConditions": [disrupted]},
        ]
    }


def leader_of(run: Run, role: Role) -> Role:
    """Return the role whose first replica hosts the rendezvous of a role.

    As with TorchX's other schedulers that is the app's first role; for one that starts after another, itself.
    """
    return role if LaunchRequirements.of(role).after else run.app.roles[0]


def elastic(role: Role) -> bool:
    """Return whether a role may run with fewer replicas that rendezvous at the first, and so end with it."""
    has_rendezvous = any(macros.rank0_env in text for text in (*role.args, *role.env.values()))
    return has_rendezvous and role.min_replicas is not None and role.min_replicas < role.num_replicas


def disruption_budget(metadata: Object, nodes: int, selector: Object) -> Object:
    """Return the PodDisruptionBudget of some pods, all of which are kept."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata,
        # For pods of a Job Kubernetes accepts only `minAvailable` as a number.
        "spec": {"minAvailable": nodes, "selector": {"matchLabels": selector}},
    }


def metadata(run: Run, name: str, role: Role | None = None) -> Object:
    """Return name, labels and annotations of an object of a run, or of one of its roles."""
    opts = run.opts
    found: Object = {"name": name}
    if opts.namespace:
        found["namespace"] = opts.namespace
    found["labels"] = labels(run, role)
    if opts.annotations:
        found["annotations"] = dict(opts.annotations)
    return found


def queue(opts: RunOptions) -> Object:
    """Return Kueue's labels: it suspends what is created with them until its turn comes."""
    found = {LABEL_QUEUE: opts.queue, LABEL_QUEUE_PRIORITY: opts.queue_priority}
    return {name: value for name, value in found.items() if value}
