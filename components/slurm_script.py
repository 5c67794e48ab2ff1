"""A job of Slurm as text: its batch script, and what each node runs; slurm_job.sh and slurm_task.sh are the rest.

All of it is in files of one folder that all nodes see. Values of secrets are in none of them.
"""

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchx.specs import BindMount, Role, macros

from components.role import LaunchRequirements
from pipeline.errors import UserError
from pipeline.run.provenance import IMAGE

MARGIN = 20
"""Seconds that the nodes may need beyond their grace, and the batch script after them; as in slurm_job.sh."""
_EARLY = 60
"""Seconds by which Slurm may send a signal too late or too early."""
CONTAINERS = ("none", "pyxis", "apptainer")
_PRIVATE = {"\ue000": "SLURM_JOB_ID", "\ue001": "SLURM_PROCID"}
"""Characters of no text, in whose place the shell of a node puts what is known there."""
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_TIME = re.compile(r"(?:(?P<d>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?")

OPTIONS: dict[str, tuple[type, Any, str]] = {
    "partition": (str, None, "partition; the cluster's default if empty"),
    "account": (str, None, "account that is charged"),
    "qos": (str, None, "quality of service"),
    "constraint": (str, None, "features that the nodes must have"),
    "reservation": (str, None, "reservation to run in"),
    "time": (str, None, "time limit of one allocation, such as 4:00:00 or 2-12; the job continues in another one"),
    "gres": (str, None, "generic resources per node, such as gpu:a100:4, in place of --gpu"),
    "exclusive": (bool, False, "whether no other job shares the nodes"),
    "nodelist": (str, None, "nodes that must be among those of the job"),
    "exclude": (str, None, "nodes that must not be"),
    "dependency": (str, None, "what it waits for, such as afterok:123; a job that waits in vain is removed"),
    "mail_user": (str, None, "who gets mail"),
    "mail_type": (str, None, "about what, such as END,FAIL,REQUEUE"),
    "comment": (str, None, "comment of the job"),
    "sbatch_args": (str, "", "any other options of sbatch, such as '--switches 1 --licenses x'"),
    "container": (str, "none", "none: in this Python environment; pyxis or apptainer: in the image"),
    "log_dir": (str, "", "folder for a folder per job, seen by all nodes; empty: ~/.local/state/pipeline/slurm"),
    "job_dir": (str, None, "new folder, seen by all nodes, that the workspace is copied to and the job runs in"),
    "app_id": (str, "", "name of the job, which must be free; empty: that of the app"),
}
"""The run options: type, default and help. Those of sbatch's own have its names, with underscores."""
_OURS = ("sbatch_args", "container", "log_dir", "job_dir", "app_id")


@dataclass(frozen=True)
class JobScript:
    """A job before it is submitted.

    Attributes:
        name: Of the job.
        folder: Where its files are; all nodes see it.
        role: What its nodes are.
        cfg: The run options.
        memory: Whether memory is asked for: some partitions have none to give.

    Raises:
        UserError: Something cannot work.
    """

    name: str
    folder: Path
    role: Role
    cfg: Mapping[str, Any]
    memory: bool = True

    def __post_init__(self) -> None:
        if problems := [*self._problems(LaunchRequirements.of(self.role))]:
            raise UserError(*problems)

    @property
    def options(self) -> list[str]:
        """The options of sbatch."""
        return shlex.split(" ".join(self._sbatch(LaunchRequirements.of(self.role).grace)))

    def batch(self) -> str:
        """Return the batch script."""
        required, role = LaunchRequirements.of(self.role), self.role
        variables = {
            "FOLDER": str(self.folder),
            "ROLE": role.name,
            "RETRIES": str(role.max_retries),
            "GRACE": str(required.grace),
            "ELASTIC": "1" if self._least() < role.num_replicas else "",
        }
        lines = [
            "#!/bin/bash",
            *(f"#SBATCH {option}" for option in self._sbatch(required.grace)),
            *(f"{name}={shlex.quote(value)}" for name, value in variables.items()),
            f"set -- {shlex.join(self._srun())}",
        ]
        return "\n".join([*lines, _part("slurm_job.sh")])

    def task(self) -> str:
        """Return what each node runs, as a POSIX shell script."""
        values = macros.Values(img_root=".", app_id="\ue000", replica_id="\ue001", rank0_env="TORCHX_RANK0_HOST")
        role = values.apply(self.role)
        command = " ".join(map(_quoted, [role.entrypoint, *role.args]))
        if self.cfg.get("container") == "apptainer":
            binds = [f"--bind {shlex.quote(':'.join(mount))}" for mount in self._mounts()]
            gpus = ["--nv"] if role.resource.gpu > 0 else []
            image = role.image if "://" in role.image or role.image.endswith(".sif") else f"docker://{role.image}"
            command = " ".join(
                ["apptainer exec", *gpus, "--pwd", shlex.quote(self._inside()), *binds, shlex.quote(image), command]
            )
        variables = {**self._image_variable(), **role.env}
        exports = [f"export {name}={_quoted(value)}" for name, value in variables.items()]
        return "\n".join(["#!/bin/sh", *exports, f"set -- {command}", _part("slurm_task.sh")])

    def _image_variable(self) -> dict[str, str]:
        return {} if (self.cfg.get("container") or "none") == "none" else {IMAGE: self.role.image}

    def _least(self) -> int:
        return self.role.min_replicas or self.role.num_replicas

    def _problems(self, required: LaunchRequirements) -> Iterator[str]:
        container, time = self.cfg.get("container") or "none", self.cfg.get("time")
        if container not in CONTAINERS:
            yield f"container={container!r} must be one of {', '.join(CONTAINERS)}"
        for name in self.role.env:
            if not _VARIABLE.fullmatch(name):
                yield f"env={name!r} is no name of a variable"
        for mount in self.role.mounts:
            if not isinstance(mount, BindMount):
                yield f"mounts={mount}: Slurm's nodes have folders only: type=bind"
            elif container == "none" and mount.src_path != mount.dst_path:
                yield (
                    f"mounts={mount.src_path}:{mount.dst_path}: without a container the nodes see their own folders: "
                    "src and dst must be the same, or --scheduler_args container=pyxis"
                )
        least = required.grace + MARGIN
        if time and (seconds := seconds_of(time)) is not None and seconds <= least:
            yield f"time={time!r} must be more than {least} seconds: so long before the limit the nodes begin to save"
        try:
            shlex.split(self.cfg.get("sbatch_args") or "")
        except ValueError as error:
            yield f"sbatch_args={self.cfg['sbatch_args']!r}: {error}; must be arguments in a shell's quotes"

    def _sbatch(self, grace: int) -> Iterator[str]:
        """Yield the options of the job; later ones take precedence."""
        role, least = self.role, self._least()
        yield f"--job-name={shlex.quote(self.name)}"
        yield f"--nodes={least}-{role.num_replicas}" if least < role.num_replicas else f"--nodes={role.num_replicas}"
        yield "--ntasks-per-node=1"
        yield f"--cpus-per-task={max(1, role.resource.cpu)}"
        if self.memory and role.resource.memMB > 0:
            yield f"--mem={role.resource.memMB}M"
        if role.resource.gpu > 0 and not self.cfg.get("gres"):
            yield f"--gpus-per-node={role.resource.gpu}"
        yield f"--output={shlex.quote(f'{self.folder}/job.log')}"
        yield "--open-mode=append"
        yield "--requeue"
        yield f"--signal=B:USR1@{grace + MARGIN + _EARLY}"
        yield "--export=ALL"
        if self.cfg.get("job_dir"):
            yield f"--chdir={shlex.quote(self._inside())}"
        for name in OPTIONS:
            value = self.cfg.get(name)
            if name in _OURS or value in (None, "", False):
                continue
            flag = f"--{name.replace('_', '-')}"
            yield flag if value is True else f"{flag}={shlex.quote(str(value))}"
        if self.cfg.get("dependency"):
            yield "--kill-on-invalid-dep=yes"
        if more := self.cfg.get("sbatch_args"):
            # Some take a value only after `=`, which is no part of a value of --scheduler_args.
            yield re.sub(r"(^| )(--[\w-]+) (?!-)", r"\1\2=", shlex.join(shlex.split(more)))

    def _srun(self) -> list[str]:
        """Return the options of srun, and what it runs. The batch script stops the nodes by itself."""
        options = ["--kill-on-bad-exit=0", "--wait=0", f"--cpus-per-task={max(1, self.role.resource.cpu)}"]
        options += ["--export=ALL"]
        if self.cfg.get("container") == "pyxis":
            mounts = ",".join(":".join(mount) for mount in self._mounts())
            options += [f"--container-image={_enroot(self.role.image)}", f"--container-mounts={mounts}"]
            options += [f"--container-workdir={self._inside()}", "--no-container-mount-home"]
        return [*options, "sh", f"{self.folder}/task.sh"]

    def _inside(self) -> str:
        """Return the working directory: the workspace, or where the code is in a container."""
        return os.path.abspath(self.cfg["job_dir"]) if self.cfg.get("job_dir") else "/app"

    def _mounts(self) -> Iterator[tuple[str, ...]]:
        """Yield source, destination and, of one that is read only, `ro`."""
        yield str(self.folder), str(self.folder)
        if self.cfg.get("job_dir"):
            yield self._inside(), self._inside()
        for mount in self.role.mounts:
            assert isinstance(mount, BindMount)
            yield mount.src_path, mount.dst_path, *(("ro",) if mount.read_only else ())


def seconds_of(time: str) -> int | None:
    """Return the seconds of a time limit as sbatch takes it; None for `UNLIMITED`, or what sbatch has to judge."""
    match = _TIME.fullmatch(time.strip())
    if match is None:
        return None
    first, second, third = (int(match[name]) if match[name] else None for name in "abc")
    assert first is not None
    if match["d"]:  # days-hours:minutes:seconds
        return ((int(match["d"]) * 24 + first) * 60 + (second or 0)) * 60 + (third or 0)
    if third is not None:
        return (first * 60 + (second or 0)) * 60 + third
    return first * 60 + (second or 0)  # minutes:seconds


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text()


def _quoted(text: str) -> str:
    """Quote a word for a shell, which fills in what only the node knows."""
    quoted = shlex.quote(text)
    for character, variable in _PRIVATE.items():
        quoted = quoted.replace(character, f"'\"${variable}\"'")
    return quoted


def _enroot(image: str) -> str:
    """Return an image as enroot, which pyxis uses, names it: `#` follows the registry."""
    host, slash, rest = image.partition("/")
    registry = slash and ("." in host or ":" in host) and "://" not in image and host
    return f"{registry}#{rest}" if registry else image
