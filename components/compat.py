"""Every undocumented name of TorchX that components/ and k8s/ use, checked at import: look here first on an upgrade.

`torchx.util.types`, `torchx.specs.file_linter`: how TorchX turns a component's signature and docstring into a command
line; `components.launch` offers the same flags.
`torchx.runner.config`: reads the scheduler's section of `.torchxconfig`, which most of TorchX's commands do not.
`Runner._scheduler_app_id`: the scheduler behind a handle, for what it can do that TorchX has no command for.
`torchx.schedulers.docker_scheduler`: what a container is made of, its labels and network, which `local_docker` extends.
"""

from operator import attrgetter
from types import ModuleType
from typing import Any

from torchx import __version__
from torchx.runner import Runner
from torchx.runner import api as runner_api
from torchx.runner import config as torchx_config
from torchx.schedulers import Scheduler, docker_scheduler
from torchx.specs import file_linter
from torchx.util import types

__all__ = ["docker_scheduler", "file_linter", "scheduler_of", "torchx_config", "types"]

_DOCKER_METHODS = (
    *("_cancel_existing", "_docker_client", "_get_container", "_get_containers", "_run_opts", "_submit_dryrun"),
)
_REQUIRED: dict[ModuleType, tuple[str, ...]] = {
    types: ("decode_from_string", "decode_optional", "is_primitive", "to_dict"),
    file_linter: ("get_fn_docstring",),
    torchx_config: ("apply",),
    runner_api: ("Runner._scheduler_app_id",),
    docker_scheduler: (
        *("CONTAINER_STATE", "LABEL_REPLICA_ID", "LABEL_ROLE_NAME", "ensure_network"),
        *("DockerContainer", "DockerJob", *(f"DockerScheduler.{name}" for name in _DOCKER_METHODS)),
    ),
}


def missing(required: dict[ModuleType, tuple[str, ...]]) -> list[str]:
    """Return the names that this version of TorchX does not have."""
    found = []
    for module, names in required.items():
        for name in names:
            try:
                attrgetter(name)(module)
            except AttributeError:
                found.append(f"{module.__name__}.{name}")
    return found


_missing = missing(_REQUIRED)
assert not _missing, f"TorchX {__version__} has no {', '.join(_missing)}: install torchx==0.7.0, which has"


def scheduler_of(runner: Runner, handle: str) -> tuple[Scheduler[Any], str]:
    """Return the scheduler that runs what a handle names, and its own name for that."""
    scheduler, _, app_id = runner._scheduler_app_id(handle, check_session=False)
    return scheduler, app_id
