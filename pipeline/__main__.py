"""`python -m pipeline <subcommand>`: what runs in the container.

python -m pipeline fit --config pipeline/configs/digits.yaml --run_dir runs/one
python -m pipeline.agent --nproc_per_node 2 -m pipeline fit --config pipeline/configs/digits.yaml --run_dir runs/two
python -m pipeline test --run_dir runs/one
python -m pipeline data --config pipeline/configs/digits.yaml
python -m pipeline summary --config pipeline/configs/digits.yaml --max_depth -1
python -m pipeline verify --run_dir runs/one
python -m pipeline explain_resume --run_dir runs/one --world_size 4
python -m pipeline prune --run_dir runs/one --keep_last 2 --dry_run true
python -m pipeline probe s3://bucket/folder
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from pipeline.process.held_signals import hold_signals


def _import_all() -> Callable[[], None]:
    from pipeline import cli  # noqa: F401, PLC0415
    from pipeline.training.forked import renew_imports  # noqa: PLC0415

    for name in ("torch.utils.tensorboard", "s3fs", "obstore.store"):  # which most runs import later
        with suppress(ImportError):
            importlib.import_module(name)
    return renew_imports


def _stand_by() -> None:
    """Import everything, and wait until workers are wanted; returns in each of them."""
    from pipeline.process import fork_server  # noqa: PLC0415

    fork_server.serve(_import_all)


if __name__ == "__main__":
    hold_signals()  # before anything else is imported
    if "standby" in sys._xoptions:
        _stand_by()

from pipeline.errors import CRASH, INTERRUPTED, outcome
from pipeline.process.end_facts import tell_own_end
from pipeline.process.error_file import guarded
from pipeline.process.output import flush_output
from pipeline.process.preemption import Preemption
from pipeline.process.search_path import look_for_users_modules_last


def run() -> int:
    """Run this process's command line, and listen to signals from before torch is imported."""
    preemption = Preemption()
    preemption.listen()
    look_for_users_modules_last()
    try:
        status = main(sys.argv[1:], preemption)
        preemption.report_unsaved(status)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception as error:
        tell_own_end(sys.argv[1:], CRASH, outcome(error).reason)
        raise
    else:
        tell_own_end(sys.argv[1:], status)
    finally:
        preemption.end()
        flush_output()
    return status


def main(arguments: Sequence[str], preemption: Preemption) -> int:
    """Run one command line: a command that needs no model at once, any other through Lightning's CLI.

    Args:
        arguments: Without the program's name.
        preemption: Whether this process is asked to end.

    Returns:
        The exit status.
    """
    # Imported here, for it takes time (Lightning seconds), in which a signal must be heard.
    from pipeline.commands import dispatch  # noqa: PLC0415
    from pipeline.config.found_configs import with_found_configs  # noqa: PLC0415

    arguments = with_found_configs(arguments)
    if dispatch.handles(arguments):
        preemption.mark_opened()
        return dispatch.main(arguments)
    from pipeline import cli  # noqa: PLC0415

    return cli.main(arguments, preemption)


if __name__ == "__main__":
    sys.exit(guarded(run))
