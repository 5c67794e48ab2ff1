"""What cannot work in an AppDef or in the run options: each by its name, its value, what is allowed and how to mend it.

The limits are Kubernetes' own, so that nothing is refused only once some of a run's objects exist.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from torchx.specs import AppDef, BindMount, DeviceMount, Role, VolumeMount

from components.role import Needs
from k8s.options import JOBSET, KINDS, PLACEMENTS, PULL_POLICIES, Opts, resolved
from k8s.pods import INDEX, toleration
from pipeline.errors import did_you_mean

NAME_LIMIT = 63
"""Letters of a DNS label, of which a pod's name is one."""

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
"""What a Service, and with it a Job, a role and an app id may be called."""
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_KEY = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_VARIABLE = re.compile(r"[A-Za-z_.-][A-Za-z0-9_.-]*", re.ASCII)
_SUFFIX = "-abcde"
"""What Kubernetes puts behind the name of a pod."""


def problems_of(app: AppDef, opts: Opts, app_id: str | None = None) -> list[str]:
    """All that is wrong.

    Args:
        app: What is to be run.
        opts: The run options.
        app_id: Its name in the cluster; None where that is not known yet.
    """
    chosen = resolved(opts)
    found = [*_of_choices(chosen), *_of_references(chosen), *_of_labels(chosen)]
    if app_id is not None and not _LABEL.fullmatch(app_id):
        found.append(f"app_id={app_id!r}: {_LETTERS}; rename the app")
    if not app.roles:
        found.append(f"app={app.name!r} has no roles: there is nothing to run")
    names = [role.name for role in app.roles]
    for name in sorted({name for name in names if names.count(name) > 1}):
        found.append(f"role={name!r} is there {names.count(name)} times: give each role a name of its own")
    for place, role in enumerate(app.roles):
        found += (
            *_of_role(role),
            *_of_resources(role),
            *_of_environment(role, chosen),
            *_of_mounts(role, chosen),
            *_of_order(role, names[:place], chosen),
            *_of_length(role, app_id, chosen),
        )
    return found


_LETTERS = "allowed are lower-case letters, digits and '-', a letter first and no '-' last"


def _of_choices(opts: Opts) -> Iterator[str]:
    values: Any = opts
    for name, allowed in (("kind", KINDS), ("placement", PLACEMENTS), ("image_pull_policy", PULL_POLICIES)):
        value = values[name]
        if value not in allowed and (value or name == "kind"):
            yield f"{name}={value!r}: allowed are {', '.join(allowed)}{did_you_mean(value, allowed)}"
    for name, least in (("disk", 0), ("deadline", 0), ("ttl", 0), ("user", 1)):
        if values[name] < least:
            why = " is root, as which no process runs" if name == "user" else ""
            yield f"{name}={values[name]}{why}: allowed are {least} and more"
    if opts["placement_strict"] and not opts["placement"]:
        yield f"placement_strict=True says nothing without placement: set that to {' or '.join(PLACEMENTS)}"
    if opts["required_topology"] and opts["preferred_topology"]:
        yield (
            f"required_topology={opts['required_topology']!r} and preferred_topology={opts['preferred_topology']!r}: "
            "Kueue takes one of them; leave the other out"
        )
    for name in ("queue_priority", "required_topology", "preferred_topology"):
        if values[name] and not opts["queue"]:
            yield f"{name}={values[name]!r}: only Kueue reads it; name its LocalQueue by queue"


def _of_references(opts: Opts) -> Iterator[str]:
    """The names of other objects, and where they are mounted."""
    values: Any = opts
    for name in ("service_account", "secret", "priority_class", "queue_priority", "runtime_class", "scheduler_name"):
        yield from _of_names(name, [values[name]] if values[name] else [])
    for name in ("namespace", "queue"):
        if values[name] and not (_DNS_LABEL.fullmatch(values[name]) and _fits(values[name])):
            yield f"{name}={values[name]!r}: allowed are lower-case letters, digits and '-', {NAME_LIMIT} at most"
    for name in ("env_secrets", "env_config_maps", "config_maps", "image_pull_secrets"):
        yield from _of_names(name, values[name])
    for name, path in opts["config_maps"].items():
        if not _path(path):
            yield f"config_maps={name}:{path}: expected a path that begins with '/', as in {name}:/config"


def _of_labels(opts: Opts) -> Iterator[str]:
    values: Any = opts
    for name in ("node_selector", "labels", "annotations"):
        for key, value in values[name].items():
            if not _qualified(key) or (name != "annotations" and not _VALUE.fullmatch(value)):
                yield f"{name}={key}:{value}: write key:value or example.com/key:value, {_PARTS}"
    for name in ("placement_key", "required_topology", "preferred_topology", "gpu_resource"):
        if values[name] and not _qualified(values[name]):
            yield f"{name}={values[name]!r}: expected a key such as kubernetes.io/hostname, {_PARTS}"
    for text in opts["tolerations"]:
        parsed = toleration(text)
        if not _qualified(parsed["key"]) or not _VALUE.fullmatch(parsed.get("value", "")):
            yield f"tolerations={text!r}: write key, key:effect or key:value:effect, as in nvidia.com/gpu:NoSchedule"


_PARTS = f"each part of letters, digits, '-', '_' and '.', {NAME_LIMIT} at most"


def _of_role(role: Role) -> Iterator[str]:
    if not _LABEL.fullmatch(role.name):
        yield f"role={role.name!r}: {_LETTERS}; rename the role"
    nodes, least = role.num_replicas, role.min_replicas
    if nodes < 1:
        yield f"{role.name}: num_replicas={nodes}: allowed are 1 and more"
    elif least is not None and not 1 <= least <= nodes:
        yield f"{role.name}: min_replicas={least}: allowed are 1 to num_replicas={nodes}"
    if role.max_retries < 0:
        yield f"{role.name}: max_retries={role.max_retries}: allowed are 0 and more"
    if Needs.of(role).grace < 0:
        yield f"{role.name}: grace={Needs.of(role).grace}: allowed are 0 seconds and more"


def _of_resources(role: Role) -> Iterator[str]:
    resource, shm = role.resource, Needs.of(role).shm
    for name, value in (("cpu", resource.cpu), ("memory", resource.memMB)):
        if value <= 0:
            yield f"{role.name}: {name}={value}: allowed is more than 0; say how much of it each node gets"
    if resource.gpu < 0:
        yield f"{role.name}: gpu={resource.gpu}: allowed are 0 and more"
    if shm < 0 or (resource.memMB > 0 and shm > resource.memMB):
        yield f"{role.name}: shm={shm}: allowed are 0 to memory={resource.memMB}, which it is part of"
    for name, count in resource.devices.items():
        if not _qualified(name) or count < 0:
            yield f"{role.name}: devices={name}:{count}: expected a resource of the cluster, and how many of it"


def _of_environment(role: Role, opts: Opts) -> Iterator[str]:
    needs = Needs.of(role)
    for name in dict.fromkeys((*role.env, *needs.secrets)):
        if not _VARIABLE.fullmatch(name) or name == INDEX:
            yield f"{role.name}: env={name!r}: allowed are letters, digits and '_', but not {INDEX}; rename it"
    for name in needs.secrets:
        if name not in role.env and not opts["secret"]:
            yield f"{role.name}: secrets={name}: taken from which Secret? Name the one that has this key by secret"


def _of_mounts(role: Role, opts: Opts) -> Iterator[str]:
    paths = [mount.dst_path for mount in role.mounts] + list(opts["config_maps"].values())
    for path in sorted({path for path in paths if paths.count(path) > 1}):
        yield f"{role.name}: mounts={path!r} {paths.count(path)} times: give each mount a path of its own"
    for mount in role.mounts:
        if not _path(mount.dst_path):
            yield f"{role.name}: mounts: dst={mount.dst_path!r}: expected a path that begins with '/'"
        if isinstance(mount, DeviceMount):
            yield (
                f"{role.name}: mounts: type=device,src={mount.src_path}: would need a privileged pod; ask for it as "
                "a resource of the cluster, as --gpu does"
            )
        if isinstance(mount, BindMount) and not opts["host_paths"]:
            yield (
                f"{role.name}: mounts: type=bind,src={mount.src_path}: a folder of each node, which Pod Security "
                "forbids; write type=volume,src=CLAIM for a PersistentVolumeClaim, or set host_paths=True"
            )
        if isinstance(mount, BindMount) and not mount.src_path.startswith("/"):
            yield f"{role.name}: mounts: src={mount.src_path!r}: expected a path on the nodes that begins with '/'"
        if isinstance(mount, VolumeMount):
            yield from (f"{role.name}: mounts: {problem}" for problem in _of_names("src", [mount.src]))


def _of_order(role: Role, earlier: list[str], opts: Opts) -> Iterator[str]:
    after = Needs.of(role).after
    if not after:
        return
    if opts["kind"] != JOBSET:
        yield (
            f"{role.name}: after={after!r}: kind=job starts all roles at once; set kind={JOBSET}, or launch the stages "
            "by python -m components.launch"
        )
    elif after not in earlier:
        yield f"{role.name}: after={after!r}: allowed are the roles before it: {', '.join(earlier) or 'there are none'}"


def _of_length(role: Role, app_id: str | None, opts: Opts) -> Iterator[str]:
    """Whether the longest of a role's names is one label of DNS."""
    job = f"{role.name}-0" if opts["kind"] == JOBSET else role.name
    longest = f"{app_id or 'a'}-{job}-{max(0, role.num_replicas - 1)}{_SUFFIX}"
    if not _fits(longest):
        app = f" of app_id={app_id!r}" if app_id else ""
        yield (
            f"role={role.name!r}{app}: pods would be called {longest!r}, allowed are {NAME_LIMIT} "
            f"letters; shorten the names by {len(longest) - NAME_LIMIT}"
        )


def _of_names(option: str, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if not _SUBDOMAIN.fullmatch(name) or len(name) > 253:
            yield (
                f"{option}={name!r}: no object is called so; allowed are lower-case letters, digits, '-' and '.', a "
                "letter or digit first and last"
            )


def _qualified(key: str) -> bool:
    """Whether this is the key of a label, an annotation or a resource, with or without a domain before it."""
    domain, slash, name = key.rpartition("/")
    return bool(_KEY.fullmatch(name)) and (not slash or (bool(_SUBDOMAIN.fullmatch(domain)) and len(domain) <= 253))


def _path(text: str) -> bool:
    return text.startswith("/") and ":" not in text


def _fits(name: str) -> bool:
    return len(name) <= NAME_LIMIT
