"""A role as an Indexed Job and its headless Service, which need nothing installed in a cluster.

A pod that ends is replaced by itself, and the others wait for it where they meet.
"""

from torchx.specs import Role, macros

from components.role import Needs
from k8s.options import Opts
from k8s.pods import LABEL_QUEUE, LABEL_QUEUE_PRIORITY, Object, Run, labels, pod_template, selector
from pipeline.errors import PREEMPTED, USER_MUST_CHANGE

DISRUPTED: Object = {"type": "DisruptionTarget", "status": "True"}
"""Preempted, evicted, drained, or its node gone: none of the pod's fault."""


def job_name(app_id: str, role: Role) -> str:
    """The name of a role's Job, of its Service, and the beginning of its pods' names."""
    return f"{app_id}-{role.name}"


def objects_of(run: Run, role: Role) -> list[Object]:
    """The Job of a role and its Service."""
    name, opts = job_name(run.app_id, role), run.opts
    leader = job_name(run.app_id, leader_of(run, role))
    spec = job_spec(run, role, f"{leader}-0.{leader}")
    spec["template"]["spec"]["subdomain"] = name
    if opts["ttl"]:
        spec["ttlSecondsAfterFinished"] = opts["ttl"]
    job: Object = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata(run, name, role), "spec": spec}
    job["metadata"]["labels"].update(queue(opts))
    if opts["queue"] and elastic(role):
        # Kueue may then admit fewer nodes, at least so many.
        job["metadata"]["annotations"] = {
            **opts["annotations"],
            "kueue.x-k8s.io/job-min-parallelism": str(role.min_replicas),
            "kueue.x-k8s.io/job-completions-equal-parallelism": "true",
        }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(run, name, role),
        # It only gives the pods their names, also before they are ready: no address, no ports.
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector(run, role)},
    }
    return [job, service]


def job_spec(run: Run, role: Role, rank0: str) -> Object:
    """What a role's Job does.

    2 ends it at once; 75 and whatever the cluster does to a pod are not counted, and anything else is, up to nodes x
    retries. Its deadline holds over all of that, so that no status lets it run for ever.

    Args:
        run: The run.
        role: The role.
        rank0: The host at which its processes meet.
    """
    nodes = role.num_replicas
    spec: Object = {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": nodes * role.max_retries,
        # Never two pods of one index at the same time.
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": exit_code(role, USER_MUST_CHANGE)},
                {"action": "Ignore", "onExitCodes": exit_code(role, PREEMPTED)},
                {"action": "Ignore", "onPodConditions": [DISRUPTED]},
            ]
        },
    }
    if elastic(role):
        # A node that has never come would otherwise keep the Job open, and wait for the others when they have gone.
        # (Not with a fixed number of nodes: what still ends after rank 0 is removed, and with it its log.)
        spec["successPolicy"] = {"rules": [{"succeededIndexes": "0"}]}
    if run.opts["deadline"]:
        spec["activeDeadlineSeconds"] = run.opts["deadline"]
    spec["template"] = pod_template(run, role, rank0)
    return spec


def exit_code(role: Role, status: int) -> Object:
    """The condition of a rule: the role's own container has ended with this status."""
    return {"containerName": role.name, "operator": "In", "values": [status]}


def leader_of(run: Run, role: Role) -> Role:
    """The role at whose first replica the processes of a role meet.

    As with TorchX's other schedulers that is the app's first role; of one that starts after another, itself.
    """
    return role if Needs.of(role).after else run.app.roles[0]


def elastic(role: Role) -> bool:
    """Whether a role may run with fewer replicas, which are one whole: they meet at the first, and end as it does."""
    meets = any(macros.rank0_env in text for text in (*role.args, *role.env.values()))
    return meets and role.min_replicas is not None and role.min_replicas < role.num_replicas


def disruption_budget(run: Run, role: Role) -> Object:
    """What makes a drain wait for the end of a role."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(run, job_name(run.app_id, role), role),
        # For pods of a Job Kubernetes takes nothing but a number here.
        "spec": {"minAvailable": role.num_replicas, "selector": {"matchLabels": selector(run, role)}},
    }


def metadata(run: Run, name: str, role: Role | None = None) -> Object:
    """Name, labels and annotations of an object of a run, or of one of its roles."""
    opts = run.opts
    found: Object = {"name": name}
    if opts["namespace"]:
        found["namespace"] = opts["namespace"]
    found["labels"] = labels(run, role)
    if opts["annotations"]:
        found["annotations"] = dict(opts["annotations"])
    return found


def queue(opts: Opts) -> Object:
    """Kueue's labels. It suspends by itself what is created with them, and lets it start in its turn."""
    found = {LABEL_QUEUE: opts["queue"], LABEL_QUEUE_PRIORITY: opts["queue_priority"]}
    return {name: value for name, value in found.items() if value}
