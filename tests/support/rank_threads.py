"""The ranks of a launch as threads of one process, over one real store."""

import threading
from collections.abc import Callable

import pytest
from torch.distributed import TCPStore

from pipeline.errors import UserError
from pipeline.process.topology import Topology


def ranks(
    monkeypatch: pytest.MonkeyPatch, world: int, do: Callable[[Topology], object], nodes: int = 1
) -> list[object]:
    """What `do` returns on every rank, or the problems that it raises there.

    Args:
        monkeypatch: Sets what leads to the store.
        world: Processes.
        do: Called in a thread each.
        nodes: Over which the processes are spread.
    """
    server = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": str(server.port)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    results: list[object] = [None] * world
    processes = world // nodes

    def run(rank: int) -> None:
        try:
            results[rank] = do(Topology(rank, rank % processes, world, processes, rank // processes, nodes))
        except UserError as error:
            results[rank] = error.problems

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return results
