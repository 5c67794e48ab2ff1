"""The rank of this process and the world size, from the launcher's environment; and how ranks agree before training.

Topology belongs to the launcher: torch's elastic agent sets RANK, LOCAL_RANK, WORLD_SIZE, LOCAL_WORLD_SIZE,
GROUP_RANK and GROUP_WORLD_SIZE; without it there is one process. What must be the same on all ranks (the run
directory, the checkpoint to resume from) is decided by rank 0 and shared through the launcher's own key-value store,
before a model is built or a device is taken.
"""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any

from torch.distributed import DistError, PrefixStore, Store, rendezvous

from pipeline.errors import UserError

_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
_TIMEOUT = timedelta(minutes=5)
_HEARTBEAT = 30.0
"""Seconds between two signs of life of rank 0 while it decides."""


@dataclass(frozen=True)
class Topology:
    """The rank of this process; `nodes` x `processes` (per node) make up `world_size`."""

    rank: int
    local_rank: int
    world_size: int
    processes: int
    node: int
    nodes: int

    @staticmethod
    def from_environment(environment: Mapping[str, str] = os.environ) -> "Topology":
        """Read the launcher's variables; without them there is one process.

        Raises:
            UserError: Some of them are not set or not a number, or they contradict each other.
        """
        if "WORLD_SIZE" not in environment and "RANK" not in environment:
            return Topology(rank=0, local_rank=0, world_size=1, processes=1, node=0, nodes=1)
        problems = []
        values = {}
        for name in _VARIABLES:
            text = environment.get(name)
            if text is None or not text.isdecimal():
                found = "is not set" if text is None else f"={text!r} is not a number"
                problems.append(f"{name} {found}: start through torchrun or a TorchX component, which set all of them")
            else:
                values[name] = int(text)
        if not problems and values["WORLD_SIZE"] != values["LOCAL_WORLD_SIZE"] * values["GROUP_WORLD_SIZE"]:
            problems.append(
                f"WORLD_SIZE={values['WORLD_SIZE']} is not LOCAL_WORLD_SIZE={values['LOCAL_WORLD_SIZE']} x "
                f"GROUP_WORLD_SIZE={values['GROUP_WORLD_SIZE']}: every node must run the same number of processes"
            )
        if problems:
            raise UserError(*problems)
        return Topology(
            rank=values["RANK"],
            local_rank=values["LOCAL_RANK"],
            world_size=values["WORLD_SIZE"],
            processes=values["LOCAL_WORLD_SIZE"],
            node=values["GROUP_RANK"],
            nodes=values["GROUP_WORLD_SIZE"],
        )

    @cached_property
    def store(self) -> Store:
        """The launcher's key-value store, under a prefix of this attempt."""
        store, _, _ = next(rendezvous("env://", self.rank, self.world_size, timeout=_TIMEOUT))
        # A restart in place may use the same store, which holds the answers of the previous attempt.
        return PrefixStore(f"pipeline/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def agree(self, name: str, decide: Callable[[], Any]) -> Any:
        """Return on all ranks what rank 0 decides.

        Args:
            name: Of the decision; each name is used once.
            decide: Called on rank 0 only; its result must survive JSON.

        Raises:
            UserError: On every rank, if `decide` raised one on rank 0.
        """
        if self.world_size == 1:
            return decide()
        if self.rank == 0:
            try:
                with self._heartbeats(name):
                    answer = {"value": decide()}
            except UserError as error:
                answer = {"problems": list(error.problems)}
            self.store.set(name, json.dumps(answer))
        else:
            answer = json.loads(self._answer(name))
        if "problems" in answer:
            raise UserError(*answer["problems"])
        return answer["value"]

    @contextmanager
    def _heartbeats(self, name: str) -> Iterator[None]:
        """Show the other ranks, for as long as it takes, that rank 0 is still deciding."""
        done = threading.Event()
        store: Any = self.store.clone()  # type: ignore[attr-defined]

        def run() -> None:
            number = 0
            while not done.wait(_HEARTBEAT):
                number += 1
                store.set(f"{name}/heartbeat/{number}", "")

        thread = threading.Thread(target=run, name="heartbeats", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _answer(self, name: str) -> bytes:
        """Wait for rank 0's answer while it sends heartbeats; it may have to fetch a large file first."""
        number = 1
        while True:
            try:
                return self.store.get(name)
            except DistError:
                if not self.store.check([f"{name}/heartbeat/{number}"]):
                    raise
                while self.store.check([f"{name}/heartbeat/{number}"]):
                    number += 1

    def gather(self, name: str, value: Any) -> list[Any]:
        """Return every rank's value, by rank, on every rank."""
        if self.world_size == 1:
            return [value]
        self.store.set(f"{name}/{self.rank}", json.dumps(value))
        return [json.loads(self.store.get(f"{name}/{rank}")) for rank in range(self.world_size)]

    def together(self, name: str, do: Callable[[], None]) -> None:
        """Call a function on all ranks; a user's mistake on any of them is raised on all, so that none waits.

        Raises:
            UserError: With the problems of every rank, each once.
        """
        problems: tuple[str, ...] = ()
        try:
            do()
        except UserError as error:
            problems = error.problems
        gathered = self.gather(name, [list(problems), socket.gethostname()])
        found: dict[str, list[str]] = {}
        for rank, (texts, node) in enumerate(gathered):
            for text in texts:
                found.setdefault(text, []).append(f"rank {rank} on {node}")
        if found:
            raise UserError(
                *(text if len(who) == self.world_size else f"{text} ({', '.join(who)})" for text, who in found.items())
            )

    def signal(self, name: str) -> None:
        """Make `wait` return on every rank."""
        if self.world_size > 1:
            self.store.set(name, "")

    def wait(self, name: str, seconds: float) -> bool:
        """Wait until `signal` is called on some rank; returns False after so many seconds."""
        try:
            self.store.wait([name], timedelta(seconds=seconds))
        except DistError:
            return False
        return True
