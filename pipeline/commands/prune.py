"""`python -m pipeline prune`: delete the checkpoints of a run that need not be kept."""

import argparse

from pipeline.checkpoint.retention import Keep, prune
from pipeline.commands.command_parser import add_run_dir, boolean, readable_run
from pipeline.errors import CRASH, DONE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `prune`."""
    add_run_dir(parser)
    parser.add_argument("--keep_last", type=int, required=True, help="Keep this many of the newest, at least one.")
    parser.add_argument(
        "--keep_best", type=int, default=1, help="Also keep this many of the best by the monitored value. Default: 1."
    )
    parser.add_argument("--keep_every_n_steps", type=int, help="Also keep one for every n steps.")
    parser.add_argument(
        "--dry_run", type=boolean, default=False, metavar="true|false", help="Only list what would be deleted."
    )


def run(arguments: argparse.Namespace) -> int:
    """Prune, print what was deleted, and return the exit status."""
    keep = Keep(arguments.keep_last, arguments.keep_best, arguments.keep_every_n_steps)
    text, done = prune(readable_run(arguments.run_dir), keep, arguments.dry_run)
    print(text)  # noqa: T201 - the output of the command
    return DONE if done else CRASH
