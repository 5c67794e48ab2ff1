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
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeVar

from torch.distributed import DistError, DistStoreError, PrefixStore, Store, rendezvous

from pipeline.errors import StorageAway, UserError
from pipeline.process import patience

_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
_TIMEOUT = timedelta(minutes=5)
"""How long a rank without heartbeats is waited for, at least: C code may keep it from sending them for a while."""
_HEARTBEAT = 30.0
"""Seconds between two signs of life of a rank that others wait for."""
_SLICE = 1.0
"""Seconds after which a waiting rank looks whether it is to stop."""

T = TypeVar("T")


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

    def __str__(self) -> str:
        nodes = f"{self.nodes} node{'s' * (self.nodes > 1)}"
        return f"{nodes} x {self.processes} process{'es' * (self.processes > 1)}"

    @cached_property
    def store(self) -> Store:
        """The launcher's key-value store, under a prefix of this attempt."""
        store, _, _ = next(rendezvous("env://", self.rank, self.world_size, timeout=_TIMEOUT))
        # A restart in place may use the same store, which holds the answers of the previous attempt.
        return PrefixStore(f"pipeline/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def agree(self, name: str, decide: Callable[[], T]) -> T:
        """Return on all ranks what rank 0 decides.

        Args:
            name: Of the decision; each name is used once.
            decide: Called on rank 0 only; its result must survive JSON.

        Raises:
            UserError: On every rank, if `decide` raised one on rank 0.
            StorageAway: Likewise.
            DistStoreError: Nothing has been heard of rank 0 for minutes.
        """
        if self.world_size == 1:
            return decide()
        if self.rank == 0:
            with self._heartbeats(name):
                answer = _try(decide)
            self.store.set(name, json.dumps(answer))
        else:
            answer = json.loads(self._await(name, {0: name})[0])
        _raise([answer])
        value: T = answer["value"]
        return value

    def together(self, name: str, do: Callable[[], T]) -> list[T]:
        """Call a function on all ranks, and return on all of them what each returned, by rank.

        However long one of them takes, the others wait for it as long as its process lives. A user's mistake or an
        outage on any rank is raised on all, so that none waits.

        Args:
            name: Of the call; each name is used once.
            do: Its result must survive JSON.

        Raises:
            UserError: With the problems of every rank, each once.
            StorageAway: A storage does not answer some rank.
            DistStoreError: Nothing has been heard of some rank for minutes.
        """
        if self.world_size == 1:
            return [do()]
        with self._heartbeats(name):
            own = json.dumps({**_try(do), "host": socket.gethostname()})
            keys = {rank: f"{name}/{rank}" for rank in range(1, self.world_size)}
            if self.rank == 0:
                others = self._await(name, keys)
                # One value for all: if each rank asked for each other's, the store would answer world_size ** 2 times.
                # What each then reads grows with the world all the same, and is much alike: it shrinks to a tenth.
                joined = f"[{','.join([own, *(each.decode() for each in others)])}]"
                self.store.set(name, zlib.compress(joined.encode(), 1))  # type: ignore[arg-type] # bytes as well
            else:
                self.store.set(keys[self.rank], own)
        answers = json.loads(zlib.decompress(self._await(name, {0: name})[0]))
        _raise(answers)
        return [each["value"] for each in answers]

    def gather(self, name: str, value: T) -> list[T]:
        """Return every rank's value, by rank, on every rank."""
        return self.together(name, lambda: value)

    @contextmanager
    def _heartbeats(self, name: str) -> Iterator[None]:
        """Show the other ranks, for as long as it takes, that this one is alive."""
        done = threading.Event()

        def run() -> None:
            store: Any = None
            while not done.wait(_HEARTBEAT):
                store = store or self.store.clone()  # type: ignore[attr-defined]
                store.add(self._heartbeat(name, self.rank), 1)

        thread = threading.Thread(target=run, name="heartbeats", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _await(self, name: str, keys: Mapping[int, str]) -> list[bytes]:
        """Wait for a key of each of some ranks while they send heartbeats; return the values in that order.

        Raises:
            DistStoreError: One has not sent any for too long.
        """
        bound = patience.current()
        silence = max(_TIMEOUT.total_seconds(), 0.0 if bound is None else bound.seconds)
        began, heard = time.monotonic(), dict.fromkeys(keys, 0)
        while not self.wait([*keys.values()], min(_SLICE, silence)):
            if bound is not None:
                bound.check()
            missing = [rank for rank, key in keys.items() if not self.store.check([key])]  # raises if the store is lost
            if time.monotonic() - began < silence:
                continue
            for rank in missing:
                last, heard[rank] = heard[rank], self.store.add(self._heartbeat(name, rank), 0)
                if heard[rank] == last:
                    raise DistStoreError(f"rank {rank} has not been heard of for {silence:.0f} s ({name})")
            began = time.monotonic()
        return list(self.store.multi_get([*keys.values()]))

    @staticmethod
    def _heartbeat(name: str, rank: int) -> str:
        return f"{name}/heartbeat/{rank}"

    def signal(self, name: str) -> None:
        """Make `wait` return on every rank."""
        if self.world_size > 1:
            self.store.set(name, "")

    @property
    def has_met(self) -> bool:
        """Whether this process has reached the store."""
        return "store" in vars(self)

    def is_first_to_say(self, text: str) -> bool:
        """Return whether no rank has called this with the same text before; True where the store cannot be asked.

        It is for a thread, which must not wait for a connection that another one uses.
        """
        try:
            return int(self._voice.add(f"said/{text}", 1)) == 1
        except (RuntimeError, ValueError, UserError):
            return True

    @cached_property
    def _voice(self) -> Any:
        return self.store.clone()  # type: ignore[attr-defined]

    def wait(self, names: str | list[str], seconds: float) -> bool:
        """Wait until each of these has been signalled or set on some rank; return False after so many seconds."""
        try:
            self.store.wait([names] if isinstance(names, str) else names, timedelta(seconds=seconds))
        except DistError:
            return False
        return True


def _try(call: Callable[[], Any]) -> dict[str, Any]:
    """Return what a function returns, or what all ranks must know of its failure."""
    try:
        return {"value": call()}
    except UserError as error:
        return {"problems": list(error.problems)}
    except StorageAway as error:
        return {"away": [str(error)]}


def _raise(answers: list[dict[str, Any]]) -> None:
    """Raise what ranks have failed with: a user's mistake before an outage, for that would not go away.

    Args:
        answers: Of rank 0 alone, or of all ranks.
    """
    for kind in ("problems", "away"):
        found: dict[str, list[str]] = {}
        for rank, answer in enumerate(answers):
            for text in answer.get(kind, []):
                found.setdefault(text, []).append(f"rank {rank} on {answer.get('host')}")
        texts = [text if len(who) == len(answers) else f"{text} ({', '.join(who)})" for text, who in found.items()]
        if texts:
            raise UserError(*texts) if kind == "problems" else StorageAway("\n".join(texts))
