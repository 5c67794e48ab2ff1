"""How many trials run at once, and which devices of this machine each of them has."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

_HERE = ("local_cwd", "local_docker")
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def places(scheduler: str, parameters: Mapping[str, Any], asked: int | None) -> int:
    """Return how many trials run at once.

    Args:
        scheduler: Where they run.
        parameters: Of `train`.
        asked: By the user; None: as many as this machine has cores or devices for.

    Raises:
        UserError: It cannot be so many, or the user must say how many.
    """
    if asked is not None and asked < 1:
        raise UserError(f"parallel={asked} must be >= 1")
    if scheduler not in _HERE:
        if asked is None:
            raise UserError(f"parallel: say by --parallel how many trials may run at once on {scheduler}")
        return asked
    nodes, gpu = _nodes(parameters), int(parameters["gpu"])
    if not gpu:
        return asked or max(1, len(os.sched_getaffinity(0)) // max(1, int(parameters["cpu"]) * nodes))
    there = len(_devices())
    fit = there // (gpu * nodes)
    if scheduler == "local_cwd" and nodes > 1:  # both nodes would have the same devices
        fit = min(fit, 1)
    if asked is not None and scheduler == "local_cwd" and asked > max(fit, 1):
        raise UserError(
            f"parallel={asked} trials of nodes={nodes} with gpu={gpu}: the {there} devices here are enough for "
            f"{max(fit, 1)} at once"
        )
    return asked or max(1, fit)


def own_devices(scheduler: str, parameters: Mapping[str, Any], place: int) -> dict[str, str]:
    """Return the environment by which trials beside each other have devices of their own; Docker's have them anyway.

    Args:
        scheduler: Where they run.
        parameters: Of `train`.
        place: Of the trial, from 0.
    """
    gpu, devices = int(parameters["gpu"]), _devices()
    if scheduler != "local_cwd" or not gpu or _nodes(parameters) > 1 or len(devices) < gpu * (place + 1):
        return {}
    return {_VISIBLE: ",".join(devices[gpu * place : gpu * (place + 1)])}


def _nodes(parameters: Mapping[str, Any]) -> int:
    most = str(parameters["nodes"]).rpartition(":")[2]
    return int(most) if most.isdecimal() and int(most) else 1


def _devices() -> list[str]:
    """Return the names of the devices that processes of this machine may use."""
    visible = os.environ.get(_VISIBLE)
    if visible is not None:
        return [each for each in visible.split(",") if each.strip()]
    names = (path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return sorted((name for name in names if name.isdecimal()), key=int)
