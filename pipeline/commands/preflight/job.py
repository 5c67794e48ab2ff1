"""The nodes of a job together: who has come, whose clock is off, and how fast the links between them are.

What is known goes through the launcher's store and not through the network that is being tried: so a node that is
broken or hangs is named, where a collective operation would only say that it took too long.
"""

import json
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pipeline.commands.preflight.node import SKEW, Finding, Verdict
from pipeline.process.topology import Topology

_SIZES = [1 << power for power in range(12, 28, 3)]
"""Bytes of an all-reduce: 4 KB, 32 KB, ... 128 MB."""
_ENOUGH = 0.5
"""Seconds after which no larger one is tried."""
_TRADED = 8 << 20
"""Bytes that two nodes send to each other at a time."""
_SHARE = 0.5
"""A node is slow whose best link has less than this share of the median of all nodes."""
_APART = 15.0
"""Seconds between two clocks with which torch's rendezvous loses nodes: heartbeats are judged by wall clocks."""


@dataclass
class Node:
    """What is known of one node.

    Attributes:
        host: Its name for people.
        findings: Of the node itself, and of its place in the job.
        link: Bytes a second of its best link; 0 where none was measured.
    """

    host: str
    findings: list[Finding] = field(default_factory=list)
    link: float = 0.0


@dataclass
class Job:
    """What is known of all of them, on rank 0.

    Attributes:
        nodes: By node rank.
        reduced: Bytes a second of the largest all-reduce that there was time for, and its bytes.
    """

    nodes: list[Node]
    reduced: tuple[float, int] = (0.0, 0)


class Together:
    """The part of this process in the look at a job.

    Args:
        topology: Where the launcher put it; of more than one process.
        seconds: For each of: coming, reducing, trading. Twice as long for whoever waits for an answer.
    """

    def __init__(self, topology: Topology, seconds: float) -> None:
        self._at = topology
        self._seconds = seconds
        store: Any = topology.store  # of whose methods torch's stubs know not all
        self._store = store.clone()
        self._leads = topology.local_rank == 0
        self._device = torch.device("cpu")

    def look(self, findings: Callable[[], list[Finding]], gpus: bool) -> Job | None:
        """Take part.

        Args:
            findings: Looks at this node; called once a node.
            gpus: Whether the job trains on GPUs, which talk by NCCL.

        Returns:
            On rank 0 what is known, or on another one that this is not heard of; None on all others.
        """
        if self._leads:
            found = [asdict(one) for one in findings()]
            self._put(f"node/{self._at.node}", [socket.gethostname(), found, gpus])
        job = self._come(gpus) if self._at.rank == 0 else None
        # Blocked in there, all are released at one moment: their clocks can be compared.
        try:
            start, at = self._answer("start"), time.time()
        except dist.DistError:
            return self._without_rank_0()
        if self._leads:
            self._put(f"clock/{self._at.node}", at)
        if job is not None:
            self._compare(job, start[1])
        if start[0]:
            self._try_network(gpus)
        if job is not None:
            if start[0]:
                self._judge(job)
            self._put("judged", True)
        # Rank 0 may have been stopped in the network, of which then nobody would say a word.
        elif self._get("judged", time.monotonic() + 3 * self._seconds) is None:
            return self._without_rank_0()
        self._end()
        return job

    def _without_rank_0(self) -> Job | None:
        """Rank 0 collects and says all the rest; the first that misses it says that it does not."""
        if self._store.add("preflight/missed", 1) > 1:
            return None
        deadline = time.monotonic()  # what is not there by now does not come
        hosts = [(self._get(f"node/{number}", deadline) or ["not heard of"])[0] for number in range(self._at.nodes)]
        nodes = [Node(host) for host in hosts]
        last = self._last(0)
        words = "it has not been heard of" if last == _ORDER[0] else f"its process 0 stands at {last}"
        nodes[0].findings.append(_silent(words))
        return Job(nodes)

    # ---- rank 0 ----------------------------------------------------------------------------------------------------

    def _come(self, gpus: bool) -> Job:
        """Collect the nodes; those that do not come are found to be broken. Says whether the network is tried."""
        job = Job([])
        deadline = time.monotonic() + self._seconds
        for number in range(self._at.nodes):
            host, found, has = self._get(f"node/{number}", deadline) or ("not heard of", None, gpus)
            job.nodes.append(
                Node(host, [Finding(**{**one, "verdict": Verdict(one["verdict"])}) for one in found or ()])
            )
            if found is None:
                job.nodes[-1].findings.append(_silent("it has not been heard of"))
            elif has != gpus:
                # One would talk by NCCL and the other by Gloo, and both would wait for ever.
                words = f"it trains on {'GPUs' if has else 'the CPU'}, and node 0 on {'GPUs' if gpus else 'the CPU'}"
                advice = "ask for nodes of one kind, or for the GPUs by --gpus so that who has none is named"
                job.nodes[-1].findings.append(Finding("devices", words, Verdict.MUST_CHANGE, advice))
        verdicts = {one.verdict for node in job.nodes for one in node.findings}
        self._put("start", [not verdicts & {Verdict.MUST_CHANGE, Verdict.BROKEN}, time.time()])
        return job

    def _compare(self, job: Job, start: float) -> None:
        deadline = time.monotonic() + 2.0
        for number, node in enumerate(job.nodes):
            at = self._get(f"clock/{number}", deadline)
            if at is None:
                continue
            skew = at - start
            if abs(skew) > SKEW:
                words = f"{abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} node 0's"
                verdict = Verdict.MUST_CHANGE if abs(skew) > _APART else Verdict.DOUBTFUL
                node.findings.append(Finding("clock", words, verdict, "set the clocks of all nodes by NTP"))

    def _judge(self, job: Job) -> None:
        """What the network has come to: who stood still, and who is slow."""
        deadline = time.monotonic() + self._seconds
        marks = [self._get(f"mark/{rank}", deadline) for rank in range(self._at.world_size)]
        last = [self._last(rank) for rank in range(self._at.world_size)]
        for rank, mark in enumerate(marks):
            node = job.nodes[rank // self._at.processes]
            if mark is None:
                node.findings.append(_silent(f"its process {rank % self._at.processes} stands at {last[rank]}"))
        failed = {rank: mark for rank, mark in enumerate(marks) if mark is not None and mark[0]}
        if failed and all(mark is not None for mark in marks):
            # All have failed: of those, the ones that came least far.
            least = min(_ORDER.index(last[rank]) for rank in failed)
            for rank, (why, *_) in failed.items():
                if _ORDER.index(last[rank]) == least:
                    job.nodes[rank // self._at.processes].findings.append(
                        Finding(
                            "network", f"{last[rank]}: {why}", Verdict.BROKEN, "look at its network, and take it out"
                        )
                    )
        told = next((mark for mark in marks if mark is not None and not mark[0] and mark[1]), None)
        if told is not None:
            job.reduced = told[1], told[2]
        self._links(job, deadline)

    def _links(self, job: Job, deadline: float) -> None:
        for first, second in _ring(self._at.nodes):
            speed = self._get(f"link/{first}", deadline)
            for number in (first, second) if speed else ():
                job.nodes[number].link = max(job.nodes[number].link, speed)
        median = statistics.median(node.link for node in job.nodes)
        for node in job.nodes:
            # Between two there is one link, which is as slow as the slower of them.
            if len(job.nodes) > 2 and 0 < node.link < _SHARE * median:
                words = f"{node.link / 1e6:.0f} MB/s at best, the median is {median / 1e6:.0f} MB/s"
                node.findings.append(Finding("network", words, Verdict.DOUBTFUL, "this node slows down all others"))

    # ---- every process -----------------------------------------------------------------------------------------------

    def _try_network(self, gpus: bool) -> None:
        why, speed, size = "", 0.0, 0
        try:
            self._mark("connecting")
            self._connect(gpus)
            self._mark("all-reduce")
            speed, size = self._reduce()
            self._mark("links")
            self._trade()
            self._mark("done")
        except (RuntimeError, ValueError, OSError) as error:
            why = " ".join(str(error).partition("\n")[0].split())[:200] or type(error).__name__
        self._put(f"mark/{self._at.rank}", [why, speed, size])

    def _connect(self, gpus: bool) -> None:
        if gpus:
            self._device = torch.device("cuda", self._at.local_rank)
            torch.cuda.set_device(self._device)
        dist.init_process_group(
            "nccl" if gpus else "gloo",
            store=dist.PrefixStore("preflight/group", self._store),
            rank=self._at.rank,
            world_size=self._at.world_size,
            timeout=timedelta(seconds=self._seconds),
        )

    def _reduce(self) -> tuple[float, int]:
        """All-reduces of a growing size, for as long as there is time; bytes a second on the wire, and the bytes."""
        began, speed, size = time.monotonic(), 0.0, 0
        for size in _SIZES:
            tensor = torch.ones(size // 4, device=self._device)
            self._all_reduced(tensor)
            seconds = self._all_reduced(tensor)
            # What crosses each link in a ring: github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md ("bus bandwidth").
            speed = 2 * (self._at.world_size - 1) / self._at.world_size * size / seconds
            spent = torch.tensor([time.monotonic() - began], device=self._device)
            dist.all_reduce(spent, dist.ReduceOp.MAX)  # all stop at one size
            if float(spent) > _ENOUGH:
                break
        return speed, size

    def _all_reduced(self, tensor: torch.Tensor) -> float:
        began = time.monotonic()
        dist.all_reduce(tensor)
        self._finished()
        return time.monotonic() - began

    def _trade(self) -> None:
        """Send bytes to a neighbour and back, two nodes at a time; the first of two says how fast that was."""
        for turn in _turns(self._at.nodes):
            dist.barrier()
            for first, second in turn:
                if not self._leads or self._at.node not in (first, second):
                    continue
                other = (second if self._at.node == first else first) * self._at.processes
                tensor = torch.ones(_TRADED, dtype=torch.uint8, device=self._device)
                self._pass(tensor[:1024], other, self._at.node == first)
                seconds = self._pass(tensor, other, self._at.node == first)
                if self._at.node == first:
                    self._put(f"link/{first}", 2 * _TRADED / seconds)

    def _pass(self, tensor: torch.Tensor, other: int, begins: bool) -> float:
        began = time.monotonic()
        for sends in (begins, not begins):
            if sends:
                dist.send(tensor, other)
            else:
                dist.recv(tensor, other)
        self._finished()
        return time.monotonic() - began

    def _finished(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _end(self) -> None:
        """Leave together: a process that goes first looks like a lost one to the others."""
        self._put(f"end/{self._at.rank}", True)
        deadline = time.monotonic() + 2.0
        for rank in range(self._at.world_size):
            self._get(f"end/{rank}", deadline)
        if dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()

    # ---- the store -------------------------------------------------------------------------------------------------

    def _mark(self, where: str) -> None:
        self._store.set(f"preflight/last/{self._at.rank}", where)

    def _last(self, rank: int) -> str:
        key = f"preflight/last/{rank}"
        return str(self._store.get(key).decode()) if self._store.check([key]) else _ORDER[0]

    def _put(self, name: str, value: Any) -> None:
        self._store.set(f"preflight/{name}", json.dumps(value))

    def _get(self, name: str, deadline: float) -> Any:
        """What somebody has put; None where nobody does in time."""
        key = f"preflight/{name}"
        while not self._store.check([key]):
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)
        return json.loads(self._store.get(key))

    def _answer(self, name: str) -> Any:
        """What rank 0 puts. It waits for all nodes for as long as there is, and so do these for it."""
        self._store.wait([f"preflight/{name}"], timedelta(seconds=3 * self._seconds))
        return json.loads(self._store.get(f"preflight/{name}"))


_ORDER = ["the start", "connecting", "all-reduce", "links", "done"]


def _silent(what: str) -> Finding:
    return Finding("node", what, Verdict.BROKEN, "look at it, or take it out")


def _ring(nodes: int) -> list[tuple[int, int]]:
    """The links of a ring: of two nodes there is one."""
    return [(first, (first + 1) % nodes) for first in range(nodes if nodes > 2 else nodes - 1)]


def _turns(nodes: int) -> Iterator[list[tuple[int, int]]]:
    """The links, so that no node has two of them in one turn."""
    links = _ring(nodes)
    odd = links[-1:] if len(links) > 1 and nodes % 2 else []
    rest = links[: len(links) - len(odd)]
    for turn in (rest[::2], rest[1::2], odd):
        if turn:
            yield turn


def out_of_reach(topology: Topology, seconds: float) -> Job | None:
    """What is to be said where rank 0's store cannot be reached; None where it can, or is this process's own.

    torch would wait for it for minutes, and end in a traceback.

    Args:
        topology: Where the launcher put this process.
        seconds: For the store to be there.
    """
    if topology.rank == 0:
        return None
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    deadline, why = time.monotonic() + seconds, "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            socket.create_connection(place, left).close()
            return None
        except OSError as error:
            why = str(error)
        time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))
    nodes = [Node("not heard of") for _ in range(topology.nodes)]
    advice = "let the nodes reach each other on every port: the store of each round takes a free one"
    found = Finding("rank 0", f"{place[0]}:{place[1]} cannot be reached: {why}", Verdict.BROKEN, advice)
    nodes[topology.node] = Node(socket.gethostname(), [found])
    return Job(nodes)


def alone(findings: list[Finding]) -> Job:
    """A job of one process."""
    return Job([Node(socket.gethostname(), findings)])
