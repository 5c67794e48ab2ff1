"""A table in plain text."""

from collections.abc import Collection, Sequence


def table(rows: Sequence[Sequence[str]], left: Collection[str]) -> list[str]:
    """Return a line for each row, the first of which holds the names of the columns.

    Args:
        rows: All of the same length.
        left: The names of the columns that are aligned to the left; the others are to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    justify = [str.ljust if name in left else str.rjust for name in rows[0]]
    return [
        "  ".join(just(cell, width) for just, cell, width in zip(justify, row, widths, strict=True)).rstrip()
        for row in rows
    ]
