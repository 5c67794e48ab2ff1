"""What runs an attempt: the versions of what it is built on, the revision of the code, the image.

Recorded in each attempt, so that a result can be explained when the machine that made it is gone. Nothing is imported
for it.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

DISTRIBUTION = "torchx-lightning-pipeline"
"""The name under which this program is installed."""
IMAGE = "PIPELINE_IMAGE"
"""Names the image that a container was started from: set by the schedulers that start containers."""
REVISION = "PIPELINE_REVISION"
"""Names the revision of the code in an image: set where the image is built."""

_LIBRARIES = ("torch", "lightning", "numpy", "torchvision", "transformers", "fsspec", "s3fs")
"""Libraries whose versions explain a result, as far as they are imported already."""
_LIMIT = 1.0
"""Seconds that git may take."""


def version() -> str:
    """Return the version that pyproject.toml gives; `unknown` for a checkout that is not installed."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def provenance(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return `versions` by name, `revision` and `image`, for JSON; None for what is not known.

    Args:
        environment: Where an image and its revision are named.
    """
    return {
        "versions": _versions(),
        "revision": environment.get(REVISION) or _revision(),
        "image": environment.get(IMAGE) or None,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "pipeline": version()}
    for name in _LIBRARIES:
        imported = getattr(sys.modules.get(name), "__version__", None)
        if imported is not None:
            found[name] = str(imported)
    return found


def _revision() -> str | None:
    """Return the commit of the current folder's repository, with `-changed` if files differ from it."""
    return _git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=-changed") or _git("rev-parse", "HEAD")


def _git(*arguments: str) -> str | None:
    try:
        ended = subprocess.run(
            ["git", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # it only looks
            check=False,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return ended.stdout.strip() or None if ended.returncode == 0 else None
