"""The pod template of a role: its container's command, environment, resources, volumes and privileges.

It complies with Pod Security "restricted", and has a read-only root.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torchx.specs import AppDef, BindMount, Role, VolumeMount, macros

from components.role import METRICS, LaunchRequirements
from k8s.fields import Object
from k8s.options import PACK, RunOptions
from pipeline.run.provenance import IMAGE

LABEL_APP = "app.kubernetes.io/name"
LABEL_APP_ID = "app.kubernetes.io/instance"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_VERSION = "torchx.pytorch.org/version"
LABEL_APP_NAME = "torchx.pytorch.org/app-name"
LABEL_ROLE_INDEX = "torchx.pytorch.org/role-index"
LABEL_ROLE = "torchx.pytorch.org/role-name"
LABEL_USER = "pipeline/user"
LABEL_DRIVER = "pipeline/driver"
"""The label of a stage with the run of the driver that submitted it."""
LABEL_GENERATION = "pipeline/generation"
"""The label of a Job and its pods with how often the run was made anew (`k8s.renewal`), from 1 on."""
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
LABEL_QUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"
MANAGER = "torchx.pytorch.org"
"""The value of TorchX's own Kubernetes scheduler, so that the same tools find the pods."""

RANK0 = "TORCHX_RANK0_HOST"
INDEX = "JOB_COMPLETION_INDEX"
MARGIN = 15
"""Seconds that a pod has beyond the grace of its processes: its agent kills them, informs the others and ends."""

_TMP = "/tmp"  # noqa: S108 - of the container
_SHM = "/dev/shm"  # noqa: S108
_REPLICA = "\0replica\0"
_INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
_INSTANCE_TYPE = "node.kubernetes.io/instance-type"
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


class Run(NamedTuple):
    """The input of all objects of a run.

    Attributes:
        app: The AppDef.
        app_id: Its name in the cluster.
        opts: The run options.
        user: The owner.
        version: TorchX's version.
    """

    app: AppDef
    app_id: str
    opts: RunOptions
    user: str
    version: str


def label_value(text: str) -> str:
    """Return any text as a valid value of a label: 63 letters, digits, `-`, `_` and `.` at most."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:63].rstrip("-._")


def labels(run: Run, role: Role | None = None) -> Object:
    """Return the labels of the objects of a run, or of one of its roles."""
    found = {
        **run.opts.labels,
        LABEL_APP: label_value(run.app.name),
        LABEL_APP_ID: run.app_id,
        LABEL_MANAGED_BY: MANAGER,
        LABEL_VERSION: label_value(run.version),
        LABEL_APP_NAME: label_value(run.app.name),
    }
    if run.user:
        found[LABEL_USER] = label_value(run.user)
    if role is not None:
        found[LABEL_ROLE_INDEX] = str(run.app.roles.index(role))
        found[LABEL_ROLE] = role.name
    return found


def selector(run: Run, role: Role) -> Object:
    """Return the labels that only the pods of a role have."""
    return {LABEL_APP_ID: run.app_id, LABEL_ROLE: role.name}


def pod_template(run: Run, role: Role, rank0: str) -> Object:
    """Return the pod template of a role.

    Args:
        run: The run.
        role: The role.
        rank0: The host of the rendezvous.
    """
    opts, required = run.opts, LaunchRequirements.of(role)
    volumes, mounts = _volumes(role, required, opts)
    user = opts.user
    spec: Object = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": required.grace + MARGIN,
        "automountServiceAccountToken": required.api,
        # Otherwise each Service of the namespace adds variables.
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            # Otherwise each start changes the group of all files of a volume.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(run, role, required, rank0, mounts)],
        "volumes": volumes,
        **_placing(run, role),
    }
    if opts.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in opts.image_pull_secrets]
    chosen = {
        "serviceAccountName": opts.service_account,
        "priorityClassName": opts.priority_class,
        "runtimeClassName": opts.runtime_class,
        "schedulerName": opts.scheduler_name,
    }
    spec.update({name: value for name, value in chosen.items() if value})
    # With Istio's sidecar a pod never ends.
    annotations = {**_scraped(role), **opts.annotations, "sidecar.istio.io/inject": "false"}
    for how in ("required", "preferred"):
        if key := opts.required_topology if how == "required" else opts.preferred_topology:
            annotations[f"kueue.x-k8s.io/podset-{how}-topology"] = key
    return {"metadata": {"labels": labels(run, role), "annotations": annotations}, "spec": spec}


def _scraped(role: Role) -> dict[str, str]:
    """Return the annotations by which Prometheus finds the figures of a pod, if it shows any."""
    port = role.port_map.get(METRICS)
    if port is None:
        return {}
    return {"prometheus.io/scrape": "true", "prometheus.io/port": str(port), "prometheus.io/path": "/metrics"}


def _container(run: Run, role: Role, required: LaunchRequirements, rank0: str, mounts: list[Object]) -> Object:
    opts = run.opts
    values = macros.Values(img_root="", app_id=run.app_id, replica_id=_REPLICA, rank0_env=RANK0)
    container: Object = {
        "name": role.name,
        "image": role.image,
        "command": [role.entrypoint],
        "args": [expanded(values.substitute(argument)) for argument in role.args],
        "env": [
            # First, for a variable may refer only to those before it.
            {"name": INDEX, "valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{_INDEX_ANNOTATION}']"}}},
            *_environment(run, role, required, rank0, values),
        ],
        "resources": _resources(role, opts),
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": opts.read_only,
        },
        # Puts the last lines of a failed container into the status of its pod.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if sources := [
        *({"configMapRef": {"name": name}} for name in opts.env_config_maps),
        *({"secretRef": {"name": name}} for name in opts.env_secrets),
    ]:
        container["envFrom"] = sources
    if opts.image_pull_policy:
        container["imagePullPolicy"] = opts.image_pull_policy
    return container


def _environment(run: Run, role: Role, required: LaunchRequirements, rank0: str, values: macros.Values) -> list[Object]:
    """Return the role's own variables, the host of rank 0, and references to a Secret for secrets without a value."""
    # Before the role's own variables: a user may say it more exactly.
    given = {
        RANK0: rank0,
        IMAGE: role.image,
        **{name: expanded(values.substitute(value)) for name, value in role.env.items()},
    }
    return [
        *({"name": name, "value": value} for name, value in given.items()),
        *(
            {"name": name, "valueFrom": {"secretKeyRef": {"name": run.opts.secret, "key": name}}}
            for name in required.secrets
            if name not in role.env
        ),
    ]


def expanded(text: str) -> str:
    """Escape a text so that Kubernetes, which expands `$(NAME)` and `$$`, passes it on unchanged.

    Only the number of the replica becomes such a variable, for all replicas have the same template.
    """
    return re.sub(r"\$(?=[$(\0])", "$$", text).replace(_REPLICA, f"$({INDEX})")


def _resources(role: Role, opts: RunOptions) -> Object:
    """Return requests and limits; those of memory are equal, for a pod that exceeds its request is evicted first."""
    resource = role.resource
    both = {"memory": f"{resource.memMB}Mi"}
    if resource.gpu:
        both[opts.gpu_resource] = str(resource.gpu)
    both.update({name: str(count) for name, count in resource.devices.items()})
    if opts.disk:
        both["ephemeral-storage"] = f"{opts.disk}Mi"
    cpu = {"cpu": str(resource.cpu)}
    return {"requests": {**cpu, **both}, "limits": {**(cpu if opts.cpu_limit else {}), **both}}


def _volumes(role: Role, required: LaunchRequirements, opts: RunOptions) -> tuple[list[Object], list[Object]]:
    """Return the volumes of a pod and the mounts of its container."""
    # Without a limit it may take the memory of the node; its files count as the container's memory.
    shm = {"medium": "Memory", "sizeLimit": f"{required.shm or default_shm(role)}Mi"}
    tmp = {"sizeLimit": f"{opts.disk}Mi"} if opts.disk else {}
    volumes: list[Object] = [{"name": "shm", "emptyDir": shm}, {"name": "tmp", "emptyDir": tmp}]
    mounts: list[Object] = [{"name": "shm", "mountPath": _SHM}, {"name": "tmp", "mountPath": _TMP}]
    for number, mount in enumerate(role.mounts):
        name = f"mount-{number}"
        if isinstance(mount, VolumeMount):
            source: Object = {"persistentVolumeClaim": {"claimName": mount.src}}
        else:
            assert isinstance(mount, BindMount)
            source = {"hostPath": {"path": mount.src_path}}
        volumes.append({"name": name, **source})
        mounts.append({"name": name, "mountPath": mount.dst_path, "readOnly": mount.read_only})
    for number, (config_map, path) in enumerate(opts.config_maps.items()):
        volumes.append({"name": f"config-{number}", "configMap": {"name": config_map}})
        mounts.append({"name": f"config-{number}", "mountPath": path, "readOnly": True})
    # A mount of the user replaces ours.
    taken = {mount["mountPath"] for mount in mounts[2:]}
    mounts = [mount for mount in mounts[:2] if mount["mountPath"] not in taken] + mounts[2:]
    used = {mount["name"] for mount in mounts}
    return [volume for volume in volumes if volume["name"] in used], mounts


def default_shm(role: Role) -> int:
    """Return the default MB of /dev/shm: half of the memory, which it is part of."""
    return max(1, role.resource.memMB // 2)


def _placing(run: Run, role: Role) -> Object:
    """Return on which nodes the pods may run, and how close to each other."""
    opts, placing = run.opts, dict[str, Any]()
    nodes = dict(opts.node_selector)
    if kind := role.resource.capabilities.get(_INSTANCE_TYPE):
        nodes.setdefault(_INSTANCE_TYPE, str(kind))
    if nodes:
        placing["nodeSelector"] = nodes
    if tolerations := [*map(toleration, opts.tolerations), *_node_tolerations(opts)]:
        placing["tolerations"] = tolerations
    if opts.placement:
        term = {"topologyKey": opts.placement_key, "labelSelector": {"matchLabels": {LABEL_APP_ID: run.app_id}}}
        how = (
            {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
            if opts.placement_strict
            else {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}
        )
        placing["affinity"] = {"podAffinity" if opts.placement == PACK else "podAntiAffinity": how}
    return placing


def _node_tolerations(opts: RunOptions) -> Iterator[Object]:
    """Yield for how long the pods stay on a node that does not answer, unless the user has said so."""
    given = {toleration(text)["key"] for text in opts.tolerations}
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        if opts.node_timeout and key not in given:
            tolerated = {"key": key, "operator": "Exists", "effect": "NoExecute"}
            yield {**tolerated, "tolerationSeconds": opts.node_timeout}


def toleration(text: str) -> Mapping[str, str]:
    """Return a toleration from `key`, `key:effect`, `key:value` or `key:value:effect`, or with `=`."""
    parts = text.replace("=", ":").split(":")
    effect = {"effect": parts.pop()} if parts[-1] in EFFECTS else {}
    if len(parts) == 1:
        return {"key": parts[0], "operator": "Exists", **effect}
    return {"key": parts[0], "operator": "Equal", "value": ":".join(parts[1:]), **effect}
