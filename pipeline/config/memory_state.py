"""The states of a run that the nodes of a launch hold in memory: which one is the newest, and how each node gets it."""

import logging
import secrets
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from pipeline.checkpoint.commit import CommitRecord
from pipeline.process.host_memory import HeldState, HostMemory
from pipeline.process.peer_transfer import PeerServer, TransferFailed, digest, fetch, own_address
from pipeline.process.topology import Topology
from pipeline.run.goodput_report import MEMORY
from pipeline.run.lease import launch_id
from pipeline.run.run_dir import RunDir
from pipeline.training.memory_checkpoints import MemoryCheckpoints

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryState:
    """A state that some nodes hold, in JSON's types.

    Attributes:
        attempt: That has kept it.
        bytes: Its length.
        record: What would be its commit record, as a mapping.
        holders: The first ranks of the nodes that hold it.
    """

    attempt: int
    bytes: int
    record: dict[str, Any]
    holders: list[int]

    @property
    def step(self) -> int:
        """Its optimizer step."""
        return int(self.record["step"])


class RunMemory:
    """The memory of all nodes, as far as it holds states of a run. All ranks must make it, and call its methods.

    Args:
        run: The run directory.
        topology: Which process this is.
        attempt: The number of this attempt.
        memory: Of this node; None where it has none.
    """

    def __init__(self, run: RunDir, topology: Topology, attempt: int, memory: HostMemory | None) -> None:
        self._run, self._topology, self._attempt, self._memory = run, topology, attempt, memory
        own = [{"bytes": each.bytes, **each.about} for each in self._states()] if topology.local_rank == 0 else []
        found: list[Any] = topology.gather("memory", [self._memory is not None, own])
        self._used = any(has for has, _ in found)
        self._held = [(rank, each) for rank, (_, states) in enumerate(found) for each in states]

    def newest(self) -> MemoryState | None:
        """Return the newest state that any node holds, unless a later attempt has trained from another. On rank 0."""
        states: dict[tuple[int, int], MemoryState] = {}
        for rank, each in self._held:
            step, attempt = CommitRecord.of_dict(each["record"]).step, int(each["attempt"])
            known = states.setdefault((attempt, step), MemoryState(attempt, each["bytes"], each["record"], []))
            known.holders.append(rank)
        if not states:
            return None
        state = states[max(states)]
        later = [number for number in self._run.attempts() if state.attempt < number < self._attempt]
        records = self._run.read_jsons(map(RunDir.attempt, later)).values() if later else ()
        return state if all(_began_there(record or {}, state.step) for record in records) else None

    def obtain(self, state: MemoryState) -> str | None:
        """Have each node hold a state: those that lack it fetch it from one that has it.

        Returns:
            The path of its file on this node; None on all ranks if some node could not get it.
        """
        problem = ""
        if self._topology.nodes > 1:
            own = digest(self._path(state), state.bytes) if self._topology.rank in state.holders else ""
            found = set(self._topology.gather("memory digests", own)) - {""}
            problem = self._spread(state, found.pop()) if len(found) == 1 else "replicas were not equal"
        if problem and self._topology.rank == 0:
            log.warning("step %d is not resumed from memory: %s", state.step, problem)
        return None if problem else self._path(state)

    def checkpoints(self, resumed: dict[str, Any] | None) -> MemoryCheckpoints | None:
        """Return what keeps states in memory while training; None where no node has any.

        Args:
            resumed: The fields of the state that training resumes from, if it is one in memory.
        """
        if not self._used:
            return None
        slot = None if resumed is None else self._find(MemoryState(**resumed)).slot
        return MemoryCheckpoints(self._memory, self._topology, self._about(self._attempt), slot)

    def _spread(self, state: MemoryState, expected: str) -> str:
        """Fetch the state on the nodes that lack it; return what has failed."""
        topology, holders = self._topology, state.holders
        lacking = [rank for rank in range(0, topology.world_size, topology.processes) if rank not in holders]
        if not lacking:
            return ""
        secret = bytes.fromhex(topology.agree("memory secret", lambda: secrets.token_hex(32)))
        with ExitStack() as serving:

            def serve() -> Any:
                if topology.rank not in holders:
                    return None
                try:
                    server = PeerServer(self._path(state), state.bytes, secret, own_address())
                except OSError as error:
                    return f"node {topology.node} could not give it away: {error}"
                return serving.enter_context(server).address

            def receive() -> str:
                if topology.rank not in lacking:
                    return ""
                address = addresses[holders[lacking.index(topology.rank) % len(holders)]]
                if isinstance(address, str):
                    return address
                try:
                    self._receive(state, tuple(address), secret, expected)
                except (TransferFailed, OSError) as error:
                    return f"node {topology.node} could not fetch it: {error}"
                return ""

            addresses: list[Any] = topology.gather("memory addresses", serve())
            return next(filter(None, topology.together("memory fetched", receive)), "")

    def _receive(self, state: MemoryState, address: Any, secret: bytes, expected: str) -> None:
        if self._memory is None:
            raise TransferFailed("it has no such memory")
        with self._memory.writing() as (file, hold):
            fetch(address, secret, state.bytes, expected, file.fileno())
            file.seek(state.bytes)
            hold({**self._about(state.attempt), "record": state.record})

    def _about(self, attempt: int) -> dict[str, Any]:
        return {"run": self._run.url, "launch": launch_id(), "attempt": attempt}

    def _states(self) -> list[HeldState]:
        """Return what this node holds of this run."""
        states = [] if self._memory is None else self._memory.states()
        expected = self._about(0)
        return [each for each in states if all(each.about.get(name) == expected[name] for name in ("run", "launch"))]

    def _find(self, state: MemoryState) -> HeldState:
        for each in self._states():
            if each.about["attempt"] == state.attempt and each.about["record"]["step"] == state.step:
                return each
        raise AssertionError(f"step {state.step} of attempt {state.attempt} is not in memory")

    def _path(self, state: MemoryState) -> str:
        assert self._memory is not None
        return self._memory.path(self._find(state))


def _began_there(record: dict[str, Any], step: int) -> bool:
    """Return whether an attempt did not train, or resumed from the state in memory of this step."""
    first = record.get("first_step", "not known")
    return first is None or (record.get("resumed_from") == MEMORY and first == step)
