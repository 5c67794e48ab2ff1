"""The two forms of what a process says: lines for people, or one JSON object a line for machines (`--log_format`)."""

import argparse
import json
import math
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import UserError

TEXT, JSON = FORMATS = ("text", "json")
VARIABLE = "PIPELINE_LOG_FORMAT"
"""Of the environment: the format where the command line names none."""


def chosen(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> str:
    """Return the format that a command line asks for, before it is parsed: its mistakes are said in that, too.

    Args:
        arguments: Of a subcommand.
        environment: Names the format for a command line that does not.

    Raises:
        UserError: It is none of `FORMATS`.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--log_format", default=None)
    try:
        given: str | None = finder.parse_known_args(list(arguments))[0].log_format
    except argparse.ArgumentError as error:
        raise UserError(f"{error}: must be {' or '.join(FORMATS)}") from error
    name = f"{VARIABLE}=" if given is None else "log_format="
    found = environment.get(VARIABLE) or TEXT if given is None else given
    if found not in FORMATS:
        raise UserError(f"{name}{found!r} must be {' or '.join(FORMATS)}")
    return found


class LogFormat:
    """How this process writes its lines.

    Attributes:
        name: One of `FORMATS`.
    """

    name = TEXT

    @property
    def is_json(self) -> bool:
        """Whether a line is a JSON object."""
        return self.name == JSON


OWN = LogFormat()
"""This process's. The agent and each worker find theirs on the command line that both have."""


def json_line(message: str, level: str, logger: str, at: float | None = None, **fields: Any) -> str:
    """Return one line.

    Args:
        message: For people; it may have several lines.
        level: `debug`, `info`, `warning`, `error` or `critical`.
        logger: Who says it.
        at: Seconds since 1970; None: now.
        fields: More of the object. Numbers that JSON does not know are written as text: `"nan"`, `"inf"`.
    """
    moment = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    time = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    rank = os.environ.get("RANK", "")
    known = {"time": time, "level": level, "rank": int(rank) if rank.isdecimal() else None, "logger": logger}
    return json.dumps(_plain({**known, "message": message, **fields}), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | None) else str(value)
