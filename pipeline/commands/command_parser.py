"""The command line of a command that needs no model: stdlib argparse, with mistakes as this project reports them."""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from pipeline.errors import UserError, did_you_mean
from pipeline.run.run_dir import RunDir
from pipeline.run.storage_errors import raise_for_user


class CommandParser(argparse.ArgumentParser):
    """Raises a UserError for a mistake, where argparse would print its usage and exit.

    Args:
        name: The command, as in `python -m pipeline <name>`.
        description: One sentence about it.
    """

    def __init__(self, name: str, description: str) -> None:
        super().__init__(prog=f"python -m pipeline {name}", description=description, allow_abbrev=False)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse the arguments after the command's name.

        Raises:
            UserError: One is unknown, missing or not of its type.
        """
        flags = [flag for action in self._actions for flag in action.option_strings]
        arguments = self._with_values(arguments)
        for argument in arguments:
            flag = argument.split("=")[0]
            # Before argparse says that another flag is missing.
            if flag.startswith("--") and flag not in flags:
                self.error(f"unrecognized argument {flag}{did_you_mean(flag, flags)}")
        return self.parse_args(arguments)

    def _with_values(self, arguments: Sequence[str]) -> list[str]:
        """Write `--args --flag` as `--args=--flag`, for options whose value is made of flags (metavar FLAGS)."""
        taking = [flag for action in self._actions if action.metavar == "FLAGS" for flag in action.option_strings]
        joined: list[str] = []
        for argument in arguments:
            if joined and joined[-1] in taking:
                joined[-1] += f"={argument}"
            else:
                joined.append(argument)
        return joined

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found."""
        raise UserError(f"{message} ({self.prog} --help shows what is allowed)")


def boolean(text: str) -> bool:
    """Return the value of a flag such as `--dry_run true`.

    Raises:
        ArgumentTypeError: It is neither true nor false.
    """
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} must be true or false")
    return text.lower() == "true"


def add_run_dir(parser: argparse.ArgumentParser, text: str = "The run directory, a path or any fsspec URL.") -> None:
    """Add the flag that names a run."""
    parser.add_argument("--run_dir", required=True, help=text)


def readable_run(url: str) -> RunDir:
    """Return a run directory that can be read.

    Raises:
        UserError: It cannot be.
        StorageAway: Its storage does not answer.
    """
    run = RunDir(url)
    try:
        run.steps()
    except Exception as error:  # noqa: BLE001 - every storage has errors of its own
        raise_for_user(
            error,
            f"run_dir={run.label!r} cannot be read",
            "Fix the name, or this user's permissions or credentials there",
        )
    return run
