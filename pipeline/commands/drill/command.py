"""The command line of a drill: `python -m pipeline drill`."""

import argparse

from pipeline.commands.command_parser import add_run_dir, boolean
from pipeline.errors import CRASH, DONE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `drill`."""
    parser.add_argument("--config", required=True, help="YAML file of the training, as for fit.")
    add_run_dir(parser, "Where both runs and drill.json go: a new path or fsspec URL.")
    parser.add_argument(
        "--faults",
        type=int,
        default=12,
        help="Faults; with as many as there are kinds, each comes at least once. Default: 12.",
    )
    parser.add_argument("--seed", type=int, default=7, help="Determines the plan of the faults. Default: 7.")
    parser.add_argument("--nodes", type=int, default=2, help="Nodes of the job, all on this machine. Default: 2.")
    parser.add_argument("--processes", type=int, default=1, help="Processes of each node. Default: 1.")
    parser.add_argument(
        "--resize", type=boolean, default=False, metavar="true|false", help="Also train with one node less for a while."
    )
    parser.add_argument(
        "--kinds",
        default="",
        help="Only faults of these kinds, separated by commas, such as kill_rank,kill_agent. Default: all.",
    )
    parser.add_argument(
        "--save_every",
        type=float,
        default=2.0,
        help="Seconds at most between two saves under faults, so that there is something to resume from. Default: 2.",
    )
    parser.add_argument(
        "--recovery",
        choices=("memory", "storage"),
        default="memory",
        help="Whether the agents' restarts may resume from the nodes' memory (the default), or from storage alone.",
    )
    parser.add_argument("--args", default="", metavar="FLAGS", help="More flags of fit, in one string.")


def run(arguments: argparse.Namespace) -> int:
    """Drill, print the report, and return the exit status."""
    from pipeline.commands.drill.runner import drill  # noqa: PLC0415 - imports torch

    text, holds = drill(arguments)
    print(text)  # noqa: T201 - the output of the command
    return DONE if holds else CRASH
