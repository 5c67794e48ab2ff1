"""One per node: torchrun's arguments, torch's elastic agent, and our restarts and exit statuses.

    python -m pipeline.agent --nproc_per_node 2 -m pipeline fit --config pipeline/configs/digits.yaml --run_dir runs/two
    python -m pipeline.agent --nnodes 1:4 --nproc_per_node 8 --rdzv_endpoint node0:29500 --max_restarts 3 train.py

A script written for torchrun runs under it unchanged. The differences:

* It exits as the rank that failed first in the whole job did: with its status, with 128+n if signal n killed it; with
  2 if any rank exited with 2. Neither 2 (the user must change something) nor 75 (preempted, with a durable checkpoint)
  is ever restarted in place.
* SIGTERM, SIGHUP, SIGQUIT and SIGUSR1 are forwarded as SIGTERM, once; the workers have --shutdown_timeout seconds to
  save and exit, and the agent exits with 75. The agents of the other nodes re-run the rendezvous and wait for a
  replacement. A second signal is forwarded, too, and leaves 5 s.
* Workers die with their agent, even if it is killed.
* After a crash of a worker, an agent or a node the rendezvous is re-run, --max_restarts times (3); also if a node is
  replaced by a new one, node 0 included, which hosts the rendezvous.
* A failure is reported once: its traceback by the agent of its own node, one line by the others.

Two options are not torchrun's. `--preflight ARGUMENTS`, in one string, are those of `python -m pipeline preflight`,
which then runs on all nodes before the workers, and again when a node has joined that has not been checked. `--standby`
says whether workers of `-m pipeline` are forked from a process that has imported all (`pipeline.agent.standby`).

Only the c10d rendezvous is served; a single node needs none. How it works: `pipeline.agent.node`.
"""

from pipeline.process.held_signals import hold_signals

if __name__ == "__main__":
    hold_signals()  # before anything else is imported

import logging
import os
import shlex
import shutil
import sys
import tempfile
import uuid
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from pipeline.agent.arguments import parser
from pipeline.agent.policy import JobEnd
from pipeline.agent.signals import Signals
from pipeline.agent.standby import CHOICES, Standby, command_of
from pipeline.errors import CRASH, DONE, INTERRUPTED, PREEMPTED, USER_MUST_CHANGE, UserError
from pipeline.process import bottom_rows, end_facts, error_file, started_runs
from pipeline.process.host_memory import HostMemory
from pipeline.process.log_format import OWN, chosen
from pipeline.process.notification import target_of
from pipeline.process.output import drop_lost_output, flush_output, print_line
from pipeline.process.preemption import GRACE, default_grace
from pipeline.process.search_path import look_for_users_modules_last

_CPP_LOG = "TORCH_CPP_LOG_LEVEL"


def main(arguments: Sequence[str]) -> int:
    """Run a node's workers to their end.

    Args:
        arguments: Those of torchrun.

    Returns:
        The exit status: 0 done, 2 the user must change something, 75 preempted, 130 interrupted by a person; else that
        of the rank that failed first.
    """
    # torch's launcher renames it for the workers.
    report_to = os.environ.get(error_file.FILE)

    def report(end: JobEnd) -> int:
        if end.status not in (DONE, USER_MUST_CHANGE) or end.traceback:
            level = "info" if end.status in (DONE, PREEMPTED) else "error"
            print_line("\n".join(filter(None, (end.traceback.rstrip("\n"), end.reason))), level=level)
        if report_to and end.status != DONE:
            error_file.write_report(report_to, end.status, end.reason, end.traceback)
        return end.status

    def exit_at_once() -> None:
        reason = f"node {os.uname().nodename} received {signals.name()} before its workers were started"
        _exit(report(JobEnd(INTERRUPTED if signals.interrupted else PREEMPTED, reason)))

    signals = Signals(exit_at_once)
    signals.listen()
    look_for_users_modules_last()
    facts: dict[str, Any] = {}
    try:
        end = _run(arguments, signals, facts)
        report(end)
        if facts.pop("speaks", False):
            end_facts.tell_of(facts, target_of(arguments), end.status, end.reason)
        return end.status
    except UserError as error:
        print_line(f"error: {error}", level="error")
        return report(JobEnd(USER_MUST_CHANGE, str(error)))


def _run(arguments: Sequence[str], signals: Signals, facts: dict[str, Any]) -> JobEnd:
    options, defaults = parser().parse_args(list(arguments)), parser().parse_args(["script"])
    ours = options.module and options.training_script == "pipeline"
    with suppress(UserError):  # the workers say what is wrong with it
        OWN.name = chosen(options.training_script_args if ours else ())
    grace = _check(options)
    HostMemory.create()
    standby = Standby(command_of(options))
    try:
        if options.nproc_per_node.isdecimal() and not options.preflight:
            if int(options.nproc_per_node) > 1:
                os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torch does, but not as early
            standby.start()  # so that it imports while this process does
        return _serve(options, defaults, grace, signals, standby, facts)
    finally:
        standby.end()


def _serve(
    options: Namespace,
    defaults: Namespace,
    grace: float,
    signals: Signals,
    standby: Standby,
    facts: dict[str, Any],
) -> JobEnd:
    """Run the node's part in the job; leave in `facts` what is known of the run, and whether this agent tells of it."""
    # torch's agent and its store warn of much that is reported here in one line; levels that the user set stay.
    quiet = _CPP_LOG not in os.environ
    if quiet:
        os.environ[_CPP_LOG] = "ERROR"
    if os.environ.get("LOGLEVEL", "ERROR").upper() in ("WARNING", "ERROR", "CRITICAL"):
        logging.disable(logging.CRITICAL)
    # It imports torch, which takes more than a second and reads the level.
    from pipeline.agent import compat  # noqa: PLC0415
    from pipeline.agent.node import NodeAgent  # noqa: PLC0415

    if quiet:
        del os.environ[_CPP_LOG]  # the workers choose for themselves
    try:
        config, program = compat.launch_config(options, defaults)
        agent = NodeAgent(config, program, signals, grace, options.preflight, standby)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"invalid torchrun arguments: {error}") from error
    signals.listen(options.signals_to_handle.split(","))
    # torch would replace our handlers by its own, which raise wherever the program is: name a signal that is not sent.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGRTMAX"
    os.environ[GRACE] = f"{grace:.0f}"
    signals.starting = False
    os.environ[started_runs.FOLDER] = tempfile.mkdtemp(prefix="pipeline-started-")
    try:
        return agent.serve()
    finally:
        facts.update(end_facts.noted_by_workers(os.environ[started_runs.FOLDER]), speaks=agent.speaks)
        shutil.rmtree(os.environ.pop(started_runs.FOLDER), ignore_errors=True)
        if options.log_dir is None and config.logs_specs is not None:
            shutil.rmtree(config.logs_specs.root_log_dir, ignore_errors=True)


def _check(options: Namespace) -> float:
    """Resolve torchrun's shorthand for a single node, and refuse what is not served.

    Returns:
        The seconds that workers have after SIGTERM.

    Raises:
        UserError: Another rendezvous than c10d over TCP, or a value that torchrun would refuse later.
    """
    problems = []
    try:
        shlex.split(options.preflight)
    except ValueError as error:
        problems.append(f"preflight={options.preflight!r}: {error}; must be arguments in a shell's quotes")
    if options.standby not in CHOICES:
        problems.append(f"standby={options.standby!r} must be one of {', '.join(CHOICES)}")
    if options.shutdown_timeout is not None and options.shutdown_timeout < 0:
        problems.append(f"shutdown_timeout={options.shutdown_timeout} must be >= 0 seconds")
    options.run_path = False  # a worker is a process of its own anyway
    max_nodes = options.nnodes.rpartition(":")[2]
    if options.standalone or (options.rdzv_backend == "static" and not options.rdzv_endpoint and max_nodes == "1"):
        options.rdzv_backend, options.rdzv_endpoint, options.rdzv_id = "c10d", "localhost:0", str(uuid.uuid4())
    if options.rdzv_backend == "static" and options.rdzv_endpoint:
        options.rdzv_backend = "c10d"
    if options.rdzv_backend != "c10d" or "store_type=file" in options.rdzv_conf:
        problems.append(
            f"rdzv_backend={options.rdzv_backend!r} with rdzv_conf={options.rdzv_conf!r} must be "
            "--rdzv_backend c10d --rdzv_endpoint <node 0>:<port>"
        )
    if problems:
        raise UserError(*problems)
    return default_grace() if options.shutdown_timeout is None else float(options.shutdown_timeout)


def _exit(status: int) -> NoReturn:
    """Exit now: a thread may be blocked in a call to a lost store, and Python would wait for it."""
    bottom_rows.release(2)  # of a worker that was killed while it drew its progress
    flush_output()
    os._exit(status)


if __name__ == "__main__":
    try:
        _exit(main(sys.argv[1:]))
    except Exception:  # noqa: BLE001 - as Python does, but without waiting for threads
        drop_lost_output()
        sys.excepthook(*sys.exc_info())
        _exit(CRASH)
