"""The run options of `kubernetes_job`: name, type, default and help of each stand here alone.

They are passed to TorchX as `--scheduler_args kind=jobset,queue=research,node_selector=pool:gpu;zone:a`: a list's
values are separated by `;`, and so are a mapping's pairs, whose key and value `:` separates.
"""

# ruff: noqa: RUF009 - `_option` is a `dataclasses.field`

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Dict, List, get_type_hints  # noqa: UP035 - see `TYPES`

JOB, JOBSET = KINDS = ("job", "jobset")
SPREAD, PACK = PLACEMENTS = ("spread", "pack")
PULL_POLICIES = ("Always", "IfNotPresent", "Never")
WEEK = 7 * 24 * 3600
"""Seconds."""


def _option(default: Any, explanation: str, *, driver: bool = False) -> Any:
    """Declare an option; one with `driver` applies to the driver of a detached pipeline as well as to its stages."""
    factory = {"default_factory": type(default)} if isinstance(default, list | dict) else {"default": default}
    return field(**factory, metadata={"help": explanation, "driver": driver})


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """All run options; the help of each is in its declaration."""

    namespace: str = _option("", "namespace; empty: that of the kubeconfig's context, or the pod's own", driver=True)
    kind: str = _option(
        JOB, "job: an Indexed Job and a headless Service per role; jobset: one JobSet, where JobSet is installed"
    )
    service_account: str = _option("", "service account of the pods, which get no token of it")
    secret: str = _option("", "Secret that holds the single variables that --secrets names", driver=True)
    env_secrets: list[str] = _option([], "Secrets all of whose keys become variables, such as those of S3", driver=True)
    env_config_maps: list[str] = _option([], "ConfigMaps all of whose keys become variables", driver=True)
    config_maps: dict[str, str] = _option({}, "ConfigMaps that are mounted, as name:/path")
    host_paths: bool = _option(False, "whether type=bind mounts folders of the nodes; pod security may forbid it")
    image_pull_policy: str = _option("", "Always, IfNotPresent or Never; empty leaves it to Kubernetes", driver=True)
    image_pull_secrets: list[str] = _option([], "Secrets for private image registries", driver=True)
    queue: str = _option("", "Kueue's LocalQueue, which decides when the run starts", driver=True)
    queue_priority: str = _option("", "Kueue's WorkloadPriorityClass, in the queue only", driver=True)
    required_topology: str = _option("", "label of nodes within whose one value Kueue must place all pods of a role")
    preferred_topology: str = _option("", "the same, where possible")
    priority_class: str = _option("", "PriorityClass of the pods", driver=True)
    node_selector: dict[str, str] = _option({}, "labels that the nodes must have, as key:value", driver=True)
    tolerations: list[str] = _option(
        [], "taints that the pods tolerate, as key, key:effect or key:value:effect", driver=True
    )
    node_timeout: int = _option(
        30,
        "seconds until pods are taken from a node that does not answer; 0: the cluster's default, most often 300",
        driver=True,
    )
    placement: str = _option("", "spread: pods far from each other; pack: close together; empty: no preference")
    placement_key: str = _option("kubernetes.io/hostname", "label of nodes by which placement counts as close")
    placement_strict: bool = _option(False, "whether pods stay pending rather than be placed otherwise")
    gpu_resource: str = _option("nvidia.com/gpu", "resource name of a GPU in this cluster")
    cpu_limit: bool = _option(False, "whether cpu is also a limit, beyond which the pods are throttled")
    disk: int = _option(0, "MB of the node's disk that /tmp and the logs may take; 0: no limit")
    deadline: int = _option(
        WEEK, "seconds until the run is ended with its last checkpoint, restarts included; 0: never"
    )
    ttl: int = _option(WEEK, "seconds until a run that has ended is deleted with its logs; 0: never", driver=True)
    user: int = _option(10_001, "user and group of the processes, and group of the volumes; never root", driver=True)
    read_only: bool = _option(True, "whether only /tmp, /dev/shm and mounts are writable")
    keep_nodes: bool = _option(False, "whether a drain waits for the end of the run (a PodDisruptionBudget)")
    runtime_class: str = _option("", "RuntimeClass of the pods")
    scheduler_name: str = _option("", "scheduler that places the pods; empty: the cluster's default")
    labels: dict[str, str] = _option({}, "more labels of all objects, as key:value", driver=True)
    annotations: dict[str, str] = _option({}, "more annotations of all objects, as key:value", driver=True)
    app_id: str = _option("", "name of the run, which must be free; empty: a new one")
    kubeconfig: str = _option("", "kubeconfig file; empty: that of KUBECONFIG, or the user's own", driver=True)
    context: str = _option("", "context of the kubeconfig; empty: the current one", driver=True)
    check: bool = _option(False, "whether the cluster first validates all objects in a dry run", driver=True)

    @classmethod
    def of(cls, cfg: Mapping[str, Any]) -> "RunOptions":
        """Return the options of a TorchX configuration; one that is absent or None has its default."""
        return cls(**{name: cfg[name] for name in OPTIONS if cfg.get(name) is not None})


OPTIONS = {one.name: one for one in fields(RunOptions)}
"""The declarations by name, in the order of the documentation."""
DRIVER_OPTIONS = [name for name, option in OPTIONS.items() if option.metadata["driver"]]
TYPES = {
    name: {list[str]: List[str], dict[str, str]: Dict[str, str]}.get(kind, kind)  # noqa: UP006
    for name, kind in get_type_hints(RunOptions).items()
}
"""The type of each option as TorchX 0.7 compares it: it takes `List[str]` for another type than `list[str]`."""


def default_of(name: str) -> Any:
    """Return the default of an option."""
    return getattr(RunOptions(), name)
