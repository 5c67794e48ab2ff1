"""TorchX's scheduler for Docker, with what a training in containers needs besides.

TorchX's own (0.7) gives two replicas on one host the same GPUs, prints the values of the variables that it copies,
reports no exit status, stops one container after the other, and pulls images that are present. It still decides what a
container is made of, its name and its private network, and patches images with a folder.
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
from datetime import datetime
from itertools import groupby
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import filelock
from docker.errors import APIError, DockerException, ImageNotFound
from docker.types import DeviceRequest, Mount
from torchx.schedulers.api import AppDryRunInfo, DescribeAppResponse, Stream
from torchx.specs import AppDef, AppState, ReplicaStatus, Role, RoleStatus, is_terminal, runopts
from torchx.workspace.docker_workspace import DockerWorkspaceMixin

from components.compat import docker_scheduler
from components.log_lines import LogCursor
from components.role import LaunchRequirements, missing_secrets
from pipeline.errors import DONE, USER_MUST_CHANGE, UserError
from pipeline.process import error_file
from pipeline.run.provenance import IMAGE

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_GPUS = "pipeline/gpus"
_STOP = "pipeline/stop-seconds"
_CONTAINER_CONFIG = ("name", "hostname", "environment", "labels", "user", "stop_timeout")
"""Options of a container itself; Docker's API takes all others as its host configuration."""
_MARGIN = 10
"""Seconds between the end of the processes' grace and SIGKILL to the container."""
_TMP = "/tmp"  # noqa: S108 - of the container
_ERROR_FILE = f"{_TMP}/pipeline-ended.json"
_POLL_SECONDS = 0.2


class LocalDocker(docker_scheduler.DockerScheduler):
    """The scheduler `local_docker`.

    A container runs as the submitter, who so owns what is written into a mount, without privileges, on a read-only root
    with a volume of its own at /tmp. One that ends with a status other than 0 and 2 is restarted up to its role's
    `max_retries` times.
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
        """Patch the image of a role with a folder, without wanting a registry for an image that is present."""
        client = self._docker_client
        local = cast("DockerClient", SimpleNamespace(images=_LocalImages(client), api=client.api))
        DockerWorkspaceMixin(docker_client=local).build_workspace_and_update_role(role, workspace, cfg)

    def _run_opts(self) -> runopts:
        opts = super()._run_opts()
        opts.add("user", type_=str, default="", help="user of the container, as 1000:1000. Default: the submitter")
        opts.add("read_only", type_=bool, default=True, help="whether only /tmp and mounts are writable")
        return opts

    def _submit_dryrun(self, app: AppDef, cfg: Mapping[str, Any]) -> AppDryRunInfo[docker_scheduler.DockerJob]:
        """Return what would be run. Secrets are in it by name only."""
        # TorchX would print the values of copied variables, so they are handled as secrets.
        copied = [name for glob in cfg.get("copy_env") or () for name in fnmatch.filter(os.environ, glob)]
        own: Any = {**cfg, "copy_env": None}
        info: AppDryRunInfo[docker_scheduler.DockerJob] = super()._submit_dryrun(app, own)
        roles = [role for role in app.roles for _ in range(role.num_replicas)]
        for container, role in zip(info.request.containers, roles, strict=True):
            required, options = LaunchRequirements.of(role), cast("dict[str, Any]", container.kwargs)
            names = [name for name in (*required.secrets, *copied) if name not in options["environment"]]
            if absent := missing_secrets(names):
                raise UserError(*absent)
            _exit_again_after_user_error(container, options)
            if required.shm:
                options["shm_size"] = f"{required.shm}m"
            options["secrets"] = sorted(set(names))
            options["user"] = cfg.get("user") or f"{os.getuid()}:{os.getgid()}"
            options["stop_timeout"] = required.grace + _MARGIN
            options["labels"][_STOP] = str(required.grace + _MARGIN)
            if not cfg.get("privileged"):
                options.update(cap_drop=["ALL"], security_opt=["no-new-privileges"])
            if cfg.get("read_only", True):
                options["read_only"] = True
                # A volume is on the host's disk, not in its memory, and survives a restart of the container.
                if all(mount["Target"] != _TMP for mount in options["mounts"]):
                    options["mounts"].append(Mount(target=_TMP, source=None, type="volume"))
        return info

    def schedule(self, dryrun_info: AppDryRunInfo[docker_scheduler.DockerJob]) -> str:
        """Create all containers, then start them; on an error, remove all of them."""
        client, request = self._docker_client, dryrun_info.request
        for image in sorted({container.image for container in request.containers}):
            _ensure_image(client, image)
        docker_scheduler.ensure_network(client)
        created: list[Container] = []
        try:
            # Another run sees which GPUs are taken only once these containers run.
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
                raise UserError(f"Docker rejects these containers: {_reason(error)}") from error
            raise
        return request.app_id

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """Return the state of an app; None for an unknown one."""
        containers = sorted(self._get_containers(app_id), key=_place)
        if not containers:
            return None
        response = DescribeAppResponse(
            app_id=app_id,
            num_restarts=max(container.attrs["RestartCount"] for container in containers),
            state=AppState.SUCCEEDED,
        )
        for name, members in groupby(containers, key=lambda one: _place(one)[0]):
            nodes = list(members)
            response.roles.append(Role(name, image=nodes[0].attrs["Config"]["Image"], num_replicas=len(nodes)))
            replicas = [ReplicaStatus(_place(one)[1], _state(one), name, hostname=one.name) for one in nodes]
            response.roles_statuses.append(RoleStatus(name, replicas))
        states = [_state(container) for container in containers]
        if running := [state for state in states if not is_terminal(state)]:
            response.state = running[0]
        elif any(state != AppState.SUCCEEDED for state in states):
            response.state = AppState.FAILED
            first = min((one for one in containers if _state(one) != AppState.SUCCEEDED), key=_cause_first)
            response.msg = _why(first)
            # In the form of TorchX's local schedulers, from which `components.launch` reads the status.
            response.structured_error_msg = json.dumps(
                error_file.content(first.attrs["State"]["ExitCode"], response.msg)
            )
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
        """Return the lines of one replica; if followed, also those after restarts of its container."""
        container = self._get_container(app_id, role_name, k)
        wanted = {"stdout": streams != Stream.STDERR, "stderr": streams != Stream.STDOUT, "until": until}
        lines = _lines(container, LogCursor(since), should_tail, wanted)
        return (line for line in lines if re.search(regex, line)) if regex else lines

    def _cancel_existing(self, app_id: str) -> None:
        """Stop all nodes at once, each with the grace that its processes need to save."""
        containers = self._get_containers(app_id)
        with ThreadPoolExecutor(max_workers=max(1, len(containers))) as pool:
            for _ in pool.map(lambda one: one.stop(timeout=int(one.labels.get(_STOP, _MARGIN))), containers):
                pass


class _LocalImages:
    """Images of an engine, of which only those that are absent are pulled."""

    def __init__(self, client: "DockerClient") -> None:
        self.list = client.images.list
        self.pull = lambda image: _ensure_image(client, image)


def create_scheduler(session_name: str, **_: Any) -> LocalDocker:
    """Create the scheduler, as TorchX's entry points do."""
    return LocalDocker(session_name)


def assigned(free: Sequence[str], count: int) -> tuple[list[str], list[str]]:
    """Return the devices of one container, and the free ones that are left.

    Raises:
        UserError: Too few are free.
    """
    if count > len(free):
        raise UserError(
            f"gpu={count}: of this host's GPUs {len(free)} are free for one more container, and no two share one; "
            "ask for fewer GPUs or nodes, or wait for the containers that have them"
        )
    return list(free[:count]), list(free[count:])


def _exit_again_after_user_error(container: docker_scheduler.DockerContainer, options: dict[str, Any]) -> None:
    """Make a container that ended with status 2 end with 2 at once when it is restarted.

    Docker's restart policies distinguish only 0 from all other statuses. The process in the container records how it
    ends (`pipeline.process.error_file`) in a place that survives the restart.
    """
    entrypoint, *arguments = container.command
    if (entrypoint, arguments[:1]) != ("sh", ["-c"]) or error_file.FILE in options["environment"]:
        return
    options["environment"][error_file.FILE] = _ERROR_FILE
    known = f"""grep -q '"errorCode": {USER_MUST_CHANGE}[,}}]' {_ERROR_FILE} 2>/dev/null"""
    container.command = [entrypoint, "-c", f"{known} && exit {USER_MUST_CHANGE}; rm -f {_ERROR_FILE}; {arguments[1]}"]


def _free_gpus(client: "DockerClient", wanted: Sequence[docker_scheduler.DockerContainer]) -> list[str]:
    """Return the ids of the GPUs that no running container of this scheduler has; none if none are wanted."""
    wanting = [container for container in wanted if container.kwargs.get("device_requests")]
    if not wanting:
        return []
    all_gpus = DeviceRequest(count=-1, capabilities=[["compute", "utility"]])
    probe = client.containers.create(
        wanting[0].image, ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"], device_requests=[all_gpus]
    )
    try:
        probe.start()
        status = probe.wait()["StatusCode"]
        listed = probe.logs(stderr=status != DONE).decode()
        if status != DONE:
            raise DockerException(f"nvidia-smi ended with status {status}: {listed.strip()}")
    except DockerException as error:
        raise UserError(
            f"gpu: this Docker engine gives none to containers ({_reason(error)}); ask for gpu=0, or install the "
            "NVIDIA container toolkit on its host"
        ) from error
    finally:
        probe.remove(force=True, v=True)
    taken = {
        device
        for container in client.containers.list(filters={"label": _GPUS})
        for device in container.labels[_GPUS].split(",")
    }
    return [device for device in listed.split() if device not in taken]


def _create(client: "DockerClient", container: docker_scheduler.DockerContainer, free: list[str]) -> "Container":
    """Create one container; remove its GPUs from the free ones, and read its secrets from the environment."""
    options: dict[str, Any] = dict(container.kwargs)
    for request in options.get("device_requests") or ():
        devices, free[:] = assigned(free, request.count)
        options["device_requests"] = [DeviceRequest(device_ids=devices, capabilities=request.capabilities)]
        options["labels"] = {**options["labels"], _GPUS: ",".join(devices)}
    secrets = {name: os.environ[name] for name in options.pop("secrets", ())}
    options["environment"] = {IMAGE: container.image, **options["environment"], **secrets}
    own = {name: options.pop(name) for name in _CONTAINER_CONFIG}
    # Only the low-level call accepts `stop_timeout`.
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


def _lines(container: "Container", cursor: LogCursor, follow: bool, wanted: Mapping[str, Any]) -> Iterator[str]:
    """Yield whole lines of a log with their line ends, each once, until the container has ended for good."""
    while True:
        pieces = container.logs(stream=True, follow=follow, timestamps=True, since=cursor.since, **wanted)
        yield from (f"{line.text}\n" for line in cursor.unread(pieces))
        container.reload()
        if not follow or is_terminal(_state(container)):
            return
        # Docker restarts it after a delay.
        time.sleep(_POLL_SECONDS)


def _place(container: "Container") -> tuple[str, int]:
    labels = container.labels
    return labels[docker_scheduler.LABEL_ROLE_NAME], int(labels[docker_scheduler.LABEL_REPLICA_ID])


def _state(container: "Container") -> AppState:
    if container.status == "exited":
        return AppState.SUCCEEDED if container.attrs["State"]["ExitCode"] == DONE else AppState.FAILED
    return docker_scheduler.CONTAINER_STATE[container.status]


def _cause_first(container: "Container") -> tuple[bool, str]:
    """Sort by what tells why all have ended: a container out of memory, else the first to end."""
    state = container.attrs["State"]
    return not state["OOMKilled"], str(state["FinishedAt"])


def _why(container: "Container") -> str:
    """Return a sentence on how a container has ended."""
    name, replica = _place(container)
    state, limit = container.attrs["State"], container.attrs["HostConfig"]["Memory"]
    if state["OOMKilled"]:
        return f"{name} {replica} was killed for memory: its limit is {limit >> 20} MB; give it more by --memory"
    error = f" ({state['Error']})" if state["Error"] else ""
    return f"{name} {replica} ended with status {state['ExitCode']}{error}"


def _reason(error: DockerException) -> str:
    return str(getattr(error, "explanation", None) or error).strip().rpartition("\n")[2]
