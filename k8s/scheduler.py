"""TorchX's scheduler for a plain Kubernetes, in which nothing has to be installed: `kubernetes_job`.

torchx run -s kubernetes_job -cfg namespace=research components/train.py:train --nodes 2 --run_dir s3://bucket/one
torchx status kubernetes_job://torchx/research:train-x1y2

A run is called `namespace:name`; without a namespace it is that of the kubeconfig's context. Commands that take no run
options find `namespace`, `kubeconfig` and `context` in the section `[kubernetes_job]` of `.torchxconfig`.
"""

import getpass
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from torchx.runner import config as torchx_config
from torchx.schedulers.api import AppDryRunInfo, DescribeAppResponse, ListAppResponse, Scheduler, Stream
from torchx.schedulers.ids import make_unique
from torchx.specs import AppDef, Role, runopts
from torchx.workspace.docker_workspace import DockerWorkspaceMixin

from k8s import cancelling
from k8s.cluster_api import PATIENCE, Cluster, Patience
from k8s.images import patched
from k8s.logs import Logs, Wanted
from k8s.manifests import OPTIONS, OWNERS, Opts, label_value, objects, owned, to_yaml
from k8s.notes import notes_of
from k8s.pods import LABEL_APP_ID, LABEL_DRIVER, LABEL_MANAGED_BY, LABEL_USER, MANAGER, Object
from k8s.refusals import Refused
from k8s.status import Sight, created, described, state_of
from pipeline.errors import UserError

if TYPE_CHECKING:
    from docker import DockerClient

NAME = "kubernetes_job"
ALL = -1
"""The replica that stands for all of its role, for `log_iter`."""

_WORKSPACE = "pipeline/workspace"
"""Of a role's metadata: the folder that its image is patched with, once it is not only a dry run."""
_OWNER = "jobset.sigs.k8s.io/jobset-name"
_log = logging.getLogger(__name__)


@dataclass
class Request:
    """What is submitted.

    Attributes:
        app_id: The name of the run.
        objects: What is created, in that order.
        workspaces: By role, the folder that its image is patched with.
        cfg: The run options.
    """

    app_id: str
    objects: list[Object]
    workspaces: dict[str, str] = field(default_factory=dict)
    cfg: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return to_yaml(self.objects)


class KubernetesJob(DockerWorkspaceMixin, Scheduler[Opts]):
    """The scheduler `kubernetes_job`.

    Args:
        session_name: TorchX's.
        poll: Seconds between two looks at a run whose log is followed, at first.
        patience: How long a cluster that does not answer is asked again.
        docker_client: For patching images.
    """

    def __init__(
        self,
        session_name: str,
        poll: float = 1.0,
        patience: Patience = PATIENCE,
        docker_client: "DockerClient | None" = None,
    ) -> None:
        super().__init__(NAME, session_name, docker_client=docker_client)
        self._poll = poll
        self._patience = patience
        self._clusters: dict[tuple[str, str], Cluster] = {}
        self._submitted: dict[str, Cluster] = {}
        self._settings: dict[str, Any] | None = None

    def close(self) -> None:
        """Let go of the connections."""
        for cluster in self._clusters.values():
            cluster.close()
        self._clusters.clear()
        self._submitted.clear()

    def _run_opts(self) -> runopts:
        opts = runopts()
        for name, option in OPTIONS.items():
            opts.add(name, type_=option.type, default=option.default, help=option.help)
        opts.add("app_id", type_=str, default="", help="name of the run, refused where it is taken; empty: a new one")
        opts.add("kubeconfig", type_=str, default="", help="kubeconfig file; empty: KUBECONFIG's, or the user's own")
        opts.add("context", type_=str, default="", help="context of the kubeconfig; empty: the current one")
        opts.add("check", type_=bool, default=False, help="whether the cluster is first asked if it would take all")
        return opts

    def _validate(self, app: AppDef, scheduler: str, *_: Any) -> None:
        """All that can be wrong is said at once, by `objects`."""

    def build_workspace_and_update_role(self, role: Role, workspace: str, cfg: Mapping[str, Any]) -> None:
        """Remember what the image is to be patched with: a dry run, which comes here, too, needs no Docker engine."""
        if cfg.get("image_repo"):
            role.metadata[_WORKSPACE] = workspace
        else:
            _log.warning(
                "%s runs as it is in %s, without %s: image_repo= names a repository for images that are patched with "
                "it; --workspace='' says that none is wanted",
                *(role.name, role.image, workspace),
            )

    def _submit_dryrun(self, app: AppDef, cfg: Opts) -> AppDryRunInfo[Request]:
        """What would be created. No cluster and no Docker engine are asked."""
        options = cast("dict[str, Any]", dict(cfg))
        workspaces = {role.name: role.metadata.pop(_WORKSPACE) for role in app.roles if role.metadata.get(_WORKSPACE)}
        app_id = options.get("app_id") or make_unique(_name(app.name))
        opts = cast("Opts", {name: value for name, value in options.items() if name in OPTIONS})
        return AppDryRunInfo(Request(app_id, objects(app, app_id, opts, _user()), workspaces, options), str)

    def schedule(self, dryrun_info: AppDryRunInfo[Request]) -> str:
        """Create all objects; where one cannot be, none is left behind.

        Returns:
            The run, as `namespace:name`.

        Raises:
            UserError: The cluster refuses an object, or a run of this name is there.
        """
        request = dryrun_info.request
        cluster = self._cluster(request.cfg)
        namespace = request.cfg.get("namespace") or cluster.namespace
        selector = {LABEL_APP_ID: request.app_id}
        if cluster.items("Job", namespace, selector):
            raise UserError(
                f"namespace {namespace!r}: a run {request.app_id!r} exists already: choose another app_id, or look at "
                f"it by `torchx status {NAME}://torchx/{namespace}:{request.app_id}`"
            )
        made = patched(request.objects, request.workspaces, request.cfg, self._patch)
        if request.cfg.get("check"):
            for one in made:
                cluster.create(one, namespace, dry_run=True)
        _create_all(cluster, namespace, made)
        app_id = f"{namespace}:{request.app_id}"
        self._submitted[app_id] = cluster
        return app_id

    def _patch(self, role: Role, workspace: str, cfg: Mapping[str, Any]) -> None:
        """Build the image of a role anew, with a folder over it, and push it; the role then has its name."""
        super().build_workspace_and_update_role(role, workspace, cfg)
        self.push_images(self.dryrun_push_images(AppDef(role.name, [role]), cfg))

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """How a run is, why, and how it has ended; None for one that is not known."""
        cluster, namespace, name = self._find(app_id)
        sight = _look(cluster, namespace, name)
        if sight is None:
            return None
        logs = self._logs(cluster, namespace, name)
        return described(app_id, sight._replace(notes=notes_of(cluster, namespace, sight, logs)))

    def list(self, cfg: Mapping[str, Any] | None = None) -> list[ListAppResponse]:
        """This user's runs, the newest first."""
        options = {**self._configured(), **{name: value for name, value in (cfg or {}).items() if value}}
        cluster = self._cluster(options)
        namespace, user = options.get("namespace") or cluster.namespace, label_value(_user())
        selector = {LABEL_MANAGED_BY: MANAGER, **({LABEL_USER: user} if user else {})}
        sights: dict[str, Sight] = {}
        for kind in ("JobSet", "Job", "Pod"):
            try:
                found = cluster.items(kind, namespace, selector)
            except Refused:
                if kind != "JobSet":
                    raise
                # Whoever may have none sees none.
                found = []
            for one in found:
                name = one["metadata"].get("labels", {}).get(LABEL_APP_ID, "")
                sight = sights.setdefault(name, Sight([], []))
                if kind == "JobSet":
                    sights[name] = sight._replace(job_set=one)
                else:
                    (sight.jobs if kind == "Job" else sight.pods).append(one)
        owners = {name: sight for name, sight in sights.items() if sight.job_set or sight.jobs}
        newest = sorted(owners.items(), key=lambda item: created(item[1].job_set or item[1].jobs[0]), reverse=True)
        return [ListAppResponse(app_id=f"{namespace}:{name}", state=state_of(sight)) for name, sight in newest]

    def _cancel_existing(self, app_id: str) -> None:
        """End a run, and the stages of a driver; their processes save first, and their logs stay."""
        cluster, namespace, run = self._find(app_id)
        stages = cluster.items("Job", namespace, {LABEL_DRIVER: run})
        # The driver first: it would submit the next stage.
        for name in dict.fromkeys((run, *(job["metadata"]["labels"][LABEL_APP_ID] for job in stages))):
            if sight := _look(cluster, namespace, name):
                logs = self._logs(cluster, namespace, name)
                cancelling.cancel(cluster, namespace, sight, {LABEL_APP_ID: name}, logs)

    def log_iter(
        self,
        app_id: str,
        role_name: str,
        k: int = 0,
        regex: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        should_tail: bool = False,
        streams: Stream | None = None,
    ) -> Iterable[str]:
        """The lines of one replica, over all the pods that it has had; of all replicas together for `ALL`.

        Raises:
            ValueError: One of the two streams is asked for; a container's log does not keep them apart.
        """
        if streams not in (None, Stream.COMBINED):
            raise ValueError(f"streams={streams}: allowed is {Stream.COMBINED.value}")
        cluster, namespace, name = self._find(app_id)
        logs = self._logs(cluster, namespace, name)
        wanted = Wanted(_nanoseconds(since) or 0, _nanoseconds(until), should_tail)
        if k == ALL:
            merged = logs.of_role(role_name, wanted)
            texts: Iterator[str] = (f"[{role_name} {index}] {line.text}" for index, line in merged)
        else:
            texts = _of_one(logs, lambda: _look(cluster, namespace, name), role_name, k, wanted)
        return (f"{text}\n" for text in texts if not regex or re.search(regex, text))

    def _logs(self, cluster: Cluster, namespace: str, name: str) -> Logs:
        return Logs(cluster, namespace, {LABEL_APP_ID: name}, lambda: _look(cluster, namespace, name), self._poll)

    def _find(self, app_id: str) -> tuple[Cluster, str, str]:
        """Where a run is: the cluster, the namespace, and its name there."""
        options = {} if app_id in self._submitted else self._configured()
        cluster = self._submitted.get(app_id) or self._cluster(options)
        namespace, _, name = app_id.rpartition(":")
        return cluster, namespace or options.get("namespace") or cluster.namespace, name

    def _configured(self) -> dict[str, Any]:
        """The run options of `.torchxconfig`, which most of TorchX's commands do not read."""
        if self._settings is None:
            self._settings = {}
            torchx_config.apply(NAME, self._settings)
        return self._settings

    def _cluster(self, options: Mapping[str, Any]) -> Cluster:
        key = (options.get("kubeconfig") or "", options.get("context") or "")
        if key not in self._clusters:
            self._clusters[key] = Cluster.connect(*key, self._patience)
        return self._clusters[key]


def create_scheduler(session_name: str, **parameters: Any) -> KubernetesJob:
    """What TorchX calls, with parameters for all schedulers, among them texts from the environment."""
    own = {name: parameters[name] for name in ("patience", "docker_client") if name in parameters}
    return KubernetesJob(session_name, poll=float(parameters.get("poll", 1.0)), **own)


def _create_all(cluster: Cluster, namespace: str, made: Iterable[Object]) -> None:
    """Create objects, each after its owner; where one is refused, those before it are deleted."""
    uids: dict[str, str] = {}
    owners: list[Object] = []
    wanted = list(made)
    try:
        for place in range(len(wanted)):
            one = owned(wanted[: place + 1], uids)[place]
            found = cluster.create(one, namespace)
            if one["kind"] in OWNERS:
                uids[one["metadata"]["name"]] = found["metadata"]["uid"]
                owners.append(one)
    except BaseException:
        # What they own goes with them.
        for one in owners:
            try:
                cluster.delete(one["kind"], namespace, one["metadata"]["name"])
            except Exception:  # noqa: BLE001 - the first error is the one that is raised
                _log.exception("%s %s is left behind in %s", one["kind"], one["metadata"]["name"], namespace)
        raise


def _look(cluster: Cluster, namespace: str, name: str) -> Sight | None:
    """The objects of a run; None where there are none."""
    selector = {LABEL_APP_ID: name}
    jobs = cluster.items("Job", namespace, selector)
    # The pods last: what has ended the run is among them.
    pods = cluster.items("Pod", namespace, selector) if jobs else []
    job_set = None
    if not jobs or _OWNER in jobs[0]["metadata"].get("labels", {}):
        try:
            job_set = cluster.read("JobSet", namespace, name)
        except Refused:
            if not jobs:
                return None
    return Sight(jobs, pods, job_set) if jobs or job_set else None


def _of_one(logs: Logs, look: Any, role: str, index: int, wanted: Wanted) -> Iterator[str]:
    """The lines of one replica; what was kept of them, where its pods are gone."""
    found = False
    for line in logs.of_replica(role, index, wanted):
        found = True
        yield line.text
    if not found and (sight := look()):
        yield from cancelling.kept_lines(sight, role, index)


def _nanoseconds(time: datetime | None) -> int | None:
    """Since 1970; a time without a zone is this machine's."""
    return None if time is None else int(time.timestamp()) * 10**9 + time.microsecond * 1000


def _name(text: str) -> str:
    """An app's name as the beginning of an object's."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "app"


def _user() -> str:
    """Whose runs these are; empty where this system has no names."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
