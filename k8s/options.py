"""The run options of `kubernetes_job`, each with its type, its default and what it does.

They are said to TorchX as `--scheduler_args kind=jobset,queue=research,node_selector=pool:gpu;zone:a`: a list's values
are separated by `;`, and so are a mapping's pairs, whose key and value `:` separates.
"""

from typing import Any, Dict, List, NamedTuple, TypedDict  # noqa: UP035 - what TorchX 0.7 compares an option's type with

JOB, JOBSET = KINDS = ("job", "jobset")
SPREAD, PACK = PLACEMENTS = ("spread", "pack")
PULL_POLICIES = ("Always", "IfNotPresent", "Never")
WEEK = 7 * 24 * 3600
"""Seconds."""


class Opts(TypedDict, total=False):
    """All run options; one that is absent or None has its default. `OPTIONS` says what each does."""

    namespace: str
    kind: str
    service_account: str
    secret: str
    env_secrets: list[str]
    env_config_maps: list[str]
    config_maps: dict[str, str]
    host_paths: bool
    image_pull_policy: str
    image_pull_secrets: list[str]
    queue: str
    queue_priority: str
    required_topology: str
    preferred_topology: str
    priority_class: str
    node_selector: dict[str, str]
    tolerations: list[str]
    placement: str
    placement_key: str
    placement_strict: bool
    gpu_resource: str
    cpu_limit: bool
    disk: int
    deadline: int
    ttl: int
    user: int
    read_only: bool
    keep_nodes: bool
    runtime_class: str
    scheduler_name: str
    labels: dict[str, str]
    annotations: dict[str, str]


class Option(NamedTuple):
    """One run option.

    Attributes:
        type: As TorchX's `runopts.add` takes it.
        default: Its value where none is given.
        help: What it does, with its unit.
    """

    type: Any
    default: Any
    help: str


_LIST, _MAPPING = List[str], Dict[str, str]  # noqa: UP006

OPTIONS: dict[str, Option] = {
    "namespace": Option(str, "", "namespace; empty means that of the kubeconfig's context, or the pod's own"),
    "kind": Option(
        str, JOB, "job: an Indexed Job and a headless Service per role; jobset: one JobSet, where JobSet is installed"
    ),
    "service_account": Option(str, "", "service account of the pods, which get no token of it"),
    "secret": Option(str, "", "Secret from which the single variables that --secrets names are taken"),
    "env_secrets": Option(_LIST, [], "Secrets all of whose keys become variables, such as those of S3"),
    "env_config_maps": Option(_LIST, [], "ConfigMaps all of whose keys become variables"),
    "config_maps": Option(_MAPPING, {}, "ConfigMaps that are mounted, as name:/path"),
    "host_paths": Option(bool, False, "whether type=bind mounts folders of the nodes; pod security may forbid it"),
    "image_pull_policy": Option(str, "", "Always, IfNotPresent or Never; empty leaves it to Kubernetes"),
    "image_pull_secrets": Option(_LIST, [], "Secrets for private image registries"),
    "queue": Option(str, "", "Kueue's LocalQueue, which decides when the run starts"),
    "queue_priority": Option(str, "", "Kueue's WorkloadPriorityClass, in the queue only"),
    "required_topology": Option(str, "", "label of nodes within whose one value Kueue must place all pods of a role"),
    "preferred_topology": Option(str, "", "the same, where it can be had"),
    "priority_class": Option(str, "", "PriorityClass of the pods"),
    "node_selector": Option(_MAPPING, {}, "labels that the nodes must have, as key:value"),
    "tolerations": Option(_LIST, [], "taints that the pods tolerate, as key, key:effect or key:value:effect"),
    "placement": Option(str, "", "spread: pods far from each other; pack: close together; empty: as it comes"),
    "placement_key": Option(str, "kubernetes.io/hostname", "label of nodes by which placement counts as close"),
    "placement_strict": Option(bool, False, "whether pods rather wait than be placed otherwise"),
    "gpu_resource": Option(str, "nvidia.com/gpu", "what a GPU is called in this cluster"),
    "cpu_limit": Option(bool, False, "whether cpu is a limit, too, beyond which the pods are throttled"),
    "disk": Option(int, 0, "MB of the node's disk that /tmp and the logs may take; 0: what the node has"),
    "deadline": Option(
        int, WEEK, "seconds until the run is ended with its last checkpoint, replaced pods included; 0: never"
    ),
    "ttl": Option(int, WEEK, "seconds until a run that has ended is deleted with its logs; 0: never"),
    "user": Option(int, 10_001, "user and group of the processes, and group of the volumes; never root"),
    "read_only": Option(bool, True, "whether nothing can be written but /tmp, /dev/shm and mounts"),
    "keep_nodes": Option(bool, False, "whether a drain waits for the run's end (a PodDisruptionBudget)"),
    "runtime_class": Option(str, "", "RuntimeClass of the pods"),
    "scheduler_name": Option(str, "", "scheduler that places the pods; empty means the cluster's default"),
    "labels": Option(_MAPPING, {}, "more labels of all objects, as key:value"),
    "annotations": Option(_MAPPING, {}, "more annotations of all objects, as key:value"),
}


def resolved(opts: Opts) -> Opts:
    """The options with their defaults."""
    values: Any = {name: option.default for name, option in OPTIONS.items()}
    values.update({name: value for name, value in opts.items() if value is not None})
    chosen: Opts = values
    return chosen
