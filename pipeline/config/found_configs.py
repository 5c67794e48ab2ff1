"""Configurations of this package, found from any folder. Imports the standard library alone."""

import os
from collections.abc import Sequence
from pathlib import Path

_SHIPPED = "pipeline/configs/"


def find_config(path: str) -> str:
    """Return the path of a configuration: `pipeline/configs/...` is the installed package's where it is not here."""
    shipped = Path(__file__).parents[1] / "configs" / path.removeprefix(_SHIPPED)
    return str(shipped) if path.startswith(_SHIPPED) and not os.path.exists(path) and shipped.is_file() else path


def with_found_configs(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which each `--config` names a file that `find_config` has found."""
    found, before = [], ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if before in ("-c", "--config"):
            found.append(find_config(argument))
        else:
            found.append(f"{name}={find_config(value)}" if equals and name == "--config" else argument)
        before = argument
    return found
