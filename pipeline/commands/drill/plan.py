"""The plan of a drill: which faults come when. A pure function of the seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

LEAST_STEPS = 4
"""Steps of the training for each fault, at least: recovering from one and being asked to end take a few."""

_AT_START = 0.25
"""Share of the faults that come while the processes start."""
_LONGEST_START = 6.0
"""Seconds after a start within which such a fault comes; a cold start of two ranks takes about five."""


class Kind(StrEnum):
    """What is done to the job."""

    TERM_RANK = "term_rank"
    TERM_AGENT = "term_agent"
    TERM_ALL = "term_all"
    KILL_RANK = "kill_rank"
    KILL_AGENT = "kill_agent"
    KILL_ALL = "kill_all"
    TRUNCATE = "truncate"
    OUTAGE = "outage"
    RESIZE = "resize"

    @property
    def asks(self) -> bool:
        """Whether processes are asked to end, and have the time to save."""
        return self in (Kind.TERM_RANK, Kind.TERM_AGENT, Kind.TERM_ALL, Kind.RESIZE)

    @property
    def fits_a_start(self) -> bool:
        """Whether it may come while processes start: the others need steps or commits."""
        return self in _OF_PROCESSES

    @property
    def one_rank(self) -> bool:
        """Whether it is done to one rank."""
        return self in (Kind.TERM_RANK, Kind.KILL_RANK)

    @property
    def one_node(self) -> bool:
        """Whether it is done to one rank or one agent."""
        return self.one_rank or self in (Kind.TERM_AGENT, Kind.KILL_AGENT)


_OF_PROCESSES = tuple(Kind)[:6]


@dataclass(frozen=True)
class Fault:
    """One fault and its moment.

    Attributes:
        number: Counted from 1.
        kind: What is done.
        step: It comes once this step is done; None: while the processes start after the fault before it.
        delay: Seconds after that moment.
        node: Whose agent or rank.
        process: Which of the node's ranks.
        seconds: How long an outage lasts.
    """

    number: int
    kind: Kind
    step: int | None
    delay: float
    node: int
    process: int
    seconds: float


def plan(seed: int, number: int, steps: int, kinds: Sequence[Kind], nodes: int, processes: int) -> list[Fault]:
    """So many faults over a training of so many steps.

    Args:
        seed: The same one makes the same plan.
        number: Of faults; from `len(kinds)` on each kind comes at least once.
        steps: Of the whole training.
        kinds: Those that are possible.
        nodes: Of the job.
        processes: Of each node.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    deck: list[Kind] = []
    while len(deck) < number:
        deck += chance.sample(kinds, len(kinds))
    del deck[number:]
    chance.shuffle(deck)
    faults: list[Fault] = []
    for index, kind in enumerate(deck):
        restarted = index > 0 and deck[index - 1] is not Kind.OUTAGE
        at_start = restarted and kind.fits_a_start and chance.random() < _AT_START
        # One in each of equal parts of the training; the last part is left, so that it does not end first.
        step = 1 + int((index + chance.random()) * (steps - 1) / (number + 1))
        faults.append(
            Fault(
                number=index + 1,
                kind=kind,
                step=None if at_start else step,
                delay=chance.uniform(0.0, _LONGEST_START if at_start else 0.5),
                node=chance.randrange(nodes),
                process=chance.randrange(processes),
                seconds=chance.uniform(3.0, 6.0),
            )
        )
    return faults
