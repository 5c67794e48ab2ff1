"""A configuration under the names of the flags of fit, in JSON's types."""

import math
from typing import Any


def flatten(value: Any, key: str = "") -> dict[str, Any]:
    """Return a configuration in JSON's types, with the names of flags: `model.learning_rate`, without `init_args`."""
    if not isinstance(value, dict) or not value:
        return {key: _plain(value)}
    found: dict[str, Any] = {}
    for part, below in value.items():
        name = key if part == "init_args" and key and isinstance(below, dict) else f"{key}.{part}".lstrip(".")
        if name != key or below:
            found |= flatten(below, name)
    return found


def _plain(value: Any) -> Any:
    """Return a value in JSON's types: YAML knows dates, and numbers that are none, too."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
