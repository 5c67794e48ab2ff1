"""Runs of any TorchX scheduler: list them, show the status of one, read its log, cancel it.

    python -m components.jobs list -s kubernetes_job
    python -m components.jobs status kubernetes_job://torchx/team:fox-train
    python -m components.jobs logs --follow -s slurm fox-train
    python -m components.jobs cancel slurm://torchx/123

Like TorchX's commands of these names, but with one sentence for each problem, and these exit statuses: 0 done, 1 the
scheduler does not answer, 2 the user must change something, 3 (`status`) the run failed or was cancelled, 130
interrupted. `status` also ends with 0 while a run is pending or running.
"""

import argparse
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torchx.runner import Runner, get_runner
from torchx.specs import NONE, AppState, AppStatus, is_terminal, make_app_handle

from components.stages import SESSION, echo, prefix_of, status_from_scheduler
from pipeline.errors import CRASH, DONE, INTERRUPTED, USER_MUST_CHANGE, UserError, did_you_mean, in_one_line
from pipeline.process.output import drop_lost_output

FAILED = 3
"""The exit status of `status` for a run that failed or was cancelled; how, it prints."""
_USUAL = ("kubernetes_job", "slurm", "local_docker")
"""The schedulers that `list` asks unless one is named; TorchX's own ones have no runs of ours, or forget them."""
_LOCAL, _NOT_KEPT = "local_cwd", "its runs are known only to the process that started them"
_POLL = 0.1
"""Seconds between two looks at the threads that print logs."""
_RUN = "SCHEDULER://SESSION/ID"
_NAMES = "the run, as launch and torchx run print it, or its id and -s SCHEDULER"
_HANDLE = re.compile(r"(\w+)://[^/]*/([^/]+)(?:/([^/]+)(?:/(\d+(?:,\d+)*))?)?")
_REFUSALS = (UserError, ImportError, NotImplementedError)
"""What only the user can change; the last two: the scheduler's package is not here, or it cannot do this."""


class JobRef(NamedTuple):
    """A run, or a part of it.

    Attributes:
        scheduler: The name of its scheduler.
        name: Its name there.
        role: The role; empty for all of them.
        replicas: The numbers of the replicas; empty for all of them.
    """

    scheduler: str
    name: str
    role: str = ""
    replicas: tuple[int, ...] = ()

    @property
    def handle(self) -> str:
        """The run in TorchX's words."""
        return make_app_handle(self.scheduler, SESSION, self.name)


def main(arguments: Sequence[str]) -> int:
    """Run a command, and return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        with get_runner() as runner:
            status: int = options.command(runner, options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # As `head` leaves it, which has what it wanted.
        drop_lost_output()
        return DONE
    except Exception as error:  # noqa: BLE001 - a command has no traceback, whatever a scheduler raises
        return _told(error)
    return status


def _list(runner: Runner, options: argparse.Namespace) -> int:
    """Print the runs of one scheduler, or of all usual ones that answer."""
    if options.scheduler:
        _require_scheduler(runner, options.scheduler)
        if options.scheduler == _LOCAL:
            raise UserError(f"{_LOCAL}: {_NOT_KEPT}")
    asked = (
        [options.scheduler] if options.scheduler else [name for name in _USUAL if name in runner.scheduler_backends()]
    )
    found: list[dict[str, Any]] = []
    failed: dict[str, Exception] = {}
    for name in asked:
        try:
            found += [{"handle": run.app_handle, "state": run.state.name} for run in runner.list(name)]
        except Exception as error:  # noqa: BLE001 - the others are listed
            failed[name] = error
    if len(failed) == len(asked):
        return _told(*failed.values())
    for name, why in failed.items():
        echo(f"{name}: {in_one_line(why)}", sys.stderr)
    _print(options, found, *(f"{run['state']:<10} {run['handle']}" for run in found))
    return DONE


def _status(runner: Runner, options: argparse.Namespace) -> int:
    """Print the state of a run and of its replicas, why it waits, and how it has ended."""
    run = _job_ref(runner, options)
    found = _status_of(runner, run)
    status, message = _exit_status(found), found.msg.replace(NONE, "")
    replicas = [
        {"role": role.role, "replica": one.id, "state": one.state.name, "host": one.hostname}
        for role in found.roles
        for one in role.replicas
    ]
    ended = "" if status is None else f" with status {status}"
    restarts = f", restarted {found.num_restarts} times" if found.num_restarts > 0 else ""  # -1: unknown
    _print(
        options,
        {
            "handle": run.handle,
            "state": found.state.name,
            "status": status,
            "restarts": found.num_restarts,
            "message": message,
            "replicas": replicas,
        },
        f"{run.handle}: {found.state.name}{ended}{restarts}{f': {message}' if message else ''}",
        *(f"  {one['role']}/{one['replica']} {one['state']} {one['host']}".rstrip() for one in replicas),
    )
    return FAILED if status else DONE


def _logs(runner: Runner, options: argparse.Namespace) -> int:
    """Print the log of a run, or of some of its replicas."""
    run = _job_ref(runner, options)
    _status_of(runner, run)
    described = runner.describe(run.handle)
    every = [(role.name, k) for role in (described.roles if described else ()) for k in range(role.num_replicas)]
    wanted = [(role, k) for role, k in every if run.role in ("", role) and (k in run.replicas or not run.replicas)]
    if len(wanted) < max(len(set(run.replicas)), 1):
        part = "/".join(filter(None, (run.role, ",".join(map(str, run.replicas))))) or run.handle
        raise UserError(f"{part}: this run has {', '.join(f'{role}/{k}' for role, k in every) or 'no log yet'}")
    failed: list[Exception] = []

    def read(role: str, k: int) -> None:
        try:
            for raw in runner.log_lines(run.handle, role, k, should_tail=options.follow):
                line = raw.rstrip("\n")
                _print(options, {"role": role, "replica": k, "line": line}, prefix_of(role, k) + line)
        except Exception as error:  # noqa: BLE001 - the logs of the others go on
            failed.append(error)

    threads = [threading.Thread(target=read, args=one, daemon=True) for one in wanted]
    for thread in threads:
        thread.start()
        if not options.follow:
            thread.join()
    while any(thread.is_alive() for thread in threads) and not any(isinstance(one, BrokenPipeError) for one in failed):
        time.sleep(_POLL)
    if gone := [one for one in failed if isinstance(one, BrokenPipeError)]:
        raise gone[0]
    return _told(*failed) if failed else DONE


def _cancel(runner: Runner, options: argparse.Namespace) -> int:
    """Cancel a run, unless it has ended."""
    run = _job_ref(runner, options)
    before = _status_of(runner, run)
    ended = is_terminal(before.state)
    if not ended:
        runner.cancel(run.handle)
    what = f"has ended already: {before.state.name}" if ended else "cancelled; its processes save and end"
    _print(options, {"handle": run.handle, "cancelled": not ended, "before": before.state.name}, f"{run.handle} {what}")
    return DONE


def _job_ref(runner: Runner, options: argparse.Namespace) -> JobRef:
    """Return the run that the command line names.

    Raises:
        UserError: It names none.
    """
    match = _HANDLE.fullmatch(options.run if "://" in options.run else f"{options.scheduler}://{SESSION}/{options.run}")
    if not match:
        raise UserError(f"run={options.run!r} must be {_RUN}, or an ID whose scheduler is named by -s SCHEDULER")
    scheduler, name, role, replicas = match.groups()
    if options.scheduler not in ("", scheduler):
        raise UserError(f"run={options.run!r} is not of scheduler={options.scheduler!r}: leave out -s")
    _require_scheduler(runner, scheduler)
    return JobRef(scheduler, name, role or "", tuple(map(int, replicas.split(","))) if replicas else ())


def _require_scheduler(runner: Runner, name: str) -> None:
    known = runner.scheduler_backends()
    if name not in known:
        raise UserError(f"scheduler={name!r} must be one of {', '.join(sorted(known))}{did_you_mean(name, known)}")


def _status_of(runner: Runner, run: JobRef) -> AppStatus:
    """Return the status of a run; raise a UserError if its scheduler does not know it."""
    found = runner.status(run.handle)
    if found is None:
        why = (
            _NOT_KEPT
            if run.scheduler == _LOCAL
            else f"`python -m components.jobs list -s {run.scheduler}` shows those that are there"
        )
        raise UserError(f"{run.scheduler} has no run {run.name!r}, or it has been deleted: {why}")
    return found


def _exit_status(found: AppStatus) -> int | None:
    """Return the status with which a run has ended; None if it has not."""
    if not is_terminal(found.state):
        return None
    clear = {AppState.SUCCEEDED: DONE, AppState.CANCELLED: INTERRUPTED}
    return clear[found.state] if found.state in clear else status_from_scheduler(found) or CRASH


def _print(options: argparse.Namespace, content: Any, *lines: str) -> None:
    for line in [json.dumps(content)] if options.json else lines:
        # In one piece, for the logs of several replicas are printed at once.
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


def _told(*errors: Exception) -> int:
    """Print errors, each sentence once, and return the exit status that they mean."""
    texts = [text for one in errors for text in (one.problems if isinstance(one, UserError) else [in_one_line(one)])]
    for text in dict.fromkeys(texts):
        echo(f"error: {text}", sys.stderr)
    return USER_MUST_CHANGE if all(isinstance(one, _REFUSALS) for one in errors) else CRASH


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m components.jobs", description=__doc__, formatter_class=form, allow_abbrev=False
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[Runner, argparse.Namespace], int]) -> argparse.ArgumentParser:
        summary = (command.__doc__ or "").rstrip(".")
        one = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        one.set_defaults(command=command)
        one.add_argument("-s", "--scheduler", default="", help="TorchX scheduler")
        one.add_argument("--json", action="store_true", help="print JSON, each object in a line")
        return one

    add("list", _list)
    add("status", _status).add_argument("run", metavar=_RUN, help=_NAMES)
    logs = add("logs", _logs)
    logs.add_argument("run", metavar=f"{_RUN}[/ROLE[/REPLICA,...]]", help=f"{_NAMES}; also a part of it")
    logs.add_argument("--follow", action="store_true", help="continue until the run has ended")
    add("cancel", _cancel).add_argument("run", metavar=_RUN, help=_NAMES)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
