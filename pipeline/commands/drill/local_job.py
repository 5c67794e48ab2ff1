"""A job over several nodes of this machine, started and restarted as a launcher does it."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.agent import pdeathsig
from pipeline.agent.standby import is_standby
from pipeline.errors import DONE, USER_MUST_CHANGE

GRACE = 30
"""Seconds that the processes have after SIGTERM."""

_SETTLE = 5.0
"""Seconds after the end of one agent within which the others may be about to end, too."""
_RENDEZVOUS = "join_timeout=60,last_call_timeout=1,keep_alive_interval=1"
_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_ADDR")
"""What torch's agent sets: a drill may itself run under one."""


class JobFailure(Exception):
    """The job did what it must not: the drill ends here."""


class LocalJob:
    """The agents of a job, one for each node, all on this machine.

    Args:
        fit: The arguments of `python -m pipeline fit`.
        nodes: How many.
        processes: Of each node.
        environment: Variables of the processes, in addition to this process's own.
        logs: The folder for their output.

    Attributes:
        nodes: With how many it is launched the next time.
        endings: The node and the status of each agent that has ended, in that order.
        starts: How often an agent was restarted, or the whole job.
        more: Further arguments of the fits that are launched from now on.
        replaced: Nodes whose end is known to leave the others waiting: they are restarted at once.
        environment: Of the processes that are started from now on.
    """

    def __init__(
        self, fit: Sequence[str], nodes: int, processes: int, environment: Mapping[str, str], logs: Path
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.nodes = nodes
        self.endings: list[tuple[int, int]] = []
        self.starts = 0
        self.more: tuple[str, ...] = ()
        self.replaced: set[int] = set()
        self._fit, self._processes, self._logs = fit, processes, logs
        inherited = {name: value for name, value in os.environ.items() if name not in _LAUNCHER}
        self.environment = {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", **inherited, **environment}
        self._agents: list[subprocess.Popen[bytes]] = []
        self._seen: set[int] = set()
        self._first_end: float | None = None
        self._rendezvous: tuple[str, ...] = ()

    def launch(self) -> None:
        """Start all agents, with a rendezvous of their own."""
        self._rendezvous = (
            *(f"--nnodes={self.nodes}", "--rdzv-backend=c10d", f"--rdzv-conf={_RENDEZVOUS}"),
            *(f"--rdzv-endpoint=localhost:{_free_port()}", f"--rdzv-id={uuid.uuid4().hex}"),
        )
        self._agents = [self._start(node) for node in range(self.nodes)]
        self._first_end = None
        self.replaced.clear()

    def restart(self, nodes: Sequence[int]) -> None:
        """Restart the agents of some nodes, or launch the whole job again where all have ended."""
        self.starts += 1
        if len(nodes) == len(self._agents):
            self.launch()
            return
        for node in nodes:
            self._agents[node] = self._start(node)
        self.replaced -= set(nodes)
        self._first_end = None

    def due(self) -> list[int]:
        """Return the nodes whose agents a launcher restarts now.

        Raises:
            JobFailure: An agent ended with 2, though the user has changed nothing.
        """
        statuses = self._statuses()
        ended = [node for node, status in enumerate(statuses) if status is not None]
        if USER_MUST_CHANGE in statuses:
            raise JobFailure(f"the agent of node {statuses.index(USER_MUST_CHANGE)} ended with 2")
        if not ended or self.done:
            self._first_end = None
            return []
        if len(ended) == len(statuses):
            return ended
        self._first_end = self._first_end or time.monotonic()
        failed = [node for node in ended if statuses[node] != DONE]
        settled = set(failed) <= self.replaced or time.monotonic() - self._first_end > _SETTLE
        return failed if settled else []

    @property
    def done(self) -> bool:
        """Whether all agents have ended well."""
        return all(status == DONE for status in self._statuses())

    def agent(self, node: int) -> int | None:
        """Return the process of a node's agent, None once it has ended."""
        return self._agents[node].pid if self._agents[node].poll() is None else None

    def agents(self) -> list[int]:
        """Return the processes of all running agents."""
        return [agent.pid for agent in self._agents if agent.poll() is None]

    def workers(self, node: int) -> list[int]:
        """Return the processes of a node's ranks; none before they have been started."""
        agent = self._agents[node].pid
        with suppress(OSError):
            children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
            return sorted(pid for pid in map(int, children) if _is_worker(pid, agent))
        return []

    def kill(self) -> None:
        """Kill all agents, and with them their workers, and wait until they have ended."""
        workers = [pid for node in range(len(self._agents)) for pid in self.workers(node)]
        for agent in self._agents:
            agent.kill()
        for agent in self._agents:
            agent.wait(GRACE)
        deadline = time.monotonic() + GRACE
        while any(map(is_running, workers)) and time.monotonic() < deadline:
            time.sleep(0.01)

    def output(self) -> str:
        """Return what the agents and their workers have written."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self._logs.glob("node-*.txt")))

    def _start(self, node: int) -> subprocess.Popen[bytes]:
        self._seen.discard(node)
        with (self._logs / f"node-{node}.txt").open("ab") as log:
            return subprocess.Popen(
                [
                    # The agents die with the drill, even if that is killed.
                    *pdeathsig.tied(),
                    *(sys.executable, "-m", "pipeline.agent", *self._rendezvous, f"--local-addr=127.0.0.{node + 1}"),
                    *(f"--nproc-per-node={self._processes}", "--max-restarts=3", f"--shutdown-timeout={GRACE}"),
                    *("-m", "pipeline", "fit", *self._fit, *self.more),
                ],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _statuses(self) -> list[int | None]:
        statuses = [agent.poll() for agent in self._agents]
        for node, status in enumerate(statuses):
            if status is not None and node not in self._seen:
                self._seen.add(node)
                self.endings.append((node, status))
        return statuses


def send(pids: Sequence[int], number: signal.Signals) -> None:
    """Send a signal to processes, of which one may have ended meanwhile."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def is_running(pid: int) -> bool:
    """Return whether a process has not ended; one that was not waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _is_worker(child: int, agent: int) -> bool:
    """Return whether a child of an agent is a rank: it runs, is no standby, and not about to become another program."""
    with suppress(OSError):
        own, its = (Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (agent, child))
        return its != own and is_running(child) and not is_standby(child)
    return False


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
