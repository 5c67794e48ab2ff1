"""The driver as an app of its own: `components.launch`, run where its stages run, so that no laptop has to stay awake.

It talks to the cluster by its service account, finds its stages again when it is started anew, and has no torch.
"""

import getpass
import re
from collections.abc import Sequence
from typing import Any

from torchx.specs import AppDef

from components.role import Needs, quoted, role

IMAGE = "torchx-lightning-pipeline-driver:latest"
ACCOUNT = "pipeline-driver"
"""The service account that k8s/cluster gives the right to submit."""

_KEPT = (
    "namespace",
    "kubeconfig",
    "context",
    "secret",
    "env_secrets",
    "env_config_maps",
    "image_pull_policy",
    "image_pull_secrets",
    "user",
    "labels",
    "annotations",
    "ttl",
    "check",
)
"""The run options of the stages that are the driver's, too: it needs no GPUs, no queue and no place close to them."""
_FROM_OUTSIDE = re.compile(r"(?:^|,)(?:kubeconfig|context)=[^,]*")


def driver(
    arguments: Sequence[str],
    name: str,
    *,
    image: str,
    env: dict[str, str] | None,
    secrets: Sequence[str] | None,
    retries: int,
) -> AppDef:
    """The driver as an app with the one role `launch`.

    Args:
        arguments: Of `components.launch`, as it was called to detach.
        name: Of the pipeline.
        image: With TorchX and the cluster's client.
        env: Environment of the stages; the driver reads the same storage.
        secrets: Names of those of its variables that are secret.
        retries: How often it is started again after a crash.
    """
    own, app_args = _split(arguments)
    user = getpass.getuser()
    command = ["--name", name, "--on_signal", "leave", *own, *app_args]
    return AppDef(
        name="launch",
        roles=[
            role(
                "launch",
                f"python -m components.launch {quoted(command)}",
                image=image,
                cpu=1,
                memory=1024,
                gpu=0,
                threads=1,
                # The runs that it submits are those of whoever has submitted it.
                env={**dict.fromkeys(("LOGNAME", "USER"), user), **(env or {})},
                mounts=None,
                needs=Needs(tuple(secrets or ()), api=True),
                retries=retries,
            )
        ],
    )


def options_of(cfg: dict[str, Any]) -> dict[str, Any]:
    """The run options of the driver, from those of its stages."""
    return {**{key: value for key, value in cfg.items() if key in _KEPT}, "service_account": ACCOUNT}


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The driver's own arguments, as they are within the cluster, and those of the app with their `--`."""
    at = list(arguments).index("--") if "--" in arguments else len(arguments)
    own, skip = list[str](), False
    for place, each in enumerate(arguments[:at]):
        flag, given, _ = each.partition("=")
        if skip:
            skip = False
        elif flag in ("--name", "--driver_image", "--on_signal"):
            skip = not given
        elif each != "--detach":
            before = arguments[place - 1] if place else ""
            own.append(_FROM_OUTSIDE.sub("", each).lstrip(",") if "--scheduler_args" in (before, flag) else each)
    return own, list(arguments[at:])
