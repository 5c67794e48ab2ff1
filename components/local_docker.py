"""TorchX's scheduler for Docker, with what a training in containers needs besides.

TorchX's own (0.7) gives two replicas on one host the same first GPUs, prints the values of the variables that it
copies, knows no exit status, stops one container after the other, and pulls an image that is there. What it does well
is left to it: what a container is made of, its names, its private network, and patching an image with a folder.
"""

import fnmatch
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import filelock
from docker.errors import APIError, DockerException, ImageNotFound
from docker.types import DeviceRequest, Mount
from torchx.schedulers import docker_scheduler
from torchx.schedulers.api import AppDryRunInfo, DescribeAppResponse, Stream
from torchx.schedulers.docker_scheduler import DockerContainer, DockerJob, DockerOpts, DockerScheduler
from torchx.specs import AppDef, AppState, ReplicaStatus, Role, RoleStatus, is_terminal, runopts
from torchx.workspace.docker_workspace import DockerWorkspaceMixin

from components.role import Needs, missing
from pipeline.errors import DONE, USER_MUST_CHANGE, UserError
from pipeline.process import error_file as failures
from pipeline.process.error_file import content

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_GPUS = "pipeline/gpus"
_STOP = "pipeline/stop-seconds"
_OUR_OWN = ("name", "hostname", "environment", "labels", "user", "stop_timeout")
"""What belongs to a container itself; all else is how its host runs it."""
_MARGIN = 10
"""Seconds beyond the grace of its processes that a container has to end."""
_TMP = "/tmp"  # noqa: S108 - of the container
_ENDED = f"{_TMP}/pipeline-ended.json"
_AGAIN_SECONDS = 0.2
_SINCE_EVER = datetime.fromtimestamp(0, UTC)


class LocalDockerOpts(DockerOpts, total=False):
    """TorchX's own run options, and two more."""

    user: str
    read_only: bool


class LocalDocker(DockerScheduler):
    """The scheduler `local_docker`.

    A container runs as the submitter, so that what is written into a mount is the submitter's own, without privileges,
    on a read-only root with a disk of its own at /tmp. One that ends with a status other than 0 and 2 is started again
    as often as its role's `max_retries` says.
    """

    @property
    def _docker_client(self) -> "DockerClient":
        try:
            return super()._docker_client
        except DockerException as error:
            raise UserError(
                f"no Docker engine answers ({_reason(error)}): start one, or name it by DOCKER_HOST"
            ) from error

    def build_workspace_and_update_role(self, role: Role, workspace: str, cfg: Mapping[str, Any]) -> None:
        """Patch the image of a role with a folder. TorchX would ask a registry for an image that is there."""
        client = self._docker_client
        images = _Images(client)
        patcher = DockerWorkspaceMixin(
            docker_client=cast("DockerClient", SimpleNamespace(images=images, api=client.api))
        )
        patcher.build_workspace_and_update_role(role, workspace, cfg)

    def _run_opts(self) -> runopts:
        opts = super()._run_opts()
        opts.add("user", type_=str, default="", help="user of the container, as 1000:1000. Default: the submitter")
        opts.add("read_only", type_=bool, default=True, help="whether nothing can be written but /tmp and mounts")
        return opts

    def _submit_dryrun(self, app: AppDef, cfg: DockerOpts) -> AppDryRunInfo[DockerJob]:
        """What would be run. Secrets are in it by name only."""
        # TorchX would print the values of what it copies: it is handled as a secret.
        chosen = cast("LocalDockerOpts", cfg)
        copied = [name for glob in cfg.get("copy_env") or () for name in fnmatch.filter(os.environ, glob)]
        info: AppDryRunInfo[DockerJob] = super()._submit_dryrun(app, {**cfg, "copy_env": None})
        roles = [role for role in app.roles for _ in range(role.num_replicas)]
        for container, role in zip(info.request.containers, roles, strict=True):
            needs, options = Needs.of(role), cast("dict[str, Any]", container.kwargs)
            names = [name for name in (*needs.secrets, *copied) if name not in options["environment"]]
            if absent := missing(names):
                raise UserError(*absent)
            _remember(container, options)
            if needs.shm:
                options["shm_size"] = f"{needs.shm}m"
            options["secrets"] = sorted(set(names))
            options["user"] = chosen.get("user") or f"{os.getuid()}:{os.getgid()}"
            options["stop_timeout"] = needs.grace + _MARGIN
            options["labels"][_STOP] = str(needs.grace + _MARGIN)
            if not chosen.get("privileged"):
                options.update(cap_drop=["ALL"], security_opt=["no-new-privileges"])
            if chosen.get("read_only", True):
                options["read_only"] = True
                # On the host's disk, not in its memory, and still there when the container is started again.
                if all(mount["Target"] != _TMP for mount in options["mounts"]):
                    options["mounts"].append(Mount(target=_TMP, source=None, type="volume"))
        return info

    def schedule(self, dryrun_info: AppDryRunInfo[DockerJob]) -> str:
        """Create all containers, then start them; where one cannot be, none is left behind."""
        client, request = self._docker_client, dryrun_info.request
        for image in sorted({container.image for container in request.containers}):
            _ensure_image(client, image)
        docker_scheduler.ensure_network(client)
        created: list[Container] = []
        try:
            # Until they run they have no GPU that another run could see to be taken.
            with filelock.FileLock(os.path.join(tempfile.gettempdir(), f"pipeline-gpus-{os.getuid()}.lock")):
                free = _free_gpus(client, request.containers)
                for container in request.containers:
                    created.append(_create(client, container, free))
                for one in created:
                    one.start()
        except BaseException as error:
            for one in created:
                with suppress(DockerException):
                    one.remove(force=True, v=True)
            if isinstance(error, APIError) and error.is_client_error():
                raise UserError(f"Docker refuses these containers: {_reason(error)}") from error
            raise
        return request.app_id

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """How an app is; None for one that is not known."""
        containers = self._get_containers(app_id)
        if not containers:
            return None
        roles: dict[str, Role] = {}
        replicas: dict[str, list[ReplicaStatus]] = {}
        for container in sorted(containers, key=_place):
            name, replica = _place(container)
            role = roles.setdefault(name, Role(name=name, image=container.attrs["Config"]["Image"], num_replicas=0))
            role.num_replicas += 1
            replicas.setdefault(name, []).append(
                ReplicaStatus(id=replica, role=name, state=_state(container), hostname=container.name)
            )
        states = [replica.state for all_of_role in replicas.values() for replica in all_of_role]
        response = DescribeAppResponse(
            app_id=app_id,
            roles=list(roles.values()),
            roles_statuses=[RoleStatus(name, all_of_role) for name, all_of_role in replicas.items()],
            num_restarts=max(container.attrs["RestartCount"] for container in containers),
            state=AppState.SUCCEEDED,
        )
        if running := [state for state in states if not is_terminal(state)]:
            response.state = running[0]
        elif any(state != AppState.SUCCEEDED for state in states):
            response.state = AppState.FAILED
            first = min((one for one in containers if _state(one) != AppState.SUCCEEDED), key=_finished)
            response.msg = _why(first)
            # The form that TorchX's local schedulers give, and that says the status to whoever asks for it.
            response.structured_error_msg = json.dumps(content(first.attrs["State"]["ExitCode"], response.msg))
        return response

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
        """The lines of one replica, whole; when followed, also those after the container was started again."""
        container = self._get_container(app_id, role_name, k)
        wanted = {"stdout": streams != Stream.STDERR, "stderr": streams != Stream.STDOUT, "until": until}
        lines = _lines(container, since or _SINCE_EVER, should_tail, wanted)
        return (line for line in lines if re.search(regex, line)) if regex else lines

    def _cancel_existing(self, app_id: str) -> None:
        """Stop all nodes at once, each with the time that its processes need to save."""
        containers = self._get_containers(app_id)
        with ThreadPoolExecutor(max_workers=max(1, len(containers))) as pool:
            for _ in pool.map(lambda one: one.stop(timeout=int(one.labels.get(_STOP, _MARGIN))), containers):
                pass


class _Images:
    """An engine's images, of which only those that are not there are pulled.

    Args:
        client: Of the engine.
    """

    def __init__(self, client: "DockerClient") -> None:
        self._client = client

    def pull(self, image: str) -> None:
        """Have an image there."""
        _ensure_image(self._client, image)

    def list(self, **wanted: Any) -> Any:
        """See docker.models.images."""
        return self._client.images.list(**wanted)


def create_scheduler(session_name: str, **_: Any) -> LocalDocker:
    """What TorchX calls."""
    return LocalDocker(session_name)


def assigned(free: Sequence[str], count: int) -> tuple[list[str], list[str]]:
    """Take devices from those that are free.

    Returns:
        The devices of one container, and those that are left.

    Raises:
        UserError: Fewer are free.
    """
    if count > len(free):
        raise UserError(
            f"gpu={count}: of this host's GPUs {len(free)} are free for one more container, and no two share one; "
            "ask for fewer GPUs or nodes, or wait for the containers that have them"
        )
    return list(free[:count]), list(free[count:])


def _remember(container: DockerContainer, options: dict[str, Any]) -> None:
    """Have a container know, when it is started again, that it has ended because the user must change something.

    Docker's policies know a status of 0 and all else. What runs in there writes down how it ends
    (`pipeline.process.error_file`), in a place that outlives the start: so the next one ends with 2 at
    once, whoever has started it.
    """
    entrypoint, *arguments = container.command
    if (entrypoint, arguments[:1]) != ("sh", ["-c"]) or failures.FILE in options["environment"]:
        return
    options["environment"][failures.FILE] = _ENDED
    known = f"""grep -q '"errorCode": {USER_MUST_CHANGE}[,}}]' {_ENDED} 2>/dev/null"""
    container.command = [entrypoint, "-c", f"{known} && exit {USER_MUST_CHANGE}; rm -f {_ENDED}; {arguments[1]}"]


def _free_gpus(client: "DockerClient", wanted: Sequence[DockerContainer]) -> list[str]:
    """The ids of the devices that no running container of this scheduler has; asks only where some are wanted."""
    asking = [container for container in wanted if container.kwargs.get("device_requests")]
    if not asking:
        return []
    every = DeviceRequest(count=-1, capabilities=[["compute", "utility"]])
    look = client.containers.create(
        asking[0].image, ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"], device_requests=[every]
    )
    try:
        look.start()
        status = look.wait()["StatusCode"]
        listed = look.logs(stderr=status != DONE).decode()
        if status != DONE:
            raise DockerException(f"nvidia-smi ended with status {status}: {listed.strip()}")
    except DockerException as error:
        raise UserError(
            f"gpu: this Docker engine gives none to containers ({_reason(error)}); ask for gpu=0, or install the "
            "NVIDIA container toolkit on its host"
        ) from error
    finally:
        look.remove(force=True, v=True)
    taken = {
        device
        for container in client.containers.list(filters={"label": _GPUS})
        for device in container.labels[_GPUS].split(",")
    }
    return [device for device in listed.split() if device not in taken]


def _create(client: "DockerClient", container: DockerContainer, free: list[str]) -> "Container":
    """Create one container; its GPUs are taken out of the free ones, its secrets out of this process's environment."""
    options: dict[str, Any] = dict(container.kwargs)
    for request in options.get("device_requests") or ():
        devices, free[:] = assigned(free, request.count)
        options["device_requests"] = [DeviceRequest(device_ids=devices, capabilities=request.capabilities)]
        options["labels"] = {**options["labels"], _GPUS: ",".join(devices)}
    secrets = {name: os.environ[name] for name in options.pop("secrets", ())}
    options["environment"] = {**options["environment"], **secrets}
    own = {name: options.pop(name) for name in _OUR_OWN}
    # The low-level call is the only one that takes the time to stop.
    host = client.api.create_host_config(network_mode=options.pop("network"), **options)
    created = client.api.create_container(container.image, container.command, host_config=host, **own)
    made: Container = client.containers.get(created["Id"])
    return made


def _ensure_image(client: "DockerClient", image: str) -> None:
    try:
        client.images.get(image)
    except ImageNotFound:
        try:
            client.images.pull(image)
        except DockerException as error:
            raise UserError(
                f"image={image!r} is not on this Docker engine, and cannot be pulled ({_reason(error)}); "
                "`make image` builds it"
            ) from error


def _lines(container: "Container", since: datetime, follow: bool, wanted: Mapping[str, Any]) -> Iterator[str]:
    """Whole lines of a log with their ends, each once, until the container has ended for good."""
    last = b""
    while True:
        rest = b""
        for piece in container.logs(stream=True, follow=follow, timestamps=True, since=since, **wanted):
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                stamp, _, text = line.partition(b" ")
                # Docker asks by the second, and gives all of that second again.
                if stamp > last:
                    last = stamp
                    yield text.decode(errors="replace").rstrip("\r") + "\n"
        if rest:
            yield rest.partition(b" ")[2].decode(errors="replace") + "\n"
        container.reload()
        if not follow or is_terminal(_state(container)):
            return
        # It is about to be started again, later each time.
        time.sleep(_AGAIN_SECONDS)
        since = datetime.fromisoformat(last[:19].decode() + "+00:00") if last else since


def _place(container: "Container") -> tuple[str, int]:
    labels = container.labels
    return labels[docker_scheduler.LABEL_ROLE_NAME], int(labels[docker_scheduler.LABEL_REPLICA_ID])


def _state(container: "Container") -> AppState:
    if container.status == "exited":
        return AppState.SUCCEEDED if container.attrs["State"]["ExitCode"] == DONE else AppState.FAILED
    return docker_scheduler.CONTAINER_STATE[container.status]


def _finished(container: "Container") -> str:
    return str(container.attrs["State"]["FinishedAt"])


def _why(container: "Container") -> str:
    """How a container has ended, in words."""
    name, replica = _place(container)
    state, limit = container.attrs["State"], container.attrs["HostConfig"]["Memory"]
    if state["OOMKilled"]:
        return f"{name} {replica} was killed for memory: its limit is {limit >> 20} MB; give it more by --memory"
    error = f" ({state['Error']})" if state["Error"] else ""
    return f"{name} {replica} ended with status {state['ExitCode']}{error}"


def _reason(error: DockerException) -> str:
    return str(getattr(error, "explanation", None) or error).strip().rpartition("\n")[2]
