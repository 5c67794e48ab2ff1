"""The plan of a drill: which faults come when. A pure function of the seed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

LEAST_STEPS = 4
"""Steps of the training for each fault, at least: recovering from one and being asked to stop take a few."""

_AT_START = 0.25
"""Share of the faults that come while the processes start."""
_LONGEST_START = 6.0
"""Seconds after a start within which such a fault comes; a cold start of two ranks takes about five."""


class FaultKind(StrEnum):
    """What is done to the job; `term` sends SIGTERM, `kill` SIGKILL, to a rank, an agent, or all agents.

    `term_twice` sends SIGTERM to a rank again and again while it ends, `term_start` to a rank that is starting.
    `extend` lets training end with an epoch, starts it for more of them, and kills it before it has saved anything.
    `outage_start` and `outage_data` kill all agents, and let them start while the storage or the data are away.
    """

    TERM_RANK = "term_rank"
    TERM_AGENT = "term_agent"
    TERM_ALL = "term_all"
    KILL_RANK = "kill_rank"
    KILL_AGENT = "kill_agent"
    KILL_ALL = "kill_all"
    TRUNCATE = "truncate"
    OUTAGE = "outage"
    OUTAGE_START = "outage_start"
    OUTAGE_DATA = "outage_data"
    TERM_TWICE = "term_twice"
    TERM_START = "term_start"
    EXTEND = "extend"
    RESIZE = "resize"

    @property
    def is_signal(self) -> bool:
        """Whether it is a signal, and so may come while processes start: the others need steps or commits."""
        return bool(self.scope)

    @property
    def asks(self) -> bool:
        """Whether processes are asked to stop, and have the time to save."""
        return (self.startswith("term") and self.is_signal) or self is FaultKind.RESIZE

    @property
    def scope(self) -> str:
        """Which processes a signal is sent to: `rank`, `agent` or `all`; else an empty string."""
        scope = self.partition("_")[2]
        return scope if scope in ("rank", "agent", "all") else ""


@dataclass(frozen=True)
class Fault:
    """One fault and its moment.

    Attributes:
        number: Counted from 1.
        kind: What is done.
        planned_step: It comes once this step is done; None: while the processes start after the previous fault.
        delay: Seconds after that moment.
        node: Whose agent or rank.
        process: Which of the node's ranks.
        seconds: How long an outage lasts; at a start, from when it is waited for.
    """

    number: int
    kind: FaultKind
    planned_step: int | None
    delay: float
    node: int
    process: int
    seconds: float


def plan(seed: int, number: int, steps: int, kinds: Sequence[FaultKind], nodes: int, processes: int) -> list[Fault]:
    """Plan faults over a training.

    Args:
        seed: The same one makes the same plan.
        number: Of faults; from `len(kinds)` on each kind comes at least once.
        steps: Of the whole training.
        kinds: Those that are possible.
        nodes: Of the job.
        processes: Of each node.
    """
    chance = random.Random(seed)  # noqa: S311 - no secret
    deck: list[FaultKind] = []
    while len(deck) < number:
        deck += chance.sample(kinds, len(kinds))
    del deck[number:]
    chance.shuffle(deck)
    faults: list[Fault] = []
    for index, kind in enumerate(deck):
        restarted = index > 0 and deck[index - 1] is not FaultKind.OUTAGE
        at_start = restarted and kind.is_signal and chance.random() < _AT_START
        # One in each of equal parts of the training; the last part is left, so that training does not end first.
        step = 1 + int((index + chance.random()) * (steps - 1) / (number + 1))
        delay = chance.uniform(0.0, _LONGEST_START if at_start else 0.5)
        node, process = chance.randrange(nodes), chance.randrange(processes)
        planned_step = None if at_start else step
        faults.append(Fault(index + 1, kind, planned_step, delay, node, process, chance.uniform(3.0, 6.0)))
    return faults
