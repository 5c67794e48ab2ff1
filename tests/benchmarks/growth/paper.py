"""What a large job costs on paper: the measured laws at its size, where the first walls stand, and what moves them.

Nothing here was measured at that size. Times are those of the machine that has measured the laws.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.run.checkpoint_interval import duration, lost_share, optimal_interval
from pipeline.training.memory_checkpoints import SHARE
from tests.benchmarks.growth import runs, states, world
from tests.benchmarks.growth.curve import amount
from tests.support.commands import ROOT
from tests.support.fits import Fit

NODES, PROCESSES, MEGABYTES = 1000, 8, 20_000
NODE_HOURS = 54 * 24 * (16_384 / 8) / 419
"""Of a node between two failures: Llama 3's 54 days on 16,384 GPUs had 419 unexpected interruptions (Meta, "The Llama 3
Herd of Models", 2024, section 3.3.4)."""
_DAYS = 30
_PATIENCE = 15.0
"""Seconds without a heartbeat after which an agent is lost: three intervals of 5 seconds, by torch's default."""
_BUSY, _LOST = 60.0, 0.1
Laws = Mapping[str, Mapping[str, Fit]]
"""By curve and quantity."""


@dataclass(frozen=True)
class Job:
    """A job of some size, and what the laws say of it, in seconds if nothing else is said."""

    laws: Laws
    nodes: float = NODES
    megabytes: float = MEGABYTES

    def of(self, curve: str, line: str, size: float) -> float:
        """The cost of a quantity at a size."""
        return self.laws[curve][line].at(size)

    def state(self, line: str) -> float:
        """The cost of something with the state."""
        return self.of("state", line, self.megabytes)

    @property
    def mtbf(self) -> float:
        """Between two failures of any node."""
        return 3600 * NODE_HOURS / self.nodes

    @property
    def agents(self) -> float:
        """CPU time of the store until the agents have joined."""
        return self.of("agents", world.SERVED, self.nodes)

    @property
    def ranks(self) -> float:
        """CPU time of the store for an agreement and a gathering of the ranks."""
        return self.of("ranks", world.SERVED, PROCESSES * self.nodes)

    @property
    def restart(self) -> float:
        """From a failure to the first step."""
        return recovery() + self.agents + self.ranks + self.state(states.LOAD)

    @property
    def interval(self) -> float:
        """Between two saves that cost the least."""
        return optimal_interval(self.state(states.PAUSE), self.mtbf, self.state(states.UPLOAD))

    @property
    def lost(self) -> float:
        """The share of the time that saves, restarts and repeated steps cost, from storage."""
        pause, upload = self.state(states.PAUSE), self.state(states.UPLOAD)
        return lost_share(self.interval, pause, self.mtbf, self.restart, upload)

    @property
    def kept_every(self) -> float:
        """Between two states in host memory."""
        return self.state(states.KEEP) / SHARE

    @property
    def lost_with_memory(self) -> float:
        """The same with states in host memory, from which the job continues where they are newer."""
        if self.kept_every >= self.interval:
            return self.lost + SHARE
        saves = self.state(states.PAUSE) / self.interval
        return saves + lost_share(self.kept_every, self.state(states.KEEP), self.mtbf, self.restart)


def recovery() -> float:
    """Seconds from kill -9 to the next step with a state of nothing, as `make bench` has found."""
    kept = json.loads((ROOT / "docs/performance.json").read_text())["subjects"]
    rows = next(one["rows"] for one in kept if one["subject"] == "recovery")
    return float(next(row["cost"]["value"] for row in rows if row["contender"] == "kill -9"))


def an_hour(laws: Laws) -> list[tuple[str, str]]:
    """What the job costs, by name."""
    job = Job(laws)
    failures, saves = 3600 / job.mtbf, 3600 / job.interval
    starts = 24 * _DAYS * failures
    read, load = job.megabytes * 1e6 * job.nodes, job.state(states.LOAD)
    return [
        ("failures an hour", f"{failures:.2g}, one in {duration(job.mtbf)}"),
        ("a start: CPU time of the store until the agents have joined", amount(job.agents, "s")),
        ("a start: CPU time of the store for one agreement and one gathering of the ranks", amount(job.ranks, "s")),
        ("a start: sent by the store for these", amount(_sent(job), "bytes")),
        ("a start: the state is loaded verified, by each node from a local disk", amount(load, "s")),
        ("a start: read from the storage by all nodes; nothing if they have it in memory", amount(read, "bytes")),
        ("a start: what the storage has to give so that no node waits", f"{amount(read / load, 'bytes')} a second"),
        (f"a start: the attempts of {_DAYS} days are read", amount(job.of("attempts", runs.START, starts), "s")),
        ("from a failure to the next step", duration(job.restart)),
        ("a save stops training for", duration(job.state(states.PAUSE))),
        ("a save takes in the background, to a local disk", duration(job.state(states.UPLOAD))),
        ("saves an hour, at the interval that costs least", f"{saves:.2g}, one in {duration(job.interval)}"),
        ("saves stop training in an hour for", duration(saves * job.state(states.PAUSE))),
        ("a state is kept in host memory every", duration(job.kept_every)),
        ("lost in an hour by saves, restarts and repeated steps, from storage", duration(3600 * job.lost)),
        ("the same from host memory", duration(3600 * job.lost_with_memory)),
    ]


def _sent(job: Job) -> float:
    return job.of("agents", world.SENT, job.nodes) + job.of("ranks", world.SENT, PROCESSES * job.nodes)


@dataclass(frozen=True)
class Wall:
    """What no longer works, or helps, beyond a size."""

    what: str
    unit: str
    stands_at: float
    asked: float
    moved_by: str

    @property
    def times(self) -> float:
        """How many times the job that was asked for."""
        return self.stands_at / self.asked

    def line(self) -> tuple[str, str, str, str]:
        """For the table."""
        if math.isinf(self.stands_at):
            return self.what, f"no number of {self.unit}", "", self.moved_by
        of_state = self.unit == "MB"
        at = amount(1e6 * self.stands_at, "bytes") if of_state else f"{float(f'{self.stands_at:.2g}'):,.0f} {self.unit}"
        return self.what, at, f"{self.times:.2g} x", self.moved_by


_PER_NODES: tuple[tuple[str, Callable[[Job], bool], str], ...] = (
    (
        f"the store is busy until the agents have joined for {_PATIENCE:.0f} s, after which torch takes for lost who "
        "has sent no heartbeat",
        lambda job: job.agents >= _PATIENCE,
        "`--rdzv-conf keep_alive_interval=60`: a lost node is noticed later by as much; or agents that write keys of "
        "their own, which one of them counts, in the place of torch's one state for all",
    ),
    (
        f"the store is busy for {_BUSY:.0f} s with one agreement and one gathering of the ranks",
        lambda job: job.ranks >= _BUSY,
        "one rank of each node that gathers for its node",
    ),
    (f"{_LOST:.0%} of the time is lost, from storage", lambda job: job.lost >= _LOST, "a faster storage"),
    (f"{_LOST:.0%} of the time is lost, from host memory", lambda job: job.lost_with_memory >= _LOST, "faster starts"),
)
_PER_STATE: tuple[tuple[str, Callable[[Job], bool], str], ...] = (
    (
        "states in host memory come no more often than saves do, and help no more",
        lambda job: job.kept_every >= job.interval,
        "each process of a node that keeps its share of the state; bytes that are copied in the place of `torch.save`",
    ),
    (
        f"{_LOST:.0%} of the time is lost, from storage",
        lambda job: job.lost >= _LOST,
        "a faster storage, or saves of which each node writes a part",
    ),
    (
        f"{_LOST:.0%} of the time is lost, from host memory",
        lambda job: job.lost_with_memory >= _LOST,
        "the same, and snapshots of which each process of a node copies a part",
    ),
)


def walls(laws: Laws) -> list[Wall]:
    """What stops a job first, and what after that."""
    found = [
        Wall(what, "nodes", reached(beyond, partial(Job, laws)), NODES, moved_by)
        for what, beyond, moved_by in _PER_NODES
    ]
    found += [
        Wall(what, "MB", reached(beyond, partial(Job, laws, NODES)), MEGABYTES, moved_by)
        for what, beyond, moved_by in _PER_STATE
    ]
    return sorted(found, key=lambda wall: wall.times)


def reached(beyond: Callable[[Job], bool], job: Callable[[float], Job]) -> float:
    """The least size beyond which something is true of the job, to a thousandth; infinity where it never is."""
    low, high = 1.0, 1e9
    if not beyond(job(high)):
        return math.inf
    while high > 1.001 * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if beyond(job(middle)) else (middle, high)
    return high


def as_json(laws: Laws) -> dict[str, Any]:
    """Both tables, for growth.json."""
    return {
        "nodes": NODES,
        "processes": PROCESSES,
        "megabytes": MEGABYTES,
        "hours between failures of a node": round(NODE_HOURS),
        "an hour": dict(an_hour(laws)),
        "walls": [list(wall.line()) for wall in walls(laws)],
    }
