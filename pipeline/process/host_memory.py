"""Memory of a node's agent in which its workers keep the newest states of a training: it outlives them.

Two files that exist in memory alone (`memfd_create`) hold one state each, and a third one says what they hold. They
belong to the agent, and end with it; a worker, which has the same user, opens them by the agent's entries in `/proc`.
One worker of a node writes at a time. It says that a state is there only once all of its bytes are, and that it is not
before it writes the first one, so that a worker that is killed at any moment leaves the other state, whole.

Linux only; elsewhere, and without an agent, there is no such memory.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

VARIABLE = "PIPELINE_HOST_MEMORY"
"""The environment variable that names the files: the agent's process, and their descriptors there."""

SLOTS = 2
_PAGE = 1 << 16
"""Bytes of the index for each slot."""
_BUFFER = 1 << 18
_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class HeldState:
    """A state in the memory of this node.

    Attributes:
        slot: Which of the two files holds it.
        bytes: Its length.
        about: What its writer says of it, in JSON's types.
    """

    slot: int
    bytes: int
    about: dict[str, Any]


class HostMemory:
    """The memory as a worker of the node sees it, or its agent.

    Args:
        paths: Of the index, then of each slot.
    """

    def __init__(self, paths: list[str]) -> None:
        self._index, *self._slots = paths

    @staticmethod
    def create() -> None:
        """Make the files, and name them to the processes that this one starts."""
        os.environ.pop(VARIABLE, None)
        if sys.platform != "linux":
            return
        with suppress(OSError):  # a kernel or a sandbox without them
            files = [os.memfd_create(f"pipeline-{name}") for name in ("index", *map(str, range(SLOTS)))]
            os.environ[VARIABLE] = f"{os.getpid()}:{','.join(map(str, files))}"

    @staticmethod
    def of_environment(environment: Mapping[str, str] = os.environ) -> "HostMemory | None":
        """Return the memory of the agent that has started this process; None without one, or out of its reach."""
        agent, _, files = environment.get(VARIABLE, "").partition(":")
        if agent != str(os.getppid()):  # none, or one that has started a process which has started this one
            return None
        paths = [f"/proc/{agent}/fd/{file}" for file in files.split(",")]
        return (
            HostMemory(paths) if len(paths) == 1 + SLOTS and all(os.access(each, os.W_OK) for each in paths) else None
        )

    def states(self) -> list[HeldState]:
        """Return the whole states that are held."""
        found = (self._read(slot) for slot in range(SLOTS))
        return [state for state in found if state is not None]

    def path(self, state: HeldState) -> str:
        """Return the path of a file that holds a state, for all processes of this node."""
        return self._slots[state.slot]

    @contextmanager
    def writing(self) -> Iterator[tuple[BinaryIO, Callable[[dict[str, Any]], None]]]:
        """Write a state over one that is held: the one that was written first.

        Yields:
            A file at its beginning, and what to call once all is written, with what describes it; where the block
            ends before, nothing is held there.
        """
        taken = {state.slot: int(state.about.get("number", 0)) for state in self.states()}
        slot = min(range(SLOTS), key=lambda slot: taken.get(slot, -1))
        number = max(taken.values(), default=0) + 1
        self._forget(slot)
        # Not emptied first: the next state needs the same pages.
        with open(self._slots[slot], "r+b", buffering=_BUFFER) as file:

            def hold(about: dict[str, Any]) -> None:
                file.flush()
                length = file.tell()
                file.truncate()
                text = json.dumps({"bytes": length, "about": {**about, "number": number}}).encode()
                if len(text) + _DIGEST > _PAGE:
                    raise ValueError(f"{len(text)} bytes say what the state is, of {_PAGE - _DIGEST} at most")
                page = hashlib.sha256(text).digest() + text
                self._write(slot, page.ljust(_PAGE, b"\0"))

            yield file, hold

    def forget(self, spare: int | None = None) -> None:
        """Hold nothing any more, and give the memory back, but for one slot."""
        for slot in range(SLOTS):
            if slot != spare:
                self._forget(slot)
                with open(self._slots[slot], "r+b") as file:
                    file.truncate(0)

    def _forget(self, slot: int) -> None:
        self._write(slot, bytes(_PAGE))

    def _write(self, slot: int, page: bytes) -> None:
        with open(self._index, "r+b", buffering=0) as index:
            os.pwrite(index.fileno(), page, slot * _PAGE)

    def _read(self, slot: int) -> HeldState | None:
        with open(self._index, "rb", buffering=0) as index:
            page = os.pread(index.fileno(), _PAGE, slot * _PAGE)
        digest, text = page[:_DIGEST], page[_DIGEST:].rstrip(b"\0")
        if not text or hashlib.sha256(text).digest() != digest:
            return None
        found = json.loads(text)
        whole = os.stat(self._slots[slot]).st_size == found["bytes"]
        return HeldState(slot, found["bytes"], found["about"]) if whole else None
