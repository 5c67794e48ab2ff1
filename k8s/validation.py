"""Offline validation of an AppDef and the run options: a sentence with name, value, what is allowed and how to fix it.

The limits are Kubernetes' own, so that no object is rejected after others of the run have been created.
"""

import re
from collections.abc import Iterable, Iterator

from torchx.specs import AppDef, BindMount, DeviceMount, Role, VolumeMount

from components.role import LaunchRequirements
from k8s.options import JOBSET, KINDS, PLACEMENTS, PULL_POLICIES, RunOptions
from k8s.pods import INDEX, toleration
from pipeline.errors import did_you_mean

NAME_LIMIT = 63
"""Characters of a DNS label, of which a pod's name is one."""

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
"""Also limits Jobs, roles and app ids, for each of them has a Service."""
_OBJECT_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_VARIABLE = re.compile(r"[A-Za-z_.-][A-Za-z0-9_.-]*", re.ASCII)
_SUFFIX = "-abcde"
"""The suffix that Kubernetes appends to the name of a pod, of this length."""
_ROLE_CHARACTERS = "must be lower-case letters, digits and '-', a letter first and no '-' last"
_KEY_CHARACTERS = f"each part of letters, digits, '-', '_' and '.', {NAME_LIMIT} at most"


def problems_of(app: AppDef, opts: RunOptions, app_id: str) -> list[str]:
    """Return all problems.

    Args:
        app: What is to be run.
        opts: The run options.
        app_id: Its name in the cluster.
    """
    found = [*_of_choices(opts), *_of_names(opts), *_of_labels(opts)]
    if not _SERVICE_NAME.fullmatch(app_id):
        found.append(f"app_id={app_id!r} {_ROLE_CHARACTERS}; rename the app")
    if not app.roles:
        found.append(f"app={app.name!r} has no roles: there is nothing to run")
    names = [role.name for role in app.roles]
    for name in sorted({name for name in names if names.count(name) > 1}):
        found.append(f"role={name!r} is there {names.count(name)} times: give each role a name of its own")
    for place, role in enumerate(app.roles):
        found += _of_role_names(role, app_id, opts)
        checks = (*_of_numbers(role), *_of_environment(role, opts), *_of_mounts(role, opts))
        found += (f"{role.name}: {problem}" for problem in (*checks, *_of_order(role, names[:place], opts)))
    return found


def _of_choices(opts: RunOptions) -> Iterator[str]:
    for name, allowed in (("kind", KINDS), ("placement", PLACEMENTS), ("image_pull_policy", PULL_POLICIES)):
        value = getattr(opts, name)
        if value not in allowed and (value or name == "kind"):
            yield f"{name}={value!r} must be one of {', '.join(allowed)}{did_you_mean(value, allowed)}"
    for name, least in (("disk", 0), ("deadline", 0), ("node_timeout", 0), ("ttl", 0), ("user", 1)):
        if getattr(opts, name) < least:
            why = " is root, as which no process runs" if name == "user" else ""
            yield f"{name}={getattr(opts, name)}{why} must be >= {least}"
    if opts.placement_strict and not opts.placement:
        yield f"placement_strict=True has no effect without placement: set that to {' or '.join(PLACEMENTS)}"
    if opts.required_topology and opts.preferred_topology:
        yield (
            f"required_topology={opts.required_topology!r} and preferred_topology={opts.preferred_topology!r}: "
            "Kueue takes one of them; leave the other out"
        )
    for name in ("queue_priority", "required_topology", "preferred_topology"):
        if getattr(opts, name) and not opts.queue:
            yield f"{name}={getattr(opts, name)!r}: only Kueue reads it; name its LocalQueue by queue"


def _of_names(opts: RunOptions) -> Iterator[str]:
    """Yield the problems of references to other objects, and of the paths where they are mounted."""
    for name in ("service_account", "secret", "priority_class", "queue_priority", "runtime_class", "scheduler_name"):
        yield from _of_object_names(name, filter(None, [getattr(opts, name)]))
    for name in ("env_secrets", "env_config_maps", "config_maps", "image_pull_secrets"):
        yield from _of_object_names(name, getattr(opts, name))
    for name in ("namespace", "queue"):
        if getattr(opts, name) and not _DNS_LABEL.fullmatch(getattr(opts, name)):
            yield f"{name}={getattr(opts, name)!r} must be lower-case letters, digits and '-', {NAME_LIMIT} at most"
    for name, path in opts.config_maps.items():
        if not _is_path(path):
            yield f"config_maps={name}:{path}: expected a path that begins with '/', as in {name}:/config"


def _of_labels(opts: RunOptions) -> Iterator[str]:
    for name in ("node_selector", "labels", "annotations"):
        for key, value in getattr(opts, name).items():
            if not _is_key(key) or (name != "annotations" and not _VALUE.fullmatch(value)):
                yield f"{name}={key}:{value}: write key:value or example.com/key:value, {_KEY_CHARACTERS}"
    for name in ("placement_key", "required_topology", "preferred_topology", "gpu_resource"):
        if (key := getattr(opts, name)) and not _is_key(key):
            yield f"{name}={key!r}: expected a key such as kubernetes.io/hostname, {_KEY_CHARACTERS}"
    for text in opts.tolerations:
        parsed = toleration(text)
        if not _is_key(parsed["key"]) or not _VALUE.fullmatch(parsed.get("value", "")):
            yield f"tolerations={text!r}: write key, key:effect or key:value:effect, as in nvidia.com/gpu:NoSchedule"


def _of_role_names(role: Role, app_id: str, opts: RunOptions) -> Iterator[str]:
    if not _SERVICE_NAME.fullmatch(role.name):
        yield f"role={role.name!r} {_ROLE_CHARACTERS}; rename the role"
    job = f"{role.name}-0" if opts.kind == JOBSET else role.name
    longest = f"{app_id}-{job}-{max(0, role.num_replicas - 1)}{_SUFFIX}"
    if len(longest) > NAME_LIMIT:
        yield (
            f"role={role.name!r} of app_id={app_id!r}: pods would be called {longest!r}, the limit is {NAME_LIMIT} "
            f"characters; shorten the names by {len(longest) - NAME_LIMIT}"
        )


def _of_numbers(role: Role) -> Iterator[str]:
    resource, required, nodes = role.resource, LaunchRequirements.of(role), role.num_replicas
    for name, value, least in (
        ("num_replicas", nodes, 1),
        ("max_retries", role.max_retries, 0),
        ("grace", required.grace, 0),
        ("gpu", resource.gpu, 0),
    ):
        if value < least:
            yield f"{name}={value} must be >= {least}"
    for name, value in (("cpu", resource.cpu), ("memory", resource.memMB)):
        if value <= 0:
            yield f"{name}={value} must be > 0; say how much of it each node gets"
    if nodes >= 1 and role.min_replicas is not None and not 1 <= role.min_replicas <= nodes:
        yield f"min_replicas={role.min_replicas} must be 1 to num_replicas={nodes}"
    if required.shm < 0 or (resource.memMB > 0 and required.shm > resource.memMB):
        yield f"shm={required.shm} must be 0 to memory={resource.memMB}, which it is part of"
    for name, count in resource.devices.items():
        if not _is_key(name) or count < 0:
            yield f"devices={name}:{count}: expected a resource of the cluster, and how many of it"


def _of_environment(role: Role, opts: RunOptions) -> Iterator[str]:
    secrets = LaunchRequirements.of(role).secrets
    for name in dict.fromkeys((*role.env, *secrets)):
        if not _VARIABLE.fullmatch(name) or name == INDEX:
            yield f"env={name!r} must be letters, digits and '_', but not {INDEX}; rename it"
    for name in secrets:
        if name not in role.env and not opts.secret:
            yield f"secrets={name}: taken from which Secret? Name the one that has this key by secret"


def _of_mounts(role: Role, opts: RunOptions) -> Iterator[str]:
    paths = [mount.dst_path for mount in role.mounts] + list(opts.config_maps.values())
    for path in sorted({path for path in paths if paths.count(path) > 1}):
        yield f"mounts={path!r} {paths.count(path)} times: give each mount a path of its own"
    for mount in role.mounts:
        if not _is_path(mount.dst_path):
            yield f"mounts: dst={mount.dst_path!r}: expected a path that begins with '/'"
        if isinstance(mount, DeviceMount):
            yield (
                f"mounts: type=device,src={mount.src_path}: would need a privileged pod; ask for it as a resource of "
                "the cluster, as --gpu does"
            )
        if isinstance(mount, BindMount) and not opts.host_paths:
            yield (
                f"mounts: type=bind,src={mount.src_path}: a folder of each node, which Pod Security forbids; write "
                "type=volume,src=CLAIM for a PersistentVolumeClaim, or set host_paths=True"
            )
        if isinstance(mount, BindMount) and not mount.src_path.startswith("/"):
            yield f"mounts: src={mount.src_path!r}: expected a path on the nodes that begins with '/'"
        if isinstance(mount, VolumeMount):
            yield from (f"mounts: {problem}" for problem in _of_object_names("src", [mount.src]))


def _of_order(role: Role, earlier: list[str], opts: RunOptions) -> Iterator[str]:
    after = LaunchRequirements.of(role).after
    if after and opts.kind != JOBSET:
        yield (
            f"after={after!r}: kind=job starts all roles at once; set kind={JOBSET}, or launch the stages by "
            "python -m components.launch"
        )
    elif after and after not in earlier:
        yield f"after={after!r} must be one of the roles before it: {', '.join(earlier) or 'there are none'}"


def _of_object_names(option: str, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if not _OBJECT_NAME.fullmatch(name):
            yield (
                f"{option}={name!r} is no name of an object: must be lower-case letters, digits, '-' and '.', a letter "
                "or digit first and last"
            )


def _is_key(key: str) -> bool:
    """Return whether this is the key of a label, an annotation or a resource, with or without a domain before it."""
    domain, slash, name = key.rpartition("/")
    return bool(name and _VALUE.fullmatch(name)) and (not slash or bool(_OBJECT_NAME.fullmatch(domain)))


def _is_path(text: str) -> bool:
    return text.startswith("/") and ":" not in text
