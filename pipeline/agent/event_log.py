"""A round's log in the rendezvous' store, read and written by a thread: the agent itself never waits for a network."""

import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousError

from pipeline.agent.policy import Word, words_of, written
from pipeline.agent.rendezvous import Handler
from pipeline.process.timeout import within

OVER = "over"
"""The key of the job's store that says how the job ended."""

_PAUSE = 0.25
_TO_READ = 1.5
"""Seconds in which the others read the log once."""
_LOG = "pipeline.agent/log"


def round_log(handler: Handler) -> dist.Store:
    """The store of the agents in this round, on a connection of its own: a call that waits holds up nothing.

    Raises:
        DistError: The store is lost.
    """
    return dist.PrefixStore("pipeline.agent", handler.round_store())


class News:
    """What this agent knows of the others, at most about a second old.

    Args:
        handler: Of the rendezvous.
        store: The round's, on a connection of its own.

    Attributes:
        words: The round's log.
        waiting: How many nodes wait to be taken in.
        spares: How many nodes wait though there is no place for them.
        present: The nodes of the round that show signs of life.
        lost: Why the store cannot be reached any more; empty while it can.
    """

    def __init__(self, handler: Handler, store: dist.Store) -> None:
        self._handler = handler
        self._store: Any = store  # of whose methods torch's stubs know not all
        self._outbox: deque[Word] = deque()
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="news", daemon=True)
        self.words: tuple[Word, ...] = ()
        self.waiting = self.spares = 0
        self.present = handler.members()
        self.lost = ""

    def start(self) -> None:
        """Begin to read and write."""
        self._thread.start()

    def say(self, word: Word) -> None:
        """Append a word to the log soon."""
        self._outbox.append(word)
        self._wake.set()

    def flush(self, seconds: float) -> bool:
        """Wait until all that was said is in the log, for so long at most; returns whether it is."""
        deadline = time.monotonic() + seconds
        while self._outbox and not self.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self._outbox

    def stop(self) -> None:
        """Read and write no more. The thread is not waited for: it may stand in a call that nobody answers."""
        self._stopped.set()
        self._wake.set()
        self._thread.join(0.5)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                while self._outbox:
                    self._store.append(_LOG, written(self._outbox[0]))
                    self._outbox.popleft()
                # Before the log: who waits has said why before.
                waiting, spares, present = self._handler.look()
                if self._store.check([_LOG]):
                    words = words_of(self._store.get(_LOG))
                    if len(words) != len(self.words):
                        self.words = words
                self.waiting, self.spares, self.present = waiting, spares, present
            except (RendezvousError, RuntimeError, ValueError) as error:
                self.lost = str(error).partition("\n")[0] or type(error).__name__
                return
            self._wake.wait(_PAUSE)
            self._wake.clear()


def close(handler: Handler, status: int) -> None:
    """Tell nodes that come later that the job is over, and how, within a few seconds."""

    def run() -> None:
        with suppress(RendezvousError, RuntimeError):
            handler.job_store().set(OVER, str(status))
            handler.set_closed()

    within(3.0, run, "good-bye")


def go(handler: Handler, *words: Word) -> None:
    """Take this node out of the rendezvous, within a few seconds: the others need not wait for its signs of life.

    Args:
        handler: Of the rendezvous.
        words: For those with whom it has met already.
    """

    def run() -> None:
        with suppress(RendezvousError, RuntimeError):
            if words and handler.met:
                store: Any = round_log(handler)
                for word in words:
                    store.append(_LOG, written(word))
                time.sleep(_TO_READ if handler.hosts else 0)
            handler.quit()

    within(3.0, run, "good-bye")
