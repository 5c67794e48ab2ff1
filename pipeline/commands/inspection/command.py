"""Runs the subcommands that look at a model and at data."""

from pipeline.commands.inspection.data import look_at
from pipeline.commands.inspection.summary import StepFailed, summarize
from pipeline.config.parser import CommandLine
from pipeline.errors import UserError
from pipeline.process.output import drop_lost_output


def inspect(command: CommandLine) -> None:
    """Print what `summary` or `data` found.

    Raises:
        UserError: What the user must change, once all that is known has been printed.
    """
    problems: list[str] = []
    try:
        text, problems = (summarize(command), []) if command.subcommand == "summary" else look_at(command)
    except StepFailed as error:
        text, problems = error.known, list(error.problems)
    try:
        print(text, flush=True)  # noqa: T201 - it is what was asked for
    except OSError:  # its reader is gone
        drop_lost_output()
    if problems:
        raise UserError(*problems)
