"""Which runs the processes of this agent have started, for those that it starts after them.

A run directory that is removed or unmounted under an agent looks like a new one to the processes of the next attempt.
The agent outlives them, and so does a folder of its own.
"""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

FOLDER = "PIPELINE_STARTED_RUNS"
"""The environment variable that names the agent's folder."""


def remember(url: str, environment: Mapping[str, str] = os.environ) -> None:
    """Remember that a run was started; without an agent, or a disk to write to, there is nobody to tell."""
    if (note := _note(url, environment)) is not None:
        with suppress(OSError):
            note.touch()


def remembers(url: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether an earlier process of this agent has started this run."""
    note = _note(url, environment)
    return note is not None and note.exists()


def _note(url: str, environment: Mapping[str, str]) -> Path | None:
    folder = environment.get(FOLDER)
    return Path(folder, hashlib.sha256(url.encode()).hexdigest()) if folder else None
