"""What the agents of a job report to each other, and what follows from it: pure functions.

The agents of one round (from one rendezvous to the next) share an append-only log. Each appends what happened on its
node; an agent that knows enough appends a verdict, and all agents follow the first verdict in the log.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum, StrEnum
from signal import SIGABRT, Signals

from pipeline.errors import CRASH, DONE, PREEMPTED, USER_MUST_CHANGE
from pipeline.process.error_file import ErrorReport

MAX_MESSAGE = 200
"""Characters of an exception's message in a log line; the rest is cut."""


class EventType(StrEnum):
    """What an event is about."""

    LEAVING = "leaving"  # this node received a signal
    ACKNOWLEDGED = "acknowledged"  # this node has read that another one is leaving
    LEFT = "left"  # the workers of a leaving node have ended
    JOINING = "joining"  # a node waits to be admitted
    FAILED = "failed"  # a worker has exited with neither 0 nor 75
    SAVED = "saved"  # a worker has exited with 75, though this node was not asked to stop
    UNSAVED = "unsaved"  # a worker was preempted before its first step: its peers have not agreed to stop
    EXITED = "exited"  # all workers of this node have exited by themselves, with 0 or 75
    VERDICT = "verdict"  # how the round ends, for all nodes
    READ = "read"  # this node has read the verdict, and no longer needs the store


class FailureKind(IntEnum):
    """How close a failure is to the root cause; lower is closer."""

    OWN = 0  # an exception of its own, or a signal
    UNKNOWN = 1  # only an exit status
    LOST_PEER = 2  # an echo of another failure


@dataclass(frozen=True)
class Event:
    """One entry of a round's log.

    Attributes:
        node: The node that reports it.
        type: What it is about.
        status: Exit status: of the failed worker, of all exited workers, or that of the verdict.
        about: The node that it is about, if that is another one.
        rank: The worker's rank, -1 for none.
        reason: One line for people.
        kind: Of a failure.
        restart: Of a verdict: whether the nodes re-run the rendezvous.
        restarts_used: Of a verdict: restarts used, this one included.
    """

    node: str
    type: EventType
    status: int = DONE
    about: str = ""
    rank: int = -1
    reason: str = ""
    kind: FailureKind = FailureKind.UNKNOWN
    restart: bool = False
    restarts_used: int = 0


@dataclass(frozen=True)
class RoundView:
    """A round as one agent sees it.

    Attributes:
        me: This agent's node.
        nodes: All nodes of the round.
        lost: Nodes that send no heartbeats any more and have not announced that they leave.
        seconds: Since this agent first saw an event that ends the round.
        restarts_used: Restarts so far.
        max_restarts: Restarts at most.
    """

    me: str
    nodes: Collection[str]
    lost: Collection[str]
    seconds: float
    restarts_used: int
    max_restarts: int


@dataclass(frozen=True)
class JobEnd:
    """How an agent exits.

    Attributes:
        status: Its exit status.
        reason: One line for people; empty if there is nothing to report.
        traceback: Of the failure, if it happened on this node.
    """

    status: int
    reason: str = ""
    traceback: str = ""


def encode(event: Event) -> str:
    """Return an event as a line of the log."""
    return json.dumps(asdict(event)) + "\n"


def decode(log: bytes) -> tuple[Event, ...]:
    """Return the events of a log."""
    values = (json.loads(line) for line in log.decode().splitlines())
    return tuple(
        Event(**{**value, "type": EventType(value["type"]), "kind": FailureKind(value["kind"])}) for value in values
    )


def nodes_with(type_: EventType, events: Iterable[Event]) -> set[str]:
    """Return the nodes that have reported an event of this type."""
    return {event.node for event in events if event.type is type_}


def membership_change(events: Iterable[Event]) -> str | None:
    """Return why the round ends, if that is because a node leaves or joins; else None."""
    return next((event.reason for event in events if event.type in (EventType.LEAVING, EventType.JOINING)), None)


def stopping(events: Iterable[Event]) -> bool:
    """Return whether ranks stop because they were asked to, so that their peers may fail as a consequence."""
    events = tuple(events)
    return membership_change(events) is not None or bool(nodes_with(EventType.SAVED, events))


def first_verdict(events: Iterable[Event]) -> Event | None:
    """Return the verdict that counts."""
    return next((event for event in events if event.type is EventType.VERDICT), None)


def root_failure(events: Iterable[Event]) -> Event | None:
    """Return the failure that caused the others: a user's mistake, else the earliest of those closest to the cause."""
    failed = [event for event in events if event.type is EventType.FAILED]
    return min(failed, key=lambda event: (event.status != USER_MUST_CHANGE, event.kind)) if failed else None


def worker_failure(node: str, host: str, rank: int, code: int, report: ErrorReport | None) -> Event:
    """Describe a worker's exit as an event.

    Args:
        node: Where it ran.
        host: That node's host name.
        rank: Its rank.
        code: As `subprocess` returns it: negative for a signal.
        report: Its error file.
    """
    # torch aborts where Python tears it down after an exception, which is the cause; NCCL's watchdog aborts as well.
    aborted = code == -SIGABRT
    if code < 0 and not (aborted and report):
        kind = FailureKind.UNKNOWN if aborted else FailureKind.OWN
        status, how = 128 - code, f"killed by {_signal_name(-code)}"
    elif report:
        status = CRASH if aborted else code
        text = report.message if len(report.message) <= MAX_MESSAGE else report.message[:MAX_MESSAGE] + "..."
        how = f"exited with status {status} ({text})"
        kind = FailureKind.LOST_PEER if report.lost_peer else FailureKind.OWN
    else:
        status, how, kind = code, f"exited with status {code}", FailureKind.UNKNOWN
    return Event(node, EventType.FAILED, status, rank=rank, reason=f"rank {rank} on {host} {how}", kind=kind)


def patience(events: Sequence[Event], view: RoundView) -> float:
    """Return the seconds to wait, after the first event that ends the round, for a better cause from other nodes."""
    if len(view.nodes) == 1:
        return 0.0
    root = root_failure(events)
    planned = membership_change(events) is not None
    if root is None:
        return 0.3 if planned else 0.5 if nodes_with(EventType.UNSAVED, events) else 2.0
    if root.status == USER_MUST_CHANGE:
        return 0.0
    if root.kind is FailureKind.OWN:
        return 0.3
    if planned or view.lost:
        return 0.5
    if stopping(events):
        return 2.0
    return 1.0 if root.kind is FailureKind.UNKNOWN else 3.0


def decide(events: Sequence[Event], view: RoundView) -> Event | None:
    """Return the verdict on a round, for an agent whose own workers have ended; None while it is too early."""
    exited = {event.node: event.status for event in events if event.type is EventType.EXITED}
    if set(view.nodes) <= exited.keys() and not any(exited.values()):
        return _planned(view, DONE)
    root = root_failure(events)
    if root is None and not view.lost and not stopping(events) and not any(exited.values()):
        return None
    if view.seconds < patience(events, view):
        return None
    if root is not None and (root.status == USER_MUST_CHANGE or not is_consequence(root, events)):
        return _crash(root, view)
    if (reason := membership_change(events)) is not None:
        return _planned(view, PREEMPTED, reason, restart=True)
    if view.lost:
        lost = min(view.lost)
        reason = f"node {address_of(lost)} lost (no heartbeats)"
        return _crash(Event(lost, EventType.FAILED, root.status if root else CRASH, reason=reason), view)
    if root is not None and not stopping(events):
        return _crash(root, view)
    return _planned(view, PREEMPTED, "workers exited with status 75 (preempted), and no node was asked to stop")


def is_consequence(failure: Event, events: Iterable[Event]) -> bool:
    """Return whether a failure only follows from ranks that were asked to stop, or from a lost node."""
    return failure.kind is FailureKind.LOST_PEER or (failure.kind is FailureKind.UNKNOWN and stopping(events))


def _planned(view: RoundView, status: int, reason: str = "", *, restart: bool = False) -> Event:
    used = view.restarts_used  # no crash, so that it costs nothing of the budget
    return Event(view.me, EventType.VERDICT, status, reason=reason, restart=restart, restarts_used=used)


def _crash(cause: Event, view: RoundView) -> Event:
    restart = cause.status != USER_MUST_CHANGE and view.restarts_used < view.max_restarts
    return Event(
        view.me,
        EventType.VERDICT,
        cause.status,
        about=cause.node,
        rank=cause.rank,
        reason=cause.reason,
        kind=cause.kind,
        restart=restart,
        restarts_used=view.restarts_used + restart,
    )


def speaks(events: Iterable[Event], me: str, nodes: Mapping[str, int], alive: Collection[str], signalled: bool) -> bool:
    """Return whether this agent tells how the job has ended: that of the lowest rank that is left.

    An agent that was asked to stop tells only if all others were asked as well: they go on without it.

    Args:
        events: Of the last round.
        me: This agent's node.
        nodes: All nodes of the round, and their ranks.
        alive: Those that send heartbeats.
        signalled: Whether this agent was asked to stop.
    """
    events = tuple(events)
    leaving = nodes_with(EventType.LEAVING, events) | nodes_with(EventType.LEFT, events)
    lost = set(nodes) - set(alive) - leaving - {me}
    stay = set(nodes) - leaving - lost
    if signalled and stay - {me}:
        return False
    candidates = {me} | (set(nodes) - lost if signalled else stay)
    return me == min(candidates, key=lambda node: nodes.get(node, len(nodes)))


def address_of(node: str) -> str:
    """Return the address in a node's name, which torch builds from address, process id and a number."""
    return node.rsplit("_", 2)[0]


def _signal_name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"
