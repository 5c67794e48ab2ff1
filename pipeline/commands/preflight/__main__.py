"""What the agents start on all nodes: `python -m pipeline preflight`, without what only a training needs."""

import argparse
import sys

from jsonargparse import ArgumentParser

from pipeline.commands.preflight import command
from pipeline.errors import USER_MUST_CHANGE, UserError
from pipeline.process.error_file import guarded
from pipeline.process.preemption import Preemption
from pipeline.process.topology import Topology


def main() -> int:
    """Look at this node and, with the others, at the job."""
    parser = ArgumentParser(prog="python -m pipeline preflight", exit_on_error=False, allow_abbrev=False)
    command.arguments(parser)
    try:
        # Who is asked to end meanwhile looks to the end: it takes some seconds, and the others wait for it.
        with Preemption():
            try:
                config = parser.parse_args(sys.argv[1:])
            except argparse.ArgumentError as error:
                said = " ".join(str(error).split())
                raise UserError(f"{said} ({parser.prog} --help shows what is allowed)") from error
            return command.run(config)
    except UserError as error:
        if Topology.from_environment().rank == 0:
            for problem in error.problems:
                print(f"error: {problem}", file=sys.stderr, flush=True)  # noqa: T201 - it is for whoever started it
        return USER_MUST_CHANGE


if __name__ == "__main__":
    sys.exit(guarded(main))
