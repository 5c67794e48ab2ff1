"""One node's role: the container that every stage runs in, the same for every launcher."""

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torchx import specs

from pipeline.run.run_dir import run_dir_problem

IMAGE = "torchx-lightning-pipeline:latest"

_NAME = re.compile(r"[a-z][a-z0-9]{0,31}")
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_METADATA = "pipeline"


@dataclass(frozen=True)
class Needs:
    """What a role needs of its launcher that TorchX has no field for; it travels in the role's metadata.

    Attributes:
        secrets: Names of variables whose values the launcher gives to the processes, and never shows.
        shm: MB of /dev/shm; 0 leaves it to the launcher.
        grace: Seconds that the processes have after SIGTERM.
        after: The role that must be complete before this one starts, where the launcher can.
        api: Whether its processes talk to the launcher's own API.
    """

    secrets: tuple[str, ...] = ()
    shm: int = 0
    grace: int = 10
    after: str = ""
    api: bool = False

    @classmethod
    def of(cls, role: specs.Role) -> "Needs":
        """What a role needs; the defaults for one of another component."""
        found: dict[str, Any] = role.metadata.get(_METADATA, {})
        return cls(**{**found, "secrets": tuple(found.get("secrets", ()))})

    def metadata(self) -> dict[str, Any]:
        """The metadata of a role that has these needs."""
        return {_METADATA: {**asdict(self), "secrets": list(self.secrets)}}


def role(
    name: str,
    command: str,
    *,
    image: str,
    cpu: int,
    memory: int,
    gpu: int,
    threads: int,
    env: dict[str, str] | None,
    mounts: Sequence[str] | None,
    needs: Needs,
    retries: int,
    nodes: int = 1,
    min_nodes: int | None = None,
    port_map: dict[str, int] | None = None,
) -> specs.Role:
    """A role whose nodes each `exec` one command, so that signals reach the program and not a shell.

    Args:
        name: Letters and digits only: a hyphen would break TorchX's macro for the address of rank 0.
        command: A POSIX shell command line.
        image: The container image.
        cpu: Cores per node.
        memory: MB per node.
        gpu: Devices per node.
        threads: Of each process for CPU work, unless `env` says otherwise.
        env: Environment of the processes.
        mounts: In TorchX's form, `type=bind`, `src=...`, `dst=...` as separate items.
        needs: What TorchX has no field for.
        retries: How often the launcher starts a node again that has ended with neither 0 nor 2.
        nodes: How many of them.
        min_nodes: How many suffice to start.
        port_map: Named ports.
    """
    assert _NAME.fullmatch(name), name
    return specs.Role(
        name=name,
        image=image,
        min_replicas=min_nodes,
        num_replicas=nodes,
        entrypoint="sh",
        args=["-c", f"exec {command}"],
        # Each process would otherwise start a thread for every core of its node.
        env={"OMP_NUM_THREADS": str(threads), **(env or {})},
        resource=specs.Resource(cpu=cpu, memMB=memory, gpu=gpu),
        port_map=port_map or {},
        mounts=specs.parse_mounts(list(mounts)) if mounts else [],
        max_retries=retries,
        metadata=needs.metadata(),
    )


def missing(names: Iterable[str]) -> list[str]:
    """What to say of the secrets that the submitter's environment does not have."""
    absent = (name for name in sorted(set(names)) if name not in os.environ)
    return [f"secrets={name}: this variable is not set here; export it, or leave it out" for name in absent]


def problems_of(
    run_dir: str,
    cpu: int,
    memory: int,
    gpu: int,
    mounts: Sequence[str] | None,
    env: Mapping[str, str] | None,
    secrets: Sequence[str] | None,
    shm: int,
    retries: int,
) -> list[str]:
    """What cannot work in the parameters that every component has."""
    found = []
    if problem := run_dir_problem(run_dir):
        found.append(problem)
    least_of = {"cpu": (cpu, 1), "memory": (memory, 1), "gpu": (gpu, 0), "shm": (shm, 0), "retries": (retries, 0)}
    for name, (value, least) in least_of.items():
        if value < least:
            found.append(f"{name}={value}: allowed are {least} and more")
    for variable in secrets or ():
        if not _VARIABLE.fullmatch(variable):
            found.append(
                f"secrets={variable.partition('=')[0]!r}: expected names of variables, such as "
                "AWS_ACCESS_KEY_ID,AWS_SECRET_ACCESS_KEY; their values are taken from the environment"
            )
        elif variable in (env or {}):
            found.append(f"secrets={variable} is in env, too, whose values are shown: leave it out of one of them")
    try:
        specs.parse_mounts(list(mounts or ()))
    except (KeyError, ValueError, AttributeError) as error:
        found.append(f"mounts={list(mounts or ())!r}: {error}; write type=bind,src=/on/the/host,dst=/in/the/container")
    return found


def quoted(arguments: Sequence[str]) -> str:
    """Arguments as part of a shell command line that TorchX's macro substitution leaves alone."""
    return " ".join(shlex.quote(argument) for argument in arguments).replace("$", "$$")
