"""A node joins the others over a store, for one round after another, and says what it waits for in vain."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters

from pipeline.agent.rendezvous import JobAlreadyFinished, Rendezvous, RendezvousTimeout, RoundHandler
from pipeline.agent.signals import Signals, StopRequested
from tests.support.agent_harness import free_port

Make = Callable[..., Rendezvous]


@pytest.fixture
def rendezvous() -> Iterator[Make]:
    """Make the rendezvous of the nodes of a job, each on an address of its own."""
    made: list[Rendezvous] = []
    port = free_port()

    def make(
        least: int = 1, host: str = "localhost", signals: Signals | None = None, most: int = 0, **more: Any
    ) -> Rendezvous:
        timing = {"join_timeout": 10, "last_call_timeout": 1, "keep_alive_interval": 1, **more}
        parameters = RendezvousParameters(
            "c10d", f"{host}:{port}", "job", least, most or least, local_addr=f"127.0.0.{len(made) + 1}", **timing
        )
        made.append(Rendezvous(parameters, signals or Signals()))
        return made[-1]

    yield make
    for each in made:
        if each.handler is not None:
            with suppress(RendezvousError):
                each.handler.leave()


def join(handler: RoundHandler) -> None:
    handler.next_rendezvous()


def test_each_round_has_a_store_of_its_own_and_the_job_has_one(rendezvous: Make) -> None:
    alone, ports = rendezvous(), []

    def note_port(handler: RoundHandler) -> None:
        ports.append(handler.next_rendezvous().bootstrap_store_info.master_port)

    alone.run(note_port)
    handler = alone.handler
    assert handler is not None
    assert handler.joined
    assert handler.hosts_store
    assert handler.members() == {handler.node}
    handler.round_store().set("key", "first")
    handler.job_store().set("key", "job")
    assert handler.round_store().get("key") == b"first"
    alone.run(note_port)
    assert len(set(ports)) == 2, "the workers of each round have a store of their own, too"
    assert alone.handler is handler
    assert not handler.round_store().check(["key"])
    assert handler.job_store().get("key") == b"job"


def test_two_nodes_meet_and_one_that_leaves_is_no_member(rendezvous: Make) -> None:
    nodes = [rendezvous(2), rendezvous(2, is_host=False)]
    threads = [threading.Thread(target=node.run, args=(join,)) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    first, second = (node.handler for node in nodes)
    assert first is not None
    assert second is not None
    assert first.poll() == (0, 0, {first.node, second.node})
    assert (first.hosts_store, second.hosts_store) == (True, False)
    second.leave()
    assert not second.joined
    deadline = time.monotonic() + 10
    while first.poll() != (0, 0, {first.node}):  # its own copy of the state is up to a second old
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_who_comes_after_the_end_is_told_so(rendezvous: Make) -> None:
    alone = rendezvous()
    alone.run(join)
    assert alone.handler is not None
    alone.handler.set_closed()
    with pytest.raises(JobAlreadyFinished):
        rendezvous().run(join)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"host": "no-such-host.invalid"}, "the name 'no-such-host.invalid' of node 0 did not resolve within 1 s"),
        ({"is_host": False}, r"node 0 at localhost:\d+ did not answer within 1 s"),
        ({"least": 2}, "rendezvous timed out after 1 s: fewer than 2 nodes joined"),
    ],
)
def test_what_is_waited_for_in_vain_is_named(rendezvous: Make, more: dict[str, Any], words: str) -> None:
    with pytest.raises(RendezvousTimeout, match=words):
        rendezvous(join_timeout=1, **more).run(join)


def test_a_signal_ends_the_wait_at_once(rendezvous: Make) -> None:
    signals = Signals()
    waiting = rendezvous(2, signals=signals)
    threading.Timer(0.3, signals.received.append, (signal.SIGTERM,)).start()
    began = time.monotonic()
    with pytest.raises(StopRequested):
        waiting.run(join)
    assert time.monotonic() - began < 5


def test_an_error_of_the_join_reaches_the_caller(rendezvous: Make) -> None:
    def fail(handler: RoundHandler) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        rendezvous().run(fail)


def test_an_endpoint_without_a_port_that_makes_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="port"):
        Rendezvous(RendezvousParameters("c10d", "localhost:x", "job", 1, 1), Signals())


def test_a_last_call_that_is_over_after_the_nodes_have_given_up_is_refused(rendezvous: Make) -> None:
    with pytest.raises(ValueError, match="last_call_timeout=10 must be below join_timeout=10 seconds"):
        rendezvous(most=2, last_call_timeout=10)
