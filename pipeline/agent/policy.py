"""What the agents of a job say to each other, and what follows from it: pure functions.

The agents of one round (the time between two meetings) share one log that only grows. Each appends what happened on
its node; whoever knows enough appends a verdict, and the first verdict in the log is the one that all of them follow.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum, StrEnum
from signal import SIGABRT, Signals

from pipeline.errors import CRASH, DONE, PREEMPTED, USER_MUST_CHANGE
from pipeline.process.error_file import Report

TOO_LONG = 200
"""Characters of an exception's text beyond which a line about it is cut."""


class Says(StrEnum):
    """What a word of the log is about."""

    LEAVING = "leaving"  # this node was signalled
    HEARD = "heard"  # this node knows that another one leaves
    GONE = "gone"  # ... and its workers have ended
    JOINING = "joining"  # a node waits to be taken in
    FAILED = "failed"  # one of this node's workers has ended with neither 0 nor 75
    SAVED = "saved"  # one of this node's workers has ended with 75, though this node was not asked to end
    ENDED = "ended"  # all of this node's workers have ended by themselves, with 0 or 75
    VERDICT = "verdict"  # how the round ends, for all nodes
    READ = "read"  # this node has read of another's end, and needs the store no more


class Kind(IntEnum):
    """How much a failure says of where the trouble began; less is more."""

    FIRST_HAND = 0  # an exception of its own, or a signal
    UNKNOWN = 1  # only a status
    LOST_PEER = 2  # an echo


@dataclass(frozen=True)
class Word:
    """One entry of a round's log.

    Attributes:
        node: Who says it.
        says: What it is about.
        status: Of the worker that failed, of all that ended, or that the verdict ends the agents with.
        about: The node that it is about, where that is another one.
        rank: The worker's, -1 for none.
        how: In words.
        kind: Of a failure.
        again: A verdict: whether the nodes meet again.
        spent: A verdict: how many restarts have been spent with this one.
    """

    node: str
    says: Says
    status: int = DONE
    about: str = ""
    rank: int = -1
    how: str = ""
    kind: Kind = Kind.UNKNOWN
    again: bool = False
    spent: int = 0


@dataclass(frozen=True)
class Round:
    """A round as one agent knows it.

    Attributes:
        me: This agent's node.
        nodes: All nodes of the round.
        vanished: Those of them that send no signs of life any more and have not said that they go.
        seconds: Since this agent first heard of something that ends the round.
        spent: Restarts so far.
        allowed: Restarts at most.
    """

    me: str
    nodes: Collection[str]
    vanished: Collection[str]
    seconds: float
    spent: int
    allowed: int


def written(word: Word) -> str:
    """A word as a line of the log."""
    return json.dumps(asdict(word)) + "\n"


def words_of(log: bytes) -> tuple[Word, ...]:
    """The words of a log."""
    values = (json.loads(line) for line in log.decode().splitlines())
    return tuple(Word(**{**value, "says": Says(value["says"]), "kind": Kind(value["kind"])}) for value in values)


def nodes_that(say: Says, words: Iterable[Word]) -> set[str]:
    """The nodes that have said so."""
    return {word.node for word in words if word.says is say}


def plan_of(words: Iterable[Word]) -> str | None:
    """Why the round ends, where that is because a node leaves or joins; None where it is not."""
    return next((word.how for word in words if word.says in (Says.LEAVING, Says.JOINING)), None)


def planned(words: Iterable[Word]) -> bool:
    """Whether the round ends because a node leaves or joins."""
    return plan_of(words) is not None


def parting(words: Iterable[Word]) -> bool:
    """Whether ranks end because somebody was asked to, so that others may fail of it."""
    words = tuple(words)
    return planned(words) or bool(nodes_that(Says.SAVED, words))


def verdict_of(words: Iterable[Word]) -> Word | None:
    """The verdict that counts."""
    return next((word for word in words if word.says is Says.VERDICT), None)


def first_failure(words: Iterable[Word]) -> Word | None:
    """The failure that all the others follow from: a user's mistake, else the earliest of those that know the most."""
    failed = [word for word in words if word.says is Says.FAILED]
    return min(failed, key=lambda word: (word.status != USER_MUST_CHANGE, word.kind)) if failed else None


def failure(node: str, host: str, rank: int, code: int, report: Report | None) -> Word:
    """What a worker's end says.

    Args:
        node: Where it ran.
        host: That node's name for people.
        rank: Its rank.
        code: As `subprocess` says it: negative for a signal.
        report: What it has written down.
    """
    # torch aborts where Python takes it down after an exception, which has said more; NCCL's watchdog aborts as well.
    aborted = code == -SIGABRT
    if code < 0 and not (aborted and report):
        status, how, kind = 128 - code, f"ended with {_name(-code)}", Kind.UNKNOWN if aborted else Kind.FIRST_HAND
    elif report:
        status = CRASH if aborted else code
        text = report.message if len(report.message) <= TOO_LONG else report.message[:TOO_LONG] + "..."
        how = f"ended with status {status} ({text})"
        kind = Kind.LOST_PEER if report.lost_peer else Kind.FIRST_HAND
    else:
        status, how, kind = code, f"ended with status {code}", Kind.UNKNOWN
    return Word(node, Says.FAILED, status, rank=rank, how=f"rank {rank} on {host} {how}", kind=kind)


def patience(words: Sequence[Word], known: Round) -> float:
    """Seconds to wait, after the first bad news, for better news from other nodes."""
    if len(known.nodes) == 1:
        return 0.0
    first = first_failure(words)
    if first is None:
        return 0.3 if planned(words) else 2.0
    if first.status == USER_MUST_CHANGE:
        return 0.0
    if first.kind is Kind.FIRST_HAND:
        return 0.3
    if planned(words) or known.vanished:
        return 0.5
    if parting(words):
        return 2.0
    return 1.0 if first.kind is Kind.UNKNOWN else 3.0


def decide(words: Sequence[Word], known: Round) -> Word | None:
    """The verdict over a round, for an agent whose own workers have ended; None while it is too early for one."""
    ended = {word.node: word.status for word in words if word.says is Says.ENDED}
    if set(known.nodes) <= ended.keys() and not any(ended.values()):
        return Word(known.me, Says.VERDICT, DONE, spent=known.spent)
    first = first_failure(words)
    if first is None and not known.vanished and not parting(words) and not any(ended.values()):
        return None
    if known.seconds < patience(words, known):
        return None
    if first is not None and (first.status == USER_MUST_CHANGE or not expected(first, words)):
        return _crash(first, known)
    if (how := plan_of(words)) is not None:
        return Word(known.me, Says.VERDICT, PREEMPTED, how=how, again=True, spent=known.spent)
    if known.vanished:
        lost = min(known.vanished)
        status = first.status if first else CRASH
        return _crash(Word(lost, Says.FAILED, status, how=f"node {place(lost)} is gone"), known)
    if first is not None and not parting(words):
        return _crash(first, known)
    how = "the workers ended with status 75 (preempted), and no node was asked to end"
    return Word(known.me, Says.VERDICT, PREEMPTED, how=how, spent=known.spent)


def expected(first: Word, words: Iterable[Word]) -> bool:
    """Whether a failure only follows from ranks that were asked to end, or from a node that has vanished."""
    return first.kind is Kind.LOST_PEER or (first.kind is Kind.UNKNOWN and parting(words))


def _crash(cause: Word, known: Round) -> Word:
    again = cause.status != USER_MUST_CHANGE and known.spent < known.allowed
    return Word(
        known.me,
        Says.VERDICT,
        cause.status,
        about=cause.node,
        rank=cause.rank,
        how=cause.how,
        kind=cause.kind,
        again=again,
        spent=known.spent + again,
    )


def place(node: str) -> str:
    """The address in a node's name, which torch makes of address, process id and a number."""
    return node.rsplit("_", 2)[0]


def _name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"
