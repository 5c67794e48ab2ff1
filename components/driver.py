"""The driver as an app of its own: `components.launch`, run in the cluster, so that no laptop has to stay awake.

It talks to the cluster by its service account, finds its stages again when it is restarted, and has no torch.
"""

import argparse
import getpass
import re
from collections.abc import Sequence
from typing import Any

from torchx.specs import AppDef

from components.role import NodeSpec, quoted
from k8s.options import DRIVER_OPTIONS

IMAGE = "torchx-lightning-pipeline-driver:latest"
ACCOUNT = "pipeline-driver"
"""The service account that k8s/cluster gives the right to submit."""

_SUBMITTER_ONLY = re.compile(r"(?:^|,)(?:kubeconfig|context)=[^,]*")
"""The run options that mean nothing within the cluster."""


def driver(
    arguments: Sequence[str],
    name: str,
    *,
    image: str,
    env: dict[str, str] | None,
    secrets: Sequence[str] | None,
    retries: int,
) -> AppDef:
    """Return the driver as an app with the one role `launch`.

    Args:
        arguments: The command line of `components.launch` that detaches.
        name: The name of the pipeline.
        image: An image with TorchX and the cluster's client.
        env: Environment of the stages; the driver reads the same storage.
        secrets: Names of those variables that are secret.
        retries: How often it is restarted after a crash.
    """
    # The runs that it submits are listed under the name of the user who detached it.
    env = {**dict.fromkeys(("LOGNAME", "USER"), getpass.getuser()), **(env or {})}
    node = NodeSpec(
        image=image, cpu=1, memory=1024, gpu=0, env=env, mounts=None, secrets=secrets, shm=0, retries=retries
    )
    command = quoted(["--name", name, "--on_signal", "leave", *_in_cluster(arguments)])
    return AppDef("launch", [node.role("launch", f"python -m components.launch {command}", threads=1, api=True)])


def options_of(cfg: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return the driver's run options: those of its stages, without what is for GPUs, and its own ones before them.

    It ends when its stages do, each of which has a deadline.
    """
    shared = {name: value for name, value in cfg.items() if name in DRIVER_OPTIONS}
    found = {**shared, "deadline": 0, "service_account": ACCOUNT, **own}
    if not found.get("queue"):
        found.pop("queue_priority", None)
    return found


def _in_cluster(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of `components.launch` as they are within the cluster."""
    at = list(arguments).index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--detach", action="store_true")
    for flag in ("--name", "--driver_image", "--driver_args", "--on_signal", "--scheduler_args"):
        parser.add_argument(flag, default="")
    replaced, kept = parser.parse_known_args(arguments[:at])
    options = _SUBMITTER_ONLY.sub("", replaced.scheduler_args).lstrip(",")
    return [*(["--scheduler_args", options] if options else []), *kept, *arguments[at:]]
