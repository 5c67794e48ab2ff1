"""TorchX's scheduler for plain Kubernetes, in which nothing has to be installed: `kubernetes_job`.

torchx run -s kubernetes_job -cfg namespace=research components/train.py:train --nodes 2 --run_dir s3://bucket/one
torchx status kubernetes_job://torchx/research:train-x1y2

The name of a run is `namespace:name`; the default namespace is that of the kubeconfig's context. Commands that take no
run options read `namespace`, `kubeconfig` and `context` from the section `[kubernetes_job]` of `.torchxconfig`.
"""

import getpass
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from docker.errors import DockerException
from torchx.schedulers.api import AppDryRunInfo, DescribeAppResponse, ListAppResponse, Scheduler, Stream
from torchx.schedulers.ids import make_unique
from torchx.specs import AppDef, Role, runopts
from torchx.workspace.docker_workspace import DockerWorkspaceMixin

from components.compat import torchx_config
from k8s.api_errors import ApiError
from k8s.cancel import cancel, kept_lines
from k8s.cluster_api import PATIENCE, Cluster, Patience
from k8s.diagnostics import diagnostics_of
from k8s.fields import Object, label, name_of
from k8s.logs import LogWindow, RunLogs
from k8s.manifests import OWNERS, objects, owned, to_yaml
from k8s.options import OPTIONS, TYPES, RunOptions, default_of
from k8s.pods import LABEL_APP_ID, LABEL_DRIVER, LABEL_MANAGED_BY, LABEL_USER, MANAGER, label_value
from k8s.run_ref import RunRef
from k8s.status import RunSnapshot, created, described, state_of
from pipeline.errors import UserError

if TYPE_CHECKING:
    from docker import DockerClient

NAME = "kubernetes_job"
ALL = -1
"""The replica number that stands for all replicas of a role in `log_iter`."""

_WORKSPACE = "pipeline/workspace"
"""The key of a role's metadata that holds the folder to patch its image with when the run is submitted."""
_log = logging.getLogger(__name__)


@dataclass
class SubmitRequest:
    """What is submitted.

    Attributes:
        app_id: The name of the run.
        app: The AppDef.
        opts: The run options.
        user: The owner of the run.
        workspaces: By role, the folder that its image is patched with.
        cfg: TorchX's configuration, with the options for patching images.
    """

    app_id: str
    app: AppDef
    opts: RunOptions
    user: str
    workspaces: dict[str, str] = field(default_factory=dict)
    cfg: Mapping[str, Any] = field(default_factory=dict)

    def objects(self) -> list[Object]:
        """Return what is created, in that order."""
        return objects(self.app, self.app_id, self.opts, self.user)

    def __str__(self) -> str:
        return to_yaml(self.objects())


class KubernetesJob(DockerWorkspaceMixin, Scheduler[Mapping[str, Any]]):
    """The scheduler `kubernetes_job`.

    Args:
        session_name: TorchX's.
        poll: Seconds between two polls of a run whose log is followed, at first.
        patience: How long requests to a cluster that does not answer are retried.
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
        """Close the connections."""
        for cluster in self._clusters.values():
            cluster.close()
        self._clusters.clear()
        self._submitted.clear()

    def _run_opts(self) -> runopts:
        opts = runopts()
        for name, option in OPTIONS.items():
            opts.add(name, type_=TYPES[name], default=default_of(name), help=option.metadata["help"])
        return opts

    def _validate(self, app: AppDef, scheduler: str, *_: Any) -> None:
        """Leave validation to `objects`, which reports all problems at once."""

    def build_workspace_and_update_role(self, role: Role, workspace: str, cfg: Mapping[str, Any]) -> None:
        """Record the folder to patch the image with: a dry run calls this, too, and needs no Docker engine."""
        if cfg.get("image_repo"):
            role.metadata[_WORKSPACE] = workspace
        else:
            _log.warning(
                "%s runs image %s without the code in %s: image_repo= names a repository for images that are patched "
                "with it; --workspace='' disables patching",
                *(role.name, role.image, workspace),
            )

    def _submit_dryrun(self, app: AppDef, cfg: Mapping[str, Any]) -> AppDryRunInfo[SubmitRequest]:
        """Return what would be created, without asking a cluster or a Docker engine."""
        workspaces = {role.name: role.metadata.pop(_WORKSPACE) for role in app.roles if role.metadata.get(_WORKSPACE)}
        opts = RunOptions.of(cfg)
        app_id = opts.app_id or make_unique(re.sub(r"[^a-z0-9]+", "-", app.name.lower()).strip("-") or "app")
        request = SubmitRequest(app_id, app, opts, _user(), workspaces, cfg)
        # Raises for what cannot work.
        request.objects()
        return AppDryRunInfo(request, str)

    def schedule(self, dryrun_info: AppDryRunInfo[SubmitRequest]) -> str:
        """Create all objects; on an error, delete those that were created.

        Returns:
            The run, as `namespace:name`.

        Raises:
            UserError: The cluster rejects an object, or a run of this name exists.
        """
        request = dryrun_info.request
        cluster = self._cluster(request.opts.kubeconfig, request.opts.context)
        namespace = request.opts.namespace or cluster.namespace
        if cluster.items("Job", namespace, {LABEL_APP_ID: request.app_id}):
            raise UserError(
                f"namespace {namespace!r}: a run {request.app_id!r} exists already: choose another app_id, or look at "
                f"it by `torchx status {NAME}://torchx/{namespace}:{request.app_id}`"
            )
        made = self._patched(request).objects()
        if request.opts.check:
            for one in made:
                cluster.create(one, namespace, dry_run=True)
        _create_all(cluster, namespace, made)
        app_id = f"{namespace}:{request.app_id}"
        self._submitted[app_id] = cluster
        return app_id

    def _patched(self, request: SubmitRequest) -> SubmitRequest:
        """Return the request with patched images, which are built and pushed here."""
        found, names = deepcopy(request), dict[tuple[str, str], str]()
        for role in found.app.roles:
            if not (workspace := request.workspaces.get(role.name)):
                continue
            base = role.image
            if (base, workspace) not in names:
                try:
                    super().build_workspace_and_update_role(role, workspace, request.cfg)
                    self.push_images(self.dryrun_push_images(AppDef(role.name, [role]), request.cfg))
                except (DockerException, RuntimeError) as error:
                    raise UserError(
                        f"image_repo={request.cfg.get('image_repo')!r}: {base} cannot be patched with {workspace} and "
                        f"pushed ({error}): start a Docker engine here and log in there, or leave image_repo out"
                    ) from error
                names[base, workspace] = role.image
            role.image = names[base, workspace]
        return found

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """Return the state of a run, the reason, and how it has ended; None for an unknown one."""
        run = self._find(app_id)
        if (snapshot := run.snapshot()) is None:
            return None
        return described(app_id, snapshot._replace(notes=diagnostics_of(run, snapshot, RunLogs(run, self._poll))))

    def list(self, cfg: Mapping[str, Any] | None = None) -> list[ListAppResponse]:
        """Return the runs of this user, the newest first."""
        options = {**self._configured(), **{name: value for name, value in (cfg or {}).items() if value}}
        cluster = self._cluster(options.get("kubeconfig"), options.get("context"))
        namespace, user = options.get("namespace") or cluster.namespace, label_value(_user())
        selector = {LABEL_MANAGED_BY: MANAGER, **({LABEL_USER: user} if user else {})}
        try:
            job_sets = cluster.items("JobSet", namespace, selector)
        except ApiError:
            # The role of the user may not include them.
            job_sets = []
        snapshots = {_run_of(one): RunSnapshot([], [], one) for one in job_sets}
        for job in cluster.items("Job", namespace, selector):
            snapshots.setdefault(_run_of(job), RunSnapshot([], [])).jobs.append(job)
        for pod in cluster.items("Pod", namespace, selector):
            if snapshot := snapshots.get(_run_of(pod)):
                snapshot.pods.append(pod)
        newest = sorted(snapshots.items(), key=lambda item: created(item[1].job_set or item[1].jobs[0]), reverse=True)
        return [ListAppResponse(app_id=f"{namespace}:{name}", state=state_of(found)) for name, found in newest]

    def _cancel_existing(self, app_id: str) -> None:
        """Cancel a run, and the stages of a driver; their processes save first, and their logs stay."""
        run = self._find(app_id)
        stages = run.cluster.items("Job", run.namespace, {LABEL_DRIVER: run.name})
        # The driver first: it would submit the next stage.
        for name in dict.fromkeys((run.name, *map(_run_of, stages))):
            one = run._replace(name=name)
            if snapshot := one.snapshot():
                cancel(one, snapshot, RunLogs(one, self._poll))

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
        """Return the lines of one replica, across all its pods; of all replicas together for `ALL`.

        Raises:
            ValueError: One of the two streams is asked for; a container's log does not keep them apart.
        """
        if streams not in (None, Stream.COMBINED):
            raise ValueError(f"streams={streams} must be {Stream.COMBINED.value}")
        run = self._find(app_id)
        window = LogWindow(_nanoseconds(since) or 0, _nanoseconds(until), should_tail)
        if k == ALL:
            merged = RunLogs(run, self._poll).of_role(role_name, window)
            texts: Iterator[str] = (f"[{role_name} {index}] {line.text}" for index, line in merged)
        else:
            texts = self._lines(run, role_name, k, window)
        return (f"{text}\n" for text in texts if not regex or re.search(regex, text))

    def _lines(self, run: RunRef, role: str, index: int, window: LogWindow) -> Iterator[str]:
        """Yield the lines of one replica; those kept in an annotation if its pods are gone."""
        found = False
        for line in RunLogs(run, self._poll).of_replica(role, index, window):
            found = True
            yield line.text
        if not found and (snapshot := run.snapshot()):
            yield from kept_lines(snapshot, role, index)

    def _find(self, app_id: str) -> RunRef:
        options = {} if app_id in self._submitted else self._configured()
        cluster = self._submitted.get(app_id) or self._cluster(options.get("kubeconfig"), options.get("context"))
        namespace, _, name = app_id.rpartition(":")
        return RunRef(cluster, namespace or options.get("namespace") or cluster.namespace, name)

    def _configured(self) -> dict[str, Any]:
        """Return the run options in `.torchxconfig`, which most of TorchX's commands do not read."""
        if self._settings is None:
            self._settings = {}
            torchx_config.apply(NAME, self._settings)
        return self._settings

    def _cluster(self, kubeconfig: str | None, context: str | None) -> Cluster:
        key = (kubeconfig or "", context or "")
        if key not in self._clusters:
            self._clusters[key] = Cluster.connect(*key, self._patience)
        return self._clusters[key]


def create_scheduler(session_name: str, **parameters: Any) -> KubernetesJob:
    """Create the scheduler from TorchX's parameters, which are those of all schedulers, some from the environment."""
    own = {name: parameters[name] for name in ("patience", "docker_client") if name in parameters}
    return KubernetesJob(session_name, poll=float(parameters.get("poll", 1.0)), **own)


def _create_all(cluster: Cluster, namespace: str, made: list[Object]) -> None:
    """Create objects, each after its owner; if one is rejected, delete those before it."""
    uids: dict[str, str] = {}
    owners: list[Object] = []
    try:
        for place in range(len(made)):
            one = owned(made[: place + 1], uids)[place]
            found = cluster.create(one, namespace)
            if one["kind"] in OWNERS:
                uids[name_of(one)] = found["metadata"]["uid"]
                owners.append(one)
    except BaseException:
        # What they own is deleted with them.
        for one in owners:
            try:
                cluster.delete(one["kind"], namespace, name_of(one))
            except Exception:  # noqa: BLE001 - the first error is raised
                _log.exception("%s %s is left behind in %s", one["kind"], name_of(one), namespace)
        raise


def _run_of(thing: Object) -> str:
    """Return the name of the run that an object belongs to."""
    return label(thing, LABEL_APP_ID)


def _nanoseconds(time: datetime | None) -> int | None:
    """Return a time in nanoseconds since 1970; one without a zone is in this machine's."""
    return None if time is None else int(time.timestamp()) * 10**9 + time.microsecond * 1000


def _user() -> str:
    """Return the owner of new runs; empty where this system has no user names."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
