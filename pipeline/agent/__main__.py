"""One per node: torchrun's arguments, torch's elastic agent, and our restarts and exit statuses.

    python -m pipeline.agent --nproc_per_node 2 -m pipeline fit --config pipeline/configs/digits.yaml --run_dir runs/two
    python -m pipeline.agent --nnodes 1:4 --nproc_per_node 8 --rdzv_endpoint node0:29500 --max_restarts 3 train.py

A script written for torchrun runs under it unchanged. Where the two differ:

* It ends as the rank that failed first in the whole job did: with its status, with 128+n where signal n ended it; with
  2 where any rank ended with 2. Neither 2 (the user must change something) nor 75 (preempted, with a durable
  checkpoint) is ever restarted in place.
* SIGTERM, SIGHUP, SIGQUIT and SIGUSR1 are passed on as SIGTERM, once; the workers have --shutdown_timeout seconds to
  save and end, and the agent ends with 75. The agents of the other nodes meet again and wait for a replacement.
  A second signal is passed on, too, and leaves 5 s.
* Workers die with their agent, also if it is killed.
* After a crash of a worker, an agent or a node the nodes meet again, --max_restarts times; also where a node is
  replaced by a new one, and where the node that the others meet at is.
* A failure is said once: its traceback by the agent of its own node, one line by the others.

One argument is not torchrun's: `--preflight ARGUMENTS`, in one string, are those of `python -m pipeline preflight`,
which is then run on all nodes before the workers, and again where a node has come that has not been looked at.

Only the c10d rendezvous is served; a single node needs none. How it works: `pipeline.agent.node`.
"""

import logging
import os
import shlex
import shutil
import sys
import uuid
from argparse import Namespace
from collections.abc import Sequence
from typing import NoReturn

from pipeline.agent.signals import Signals
from pipeline.errors import CRASH, DONE, USER_MUST_CHANGE, UserError
from pipeline.process import error_file as failures
from pipeline.process.preemption import GRACE

_CPP_LOG = "TORCH_CPP_LOG_LEVEL"


def main(arguments: Sequence[str]) -> int:
    """Run a node's workers to their end.

    Args:
        arguments: Those of torchrun.

    Returns:
        The exit status: 0 done, 2 the user must change something, 75 preempted, 130 interrupted by a person; else that
        of the rank that failed first.
    """
    signals = Signals()
    signals.listen()
    error_file = os.environ.get(failures.FILE)
    try:
        status, how, stack = _run(list(arguments), signals)
    except UserError as error:
        status, how, stack = USER_MUST_CHANGE, str(error), ""
        _say(f"error: {error}")
    else:
        if status not in (DONE, USER_MUST_CHANGE) or stack:
            _say("\n".join(filter(None, (stack.rstrip("\n"), how))))
    if error_file and status != DONE:
        failures.write(error_file, status, how, stack)
    return status


def _run(arguments: list[str], signals: Signals) -> tuple[int, str, str]:
    # torch's agent and its store warn of much that is said here in one line; a user's own levels are left as they are.
    own_level = os.environ.setdefault(_CPP_LOG, "ERROR") if _CPP_LOG not in os.environ else None
    if os.environ.get("LOGLEVEL", "ERROR").upper() in ("WARNING", "ERROR", "CRITICAL"):
        logging.disable(logging.CRITICAL)
    # It takes a second, and comes after the levels.
    from torch.distributed.run import config_from_args, get_args_parser  # noqa: PLC0415

    from pipeline.agent.node import NodeAgent  # noqa: PLC0415

    if own_level is not None:
        del os.environ[_CPP_LOG]  # it is read by now, and the workers choose for themselves
    parser = get_args_parser()
    parser.add_argument("--preflight", default="")
    options = parser.parse_args(arguments)
    _check(options)
    try:
        config, program, rest = config_from_args(options)
        assert isinstance(program, str)
        agent = NodeAgent(config, [program, *rest], signals, options.preflight)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"torchrun's arguments do not fit together: {error}") from error
    signals.listen(options.signals_to_handle.split(","))
    # torch would put handlers of its own in place of ours, which raise wherever the program stands: a signal that
    # nobody sends.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGRTMAX"
    os.environ[GRACE] = str(config.shutdown_timeout)
    try:
        ending = agent.serve()
    finally:
        if options.log_dir is None and config.logs_specs is not None:
            shutil.rmtree(config.logs_specs.root_log_dir, ignore_errors=True)
    return ending.status, ending.how, ending.traceback


def _check(options: Namespace) -> None:
    """Make torchrun's shorthand for a single node explicit, and refuse what is not served.

    Raises:
        UserError: Another rendezvous than c10d over TCP, or arguments of a preflight with a quote that is not closed.
    """
    try:
        shlex.split(options.preflight)
    except ValueError as error:
        raise UserError(
            f"preflight={options.preflight!r}: {error}; allowed are arguments in a shell's quotes"
        ) from error
    options.run_path = None  # a worker is a process of its own anyway
    most = options.nnodes.rpartition(":")[2]
    if options.standalone or (options.rdzv_backend == "static" and not options.rdzv_endpoint and most == "1"):
        options.rdzv_backend, options.rdzv_endpoint, options.rdzv_id = "c10d", "localhost:0", str(uuid.uuid4())
    if options.rdzv_backend == "static" and options.rdzv_endpoint:
        options.rdzv_backend = "c10d"
    if options.rdzv_backend != "c10d" or "store_type=file" in options.rdzv_conf:
        raise UserError(
            f"rdzv_backend={options.rdzv_backend!r} with rdzv_conf={options.rdzv_conf!r}: nodes meet by "
            "--rdzv_backend c10d --rdzv_endpoint <node 0>:<port>"
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def _exit(status: int) -> NoReturn:
    """End now: a thread may stand in a call to a store that is gone, for which Python would wait."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    try:
        _exit(main(sys.argv[1:]))
    except Exception:  # noqa: BLE001 - as Python does, but without waiting for threads
        sys.excepthook(*sys.exc_info())
        _exit(CRASH)
