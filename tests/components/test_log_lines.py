"""Lines of a log that arrives in pieces, each once."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from components.log_lines import LogCursor, LogLine, whole_lines


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


def test_a_log_that_is_read_again_repeats_and_loses_no_line() -> None:
    stamps = ["2026-01-01T00:00:00.1Z", *["2026-01-01T00:00:01.000000002Z"] * 3, "2026-01-01T01:00:02+01:00"]
    lines = [f"{stamp} {number}\r\n".encode() for number, stamp in enumerate(stamps)]
    cursor = LogCursor(None)
    assert cursor.since is None
    assert [line.text for line in cursor.unread(lines[:3])] == ["0", "1", "2"]
    assert cursor.since == datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert [line.text for line in cursor.unread(lines[1:])] == ["3", "4"]
    assert list(cursor.unread(lines[4:])) == []


def test_earlier_lines_are_skipped_and_one_without_a_timestamp_has_that_of_the_line_before() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    cursor = LogCursor(start + timedelta(milliseconds=2))
    pieces = [b"2026-01-01T00:00:00.001Z early\n2026-01-01T00:00:00.003Z late\nno stamp\n"]
    at = int(start.timestamp()) * 10**9 + 3 * 10**6
    assert list(cursor.unread(pieces)) == [LogLine(at, "late"), LogLine(at, "no stamp")]


def test_a_line_that_is_stamped_a_little_earlier_than_the_one_before_is_not_lost() -> None:
    lines = [f"2026-01-01T00:00:00.{number}Z {number}\n".encode() for number in (1, 3, 2, 4)]
    cursor = LogCursor(None)
    assert [line.text for line in cursor.unread(lines)] == ["1", "3", "2", "4"]
    assert list(cursor.unread(lines)) == []
