"""What an agent reports reaches the others over the store of the round, and a lost store is not waited for."""

import time
from collections.abc import Callable, Iterator

import pytest
import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousParameters

from pipeline.agent import event_log
from pipeline.agent.event_log import JOB_STATUS, EventLog, close_job, leave_job, round_log
from pipeline.agent.policy import Event, EventType
from pipeline.agent.rendezvous import RoundHandler


@pytest.fixture
def handler() -> Iterator[RoundHandler]:
    """A node that has met itself."""
    store = dist.TCPStore("localhost", 0, is_master=True, multi_tenant=True)
    parameters = RendezvousParameters("c10d", "", "job", 1, 1, "127.0.0.1", last_call_timeout=1, keep_alive_interval=1)
    made = RoundHandler.over(store, parameters, hosts_store=True)
    made.next_rendezvous()
    yield made
    made.stop_heartbeats()


@pytest.fixture
def log(handler: RoundHandler) -> Iterator[EventLog]:
    made = EventLog(handler, round_log(handler))
    made.start()
    yield made
    made.stop()


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def event(node: str, type_: EventType = EventType.EXITED, **more: int) -> Event:
    return Event(node, type_, **more)


def test_events_are_read_in_the_order_in_which_they_were_appended(handler: RoundHandler, log: EventLog) -> None:
    other = EventLog(handler, round_log(handler))
    other.start()
    given = [event("a", status=75), event("a", EventType.READ)]
    for each in given:
        log.append(each)
    assert log.flush(10)
    other.append(event("b"))
    until(lambda: len(log.events) == 3 and len(other.events) == 3)
    other.stop()
    assert log.events == other.events == (*given, event("b"))
    assert (log.waiting, log.spares, log.alive, log.lost) == (0, 0, frozenset({handler.node}), "")


def test_a_lost_store_is_named_in_one_line_and_ends_the_wait(handler: RoundHandler) -> None:
    host = dist.TCPStore("localhost", 0, is_master=True)
    log = EventLog(handler, dist.TCPStore("localhost", host.port))
    del host
    log.start()
    log.append(event("a"))
    began = time.monotonic()
    assert not log.flush(10)
    assert time.monotonic() - began < 5
    assert "onnection" in log.lost
    assert "\n" not in log.lost


def test_who_does_not_write_yet_flushes_in_vain(handler: RoundHandler) -> None:
    log = EventLog(handler, round_log(handler))
    assert log.flush(0)
    log.append(event("a"))
    assert not log.flush(0.05)


def test_the_end_of_a_job_is_known_to_those_who_come_later(handler: RoundHandler) -> None:
    close_job(handler, 7)
    assert handler.job_store().get(JOB_STATUS) == b"7"
    with pytest.raises(RendezvousClosedError):
        handler.next_rendezvous()


def test_who_leaves_says_why_and_is_no_member_any_more(
    handler: RoundHandler, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "_READ_SECONDS", 0.0)
    leave_job(handler, event("a", EventType.LEAVING))
    until(lambda: log.events == (event("a", EventType.LEAVING),))
    until(lambda: log.alive == frozenset())
