"""Lines of a log that arrives in pieces."""

from collections.abc import Iterable, Iterator


def whole_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines without their ends; also an unterminated last one, if the pieces end without an error."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    if rest:
        yield rest
