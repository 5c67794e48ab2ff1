"""A round's event log in the rendezvous store, read and written by a thread: the agent never waits for a network."""

import threading
import time
from collections import deque
from contextlib import suppress
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousError

from pipeline.agent.compat import soon
from pipeline.agent.policy import Event, decode, encode
from pipeline.agent.rendezvous import RoundHandler
from pipeline.process.timeout import within

JOB_STATUS = "over"
"""The key of the job's store that holds the exit status of a job that has ended."""

_POLL_SECONDS = 0.25
_READ_SECONDS = 1.5
"""Time in which all other nodes read the log at least once."""
_LEAVE_SECONDS = 3.0
_KEY = "pipeline.agent/log"


def round_log(handler: RoundHandler) -> dist.Store:
    """Return the agents' store of this round, over a connection of its own, so that a blocked call delays no other.

    Raises:
        DistError: The store is lost.
    """
    return dist.PrefixStore("pipeline.agent", handler.round_store())


class EventLog:
    """What this agent knows of the other nodes, at most about a second old.

    Args:
        handler: Of the rendezvous.
        store: The round's, over a connection of its own.

    Attributes:
        events: The round's log.
        waiting: Nodes that wait to be admitted.
        spares: Nodes that wait though the job is full.
        alive: The nodes of the round that send heartbeats.
        lost: Why the store cannot be reached any more; empty while it can.
    """

    def __init__(self, handler: RoundHandler, store: dist.Store) -> None:
        self._handler = handler
        self._store: Any = store  # torch's stubs lack some of its methods
        self._outbox: deque[Event] = deque()
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="event-log", daemon=True)
        self.events: tuple[Event, ...] = ()
        self.waiting = self.spares = 0
        self.alive = handler.members()
        self.lost = ""

    def start(self) -> None:
        """Start to read and write."""
        self._thread.start()

    def append(self, event: Event) -> None:
        """Append an event soon."""
        self._outbox.append(event)
        self._wake.set()

    def flush(self, seconds: float) -> bool:
        """Wait until all appended events are in the store; returns False after so many seconds."""
        deadline = time.monotonic() + seconds
        while self._outbox and not self.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        return not self._outbox

    def stop(self) -> None:
        """Stop to read and write. Does not wait for the thread, which may be blocked in a call to a lost store."""
        self._stopped.set()
        self._wake.set()
        self._thread.join(0.5)

    def _run(self) -> None:
        happened = 0.0
        while not self._stopped.is_set():
            try:
                while self._outbox:
                    happened = time.monotonic()
                    self._store.append(_KEY, encode(self._outbox[0]))
                    self._outbox.popleft()
                # Before the log: a node that waits has written the reason before.
                waiting, spares, alive = self._handler.poll()
                if self._store.check([_KEY]):
                    events = decode(self._store.get(_KEY))
                    if len(events) != len(self.events):
                        self.events, happened = events, time.monotonic()
                self.waiting, self.spares, self.alive = waiting, spares, alive
            except (RendezvousError, RuntimeError, ValueError) as error:
                self.lost = str(error).partition("\n")[0] or type(error).__name__
                return
            # For a second after something has happened, which is how long a restart takes, more is likely to.
            lately = time.monotonic() - happened < 1
            self._wake.wait(min(_POLL_SECONDS, soon(len(alive))) if lately else _POLL_SECONDS)
            self._wake.clear()


def close_job(handler: RoundHandler, status: int) -> None:
    """Publish the job's exit status for nodes that come later, within a few seconds."""

    def run() -> None:
        with suppress(Exception):  # this node ends all the same
            handler.job_store().set(JOB_STATUS, str(status))
            handler.set_closed()

    within(_LEAVE_SECONDS, run, "close-job")


def leave_job(handler: RoundHandler, *events: Event) -> None:
    """Remove this node from the rendezvous, within a few seconds, so that the others need not miss its heartbeats.

    Args:
        handler: Of the rendezvous.
        events: For the other nodes, if the rendezvous is complete already.
    """

    def run() -> None:
        with suppress(Exception):  # it leaves all the same: the others miss its heartbeats
            if events and handler.joined:
                store: Any = round_log(handler)
                for event in events:
                    store.append(_KEY, encode(event))
                time.sleep(_READ_SECONDS if handler.hosts_store else 0)
            handler.leave()

    within(_LEAVE_SECONDS, run, "leave-job")
