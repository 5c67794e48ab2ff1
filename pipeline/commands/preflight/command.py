"""The command line of a preflight, which the agents start on all nodes as well."""

import math
from argparse import ArgumentParser
from typing import Any

from pipeline.errors import UserError


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of a preflight to a parser."""
    parser.add_argument("--run_dir", type=str, required=True, help="Run directory: a path or any fsspec URL.")
    parser.add_argument("--gpus", type=int, help="GPUs per node. Default: one per process, on nodes that have any.")
    for name, what in (("memory", "memory"), ("shm", "shared memory"), ("disk", "disk for temporary files")):
        parser.add_argument(f"--{name}", type=int, default=0, help=f"MB of {what} that must be free on each node.")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="Timeout for a node to arrive, and for each network check."
    )


def run(options: Any) -> int:
    """Check the nodes, print the report on one rank, and return the exit status.

    Raises:
        UserError: An argument is out of range.
    """
    given = {"gpus": options.gpus or 0, "memory": options.memory, "shm": options.shm, "disk": options.disk}
    problems = [f"{name}={value} must be >= 0" for name, value in given.items() if value < 0]
    if not 0 < options.seconds < math.inf:
        problems.append(f"seconds={options.seconds:g} must be a number > 0")
    if problems:
        raise UserError(*problems)
    from pipeline.commands.preflight.network import preflight  # noqa: PLC0415 - imports torch
    from pipeline.commands.preflight.node import NodeRequirements  # noqa: PLC0415
    from pipeline.process.topology import Topology  # noqa: PLC0415

    required = NodeRequirements(options.gpus, options.memory, options.shm, options.disk)
    report, status = preflight(required, options.run_dir, options.seconds, Topology.from_environment())
    if report:
        print(report, flush=True)  # noqa: T201 - it is what was asked for
    return status
