"""One stage of a pipeline: submitted, or found again; its log, its end, and the exit status that it means."""

import json
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from torchx.runner import Runner
from torchx.specs import NONE, AppDef, AppHandle, AppState, AppStatus, is_terminal, make_app_handle

from pipeline.errors import CRASH, DONE, PREEMPTED, UserError
from pipeline.process.error_file import parse
from pipeline.run.run_dir import RunDir
from pipeline.run.storage_errors import storage_error

SESSION = "torchx"
"""TorchX's own name of a session, so that its other commands take the same handles."""

_DRIVER = "pipeline/driver"
"""The label by which the scheduler finds the stages of a driver that is cancelled."""
_LOCAL_POLL, _POLL = 0.5, 1.0
"""Seconds between two looks at a stage: on this machine, and at a cluster that others ask, too."""
_CLOCKS = timedelta(minutes=1)


@dataclass
class Where:
    """Where stages run, and how.

    Attributes:
        runner: TorchX's.
        scheduler: The name of the scheduler.
        cfg: Its run options.
        workspace: A folder that images are patched with; empty: none.
        name: Of the pipeline, where its stages are called after it and found again by that; empty: each is a new one.
        cancels: Whether a stage is cancelled when whoever waits for it is interrupted.
    """

    runner: Runner
    scheduler: str
    cfg: dict[str, Any] = field(default_factory=dict)
    workspace: str = ""
    name: str = ""
    cancels: bool = True


def run(app: AppDef, where: Where, run_dir: str) -> tuple[int, str]:
    """Run one stage to its end, showing its log.

    Args:
        app: The stage.
        where: Where it runs.
        run_dir: Its run directory, which knows the status of a training where the scheduler does not.

    Returns:
        The exit status, and how it ended, in words.

    Raises:
        UserError: The scheduler refuses it.
        KeyboardInterrupt: This process is interrupted; the stage is cancelled, if it is to be.
    """
    launched = datetime.now(UTC)
    try:
        ended = _wait(_submitted(app, where), app, where)
    except (UserError, AssertionError):
        raise
    except Exception as error:
        if where.scheduler.startswith("local"):
            raise
        # It lives without this process, whatever keeps that from looking at it; a named one is found again.
        words = f"it may go on, but cannot be looked at: {storage_error(error)}"
        return (PREEMPTED, f"{words}; the same command finds it again") if where.name else (CRASH, words)
    if ended.state == AppState.SUCCEEDED:
        return DONE, "done"
    status = _said_by(ended) or _written_by(app.name, run_dir, launched) or CRASH
    if status == PREEMPTED:
        return status, "preempted; the same command goes on from its newest checkpoint"
    why = "" if ended.msg in ("", NONE) else f" ({ended.msg})"
    return status, f"{ended.state.name.lower()} with status {status}{why}; its log is above"


def submit(app: AppDef, where: Where) -> AppHandle:
    """Submit an app, as a stage of its pipeline where that has a name."""
    handle = where.runner.run(app, where.scheduler, cfg_of(app, where), workspace=where.workspace or None)
    if where.scheduler != "local_cwd":
        say(f"{app.name}: {handle}, image {app.roles[0].image}", sys.stderr)
    return handle


def cfg_of(app: AppDef, where: Where) -> dict[str, Any]:
    """The run options of a stage: one of a named pipeline is called after it, and marked as its own."""
    if not where.name:
        return where.cfg
    labels = {**(where.cfg.get("labels") or {}), _DRIVER: where.name}
    return {**where.cfg, "app_id": app_id(app, where), "labels": labels}


def app_id(app: AppDef, where: Where) -> str:
    """What a stage of a named pipeline is called."""
    return f"{where.name}-{app.name}"


def _submitted(app: AppDef, where: Where) -> AppHandle:
    """A stage that runs, or has run: one that somebody has submitted before is not submitted again."""
    if not where.name:
        return submit(app, where)
    namespace = where.cfg.get("namespace")
    called = f"{namespace}:{app_id(app, where)}" if namespace else app_id(app, where)
    known = make_app_handle(where.scheduler, SESSION, called)
    if where.runner.status(known) is not None:
        return known
    try:
        return submit(app, where)
    except UserError:
        # Somebody may have been faster.
        if where.runner.status(known) is None:
            raise
        return known


def _wait(handle: AppHandle, app: AppDef, where: Where) -> AppStatus:
    runner = where.runner
    try:
        tails = [
            threading.Thread(target=_tail, args=(runner, handle, role.name, replica), daemon=True)
            for role in app.roles
            for replica in range(role.num_replicas)
        ]
        for tail in tails:
            tail.start()
        said = ""
        while True:
            described = runner.status(handle)
            if described is None:
                raise RuntimeError(f"{where.scheduler} does not know {handle} any more")
            if is_terminal(described.state):
                break
            if described.msg not in ("", NONE, said):
                # Why it waits, or is not yet what it is to be.
                said = described.msg
                say(f"{app.name}: {said}", sys.stderr)
            time.sleep(_LOCAL_POLL if where.scheduler.startswith("local") else _POLL)
        for tail in tails:
            tail.join(timeout=10)
    except BaseException as error:
        if where.scheduler.startswith("local") or (where.cancels and isinstance(error, KeyboardInterrupt)):
            runner.cancel(handle)
        raise
    return described


def _said_by(ended: AppStatus) -> int | None:
    """The status that the agent of a stage, or its only process, has left where the scheduler reads it."""
    try:
        report = parse(json.loads(ended.structured_error_msg))
    except ValueError:
        return None
    return report.status if report else None


def _written_by(stage: str, run_dir: str, launched: datetime) -> int | None:
    """The status of the attempt that a training has written into its run directory since it was launched."""
    if stage != "train":
        return None
    try:
        run = RunDir(run_dir)
        attempt = run.read_json(RunDir.attempt(max(run.attempts(), default=0))) or {}
        # The clocks of two machines differ a little.
        fresh = datetime.fromisoformat(attempt["started"]) >= launched - _CLOCKS
    except Exception:  # noqa: BLE001 - what cannot be read says nothing, and the stage has failed anyway
        return None
    status = attempt.get("status")
    return status if fresh and isinstance(status, int) else None


def _tail(runner: Runner, handle: AppHandle, role: str, replica: int) -> None:
    """Print the log of one replica as it grows; the first one stands for the run, others say who they are."""
    prefix = "" if replica == 0 else f"[{role} {replica}] "
    try:
        for line in runner.log_lines(handle, role, replica, should_tail=True):
            say(prefix + line.rstrip("\n"))
    except Exception as error:  # noqa: BLE001 - a lost log is no failure of the run
        say(f"{prefix}(its log cannot be read: {storage_error(error)})", sys.stderr)


def say(text: str, stream: Any = None) -> None:
    """Print a line at once."""
    print(text, file=stream or sys.stdout, flush=True)
