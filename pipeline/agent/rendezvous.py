"""How the nodes of a job find each other: the host name of node 0, its store, and torch's rendezvous.

All of it runs in a thread, so that the agent obeys a signal at once.
"""

import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Self, TypeVar

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousError,
    RendezvousGracefulExitError,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import DEFAULT_PORT, C10dRendezvousBackend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousSettings
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import RendezvousTimeout as TimeoutSettings
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from pipeline.agent import compat
from pipeline.agent.signals import Signals, StopRequested
from pipeline.process.output import print_line

_T = TypeVar("_T")
_LOG_AFTER = 5.0
_LEAVE_SECONDS = 2.0


class RendezvousTimeout(Exception):
    """The nodes have not found each other within the join timeout; the text says what was missing."""


class JobAlreadyFinished(Exception):
    """The job ended before this node joined."""


class InterruptibleBackend(C10dRendezvousBackend):
    """torch's backend, each access of which can be interrupted in one thread.

    Attributes:
        interrupted: The thread.
    """

    interrupted: threading.Thread | None = None

    def get_state(self) -> tuple[bytes, Any] | None:
        """See base class."""
        self._check()
        return super().get_state()

    def set_state(self, state: bytes, token: Any = None) -> tuple[bytes, Any, bool] | None:
        """See base class."""
        self._check()
        return super().set_state(state, token)

    def _check(self) -> None:
        if self.interrupted is threading.current_thread():
            raise StopRequested


class RoundHandler(DynamicRendezvousHandler):
    """torch's rendezvous, but with a new store for the workers of each round.

    Attributes:
        node: This node's name among the others.
        tcp: The store that the rendezvous uses.
        hosts_store: Whether that store lives in this process.
        interruptible: Its backend.
    """

    node: str
    tcp: dist.TCPStore
    hosts_store: bool
    interruptible: InterruptibleBackend

    def __init__(self, node: Any, settings: RendezvousSettings, name: str, store: dist.Store, holder: Any) -> None:
        super().__init__(node, settings, name, store, holder)
        self.node = repr(node)
        self._shared = holder  # of the state that torch's agents share

    @classmethod
    def over(cls, store: dist.TCPStore, parameters: RendezvousParameters, hosts_store: bool) -> Self:
        """Return a handler over a store.

        Args:
            store: Where the nodes meet.
            parameters: As torchrun's command line gives them.
            hosts_store: Whether the store lives in this process.
        """
        backend = InterruptibleBackend(store, parameters.run_id)
        handler: Self = cls.from_backend(
            parameters.run_id,
            store,
            backend,
            parameters.min_nodes,
            parameters.max_nodes,
            parameters.local_addr,
            **_settings(parameters),
        )
        handler.tcp, handler.hosts_store, handler.interruptible = store, hosts_store, backend
        return handler

    @property
    def joined(self) -> bool:
        """Whether this node is in a complete round, as last read."""
        state = self._shared.state
        return bool(state.complete and self.node in map(repr, state.participants))

    def next_rendezvous(self) -> RendezvousInfo:
        """See base class."""
        compat.forget_round_store(self)
        with compat.frequent_polls(self):
            return super().next_rendezvous()

    @property
    def last_call(self) -> float:
        """The seconds that a rendezvous stays open for further nodes after the last one that it needs."""
        return float(self.settings.timeout.last_call.total_seconds())

    def members(self) -> frozenset[str]:
        """Return the nodes of this round, as last read."""
        return frozenset(map(repr, self._shared.state.participants))

    def ranks(self) -> dict[str, int]:
        """Return the nodes of this round and their ranks, as last read."""
        return {repr(node): rank for node, rank in self._shared.state.participants.items()}

    def poll(self) -> tuple[int, int, frozenset[str]]:
        """Read how many nodes wait to be admitted, how many wait as spares, and which of this round send heartbeats.

        Raises:
            RendezvousError: The store is lost.
        """
        waiting = self.num_nodes_waiting()
        state = self._shared.state
        return waiting, len(state.redundancy_list), frozenset(map(repr, state.participants))

    def round_store(self) -> dist.Store:
        """Return the store of this round, over a connection of its own.

        Raises:
            DistError: The store is lost.
        """
        tcp: Any = self.tcp  # torch's stubs lack `clone`
        return dist.PrefixStore(f"pipeline.agent.{self.get_run_id()}.{self._shared.state.round}", tcp.clone())

    def job_store(self) -> dist.Store:
        """Return a store that outlives rounds."""
        return dist.PrefixStore(f"pipeline.agent.{self.get_run_id()}", self.tcp)

    def interrupt(self, thread: threading.Thread) -> None:
        """Make `next_rendezvous` in that thread raise `StopRequested` within about a second."""
        self.interruptible.interrupted = thread

    def leave(self) -> None:
        """Remove this node from the rendezvous, so that no other waits for it.

        Raises:
            RendezvousError: The store is lost.
        """
        self.interruptible.interrupted = None
        self.stop_heartbeats()
        compat.leave(self, _LEAVE_SECONDS)

    def stop_heartbeats(self) -> None:
        """Send no more heartbeats. A thread of its own does it: it waits for one that is blocked in a lost store."""
        threading.Thread(target=compat.stop_heartbeats, args=(self,), name="stop-heartbeats", daemon=True).start()


class Rendezvous:
    """Brings this node together with the others.

    Args:
        parameters: As torchrun's command line gives them.
        signals: The agent's.

    Attributes:
        handler: Of the store that the nodes use now; None before the first one and after it was lost.

    Raises:
        ValueError: The parameters do not say where and how to meet.
    """

    def __init__(self, parameters: RendezvousParameters, signals: Signals) -> None:
        self._timeout = _settings(parameters)["timeout"].join.total_seconds()
        self._endpoint = parse_rendezvous_endpoint(parameters.endpoint, default_port=DEFAULT_PORT)
        self._parameters = parameters
        self._signals = signals
        self._stop = threading.Event()
        self.handler: RoundHandler | None = None

    def run(self, join: Callable[[RoundHandler], None]) -> None:
        """Join the other nodes.

        Args:
            join: Takes part in one round with the handler, which is new after the old one has lost its store.

        Raises:
            StopRequested: This agent received a signal meanwhile.
            RendezvousTimeout: The join timeout is over.
            JobAlreadyFinished: The job has ended before.
        """
        errors: list[BaseException] = []

        def target() -> None:
            try:
                self._run(join)
            except BaseException as error:  # noqa: BLE001 - raised again in the agent's main thread
                errors.append(error)

        thread = threading.Thread(target=target, name="rendezvous", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.05)
            if self._signals.received:
                self._stop.set()
                if self.handler is not None:
                    self.handler.interrupt(thread)
                thread.join(_LEAVE_SECONDS)
                raise StopRequested
        if errors:
            raise errors[0]

    def _run(self, join: Callable[[RoundHandler], None]) -> None:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                if self.handler is None:
                    self.handler = self._connect(deadline)
                join(self.handler)
                return
            except (RendezvousClosedError, RendezvousGracefulExitError) as error:
                raise JobAlreadyFinished from error
            except RendezvousTimeoutError as error:
                raise self._timed_out(f"fewer than {self._parameters.min_nodes} nodes joined") from error
            except StopRequested:
                if self.handler is not None:
                    self.handler.leave()
                raise
            except (RendezvousError, dist.DistError) as error:
                self._check()
                # A store that was only slow is used again; any other is lost with its host.
                if not isinstance(error, dist.DistStoreError) and self.handler is not None:
                    self.handler.stop_heartbeats()
                    self.handler = None
                if time.monotonic() > deadline:
                    raise self._timed_out(str(error)) from error
                self._pause(0.5)

    def _connect(self, deadline: float) -> RoundHandler:
        parameters, (host, port) = self._parameters, self._endpoint
        name = f"the name {host!r} of node 0"
        self._until(
            lambda: socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP),
            f"waiting for {name} to resolve",
            f"{name} did not resolve within {self._timeout:.0f} s: is the headless service there?",
            deadline,
        )
        may_host = parameters.get_as_bool("is_host")
        if may_host is None:
            may_host = compat.is_this_machine(host)
        timeout = timedelta(seconds=parameters.get_as_int("read_timeout", 60) or 60)

        def connect() -> RoundHandler:
            if may_host:
                try:
                    store = dist.TCPStore(host, port, is_master=True, multi_tenant=True, timeout=timeout)
                    return RoundHandler.over(store, parameters, hosts_store=True)
                except dist.DistNetworkError:
                    pass  # another agent of this machine hosts it already
            # torch would try for a minute in one call, and write a line for each attempt.
            socket.create_connection((host, port), timeout=2).close()
            store = dist.TCPStore(host, port, is_master=False, multi_tenant=True, timeout=timeout)
            return RoundHandler.over(store, parameters, hosts_store=False)

        return self._until(
            connect,
            f"waiting for node 0 to answer at {host}:{port}",
            f"node 0 at {host}:{port} did not answer within {self._timeout:.0f} s: is it up, and is the port its own?",
            deadline,
        )

    def _until(self, attempt: Callable[[], _T], waiting: str, failed: str, deadline: float) -> _T:
        """Retry until an attempt succeeds; logs once that it waits."""
        log_at = time.monotonic() + _LOG_AFTER
        while True:
            try:
                return attempt()
            except (OSError, RendezvousError, dist.DistError) as error:
                now = time.monotonic()
                if now > deadline:
                    raise RendezvousTimeout(failed) from error
                if now > log_at:
                    log_at = deadline
                    print_line(waiting)
            self._pause(0.3)

    def _timed_out(self, reason: str) -> RendezvousTimeout:
        return RendezvousTimeout(f"rendezvous timed out after {self._timeout:.0f} s: {reason}")

    def _pause(self, seconds: float) -> None:
        self._stop.wait(seconds)
        self._check()

    def _check(self) -> None:
        if self._stop.is_set():
            raise StopRequested


def _settings(parameters: RendezvousParameters) -> dict[str, Any]:
    """Return the timing of a rendezvous, in the form of `DynamicRendezvousHandler.from_backend`."""

    def seconds(name: str) -> timedelta | None:
        value = parameters.get_as_int(f"{name}_timeout")
        return None if value is None else timedelta(seconds=value)

    timeout = TimeoutSettings(*map(seconds, ("join", "last_call", "close", "heartbeat")))
    if parameters.min_nodes < parameters.max_nodes and timeout.last_call >= timeout.join:
        if seconds("last_call") is not None:
            raise ValueError(
                f"last_call_timeout={timeout.last_call.total_seconds():.0f} must be below "
                f"join_timeout={timeout.join.total_seconds():.0f} seconds"
            )
        # torch's 30 seconds would be over after the nodes have given up.
        timeout = TimeoutSettings(timeout.join, timeout.join / 2, timeout.close, timeout.heartbeat)
    return {
        "timeout": timeout,
        "keep_alive_interval": parameters.get_as_int("keep_alive_interval", 5) or 5,
        "keep_alive_max_attempt": parameters.get_as_int("keep_alive_max_attempt", 3) or 3,
    }
