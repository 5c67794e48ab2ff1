"""What follows from the events of a round: the root failure, when it is time to decide, and the verdict."""

from signal import SIGABRT, SIGKILL
from typing import Any

import pytest

from pipeline.agent.policy import (
    Event,
    EventType,
    FailureKind,
    RoundView,
    decide,
    decode,
    encode,
    patience,
    root_failure,
    speaks,
    worker_failure,
)
from pipeline.process.error_file import ErrorReport

A, B = "10.0.0.1_7_0", "10.0.0.2_9_0"
OWN = ErrorReport("ValueError: no", "T", False, 1, 0.0)
ECHO = ErrorReport("closed by peer", "T", True, 1, 0.0)


def view(seconds: float = 60.0, **more: Any) -> RoundView:
    defaults = {"me": A, "nodes": {A, B}, "lost": set(), "seconds": seconds, "restarts_used": 0, "max_restarts": 2}
    return RoundView(**defaults | more)


def failed(node: str = A, status: int = 1, kind: FailureKind = FailureKind.OWN) -> Event:
    return Event(node, EventType.FAILED, status, rank=3, reason="rank 3 failed", kind=kind)


def ended(node: str, status: int = 0) -> Event:
    return Event(node, EventType.EXITED, status)


def verdict(*events: Event, **more: Any) -> tuple[int, bool, int]:
    """Status, whether the rendezvous is re-run, and restarts used."""
    found = decide(events, view(**more))
    assert found is not None
    assert found.type is EventType.VERDICT
    return found.status, found.restart, found.restarts_used


def test_events_come_back_as_they_were_written() -> None:
    events = (
        failed(B, 9, FailureKind.LOST_PEER),
        Event(A, EventType.VERDICT, 75, reason="x\ny", restart=True, restarts_used=2),
    )
    assert decode("".join(map(encode, events)).encode()) == events


def test_all_ended_well_is_the_end() -> None:
    assert verdict(ended(A), ended(B)) == (0, False, 0)
    assert decide([ended(A)], view()) is None, "the other one may still fail"


def test_a_crash_is_restarted_while_the_budget_lasts() -> None:
    assert verdict(failed(status=7)) == (7, True, 1)
    assert verdict(failed(status=7), restarts_used=2) == (7, False, 2)


def test_a_users_mistake_is_never_restarted_and_comes_before_all_else() -> None:
    assert verdict(failed(A, 137), failed(B, 2), seconds=0.0) == (2, False, 0)
    assert verdict(Event(B, EventType.LEAVING, reason="asked"), failed(A, 2)) == (2, False, 0)


def test_who_knows_the_most_failed_first() -> None:
    echo, unknown, own = failed(A, 1, FailureKind.LOST_PEER), failed(A, 5, FailureKind.UNKNOWN), failed(B, 6)
    assert root_failure([echo, unknown, own]) is own
    assert root_failure([echo, unknown]) is unknown
    assert root_failure([ended(A)]) is None


def test_a_75_that_no_node_was_asked_for_ends_the_job() -> None:
    assert verdict(ended(A, 75), ended(B, 75)) == (75, False, 0)


def test_who_fails_of_a_peers_75_has_not_crashed() -> None:
    saved = Event(B, EventType.SAVED)
    assert verdict(saved, failed(A, 1, FailureKind.LOST_PEER)) == (75, False, 0)
    assert verdict(saved, failed(A, 1, FailureKind.UNKNOWN)) == (75, False, 0)
    assert verdict(saved, failed(A, 7)) == (7, True, 1), "a crash of its own is one all the same"


@pytest.mark.parametrize("type_", [EventType.LEAVING, EventType.JOINING])
def test_where_a_node_leaves_or_joins_the_rendezvous_is_re_run_at_no_cost(type_: EventType) -> None:
    event = Event(B, type_, reason="a node")
    assert verdict(event, ended(A, 75)) == (75, True, 0)
    assert verdict(event, failed(A, 1, FailureKind.LOST_PEER), restarts_used=2) == (75, True, 2), (
        "its peers went with it"
    )
    assert verdict(event, failed(A, 7)) == (7, True, 1), "a crash of its own is one all the same"


def test_a_node_that_vanished_is_the_cause_of_its_peers_failures() -> None:
    found = decide([failed(A, 1, FailureKind.LOST_PEER)], view(lost={B}))
    assert found is not None
    assert (found.reason, found.restart, found.restarts_used) == ("node 10.0.0.2 lost (no heartbeats)", True, 1)


def test_a_better_cause_is_waited_for() -> None:
    echo, own = failed(A, 1, FailureKind.LOST_PEER), failed(A, 1)
    assert patience([echo], view()) > patience([own], view()) > 0
    assert decide([echo], view(seconds=0.1)) is None
    assert patience([echo], view(nodes={A})) == 0, "there is no other"


@pytest.mark.parametrize(
    ("code", "report", "status", "kind", "how"),
    [
        (7, None, 7, FailureKind.UNKNOWN, "exited with status 7"),
        (-SIGKILL, None, 137, FailureKind.OWN, "killed by SIGKILL"),
        (-64, None, 192, FailureKind.OWN, "killed by SIGRTMAX"),
        (-SIGABRT, None, 134, FailureKind.UNKNOWN, "killed by SIGABRT"),
        (1, OWN, 1, FailureKind.OWN, "exited with status 1 (ValueError: no)"),
        (1, ECHO, 1, FailureKind.LOST_PEER, "exited with status 1 (closed by peer)"),
        (-SIGABRT, OWN, 1, FailureKind.OWN, "exited with status 1 (ValueError: no)"),
        (1, ErrorReport("x" * 500, "T", False, 1, 0.0), 1, FailureKind.OWN, "x..."),
    ],
)
def test_how_a_workers_exit_is_reported(
    code: int, report: ErrorReport | None, status: int, kind: FailureKind, how: str
) -> None:
    event = worker_failure(A, "host", 3, code, report)
    assert (event.status, event.kind) == (status, kind)
    assert event.reason.startswith("rank 3 on host ")
    assert how in event.reason
    assert len(event.reason) < 300


@pytest.mark.parametrize(
    ("signalled", "leaving", "alive", "who"),
    [
        ("", "", "abc", "a"),  # the job is over by itself
        ("abc", "abc", "abc", "a"),  # all were asked to stop
        ("a", "a", "abc", "b"),  # only one was, and the others have waited for another one in vain
        ("b", "b", "abc", "a"),
        ("", "", "bc", "b"),  # the node of rank 0 is lost
        ("bc", "bc", "bc", "b"),
    ],
)
def test_one_agent_tells_how_the_job_ended(signalled: str, leaving: str, alive: str, who: str) -> None:
    events = [Event(node, EventType.LEAVING) for node in leaving]
    nodes = {"a": 0, "b": 1, "c": 2}
    assert [node for node in alive if speaks(events, node, nodes, set(alive), node in signalled)] == [who]
