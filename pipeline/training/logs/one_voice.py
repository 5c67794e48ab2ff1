"""Which rank says what several may have to say: a problem of any rank is shown, once.

The first rank that says a text says it for all; rank 0 has a head start, so that what concerns all ranks comes from it.
The ranks tell each other through the launcher's key-value store, in a thread: nothing waits for it. Where the store is
lost, a text is shown, perhaps twice.
"""

import hashlib
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from pipeline.process.topology import Topology

_HEAD_START = 2.0
"""Seconds that rank 0 has to say the same."""
_POLL = 0.2
_MOST = 20
"""Texts that a process other than rank 0's shows: one with a new number each second must not fill the log."""
_DURATION = re.compile(r"\d+(\.\d+)?(?= ?(s|ms|min|h)\b)")
_LIMIT = 3.0
"""Seconds that the end waits for a store that does not answer."""


class OneVoice:
    """The voice of one process among those of all ranks.

    Args:
        topology: Which rank this is, of more than one.
        say: Shows a record; called for the ranks other than 0, from a thread.
    """

    def __init__(self, topology: Topology, say: Callable[[logging.LogRecord], None]) -> None:
        self._topology, self._say = topology, say
        self._begin(met=False)

    def _begin(self, met: bool) -> None:
        self._met = met
        """Whether the other ranks can be asked, even if this process has no connection yet."""
        self._known: set[str] = set()
        self._pending: deque[tuple[float, str, logging.LogRecord]] = deque()
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def add(self, record: logging.LogRecord) -> None:
        """Take a text: rank 0 has said it, the others say it if nobody else has."""
        if self._process != os.getpid():  # a forked loader worker: it has neither the thread nor a connection
            self._begin(self._met or self._topology.has_met)
            self._topology = replace(self._topology)
        others = self._topology.rank != 0
        key = hashlib.sha256(_DURATION.sub("_", record.getMessage()).encode()).hexdigest()[:16]
        if key in self._known or self._ends.is_set() or (others and len(self._known) > _MOST):
            return
        self._known.add(key)
        if others and len(self._known) > _MOST:
            record.msg, record.args = "more warnings of this process are not shown", None
        self._pending.append((time.monotonic() + _HEAD_START * others, key, record))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="one-voice", daemon=True)
            self._thread.start()

    def settle(self) -> None:
        """Say what is left, without a head start: this process ends."""
        self._ends.set()
        if self._thread is not None and self._process == os.getpid():
            self._thread.join(_LIMIT)
        for _, _, record in self._taken():  # the store does not answer
            self._show(record)

    def _run(self) -> None:
        while not self._ends.is_set() or self._pending:
            while self._pending and (self._ends.is_set() or self._pending[0][0] <= time.monotonic()):
                if not (self._met or self._topology.has_met or self._ends.is_set()):
                    break
                _, key, record = self._pending[0]
                first = self._topology.is_first_to_say(key)
                with suppress(IndexError):  # the end has not waited for the answer
                    self._pending.popleft()
                    if first:
                        self._show(record)
            self._ends.wait(_POLL)

    def _taken(self) -> list[tuple[float, str, logging.LogRecord]]:
        taken, self._pending = list(self._pending), deque()
        return taken

    def _show(self, record: logging.LogRecord) -> None:
        if self._topology.rank != 0:
            self._say(record)
