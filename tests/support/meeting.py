"""Ranks and agents of a whole job as threads of one process, against one real store, whose requests are counted."""

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousParameters

from pipeline.agent import compat
from pipeline.agent.arguments import parser
from pipeline.agent.node import NodeAgent
from pipeline.agent.rendezvous import RoundHandler
from pipeline.agent.signals import Signals
from pipeline.process.topology import Topology
from tests.support.agent_harness import free_port

TIMEOUT = timedelta(minutes=5)


class CountingStore(dist.Store):
    """A connection to a store that counts what is asked for over it: `requests`, `keys read`, `keys read by <method>`,
    and the `bytes read`.

    Args:
        store: The connection.
        counts: Of this one and those that are cloned of it.
        alive: Keeps them: torch's own wrappers refer to the C++ half of a store only.
    """

    def __init__(self, store: Any, counts: Counter[str], alive: list[Any]) -> None:
        super().__init__()
        alive.append(self)
        self._store, self._counts, self._alive = store, counts, alive

    def _ask(self, name: str, *arguments: Any, keys: int = 0) -> Any:
        self._counts.update({"requests": 1, "keys read": keys, f"keys read by {name}": keys})
        answer = getattr(self._store, name)(*arguments)
        if keys:
            self._counts["bytes read"] += len(answer) if isinstance(answer, bytes) else sum(map(len, answer))
        return answer

    def get(self, key: str) -> bytes:
        return self._ask("get", key, keys=1)  # type: ignore[no-any-return]

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return self._ask("multi_get", keys, keys=len(keys))  # type: ignore[no-any-return]

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        return self._ask("compare_set", key, expected, desired, keys=1)  # type: ignore[no-any-return]

    def set(self, key: str, value: str) -> None:
        self._ask("set", key, value)

    def multi_set(self, keys: list[str], values: list[str]) -> None:
        self._ask("multi_set", keys, values)

    def add(self, key: str, number: int) -> int:
        return self._ask("add", key, number)  # type: ignore[no-any-return]

    def check(self, keys: list[str]) -> bool:
        return self._ask("check", keys)  # type: ignore[no-any-return]

    def wait(self, keys: list[str], *timeout: timedelta) -> None:
        self._ask("wait", keys, *timeout)

    def has_extended_api(self) -> bool:
        return True

    def clone(self) -> "CountingStore":
        return CountingStore(self._store.clone(), self._counts, self._alive)

    @property
    def host(self) -> str:
        return str(self._store.host)

    @property
    def port(self) -> int:
        return int(self._store.port)


class Meeting:
    """So many threads, each with a connection of its own to one store.

    Args:
        size: How many.
    """

    def __init__(self, size: int) -> None:
        # torch asks for the name of each peer: a slow name server would be what is waited for.
        os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")
        self.size, self.port = size, free_port()
        self._alive: list[Any] = []
        before = _threads()
        self._alive.append(
            dist.TCPStore("127.0.0.1", self.port, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
        )
        self._serving = _threads() - before
        self._counts = [Counter[str]() for _ in range(size)]
        self._stores = [self._connect(each) for each in self._counts]
        self._failed: list[BaseException] = []
        self.total = Counter[str]()
        """What all threads together have asked for until their parts were over."""

    def _connect(self, counts: Counter[str]) -> CountingStore:
        tcp = dist.TCPStore("127.0.0.1", self.port, wait_for_workers=False, timeout=TIMEOUT)
        return CountingStore(tcp, counts, self._alive)

    @property
    def store_seconds(self) -> float:
        """CPU time that the store itself has used, which is one thread and has to serve all; Linux only."""
        spent = (Path(f"/proc/self/task/{each}/schedstat").read_text().split()[0] for each in self._serving)
        return sum(map(int, spent)) / 1e9

    def run(self, take_part: Callable[[int, CountingStore], None]) -> None:
        """Call a function in each thread, with its number and its connection, and wait for all of them."""

        def run(number: int) -> None:
            try:
                take_part(number, self._stores[number])
                self.total.update(self._counts[number])
            except BaseException as error:
                self._failed.append(error)

        threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failed:
            raise self._failed[0]

    def agree(self) -> None:
        """Have ranks agree on what rank 0 decides, and gather a value of each."""

        def rank(number: int, store: CountingStore) -> None:
            topology = Topology(number, 0, self.size, 1, number, self.size)
            topology.__dict__["store"] = store
            topology.agree("run_dir", lambda: "runs/one")
            topology.together("facts", lambda: number)

        self.run(rank)

    def join(self) -> None:
        """Have the agents of nodes join a round, to the moment at which they would start their workers."""
        names = {"nnodes": self.size, "nproc-per-node": 1, "rdzv-endpoint": f"127.0.0.1:{self.port}", "rdzv-id": "job"}
        line = [f"--{name}={value}" for name, value in names.items()] + ["--rdzv-backend=c10d", "-m", "pipeline", "fit"]
        config, program = compat.launch_config(parser().parse_args(line), parser().parse_args(["script"]))

        def node(number: int, store: CountingStore) -> None:
            parameters = RendezvousParameters(
                "c10d", config.rdzv_endpoint, config.run_id, self.size, self.size, "127.0.0.1", **config.rdzv_configs
            )
            tcp: Any = store
            handler = RoundHandler.over(tcp, parameters, hosts_store=False)
            NodeAgent(config, program, Signals(), grace=1.0)._join(handler)
            handler.stop_heartbeats()

        self.run(node)


def _threads() -> set[str]:
    """The threads of this process, by the kernel's number."""
    return set(os.listdir("/proc/self/task")) if sys.platform == "linux" else set()
