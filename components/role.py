"""One node's role: the container that every stage runs in, the same for every launcher."""

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from torchx import specs

from pipeline.run.run_dir import run_dir_problem

IMAGE = "torchx-lightning-pipeline:latest"
METRICS = "metrics"
"""The name of the port at which Prometheus finds figures, in the port map of a role."""

_NAME = re.compile(r"[a-z][a-z0-9]{0,31}")
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_METADATA = "pipeline"


@dataclass(frozen=True)
class LaunchRequirements:
    """What a role requires of its launcher that TorchX has no field for; it travels in the role's metadata.

    Attributes:
        secrets: Names of variables whose values the launcher passes to the processes and never prints.
        shm: MB of /dev/shm; 0 leaves it to the launcher.
        grace: Seconds between SIGTERM and SIGKILL.
        after: The role that must complete before this one starts, where the launcher supports it.
        api: Whether its processes talk to the launcher's own API.
    """

    secrets: tuple[str, ...] = ()
    shm: int = 0
    grace: int = 10
    after: str = ""
    api: bool = False

    @classmethod
    def of(cls, role: specs.Role) -> "LaunchRequirements":
        """Return what a role requires; the defaults for a role of another component."""
        found: dict[str, Any] = role.metadata.get(_METADATA, {})
        return cls(**{**found, "secrets": tuple(found.get("secrets", ()))})

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of a role with these requirements."""
        return {_METADATA: {**asdict(self), "secrets": list(self.secrets)}}


@dataclass(frozen=True)
class NodeSpec:
    """What every component asks for, per node.

    Attributes:
        image: The container image.
        cpu: Cores.
        memory: MB.
        gpu: Devices.
        env: Environment of the processes.
        mounts: In TorchX's form: `type=bind`, `src=...`, `dst=...` as separate items.
        secrets: Names of variables that the launcher takes from its own environment.
        shm: MB of /dev/shm; 0 leaves it to the launcher.
        retries: How often the launcher restarts a node that ended with neither 0 nor 2.
    """

    image: str
    cpu: int
    memory: int
    gpu: int
    env: dict[str, str] | None
    mounts: Sequence[str] | None
    secrets: Sequence[str] | None
    shm: int
    retries: int

    def problems(self, run_dir: str) -> list[str]:
        """Return what cannot work, one sentence per mistake."""
        found = []
        if problem := run_dir_problem(run_dir):
            found.append(problem)
        for name, least in {"cpu": 1, "memory": 1, "gpu": 0, "shm": 0, "retries": 0}.items():
            if getattr(self, name) < least:
                found.append(f"{name}={getattr(self, name)} must be >= {least}")
        for variable in self.secrets or ():
            if not _VARIABLE.fullmatch(variable):
                found.append(
                    f"secrets={variable.partition('=')[0]!r}: expected names of variables, such as "
                    "AWS_ACCESS_KEY_ID,AWS_SECRET_ACCESS_KEY; their values are taken from the environment"
                )
            elif variable in (self.env or {}):
                found.append(f"secrets={variable} is also in env, whose values are printed: remove it from one of them")
        mounts = list(self.mounts or ())
        try:
            specs.parse_mounts(mounts)
        except (KeyError, ValueError, AttributeError) as error:
            found.append(f"mounts={mounts!r}: {error}; write type=bind,src=/on/the/host,dst=/in/the/container")
        return found

    def role(self, name: str, command: str, threads: int, *, grace: int = 10, api: bool = False) -> specs.Role:
        """Return a role whose node runs one command by `exec`, so that signals reach the program and not a shell.

        Args:
            name: Letters and digits only: a hyphen breaks TorchX's macro for the address of rank 0.
            command: A POSIX shell command line.
            threads: CPU threads per process, unless `env` sets OMP_NUM_THREADS.
            grace: Seconds between SIGTERM and SIGKILL.
            api: Whether the command talks to the launcher's own API.
        """
        assert _NAME.fullmatch(name), name
        return specs.Role(
            name=name,
            image=self.image,
            entrypoint="sh",
            args=["-c", f"exec {command}"],
            # By default each process starts a thread for every core of its node.
            env={"OMP_NUM_THREADS": str(threads), **_own_modules(), **(self.env or {})},
            resource=specs.Resource(cpu=self.cpu, memMB=self.memory, gpu=self.gpu),
            mounts=specs.parse_mounts(list(self.mounts or ())),
            max_retries=self.retries,
            metadata=LaunchRequirements(tuple(self.secrets or ()), self.shm, grace, api=api).metadata(),
        )


def _own_modules() -> dict[str, str]:
    """Return what lets `python -m pipeline` be this program where the current folder has another module of that name.

    The stages of some launchers run in this folder, or in a copy of it; see `pipeline.process.search_path`.
    """
    found = PathFinder.find_spec("pipeline", [os.getcwd()])
    if found is None or found.origin is None or (Path(found.origin).parent / "agent" / "__main__.py").exists():
        return {}  # none, or a checkout of this program
    return {"PYTHONSAFEPATH": "1"}


def missing_secrets(names: Iterable[str]) -> list[str]:
    """Return a sentence for each secret that is not set in the submitter's environment."""
    absent = (name for name in sorted(set(names)) if name not in os.environ)
    return [f"secrets={name}: this variable is not set here; export it, or leave it out" for name in absent]


def quoted(arguments: Sequence[str]) -> str:
    """Quote arguments for a shell command line so that TorchX's macro substitution leaves them alone."""
    return shlex.join(arguments).replace("$", "$$")
