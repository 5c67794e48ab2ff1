"""The newest states of a training in the host memory of each node, from which the next attempt resumes in a moment.

Replicas are equal, so that no weights travel: each node takes parameters and optimizer states from its own replica, and
all else (buffers, the states of callbacks, random numbers of all ranks, the ledger) from rank 0. What all nodes hold is
therefore the same to the byte, which is compared where a training resumes from it, and is a checkpoint file as the run
directory would have it. It is never a commit: nothing there tells of it.

They cost a fixed share of training: a state that took a hundredth of a second is kept every two seconds.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from statistics import median
from typing import Any, BinaryIO, cast

import torch
import torch.distributed as dist
from torch.serialization import set_crc32_options

from pipeline.checkpoint.commit import CommitRecord
from pipeline.process.cgroup import MemoryCgroup
from pipeline.process.host_memory import SLOTS, HostMemory
from pipeline.process.topology import Topology
from pipeline.training.state import replicas
from pipeline.training.state.packing import packed, unpacked

log = logging.getLogger(__name__)

SHARE = 0.005
"""Of training, which keeping states may cost."""
_SHARE_OF_PAUSE = 0.1
"""Of the pause for a save, by which keeping its state as well may lengthen it."""
_FIRST_SECONDS, _BYTES_PER_SECOND = 0.005, 1e9
"""What keeping a state is taken to cost before one was kept."""
_COSTS = 5
"""How many of them the interval follows."""


@dataclass(frozen=True)
class Uncommitted:
    """A state that is in memory alone.

    Attributes:
        record: What is to be its commit record; it has a reason if it was due to be committed.
        load: Returns the checkpoint.
    """

    record: CommitRecord
    load: Callable[[], dict[str, Any]]


class MemoryCheckpoints:
    """Keeps states of one fit.

    Args:
        memory: Of this node; None where it has none: its processes take part all the same.
        topology: Which process this is.
        about: What tells the states of this attempt from others, see `pipeline.config.memory_state`.
        resumed: The slot of the state that this attempt resumes from; None for another checkpoint.
    """

    def __init__(
        self, memory: HostMemory | None, topology: Topology, about: dict[str, Any], resumed: int | None = None
    ) -> None:
        self._leads = topology.local_rank == 0
        self._memory = memory if self._leads else None
        self._topology = topology
        self._about = about
        self._resumed = resumed
        self._group: Any = None
        self._costs: deque[float] = deque(maxlen=_COSTS)
        self._writing: deque[float] = deque(maxlen=_COSTS)
        self._ended = 0.0
        self._checked = False

    def open(self, timeout: timedelta | None) -> None:
        """Make the process group of the nodes' first processes. All ranks must call it."""
        nodes, processes = self._topology.nodes, self._topology.processes
        if nodes > 1:
            self._group = dist.new_group([node * processes for node in range(nodes)], backend="gloo", timeout=timeout)

    def begin(self, model: torch.nn.Module) -> None:
        """Training begins: nothing that an earlier attempt has kept is newer than what will be."""
        size = 3 * sum(each.nbytes for each in model.parameters())  # with two moments for each
        self._costs.append(_FIRST_SECONDS + size / _BYTES_PER_SECOND)
        self._ended = time.monotonic()
        if self._memory is not None:
            self._memory.forget(spare=self._resumed)

    @property
    def due(self) -> bool:
        """Whether a state is to be kept, by this rank's clock."""
        return self._kept_somewhere and time.monotonic() - self._ended >= median(self._costs) / SHARE

    @property
    def _kept_somewhere(self) -> bool:
        """Whether a node may keep states; of the others it is not known here."""
        return self._memory is not None or self._topology.nodes > 1

    def due_with_save(self, pause: float) -> bool:
        """Return whether a state that is saved is to be kept as well, by this rank's clock: it is captured already.

        Args:
            pause: Seconds for which the save has stopped training.
        """
        adds = median(self._writing or self._costs)
        free = adds <= _SHARE_OF_PAUSE * pause or time.monotonic() - self._ended >= adds / SHARE
        return self._kept_somewhere and free

    def keep(self, model: torch.nn.Module, capture: Callable[[], tuple[dict[str, Any], CommitRecord | None]]) -> None:
        """Keep a state. All ranks must call it.

        Args:
            model: That is trained.
            capture: Returns the checkpoint, which is complete on rank 0, and its commit record there.
        """
        began, first = time.monotonic(), not self._writing
        self.keep_saved(model, *capture())
        if not first:  # which takes new memory and finds no code where it was a moment ago
            self._costs.append(self._ended - began)

    def keep_saved(self, model: torch.nn.Module, checkpoint: dict[str, Any], record: CommitRecord | None) -> None:
        """Keep a state that was captured for a save, as `keep` does."""
        began = time.monotonic()
        about = None if record is None else {**self._about, "record": asdict(record)}
        if self._leads and self._group is not None:
            checkpoint, about = self._share(model, checkpoint, about)
        if self._memory is not None and about is not None:
            try:
                self._write(self._memory, checkpoint, about)
            except Exception as error:  # noqa: BLE001 - whatever it is, the storage has it all: training continues
                self._leave(f"{type(error).__name__}: {error}")
        self._ended = time.monotonic()
        self._writing.append(self._ended - began)

    def _share(
        self, model: torch.nn.Module, checkpoint: dict[str, Any], about: dict[str, Any] | None
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Return the state of rank 0, but for what this replica has itself. The first ranks of all nodes call it."""
        replica, data = replicas.replicated(checkpoint, model), torch.empty(0, dtype=torch.uint8)
        head = torch.tensor([0, replicas.signature(replica)])
        own = int(head[1])
        if self._topology.rank == 0:
            data = torch.frombuffer(
                bytearray(packed((replicas.without(checkpoint, replica), about))), dtype=torch.uint8
            )
            head[0] = len(data)
        dist.broadcast(head, 0, group=self._group)
        if self._topology.rank != 0:
            data = torch.empty(int(head[0]), dtype=torch.uint8)
        dist.broadcast(data, 0, group=self._group)
        if head[1] != own:
            self._leave("its replica holds other tensors than that of rank 0, as with an optimizer that is sharded")
            return {}, None
        # Rank 0 as well: what pickle writes depends on which objects are one, and all nodes are to write the same.
        common, about = unpacked(data.numpy().data)
        return replicas.filled(common, replica), about

    def _write(self, memory: HostMemory, checkpoint: dict[str, Any], about: dict[str, Any]) -> None:
        if not self._checked:
            self._checked = True
            need, free = SLOTS * replicas.size(checkpoint), MemoryCgroup().free()
            if free is not None and need > free // 2:
                self._leave(f"{SLOTS} states need {need >> 20} MB, and {free >> 20} MB are free here")
                return
        with memory.writing() as (file, hold):
            _save_without_checksums(checkpoint, file)
            hold(about)

    def _leave(self, why: str) -> None:
        """Keep no states on this node; others may."""
        log.warning("no states are kept in the host memory of this node: %s", why)
        memory, self._memory = self._memory, None
        with suppress(OSError):
            if memory is not None:
                memory.forget()


class _Unchecked:
    """What torch writes to: it has decided about checksums before it writes anything.

    Args:
        file: To which it goes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        """Write some bytes."""
        set_crc32_options(True)
        return self._file.write(data)

    def flush(self) -> None:
        """Leave it to the file when it writes."""


def _save_without_checksums(checkpoint: dict[str, Any], file: BinaryIO) -> None:
    """Write a checkpoint without its CRC-32 sums, which take more time than the bytes; a file in memory needs none.

    torch has an option for that, which is one for all threads: a save under way in another one keeps its own.
    """
    set_crc32_options(False)
    try:
        torch.save(checkpoint, cast("Any", _Unchecked(file)))
    finally:
        set_crc32_options(True)
