"""Amounts as people read and write them: bytes, operations, counts."""

import re

from pipeline.errors import UserError

_STEPS = ("", "k", "M", "G", "T", "P", "E")
_UNITS = {
    **{f"{prefix}b": 1000**at for at, prefix in enumerate(("", "k", "m", "g", "t"))},
    **{f"{prefix}ib": 1024**at for at, prefix in enumerate(("k", "m", "g", "t"), 1)},
}


def shortened(number: float, unit: str = "") -> str:
    """Return a number >= 0 with three digits and a decimal prefix: `1.23 kB`, `4.56 G`."""
    step = 0
    while step + 1 < len(_STEPS) and number >= 999.5:
        number, step = number / 1000, step + 1
    digits = f"{number:.0f}" if not step or number >= 99.95 else f"{number:.1f}" if number >= 9.995 else f"{number:.2f}"
    return f"{digits} {_STEPS[step]}{unit}".rstrip()


def in_bytes(number: float) -> str:
    """Return a number of bytes in words, by powers of 1000."""
    return shortened(number, "B")


def parse_bytes(name: str, text: str) -> int:
    """Return the bytes that a text such as `80GB` or `24 GiB` says.

    Args:
        name: Of the flag.
        text: A number and a unit: GB are 1000**3 bytes, GiB 1024**3.

    Raises:
        UserError: It is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*", text)
    factor = _UNITS.get(found[2].lower()) if found else None
    if found is None or factor is None or not float(found[1]):
        raise UserError(f"{name}={text!r} must be a number > 0 and its unit, such as 80GB or 24GiB")
    return int(float(found[1]) * factor)


def number(value: float) -> str:
    """Return a number of a sample as short as it can be read."""
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value)}" if abs(value) < 1e6 else f"{value:.4g}"
    return f"{value:.4g}"
