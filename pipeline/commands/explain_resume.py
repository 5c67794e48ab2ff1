"""The command line of `python -m pipeline explain_resume`, whose other flags are those of fit."""

from collections.abc import Sequence

from pipeline.commands.command_parser import CommandParser
from pipeline.errors import DONE


def run(arguments: Sequence[str]) -> int:
    """Print what the next fit would do, and return the exit status.

    Raises:
        UserError: Everything for which the fit itself would refuse to start, or its data cannot be built.
    """
    parser = CommandParser(
        "explain_resume",
        "Show what the next fit would resume from. Takes the flags of fit, such as --run_dir; those that are left out "
        "are the run's own.",
    )
    parser.add_argument("--world_size", type=int, help="Processes that would train. Default: as the run had.")
    own, flags = parser.parse_known_args(arguments)
    from pipeline.commands.resume_explanation import explain_fit  # noqa: PLC0415 - imports Lightning

    print(explain_fit(flags, own.world_size))  # noqa: T201 - the output of the command
    return DONE
