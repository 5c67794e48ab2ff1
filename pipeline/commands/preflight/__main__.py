"""What the agents start on all nodes: `python -m pipeline preflight` without the imports of a training."""

import sys

from pipeline.commands.command_parser import CommandParser
from pipeline.commands.preflight import command
from pipeline.errors import USER_MUST_CHANGE, UserError
from pipeline.process.error_file import guarded
from pipeline.process.preemption import Preemption
from pipeline.process.topology import Topology


def main() -> int:
    """Check this node and, with the others, the job."""
    parser = CommandParser("preflight", "Check the nodes of a job.")
    command.add_arguments(parser)
    try:
        # A preflight that is asked to stop runs to its end: it takes seconds, and the other nodes wait for it.
        with Preemption():
            return command.run(parser.parse(sys.argv[1:]))
    except UserError as error:
        if Topology.from_environment().rank == 0:
            for problem in error.problems:
                print(f"error: {problem}", file=sys.stderr, flush=True)  # noqa: T201
        return USER_MUST_CHANGE


if __name__ == "__main__":
    sys.exit(guarded(main))
