"""The nodes of a job together: which of them hang, and how fast the network between them is.

Results go through the launcher's store and not through the network that is being checked: so a node that hangs is
named, where a collective would only time out. No rank is special: the first that has all results, or for which the time
is over, reports.
"""

import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pipeline.commands.preflight.node import CheckStatus, NodeFinding, NodeRequirements, check_node
from pipeline.errors import CRASH, DONE, USER_MUST_CHANGE
from pipeline.process.topology import Topology

_REDUCED = 32 << 20
"""Bytes of the all-reduce."""
_EXCHANGED = 8 << 20
"""Bytes that two neighbours send to each other."""
_SLOW = 0.5
"""A node is slow if its best link has less than this share of the median of all nodes."""
_STAGES = ("start", "connecting", "all-reduce", "links", "done")


@dataclass
class CheckedNode:
    """What is known of one node.

    Attributes:
        host: Its host name.
        findings: Of the node itself, and of its place in the job.
        link: Bytes per second of its best link; 0 if none was measured.
    """

    host: str = "unknown"
    findings: list[NodeFinding] = field(default_factory=list)
    link: float = 0.0


def preflight(required: NodeRequirements, run_dir: str, seconds: float, topology: Topology) -> tuple[str, int]:
    """Check this node and, with the others, the job.

    Args:
        required: Of each node.
        run_dir: The run directory, whose storage is checked.
        seconds: For a node to arrive, and for each part of the network check.
        topology: Of this process.

    Returns:
        The report, empty on all ranks but one; and the exit status: 0, 2 if the user must change something, 1 if a node
        or the network has failed.
    """

    def check() -> list[NodeFinding]:
        # Less than a node has to arrive: so it reports itself that it waits for its storage.
        return check_node(required, run_dir, topology.processes, seconds / 2)

    reduced = 0.0
    if topology.world_size == 1:
        nodes: list[CheckedNode] | None = [CheckedNode(socket.gethostname(), check())]
    elif why := _store_unreachable(topology, seconds / 2):
        nodes = [CheckedNode() for _ in range(topology.nodes)]
        nodes[topology.node] = CheckedNode(socket.gethostname(), [why])
    else:
        gpus = required.gpus != 0 and torch.cuda.device_count() >= topology.processes
        nodes, reduced = MultiNodeCheck(topology, seconds, gpus).run(check)
    if nodes is None:
        return "", DONE
    found = {finding.status for node in nodes for finding in node.findings}
    status = (
        USER_MUST_CHANGE if CheckStatus.ACTION_REQUIRED in found else CRASH if CheckStatus.FAILED in found else DONE
    )
    return format_report(nodes, topology.processes, status, reduced), status


class MultiNodeCheck:
    """The part of one process in the check of a job.

    Args:
        topology: Of this process; the world size must be > 1.
        seconds: See `preflight`.
        gpus: Whether the job trains on GPUs, which communicate by NCCL.
    """

    def __init__(self, topology: Topology, seconds: float, gpus: bool) -> None:
        self._at = topology
        self._seconds = seconds
        self._gpus = gpus
        store: Any = topology.store  # torch's stubs lack `clone`
        self._store: Any = dist.PrefixStore("preflight", store.clone())
        self._device = torch.device("cuda", topology.local_rank) if gpus else torch.device("cpu")

    def run(self, check: Callable[[], list[NodeFinding]]) -> tuple[list[CheckedNode] | None, float]:
        """Take part.

        Args:
            check: Checks this node; called once per node.

        Returns:
            On the one rank that reports: all nodes, and the bytes per second of the all-reduce. On all others None.
        """
        at = self._at
        if at.local_rank == 0:
            mine = [socket.gethostname(), self._gpus, [asdict(finding) for finding in check()]]
            arrived = self._collect("node", at.node, at.nodes, mine)
            if arrived is not None:
                nodes = self._arrivals(arrived)
                fit = not {one.status for node in nodes for one in node.findings} & _UNFIT
                self._store.set("go", json.dumps([fit, [asdict(node) for node in nodes]]))
                if not fit:
                    return nodes, 0.0
        self._store.wait(["go"], timedelta(seconds=3 * self._seconds))
        fit, known = json.loads(self._store.get("go"))
        if not fit:
            return None, 0.0
        results = self._collect("result", at.rank, at.world_size, self._check_network())
        if results is None:
            with suppress(dist.DistError):
                self._store.wait(["judged"], timedelta(seconds=self._seconds))
            self._disconnect()
            return None, 0.0
        nodes = [CheckedNode(node["host"], _findings(node["findings"])) for node in known]
        self._judge_network(nodes, results)
        self._store.set("judged", "")
        self._disconnect()
        return nodes, next((result[1] for result in results if result and not result[0]), 0.0)

    def _collect(self, name: str, number: int, count: int, value: Any) -> list[Any] | None:
        """Share a result, and wait for those of all others.

        Returns:
            On the first process that has them, or for which the time is over: all results, None for those that are
            missing. On all others None.
        """
        self._store.set(f"{name}/{number}", json.dumps(value))
        self._store.add(f"{name}/count", 1)
        deadline = time.monotonic() + self._seconds
        while self._store.add(f"{name}/count", 0) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        if self._store.add(f"{name}/reporters", 1) > 1:
            return None
        keys = [f"{name}/{number}" for number in range(count)]
        return [json.loads(self._store.get(key)) if self._store.check([key]) else None for key in keys]

    def _arrivals(self, arrived: list[Any]) -> list[CheckedNode]:
        nodes, wanted = [], next(node[1] for node in arrived if node is not None)
        for node in arrived:
            if node is None:
                nodes.append(CheckedNode(findings=[_hangs("has not reported")]))
                continue
            host, gpus, findings = node
            nodes.append(CheckedNode(host, _findings(findings)))
            if gpus != wanted:
                # One would use NCCL and the other Gloo, and both would wait forever.
                kinds = ("the CPU", "GPUs")
                found = f"it trains on {kinds[gpus]}, and other nodes on {kinds[wanted]}"
                advice = "use nodes of one kind, or set --gpus so that nodes without them are named"
                nodes[-1].findings.append(NodeFinding("devices", found, CheckStatus.ACTION_REQUIRED, advice))
        return nodes

    def _judge_network(self, nodes: list[CheckedNode], results: list[Any]) -> None:
        """Name the processes that hang, or those that failed first, and the slow nodes."""
        stages = [self._stage_of(rank) for rank in range(len(results))]
        errors = {rank: result[0] for rank, result in enumerate(results) if result and result[0]}
        # A process that hangs makes others fail; and of those that fail the others fail that have come further.
        first = min((stages[rank] for rank in errors), key=_STAGES.index, default="") if None not in results else ""
        for rank, result in enumerate(results):
            node = nodes[rank // self._at.processes]
            if result is None:
                node.findings.append(_hangs(f"process {rank % self._at.processes} hangs at {stages[rank]}"))
                continue
            if rank in errors and stages[rank] == first:
                found, advice = f"{first}: {errors[rank]}", "check its network, or remove the node"
                node.findings.append(NodeFinding("network", found, CheckStatus.FAILED, advice))
            node.link = max(node.link, result[2])
        median = statistics.median(node.link for node in nodes)
        for node in nodes:
            # Two nodes share one link: neither end can be told to be the slow one.
            if len(nodes) > 2 and 0 < node.link < _SLOW * median:
                found = f"best link {node.link / 1e6:.0f} MB/s, median {median / 1e6:.0f} MB/s"
                finding = NodeFinding("network", found, CheckStatus.WARNING, "this node slows down all others")
                node.findings.append(finding)

    def _check_network(self) -> tuple[str, float, float]:
        """Return the error or an empty text, and in bytes per second: the all-reduce and the best link of this node."""
        error, reduced, link = "", 0.0, 0.0
        try:
            self._enter("connecting")
            if self._gpus:
                torch.cuda.set_device(self._device)
            dist.init_process_group(
                "nccl" if self._gpus else "gloo",
                store=dist.PrefixStore("group", self._store),
                rank=self._at.rank,
                world_size=self._at.world_size,
                timeout=timedelta(seconds=self._seconds),
            )
            self._enter("all-reduce")
            reduced = self._all_reduce()
            self._enter("links")
            link = self._best_link()
            self._enter("done")
        except (RuntimeError, ValueError, OSError) as raised:
            error = " ".join(str(raised).partition("\n")[0].split())[:200] or type(raised).__name__
        return error, reduced, link

    def _disconnect(self) -> None:
        if dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()

    def _all_reduce(self) -> float:
        tensor = torch.ones(_REDUCED // 4, device=self._device)
        dist.all_reduce(tensor[:1024])
        seconds = self._timed(lambda: dist.all_reduce(tensor))
        # What crosses each link in a ring: github.com/NVIDIA/nccl-tests, doc/PERFORMANCE.md ("bus bandwidth").
        return 2 * (self._at.world_size - 1) / self._at.world_size * _REDUCED / seconds

    def _best_link(self) -> float:
        """Exchange bytes with both neighbours in a ring, one link after the other."""
        nodes, best = self._at.nodes, 0.0
        for first in range(nodes if nodes > 2 else nodes - 1):
            pair = (first, (first + 1) % nodes)
            if self._at.local_rank == 0 and self._at.node in pair:
                sends = self._at.node == first
                other = pair[sends] * self._at.processes
                tensor = torch.ones(_EXCHANGED, dtype=torch.uint8, device=self._device)
                self._ping_pong(tensor[:1024], other, sends)
                seconds = self._timed(lambda: self._ping_pong(tensor, other, sends))  # noqa: B023 - called at once
                best = max(best, 2 * _EXCHANGED / seconds)
        return best

    def _ping_pong(self, tensor: torch.Tensor, other: int, sends_first: bool) -> None:
        for sends in (sends_first, not sends_first):
            if sends:
                dist.send(tensor, other)
            else:
                dist.recv(tensor, other)

    def _timed(self, call: Callable[[], Any]) -> float:
        start = time.monotonic()
        call()
        if self._gpus:
            torch.cuda.synchronize()
        return time.monotonic() - start

    def _enter(self, stage: str) -> None:
        self._store.set(f"stage/{self._at.rank}", stage)

    def _stage_of(self, rank: int) -> str:
        key = f"stage/{rank}"
        return str(self._store.get(key).decode()) if self._store.check([key]) else _STAGES[0]


_UNFIT = {CheckStatus.ACTION_REQUIRED, CheckStatus.FAILED}


def _findings(values: list[dict[str, Any]]) -> list[NodeFinding]:
    return [NodeFinding(**{**value, "status": CheckStatus(value["status"])}) for value in values]


def _hangs(found: str) -> NodeFinding:
    return NodeFinding("node", found, CheckStatus.FAILED, "look at it, or remove it")


def _store_unreachable(topology: Topology, seconds: float) -> NodeFinding | None:
    """Try to reach rank 0's store, for which torch would wait for minutes and end in a traceback."""
    if topology.rank == 0:
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    deadline, error = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, port), seconds).close()
            return None
        except OSError as raised:
            error = str(raised)
        time.sleep(0.2)
    advice = "allow connections between the nodes on all ports: each round's store uses a free one"
    return NodeFinding("rank 0", f"{host}:{port} cannot be reached: {error}", CheckStatus.FAILED, advice)


def format_report(nodes: list[CheckedNode], processes: int, status: int, reduced: float) -> str:
    """Return the report: a line for each node, and one for each finding that is not ok.

    Args:
        nodes: By node rank.
        processes: Per node.
        status: The exit status.
        reduced: Bytes per second of the all-reduce; 0 if there was none.
    """
    lines, findings = [], []
    for number, node in enumerate(nodes):
        name = f"node {number} ({node.host})"
        figures = [f"{one.check}: {one.found}" for one in node.findings if one.status is CheckStatus.OK]
        figures += [f"best link: {node.link / 1e6:.0f} MB/s"] if node.link else []
        lines.append(f"  {name}  {'; '.join(figures)}")
        for one in node.findings:
            if one.status is not CheckStatus.OK:
                advice = f": {one.advice}" if one.advice else ""
                findings.append(f"{one.status}: {name}: {one.check}: {one.found}{advice}")
    if reduced:
        lines.append(f"  all-reduce of {_REDUCED >> 20} MB: {reduced / 1e6:.0f} MB/s")
    outcome = {DONE: "ready", USER_MUST_CHANGE: "action required"}.get(status, "failed")
    count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''} x {processes} process{'es' if processes > 1 else ''}"
    return "\n".join([f"preflight of {count}: {outcome}", *lines, *findings])
