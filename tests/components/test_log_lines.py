"""Lines of a log that arrives in pieces."""

from collections.abc import Iterator

import pytest

from components.log_lines import whole_lines


def test_lines_are_whole_wherever_the_pieces_end() -> None:
    assert list(whole_lines([b"a\nb", b"c\n", b"\nd"])) == [b"a", b"bc", b"", b"d"]
    assert list(whole_lines([])) == []


def test_an_unterminated_line_before_an_error_is_dropped() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"a\nb"
        raise ConnectionError

    lines = whole_lines(pieces())
    assert next(lines) == b"a"
    with pytest.raises(ConnectionError):
        next(lines)
