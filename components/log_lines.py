"""Lines of a log that arrives in pieces, each once, however often it is read again.

Docker and Kubernetes start a log at a whole second, and stamp each line: what was read already is skipped by its time.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from torchx.schedulers.api import Stream

_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ?(.*)", re.DOTALL)


def require_combined(streams: Stream | None) -> None:
    """Refuse to show one of the two streams where a launcher does not keep them apart.

    Raises:
        ValueError: One of the two is asked for.
    """
    if streams not in (None, Stream.COMBINED):
        raise ValueError(f"streams={streams} must be {Stream.COMBINED.value}")


class LogLine(NamedTuple):
    """A line of a log.

    Attributes:
        at: Nanoseconds since 1970; that of the previous line for one without a timestamp.
        text: The line without its end.
    """

    at: int
    text: str


class LogCursor:
    """How far a log has been read.

    Args:
        since: Earlier lines are skipped.
    """

    def __init__(self, since: datetime | None) -> None:
        self._last = nanoseconds(since) if since else 0
        self._repeated = 0

    @property
    def since(self) -> datetime | None:
        """The second from which the log must be read again; None for its beginning."""
        return datetime.fromtimestamp(self._last // 10**9, UTC) if self._last else None

    def unread(self, pieces: Iterable[bytes]) -> Iterator[LogLine]:
        """Yield the lines that have not been read yet."""
        caught_up, skip, at = False, self._repeated, self._last
        for raw in whole_lines(pieces):
            line = _parsed(raw, at)
            at = line.at
            if not caught_up and (at < self._last or (at == self._last and skip)):
                skip -= at == self._last
                continue
            # From here on all lines are new, also those of another stream that are stamped a little earlier.
            caught_up = True
            if at >= self._last:
                # Lines may have the same timestamp: count those that have been read.
                self._repeated = self._repeated + 1 if at == self._last else 1
                self._last = at
            yield line


def nanoseconds(time: datetime) -> int:
    """Return a time in nanoseconds since 1970; one without a zone is in this machine's."""
    return int(time.timestamp()) * 10**9 + time.microsecond * 1000


def whole_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines without their ends; also an unterminated last one, if the pieces end without an error."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _parsed(raw: bytes, last: int) -> LogLine:
    text = raw.decode(errors="replace").rstrip("\r")
    match = _STAMP.fullmatch(text)
    if not match:
        return LogLine(last, text)
    second = datetime.fromisoformat(match[1] + match[3])
    return LogLine(nanoseconds(second) + int((match[2] or "0").ljust(9, "0")), match[4])
