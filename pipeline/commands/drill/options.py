"""What of a drill's options is possible."""

import os
import shlex
import sys
from argparse import Namespace
from typing import Any
from urllib.parse import urlsplit

from pipeline.commands.drill.injector import SECONDS_PER_FAULT, SLOWEST_STEP
from pipeline.commands.drill.plan import LEAST_STEPS, FaultKind
from pipeline.commands.drill.report import DRILL
from pipeline.errors import UserError
from pipeline.run.retry import patiently
from pipeline.run.run_dir import RunDir, run_dir_problem
from pipeline.run.storage_errors import raise_for_user

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
"""The environment variables that name an S3 server, the stronger one first."""

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY")


def fit_flags(options: Namespace) -> list[str]:
    """Return the flags of fit in `--args`, one by one.

    Args:
        options: Of the command line, see `pipeline.commands.drill.command`.

    Raises:
        UserError: Something in the options is not allowed.
    """
    problems = []
    if not sys.platform.startswith("linux"):
        problems.append(f"platform={sys.platform!r}: a drill finds processes in /proc. Run it on Linux, or in Docker")
    for name in ("faults", "nodes", "processes"):
        if (value := getattr(options, name)) < 1:
            problems.append(f"{name}={value} must be >= 1")
    if options.nodes > 254:
        problems.append(f"nodes={options.nodes} must be <= 254, all on this machine")
    if not options.save_every > 0:
        problems.append(f"save_every={options.save_every:g} must be > 0 seconds")
    if unknown := [kind for kind in _asked_kinds(options) if kind not in list(FaultKind)]:
        problems.append(f"kinds={options.kinds!r}: {', '.join(unknown)} must be of {', '.join(FaultKind)}")
    if options.resize and options.nodes < 2:
        problems.append(f"resize=true with nodes={options.nodes}: one node less is none. Give --nodes 2 or more")
    if problem := run_dir_problem(options.run_dir):
        problems.append(problem)
    flags: list[str] = []
    try:
        flags = shlex.split(options.args)
    except ValueError as error:
        problems.append(f"args={options.args!r}: {error}. Must be flags of fit, quoted as for a shell")
    problems += [
        f"args={options.args!r}: {name} belongs to the drill. Give --{name} to it"
        for name in ("run_dir", "config")
        if any(flag.split("=")[0] == f"--{name}" for flag in flags)
    ]
    if problems:
        raise UserError(*problems)
    return flags


def require_new(base: RunDir) -> None:
    """Refuse a directory in which something would be overwritten.

    Raises:
        UserError: It is one, or it cannot be read.
    """
    try:
        names = patiently(f"run_dir={base.label!r}", lambda: base.fs.ls(base.path, detail=False))
    except FileNotFoundError:
        return
    except Exception as error:  # noqa: BLE001 - every storage has errors of its own
        raise_for_user(
            error,
            f"run_dir={base.label!r} cannot be read",
            "Fix the name, or this user's permissions or credentials there",
        )
    left = {str(name).rstrip("/").rsplit("/", 1)[-1] for name in names}
    if taken := sorted(left & {DRILL, "reference", "resized", "drilled", "checkpoints", "fit.yaml"}):
        raise UserError(
            f"run_dir={base.label!r} holds {', '.join(taken)}: a drill never writes over a run. Give another --run_dir"
        )


def require_steps(options: Namespace, steps: int) -> None:
    """Refuse a training that would end before its faults.

    Raises:
        UserError: It would.
    """
    if steps < LEAST_STEPS * options.faults:
        raise UserError(
            f"faults={options.faults}: this training has {steps} steps, and each fault needs {LEAST_STEPS}. Must be <= "
            f"{steps // LEAST_STEPS}; or give it more steps, such as --args='--trainer.max_epochs=...'. Rerun with "
            "another --run_dir, since the reference is trained"
        )


def possible_kinds(
    options: Namespace, base: RunDir, config: dict[str, Any], epochs: int, unread: str
) -> tuple[list[FaultKind], dict[str, str]]:
    """Return the kinds of faults that are possible, and why the others are not.

    Args:
        options: Of the drill.
        base: The run directory under faults.
        config: The resolved configuration of its training.
        epochs: That the whole training has.
        unread: Why its data cannot be away; "" where they can.

    Raises:
        UserError: A resize is asked for, but its steps would not be comparable; or no kind of those asked for is left.
    """
    without: dict[FaultKind, str] = {}
    server = endpoint()
    if not base.is_s3:
        why = "a local disk does not go away" if base.is_local else "only tried on S3"
        without |= dict.fromkeys((FaultKind.OUTAGE, FaultKind.OUTAGE_START), why)
    elif urlsplit(server).scheme != "http":
        why = f"AWS_ENDPOINT_URL={server!r} is not http://, so no proxy can be put before it"
        without |= dict.fromkeys((FaultKind.OUTAGE, FaultKind.OUTAGE_START), why)
    if unread:
        without[FaultKind.OUTAGE_DATA] = unread
    if (config.get("checkpoints") or {}).get("keep_last") == 1:
        without[FaultKind.TRUNCATE] = "checkpoints.keep_last=1 leaves nothing to fall back to"
    if epochs < 2:
        without[FaultKind.EXTEND] = "training has one epoch only"
    if not options.resize:
        without[FaultKind.RESIZE] = "not asked for (--resize true)"
    elif ((config.get("data") or {}).get("init_args") or {}).get("global_batch_size") is None:
        raise UserError(
            "resize=true: with data.batch_size another number of nodes makes other steps, which cannot be compared. "
            "Give --args='--data.batch_size=null --data.global_batch_size=...', or leave it out"
        )
    if asked := _asked_kinds(options):
        without |= {kind: "not asked for (--kinds)" for kind in FaultKind if kind not in asked}
    possible = [kind for kind in FaultKind if kind not in without]
    if not possible:
        raise UserError(
            f"kinds={options.kinds!r}: none of them is possible here: "
            f"{'; '.join(f'{kind}, {without[FaultKind(kind)]}' for kind in asked)}"
        )
    return possible, {str(kind): why for kind, why in without.items()}


def _asked_kinds(options: Namespace) -> list[str]:
    return [kind.strip() for kind in options.kinds.split(",") if kind.strip()]


def data_environment(base: RunDir, port: int) -> tuple[dict[str, str], str]:
    """Return the environment that leads what a job reads by HTTP to a proxy on this machine, but not its storage.

    Returns:
        It, and why there is none.
    """
    if taken := sorted(name for name in os.environ if name.upper() in _PROXIES and os.environ[name]):
        return {}, f"{taken[0]} is set: no other proxy can be put before the data"
    url = f"http://127.0.0.1:{port}"
    direct = [os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""]
    if base.is_s3:
        direct += [urlsplit(endpoint()).hostname or ".amazonaws.com", "127.0.0.1"]
    excluded = ",".join(filter(None, direct))
    names = {**dict.fromkeys(_PROXIES, url), "NO_PROXY": excluded}
    return {each: value for name, value in names.items() for each in (name, name.lower())}, ""


def frequent_saves(config: dict[str, Any], options: Namespace, steps: int) -> tuple[list[str], float]:
    """Return flags that make a run save often enough for a drill, and the seconds that a step waits at first."""
    pace = min(SLOWEST_STEP, SECONDS_PER_FAULT * options.faults / steps)
    every = max(1, int(options.save_every / pace))
    known = (config.get("checkpoints") or {}).get("every_n_steps")
    return ([] if known is not None and known <= every else [f"--checkpoints.every_n_steps={every}"]), pace


def endpoint() -> str:
    """Return the S3 server's URL, "" where none is named."""
    return next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")
