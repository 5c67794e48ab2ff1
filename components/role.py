"""One node's role: the container that every stage runs in, the same for every launcher."""

import re
import shlex
from collections.abc import Sequence

from torchx import specs

IMAGE = "torchx-lightning-pipeline:latest"

_NAME = re.compile(r"[a-z][a-z0-9]{0,31}")


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
    )


def problems_of(run_dir: str, cpu: int, memory: int, gpu: int, mounts: Sequence[str] | None) -> list[str]:
    """What cannot work in the parameters that every component has."""
    found = []
    if not run_dir.strip():
        found.append("run_dir is empty: give a local path or an fsspec URL such as s3://bucket/run")
    elif run_dir.startswith("memory:"):
        found.append(
            f"run_dir={run_dir!r} lives within one process and is gone with it: use a folder or a URL such as "
            "s3://bucket/run"
        )
    for name, value, least in (("cpu", cpu, 1), ("memory", memory, 1), ("gpu", gpu, 0)):
        if value < least:
            found.append(f"{name}={value}: allowed are {least} and more")
    try:
        specs.parse_mounts(list(mounts or ()))
    except (KeyError, ValueError, AttributeError) as error:
        found.append(f"mounts={list(mounts or ())!r}: {error}; write type=bind,src=/on/the/host,dst=/in/the/container")
    return found


def quoted(arguments: Sequence[str]) -> str:
    """Arguments as part of a shell command line that TorchX's macro substitution leaves alone."""
    return " ".join(shlex.quote(argument) for argument in arguments).replace("$", "$$")
