"""What is to be drilled, and what of it is possible."""

import os
import shlex
import sys
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pipeline.commands.drill.course import APART, SLOWEST
from pipeline.commands.drill.plan import LEAST_STEPS, Kind
from pipeline.commands.drill.report import DRILL
from pipeline.errors import UserError
from pipeline.run.run_dir import RunDir, run_dir_problem
from pipeline.run.storage_errors import raise_for_user

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""The environment variables that name an S3 server, the stronger one first."""

_SAVE_EVERY = 2.0
"""Seconds at most between two saves of a drilled run, so that there is something to go on from."""


@dataclass(frozen=True)
class Options:
    """What is to be drilled.

    Attributes:
        config: As for `fit`.
        run_dir: Where both runs and drill.json go.
        faults: How many.
        seed: Of the plan.
        nodes: Of the job, all on this machine.
        processes: Of each node.
        resize: Whether the job is also run on with one node less for a while.
        args: Further flags of `fit`, in one string.
    """

    config: str
    run_dir: str
    faults: int = 12
    seed: int = 7
    nodes: int = 2
    processes: int = 1
    resize: bool = False
    args: str = ""


def checked(options: Options) -> list[str]:
    """The further flags, one by one.

    Raises:
        UserError: With everything that is not allowed.
    """
    problems = []
    if not sys.platform.startswith("linux"):
        problems.append(f"platform={sys.platform!r}: a drill finds processes in /proc. Run it on Linux, or in Docker")
    for name in ("faults", "nodes", "processes"):
        if (value := getattr(options, name)) < 1:
            problems.append(f"{name}={value}: allowed are 1 and more")
    if options.nodes > 254:
        problems.append(f"nodes={options.nodes}: allowed are 1 to 254, all on this machine")
    if options.resize and options.nodes < 2:
        problems.append(f"resize=true with nodes={options.nodes}: one node less is none. Give --nodes 2 or more")
    if problem := run_dir_problem(options.run_dir):
        problems.append(problem)
    further: list[str] = []
    try:
        further = shlex.split(options.args)
    except ValueError as error:
        problems.append(f"args={options.args!r}: {error}. Allowed are flags of fit, quoted as for a shell")
    problems += [
        f"args={options.args!r}: {name} belongs to the drill. Give --{name} to it"
        for name in ("run_dir", "config")
        if any(flag.split("=")[0] == f"--{name}" for flag in further)
    ]
    if problems:
        raise UserError(*problems)
    return further


def require_new(base: RunDir) -> None:
    """Refuse a directory in which something would be written over.

    Raises:
        UserError: It is, or it cannot be read.
    """
    try:
        names = base.fs.ls(base.path, detail=False)
    except FileNotFoundError:
        return
    except Exception as error:  # noqa: BLE001 - every storage has errors of its own
        raise_for_user(
            error,
            f"run_dir={base.label!r} cannot be read",
            "Fix the name, or this user's permissions or credentials there",
        )
    left = {str(name).rstrip("/").rsplit("/", 1)[-1] for name in names}
    if taken := sorted(left & {DRILL, "reference", "drilled", "checkpoints", "fit.yaml"}):
        raise UserError(
            f"run_dir={base.label!r} holds {', '.join(taken)}: a drill never writes over a run. Give another --run_dir"
        )


def require_steps(options: Options, steps: int) -> None:
    """Refuse a training that would be over before its faults.

    Raises:
        UserError: It would.
    """
    if steps < LEAST_STEPS * options.faults:
        most = steps // LEAST_STEPS
        raise UserError(
            f"faults={options.faults}: this training has {steps} steps, each fault needs {LEAST_STEPS}. Allowed are "
            f"1 to {most}; or give it more steps, such as --args='--trainer.max_epochs=...'. Start again with another "
            "--run_dir, for the reference is trained"
        )


def kinds_of(options: Options, base: RunDir, config: dict[str, Any]) -> tuple[list[Kind], dict[str, str]]:
    """The kinds of faults that are possible, and why the others are not.

    Raises:
        UserError: A resize is asked for, and its steps would not be the same ones.
    """
    without = {}
    server = endpoint()
    if not base.is_s3:
        without[Kind.OUTAGE] = "a local disk does not go away" if base.is_local else "only tried on S3"
    elif urlsplit(server).scheme != "http":
        without[Kind.OUTAGE] = f"AWS_ENDPOINT_URL={server!r} is not http://, so that nothing can stand between"
    if (kept := (config.get("checkpoints") or {}).get("keep_last")) == 1:
        without[Kind.TRUNCATE] = f"checkpoints.keep_last={kept} leaves nothing to fall back to"
    data = (config.get("data") or {}).get("init_args") or {}
    if not options.resize:
        without[Kind.RESIZE] = "not asked for (--resize true)"
    elif data.get("global_batch_size") is None:
        raise UserError(
            "resize=true: with data.batch_size another number of nodes makes other steps, which cannot be compared. "
            "Give --args='--data.batch_size=null --data.global_batch_size=...', or leave it out"
        )
    return [kind for kind in Kind if kind not in without], {str(kind): why for kind, why in without.items()}


def saving(config: dict[str, Any], faults: int, steps: int) -> tuple[list[str], float]:
    """The flags that have a run saved often enough for a drill, and the seconds that a step waits at first."""
    pace = min(SLOWEST, APART * faults / steps)
    every = max(1, int(_SAVE_EVERY / pace))
    known = (config.get("checkpoints") or {}).get("every_n_steps")
    return ([] if known is not None and known <= every else [f"--checkpoints.every_n_steps={every}"]), pace


def endpoint() -> str:
    """The S3 server's URL, "" where none is named."""
    return next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")
