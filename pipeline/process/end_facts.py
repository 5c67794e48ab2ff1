"""What is known of this process's run when it ends, for whoever tells of it: this process, or the agent above it.

An agent outlives a process that is killed. What rank 0 knew by then lies in the agent's folder, which is its own.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.errors import NO_FAILURE, USER_MUST_CHANGE
from pipeline.process.notification import notification, target_of, target_problem, tell
from pipeline.process.started_runs import FOLDER

_FILE = "end.json"
_TOLD = ("fit", "validate", "test", "predict")
"""Subcommands of whose end somebody may want to hear."""
_known: dict[str, Any] = {}


def note(environment: Mapping[str, str] = os.environ, **facts: Any) -> None:
    """Take note of facts that are JSON: `command`, `run_dir`, `attempt`, `step`, `result`, `reason`, `notify`."""
    _known.update(facts)
    folder = environment.get(FOLDER)
    if folder and environment.get("RANK", "0") == "0":
        with suppress(OSError):
            partial = Path(folder, f"{_FILE}.{os.getpid()}")
            partial.write_text(json.dumps(_known))
            partial.replace(Path(folder, _FILE))


def noted_by_workers(folder: str) -> dict[str, Any]:
    """Return what rank 0 has left in the folder of its agent; nothing where it ran on another node, or never began."""
    with suppress(OSError, ValueError):
        found = json.loads(Path(folder, _FILE).read_text())
        return found if isinstance(found, dict) else {}
    return {}


def tell_own_end(
    arguments: Sequence[str], status: int, reason: str = "", environment: Mapping[str, str] = os.environ
) -> None:
    """Tell how this process has ended, if it speaks for its job: rank 0, and no agent of ours, which would, above it.

    Args:
        arguments: Its command line, without the program's name.
        status: Its exit status.
        reason: Why, where it has not been noted.
        environment: Where the launcher says which process this is.
    """
    if not arguments or arguments[0] not in _TOLD or FOLDER in environment or environment.get("RANK", "0") != "0":
        return
    used, most = (environment.get(f"TORCHELASTIC_{name}", "0") for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    if status not in NO_FAILURE and used.isdecimal() and most.isdecimal() and int(used) < int(most):
        return  # torchrun restarts it
    tell_of({"command": arguments[0], **_known}, target_of(arguments, environment), status, reason, environment)


def tell_of(
    facts: Mapping[str, Any], target: str | None, status: int, reason: str, environment: Mapping[str, str] = os.environ
) -> None:
    """Tell of an end, if it is for good and somebody wants to hear of it.

    Args:
        facts: What was noted.
        target: Whom the command line or the environment names; None: whom the facts name, if anybody.
        status: The exit status of the job.
        reason: Why, where the facts say nothing.
        environment: Where the launcher says what it restarts.
    """
    target = facts.get("notify") or target
    own = facts.get("reason") or ""  # what rank 0 said; of a mistake it says more than the agent knows
    if not reason or (status == USER_MUST_CHANGE and own):
        reason = own
    what = notification(status, reason, facts, environment)
    if target and what is not None and target_problem(target) is None:
        tell(target, what)
