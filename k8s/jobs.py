"""A role as an Indexed Job and its headless Service, which need nothing installed in a cluster.

A pod that ends is replaced on its own, and the others wait for it in the rendezvous.
"""

from torchx.specs import Role, macros

from components.role import LaunchRequirements
from k8s.fields import Object
from k8s.options import RunOptions
from k8s.pods import LABEL_QUEUE, LABEL_QUEUE_PRIORITY, Run, labels, pod_template, selector
from pipeline.errors import PREEMPTED, USER_MUST_CHANGE


def job_name(app_id: str, role: Role) -> str:
    """Return the name of a role's Job and its Service, which is also the prefix of its pods' names."""
    return f"{app_id}-{role.name}"


def job_objects(run: Run, role: Role) -> list[Object]:
    """Return the Job of a role and its Service."""
    name, opts = job_name(run.app_id, role), run.opts
    leader = job_name(run.app_id, leader_of(run, role))
    spec = job_spec(run, role, f"{leader}-0.{leader}")
    spec["template"]["spec"]["subdomain"] = name
    if opts.ttl:
        spec["ttlSecondsAfterFinished"] = opts.ttl
    job: Object = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata(run, name, role), "spec": spec}
    job["metadata"]["labels"].update(queue(opts))
    if opts.queue and elastic(role):
        # Kueue may admit fewer nodes, but at least this many.
        job["metadata"]["annotations"] = {
            **opts.annotations,
            "kueue.x-k8s.io/job-min-parallelism": str(role.min_replicas),
            "kueue.x-k8s.io/job-completions-equal-parallelism": "true",
        }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(run, name, role),
        # Only gives the pods DNS names, also before they are ready.
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector(run, role)},
    }
    return [job, service]


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


def disruption_budget(run: Run, role: Role) -> Object:
    """Return the PodDisruptionBudget that makes a drain wait for the end of a role."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(run, job_name(run.app_id, role), role),
        # For pods of a Job Kubernetes accepts only `minAvailable` as a number.
        "spec": {"minAvailable": role.num_replicas, "selector": {"matchLabels": selector(run, role)}},
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
