"""One stage of a pipeline: submitted or found again, its log, and the exit status it ends with."""

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from torchx.runner import Runner
from torchx.specs import NONE, AppDef, AppHandle, AppState, AppStatus, is_terminal, make_app_handle

from components.compat import scheduler_of
from pipeline.errors import CRASH, DONE, INTERRUPTED, PREEMPTED, UserError
from pipeline.process.error_file import parse
from pipeline.process.output import print_line
from pipeline.run.run_dir import RunDir
from pipeline.run.storage_errors import storage_error

SESSION = "torchx"
"""TorchX's default name of a session, so that its other commands take the same handles."""

WHOLE = "pipeline"
"""The name of an app that holds all stages; it is called as the pipeline is."""

_DRIVER = "pipeline/driver"
"""The label by which the scheduler finds the stages of a driver that is cancelled."""
_LOCAL_POLL, _POLL = 0.5, 1.0
"""Seconds between two polls of a stage: on this machine, and on a shared cluster."""
_UNANSWERED = 300.0
"""Seconds for which a scheduler may not tell the status of a stage before this process gives up."""
_CLOCK_SKEW = timedelta(minutes=1)


@dataclass
class LaunchTarget:
    """Where stages run, and how.

    Attributes:
        runner: TorchX's.
        scheduler: The name of the scheduler.
        cfg: Its run options.
        workspace: A folder that images are patched with; empty for none.
        name: The name of the pipeline, by which its stages are found again; empty to submit new ones.
        cancels: Whether an interrupt of this process cancels the stage that it waits for.
        label: What stands before each line about a stage and of its log.
        interrupt: Set by another thread, it does to the stage what an interrupt of this process would.
        said: Called with each line of its log.
    """

    runner: Runner
    scheduler: str
    cfg: dict[str, Any] = field(default_factory=dict)
    workspace: str = ""
    name: str = ""
    cancels: bool = True
    label: str = ""
    interrupt: threading.Event = field(default_factory=threading.Event)
    said: Callable[[str], object] = len


def run_stage(app: AppDef, target: LaunchTarget, run_dir: str) -> tuple[int, str]:
    """Run one stage to its end, showing its log.

    Args:
        app: The stage.
        target: Where it runs.
        run_dir: Its run directory, which holds the status of a training where the scheduler has none.

    Returns:
        The exit status, and a sentence on how it ended.

    Raises:
        UserError: The scheduler rejects it.
        KeyboardInterrupt: This process is interrupted; the stage is cancelled if `target.cancels`.
    """
    launched = datetime.now(UTC)
    try:
        ended = _wait(_submitted(app, target), app, target)
    except (UserError, AssertionError):
        raise
    except Exception as error:
        if target.scheduler.startswith("local"):
            raise
        # It runs without this process, which may be unable to reach it; a named one is found again.
        how = f"it may still be running, but its status cannot be read: {storage_error(error)}"
        return (PREEMPTED, f"{how}; the same command finds it again") if target.name else (CRASH, how)
    if ended is not None and ended.state == AppState.SUCCEEDED:
        return DONE, "done"
    recorded = _status_from_attempt(app.name, run_dir, launched)
    if ended is None:
        how = f"is gone: {target.scheduler} no longer knows it; if it was deleted, the same command resumes it"
        return INTERRUPTED if recorded is None else recorded, how
    status = status_from_scheduler(ended) or recorded or CRASH
    if status == PREEMPTED:
        return status, "preempted; rerun the same command to resume from its newest checkpoint"
    why = "" if ended.msg in ("", NONE) else f" ({ended.msg})"
    return status, f"{ended.state.name.lower()} with status {status}{why}; its log is above"


def submit(app: AppDef, target: LaunchTarget) -> AppHandle:
    """Submit an app, as a stage of its pipeline if that has a name."""
    handle = target.runner.run(app, target.scheduler, cfg_of(app, target), workspace=target.workspace or None)
    if target.scheduler != "local_cwd":
        on_slurm = target.scheduler == "slurm" and target.cfg.get("container", "none") == "none"
        echo(f"{target.label}{app.name}: {handle}" + ("" if on_slurm else f", image {app.roles[0].image}"), sys.stderr)
    return handle


def submit_chain(stages: Sequence[AppDef], target: LaunchTarget) -> list[AppHandle]:
    """Submit all stages to Slurm, each of which waits until the one before it has succeeded; all of them, or none."""
    handles: list[AppHandle] = []
    try:
        for stage in stages:
            after = {"dependency": f"afterok:{handles[-1].rpartition('/')[2]}"} if handles else {}
            handles.append(submit(stage, replace(target, cfg={**target.cfg, **after})))
    except BaseException:
        for handle in handles:
            target.runner.cancel(handle)
        raise
    return handles


def cfg_of(app: AppDef, target: LaunchTarget) -> dict[str, Any]:
    """Return the run options of a stage: that of a named pipeline gets its name and its label."""
    if not target.name:
        return target.cfg
    labels = {**(target.cfg.get("labels") or {}), **({} if app.name == WHOLE else {_DRIVER: target.name})}
    return {**target.cfg, "app_id": app_id(app, target), "labels": labels}


def app_id(app: AppDef, target: LaunchTarget) -> str:
    """Return the name of a stage of a named pipeline."""
    return target.name if app.name == WHOLE else f"{target.name}-{app.name}"


def _submitted(app: AppDef, target: LaunchTarget) -> AppHandle:
    """Return the handle of a stage, which is submitted unless an earlier driver of this name has done so."""
    if not target.name:
        return submit(app, target)
    namespace = target.cfg.get("namespace")
    called = f"{namespace}:{app_id(app, target)}" if namespace else app_id(app, target)
    known = make_app_handle(target.scheduler, SESSION, called)
    if target.runner.status(known) is not None:
        return known
    try:
        return submit(app, target)
    except UserError:
        # Another driver may have been faster.
        if target.runner.status(known) is None:
            raise
        return known


def _wait(handle: AppHandle, app: AppDef, target: LaunchTarget) -> AppStatus | None:
    """Follow a stage to its end, showing its log; None if the scheduler no longer knows it."""
    tails = [
        threading.Thread(target=_tail, args=(target, handle, role.name, replica), daemon=True)
        for role in app.roles
        for replica in range(role.num_replicas)
    ]
    local, last_lines = target.scheduler.startswith("local"), 10.0
    try:
        for tail in tails:
            tail.start()
        return _await_end(handle, app, target)
    except BaseException as error:
        last_lines = 2.0 if local else 0.0
        if local or (target.cancels and isinstance(error, KeyboardInterrupt)):
            target.runner.cancel(handle)
        raise
    finally:
        for tail in filter(threading.Thread.is_alive, tails):
            tail.join(last_lines)


def _await_end(handle: AppHandle, app: AppDef, target: LaunchTarget) -> AppStatus | None:
    """Poll a stage until it has ended, showing why it waits."""
    local, shown, answered = target.scheduler.startswith("local"), "", time.monotonic()
    scheduler, name = (None, "") if local else scheduler_of(target.runner, handle)
    # Kubernetes: what was preempted is started again at once, instead of after the cluster's delay.
    renew: Callable[[str], str] = getattr(scheduler, "renew", lambda _: "")
    while True:
        if target.interrupt.wait(_LOCAL_POLL if local else _POLL):
            raise KeyboardInterrupt
        try:
            described = target.runner.status(handle)
            done = renew(name)
        except UserError:
            raise
        except Exception as error:
            # An engine under load answers late; the stage is well for all that is known.
            if time.monotonic() - answered > _UNANSWERED:
                raise
            if shown != (shown := f"its status cannot be read now: {storage_error(error)}"):
                echo(f"{target.label}{app.name}: {shown}", sys.stderr)
            continue
        answered = time.monotonic()
        if described is None or is_terminal(described.state):
            return described
        # Why it is pending or restarting.
        for text in filter(None, (described.msg.replace(NONE, ""), done)):
            if shown != (shown := text):
                echo(f"{target.label}{app.name}: {text}", sys.stderr)


def status_from_scheduler(ended: AppStatus) -> int | None:
    """Return the exit status in the error file that the scheduler has read."""
    try:
        report = parse(json.loads(ended.structured_error_msg))
    except ValueError:
        return None
    return report.status if report else None


def _status_from_attempt(stage: str, run_dir: str, launched: datetime) -> int | None:
    """Return the status of the attempt that a training has recorded in its run directory since it was launched."""
    if stage != "train":
        return None
    try:
        run = RunDir(run_dir)
        attempt = run.read_json(RunDir.attempt(max(run.attempts(), default=0))) or {}
        fresh = datetime.fromisoformat(attempt["started"]) >= launched - _CLOCK_SKEW
    except Exception:  # noqa: BLE001 - the stage has failed, whatever can be read
        return None
    status = attempt.get("status")
    return status if fresh and isinstance(status, int) else None


def _tail(target: LaunchTarget, handle: AppHandle, role: str, replica: int) -> None:
    """Print the log of one replica as it grows."""
    prefix = target.label + prefix_of(role, replica)
    try:
        for line in target.runner.log_lines(handle, role, replica, should_tail=True):
            echo(prefix + line.rstrip("\n"))
            target.said(line)
    except Exception as error:  # noqa: BLE001 - a lost log does not fail the run
        echo(f"{prefix}(log unavailable: {storage_error(error)})", sys.stderr)


def prefix_of(role: str, replica: int) -> str:
    """Return what stands before each line of a replica's log: its name, except for replica 0."""
    return "" if replica == 0 else f"[{role} {replica}] "


def echo(text: str, stream: Any = None) -> None:
    """Print a line at once, to stdout by default."""
    print_line(text, stream or sys.stdout)
