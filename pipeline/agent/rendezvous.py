"""How the agents of a job meet: the name of node 0, its store, and a round of torch's rendezvous.

All of it runs in a thread, so that a signal to the agent is obeyed at once.
"""

import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

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
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousSettings,
    RendezvousTimeout,
    _Action,
    _BackendRendezvousStateHolder,
    _RendezvousContext,
)
from torch.distributed.elastic.rendezvous.utils import _matches_machine_hostname, parse_rendezvous_endpoint

from pipeline.agent.signals import Asked, Signals

_SAY_AFTER = 5.0
_ROLLBACK = 2.0
"""Seconds for telling the others that this node does not come after all."""


class NotMet(Exception):
    """The nodes have not met within the join limit; the text says what was missing."""


class Over(Exception):
    """The job has ended before this node came."""


class _State(_BackendRendezvousStateHolder):
    """torch's shared state, whose every reading by one thread can be interrupted."""

    interrupted: threading.Thread | None = None

    def sync(self) -> bool | None:
        if self.interrupted is threading.current_thread():
            raise Asked
        return super().sync()


class Handler(DynamicRendezvousHandler):
    """torch's rendezvous, but that each round gets a fresh store for its workers.

    torch keeps the address of the first round's store, so that a node that takes the place of another one waits for an
    address that nobody publishes (pytorch 2.13), and workers of a later round would find the keys of an earlier one.

    Args:
        parameters: As torchrun's command line gives them.
        store: Where the nodes meet.
        hosts: Whether the store lives in this process.
    """

    def __init__(self, parameters: RendezvousParameters, store: dist.TCPStore, hosts: bool) -> None:
        settings = _settings(parameters)
        backend = C10dRendezvousBackend(store, parameters.run_id)
        node = self._node_desc_generator.generate(parameters.local_addr)
        self._shared = _State(backend, settings)
        super().__init__(node, settings, backend.name, store, self._shared)
        self.tcp = store
        self.hosts = hosts

    @property
    def node(self) -> str:
        """This node's name among the others."""
        return repr(self._this_node)

    @property
    def met(self) -> bool:
        """Whether this node is in a round that is complete, as last read."""
        return self._shared.state.complete and self._this_node in self._shared.state.participants

    def next_rendezvous(self) -> RendezvousInfo:
        """See base class."""
        self._bootstrap_store_info = None
        self._shared_tcp_store_server = None
        return super().next_rendezvous()

    def members(self) -> frozenset[str]:
        """The nodes of this round, as last read."""
        return frozenset(map(repr, self._shared.state.participants))

    def look(self) -> tuple[int, int, frozenset[str]]:
        """Read how many nodes wait, how many wait without a place, and which of this round show signs of life.

        Raises:
            RendezvousError: The store is lost.
        """
        with self._heartbeat_lock:
            self._shared.sync()
            state = self._shared.state
            return len(state.wait_list), len(state.redundancy_list), frozenset(map(repr, state.participants))

    def round_store(self) -> dist.Store:
        """The store of this round, on a connection of its own.

        Raises:
            DistError: The store is lost.
        """
        tcp: Any = self.tcp  # of whose methods torch's stubs know not all
        return self._wrap_store(tcp.clone())

    def job_store(self) -> dist.Store:
        """A store that outlives rounds."""
        return dist.PrefixStore(f"pipeline.agent.{self.get_run_id()}", self.tcp)

    def interrupt(self, thread: threading.Thread) -> None:
        """Make `next_rendezvous` in that thread raise `Asked` within about a second."""
        self._shared.interrupted = thread

    def quit(self) -> None:
        """Take this node out of the rendezvous, so that nobody waits for it.

        Raises:
            RendezvousError: The store is lost.
        """
        self._shared.interrupted = None
        self.silence()
        self._op_executor.run(_leave, time.monotonic() + _ROLLBACK)

    def silence(self) -> None:
        """Send no more signs of life. Their thread is not waited for: it may stand in a call that nobody answers."""
        if self._keep_alive_timer is not None:
            self._keep_alive_timer._ctx.stop_event.set()


class Meeting:
    """Brings this node together with the others.

    Args:
        parameters: As torchrun's command line gives them.
        signals: The agent's.

    Raises:
        ValueError: The parameters do not say where and how to meet.
    """

    def __init__(self, parameters: RendezvousParameters, signals: Signals) -> None:
        _settings(parameters)
        self._at = parse_rendezvous_endpoint(parameters.endpoint, default_port=DEFAULT_PORT)
        self._parameters = parameters
        self._signals = signals
        self._limit = (_seconds(parameters, "join_timeout") or timedelta(seconds=600)).total_seconds()
        self._stop = threading.Event()
        self.handler: Handler | None = None

    def meet(self, join: Callable[[Handler], None]) -> None:
        """Meet the others.

        Args:
            join: Takes part in one round with the handler, which is new where the old one has lost its store.

        Raises:
            Asked: This agent was signalled meanwhile.
            NotMet: The join limit is over.
            Over: The job has ended before.
        """
        problems: list[BaseException] = []

        def run() -> None:
            try:
                self._meet(join)
            except BaseException as error:  # noqa: BLE001 - raised again in the agent's own thread
                problems.append(error)

        thread = threading.Thread(target=run, name="meeting", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.05)
            if self._signals.received:
                self._stop.set()
                if self.handler is not None:
                    self.handler.interrupt(thread)
                thread.join(_ROLLBACK)
                raise Asked
        if problems:
            raise problems[0]

    def _meet(self, join: Callable[[Handler], None]) -> None:
        deadline = time.monotonic() + self._limit
        while True:
            try:
                if self.handler is None:
                    self.handler = self._connect(deadline)
                join(self.handler)
                return
            except (RendezvousClosedError, RendezvousGracefulExitError) as error:
                raise Over from error
            except RendezvousTimeoutError as error:
                least = self._parameters.min_nodes
                raise NotMet(f"fewer than {least} nodes have come within {self._limit:.0f} s") from error
            except Asked:
                if self.handler is not None:
                    self.handler.quit()
                raise
            except (RendezvousError, dist.DistError) as error:
                self._check()
                # A store that only took too long is asked again; any other is lost with its host.
                if not isinstance(error, dist.DistStoreError) and self.handler is not None:
                    self.handler.silence()
                    self.handler = None
                if time.monotonic() > deadline:
                    raise NotMet(f"the nodes have not met within {self._limit:.0f} s: {error}") from error
                self._pause(0.5)

    def _connect(self, deadline: float) -> Handler:
        parameters, (host, port) = self._parameters, self._at
        self._wait_for_name(host, deadline)
        may_host = parameters.get_as_bool("is_host")
        if may_host is None:
            may_host = _matches_machine_hostname(host)
        timeout = timedelta(seconds=parameters.get_as_int("read_timeout", 60) or 60)
        began, said = time.monotonic(), False
        while True:
            if may_host:
                try:
                    store = dist.TCPStore(host, port, is_master=True, multi_tenant=True, timeout=timeout)
                    return Handler(parameters, store, hosts=True)
                except dist.DistNetworkError:
                    pass  # another agent of this machine hosts it already
            try:
                # torch tries for a minute in one call, and writes a line for each attempt.
                socket.create_connection((host, port), timeout=2).close()
                store = dist.TCPStore(host, port, is_master=False, multi_tenant=True, timeout=timeout)
                return Handler(parameters, store, hosts=False)
            except (OSError, RendezvousError, dist.DistError) as error:
                now = time.monotonic()
                if now > deadline:
                    raise NotMet(f"node 0 at {host}:{port} has not answered within {self._limit:.0f} s") from error
                if now - began > _SAY_AFTER and not said:
                    said = True
                    say(f"waiting for node 0 to answer at {host}:{port}")
            self._pause(0.3)

    def _wait_for_name(self, host: str, deadline: float) -> None:
        began, said = time.monotonic(), False
        while True:
            try:
                socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)
                return
            except OSError as error:
                now = time.monotonic()
                if now > deadline:
                    raise NotMet(
                        f"the name {host!r} of node 0 did not resolve within {self._limit:.0f} s: is the headless "
                        "service there?"
                    ) from error
                if now - began > _SAY_AFTER and not said:
                    said = True
                    say(f"waiting for the name {host!r} of node 0 to resolve")
            self._pause(0.5)

    def _pause(self, seconds: float) -> None:
        self._stop.wait(seconds)
        self._check()

    def _check(self) -> None:
        if self._stop.is_set():
            raise Asked


def say(text: str) -> None:
    """Print a line about the job, beside what the workers print."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def _leave(context: _RendezvousContext, deadline: float) -> _Action:
    """The state machine of torch, for a node that goes wherever it stands."""
    state, node = context.state, context.node
    if time.monotonic() > deadline:
        return _Action.ERROR_TIMEOUT
    if node in state.participants:
        return _Action.REMOVE_FROM_PARTICIPANTS
    if node in state.wait_list:
        return _Action.REMOVE_FROM_WAIT_LIST
    if node in state.redundancy_list:
        return _Action.REMOVE_FROM_REDUNDANCY_LIST
    return _Action.FINISH


def _settings(parameters: RendezvousParameters) -> RendezvousSettings:
    return RendezvousSettings(
        run_id=parameters.run_id,
        min_nodes=parameters.min_nodes,
        max_nodes=parameters.max_nodes,
        timeout=RendezvousTimeout(
            *(_seconds(parameters, f"{name}_timeout") for name in ("join", "last_call", "close", "heartbeat"))
        ),
        keep_alive_interval=timedelta(seconds=parameters.get_as_int("keep_alive_interval", 5) or 5),
        keep_alive_max_attempt=parameters.get_as_int("keep_alive_max_attempt", 3) or 3,
    )


def _seconds(parameters: RendezvousParameters, key: str) -> timedelta | None:
    value = parameters.get_as_int(key)
    return None if value is None else timedelta(seconds=value)
