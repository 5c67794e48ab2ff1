"""The command line of a preflight: a subcommand of `python -m pipeline`, and the program that the agents start."""

import argparse
import math
from typing import Any

from pipeline.commands.preflight import Needs, preflight
from pipeline.errors import UserError
from pipeline.process.topology import Topology


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add its arguments to a parser."""
    parser.add_argument("--run_dir", type=str, required=True, help="The run directory, a path or any fsspec URL.")
    parser.add_argument("--gpus", type=int, help="GPUs of each node. Default: one for each process, where any is.")
    parser.add_argument("--memory", type=int, default=0, help="MB of memory that a node must have free.")
    parser.add_argument("--shm", type=int, default=0, help="MB of /dev/shm that a node must have free.")
    parser.add_argument(
        "--disk", type=int, default=0, help="MB of disk that a node must have free for temporary files."
    )
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="For a node to come, and for each part of the look at the network."
    )


def run(config: Any) -> int:
    """Look, print the report on the rank that has it, and return the exit status.

    Raises:
        UserError: Numbers that cannot be.
    """
    given = {"gpus": config.gpus or 0, "memory": config.memory, "shm": config.shm, "disk": config.disk}
    problems = [f"{name}={value}: allowed are 0 and more" for name, value in given.items() if value < 0]
    if not 0 < config.seconds < math.inf:
        problems.append(f"seconds={config.seconds:g}: allowed are numbers above 0")
    if problems:
        raise UserError(*problems)
    needs = Needs(config.gpus, config.memory, config.shm, config.disk)
    text, status = preflight(needs, config.run_dir, config.seconds, Topology.from_environment())
    if text:
        print(text, flush=True)  # noqa: T201 - it is what was asked for
    return status
