"""TorchX's scheduler for plain Kubernetes, in which nothing has to be installed: `kubernetes_job`.

torchx run -s kubernetes_job -cfg namespace=research train --nodes 2 --run_dir s3://bucket/one
torchx status kubernetes_job://torchx/research:train-x1y2

The name of a run is `namespace:name`; the default namespace is that of the kubeconfig's context. Commands that take no
run options read `namespace`, `kubeconfig` and `context` from the section `[kubernetes_job]` of `.torchxconfig`.
"""

import getpass
import logging
import math
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from docker.errors import DockerException
from torchx.schedulers.api import AppDryRunInfo, DescribeAppResponse, ListAppResponse, Scheduler, Stream
from torchx.schedulers.ids import make_unique
from torchx.specs import AppDef, Role, runopts
from torchx.workspace.docker_workspace import DockerWorkspaceMixin

from components.compat import torchx_config
from components.log_lines import nanoseconds, require_combined
from k8s.api_errors import ApiError
from k8s.cancel import cancel
from k8s.cluster_api import PATIENCE, Cluster, Patience
from k8s.diagnostics import diagnosed
from k8s.fields import Object, label, name_of
from k8s.logs import ReplicaLog
from k8s.manifests import OWNERS, objects, owned, to_yaml
from k8s.options import OPTIONS, TYPES, RunOptions, default_of
from k8s.pods import LABEL_APP_ID, LABEL_DRIVER, LABEL_MANAGED_BY, LABEL_USER, MANAGER, label_value
from k8s.renewal import Renewal
from k8s.run_ref import RunRef
from k8s.snapshot import RunSnapshot, created
from k8s.status import described, state_of
from pipeline.errors import UserError

if TYPE_CHECKING:
    from docker import DockerClient

NAME = "kubernetes_job"
_log = logging.getLogger(__name__)


@dataclass
class SubmitRequest:
    """What is submitted.

    Attributes:
        app_id: The name of the run.
        app: The AppDef.
        opts: The run options.
        user: The owner of the run.
        images: Patched images that are pushed, each with its repository and tag.
    """

    app_id: str
    app: AppDef
    opts: RunOptions
    user: str
    images: dict[str, tuple[str, str]]

    def objects(self) -> list[Object]:
        """Return what is created, in that order."""
        return objects(self.app, self.app_id, self.opts, self.user)

    def __str__(self) -> str:
        # A Job without its Service trains nothing: should `kubectl apply` be refused one of them, it is no Job.
        return to_yaml(sorted(self.objects(), key=lambda one: one["kind"] in OWNERS))


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
        # Of each thread: those that show logs ask, too.
        self._latest = threading.local()
        self._renewals: dict[str, Renewal] = {}

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
        """Patch the image of a role with a folder, where `image_repo` names a repository for the result."""
        if cfg.get("image_repo"):
            with _docker_errors(cfg["image_repo"]):
                super().build_workspace_and_update_role(role, workspace, cfg)
        else:
            _log.warning(
                "%s runs image %s without the code in %s: image_repo= names a repository for images that are patched "
                "with it; --workspace='' disables patching",
                *(role.name, role.image, workspace),
            )

    def _submit_dryrun(self, app: AppDef, cfg: Mapping[str, Any]) -> AppDryRunInfo[SubmitRequest]:
        """Return what would be created, without asking a cluster."""
        images = self.dryrun_push_images(app, cfg) if cfg.get("image_repo") else {}
        opts = RunOptions.of(cfg)
        app_id = opts.app_id or make_unique(re.sub(r"[^a-z0-9]+", "-", app.name.lower()).strip("-") or "app")
        request = SubmitRequest(app_id, app, opts, _user(), images)
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
        with _docker_errors(*{repository for repository, _ in request.images.values()}):
            self.push_images(request.images)
        made = request.objects()
        if request.opts.check:
            for one in made:
                cluster.create(one, namespace, dry_run=True)
        _create_all(cluster, namespace, made)
        app_id = f"{namespace}:{request.app_id}"
        self._submitted[app_id] = cluster
        return app_id

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """Return the state of a run, the reason, and how it has ended; None for an unknown one."""
        run = self._find(app_id)
        self._latest.seen = snapshot = run.snapshot()
        if snapshot is None:
            return None
        return described(app_id, diagnosed(run, snapshot))

    def renew(self, app_id: str) -> str:
        """Make the Job of a run anew if pods were taken away, instead of waiting for the Job controller's delay.

        To be called after each `describe` of the run, whose snapshot it uses, by the same thread (see `k8s.renewal`).

        Returns:
            What was done, or why it cannot be; empty for nothing.

        Raises:
            ClusterAway: The cluster does not answer.
        """
        renewal = self._renewals.setdefault(app_id, Renewal(self._find(app_id)))
        try:
            return renewal.step(seen) if (seen := self._latest.seen) else ""
        except ApiError as error:
            if error.status in (404, 409):
                # Another launcher was faster, or the run was cancelled or deleted: the next look shows it.
                return ""
            return f"the run cannot be made anew ({error}): the Job controller replaces its pods, after its delay"

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
                cancel(one, snapshot, self._poll)

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
        """Return the lines of one replica, across all its pods.

        Raises:
            ValueError: One of the two streams is asked for; a container's log does not keep them apart.
        """
        require_combined(streams)
        last = nanoseconds(until) if until else math.inf
        log = ReplicaLog(self._find(app_id), role_name, k, self._poll)
        lines = log.lines(since, follow=should_tail and last > time.time_ns())
        wanted = takewhile(lambda line: line.at <= last, lines)
        return (f"{line.text}\n" for line in wanted if not regex or re.search(regex, line.text))

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


def create_scheduler(session_name: str, **_: Any) -> KubernetesJob:
    """Create the scheduler, as TorchX's entry points do."""
    return KubernetesJob(session_name)


@contextmanager
def _docker_errors(*repositories: str) -> Iterator[None]:
    """Raise a UserError for an image that cannot be patched, or pushed to a repository."""
    try:
        yield
    except (DockerException, RuntimeError) as error:
        raise UserError(
            f"image_repo={', '.join(repositories)!r}: the image cannot be patched and pushed ({error}): start a Docker "
            "engine here and log in there, or leave image_repo out"
        ) from error


def _create_all(cluster: Cluster, namespace: str, made: list[Object]) -> None:
    """Create objects, each after its owner; if one is rejected, delete those before it."""
    owners, uid = list[Object](), ""
    try:
        for one in made:
            if one["kind"] in OWNERS:
                uid = cluster.create(one, namespace)["metadata"]["uid"]
                owners.append(one)
            else:
                cluster.create(owned(one, owners[-1], uid), namespace)
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


def _user() -> str:
    """Return the owner of new runs; empty where this system has no user names."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
