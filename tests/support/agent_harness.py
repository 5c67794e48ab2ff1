"""Agents as the nodes of a job on this machine, and a worker that does as it is told and needs no torch."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.commands import ROOT

WORKER = """
import os, pathlib, signal, sys, time
folder, node, rank = pathlib.Path(sys.argv[1]), os.environ["NODE"], os.environ["RANK"]
round_ = os.environ["MASTER_PORT"]  # each round has a store of its own

def leave_alone(*_):
    from pipeline.process.error_file import write_report
    write_report(os.environ["TORCHELASTIC_ERROR_FILE"], 75, "preempted before the first step: nothing to save")
    (folder / f"left-alone-{node}").touch()
    os._exit(75)

def asked(*_):
    (folder / f"asked-{round_}").touch()  # all ranks agree

signal.signal(signal.SIGTERM, leave_alone if "STARTING" in os.environ else asked)
with open(folder / "started", "a") as file:
    file.write(f"{node} {rank} {os.environ['WORLD_SIZE']} {os.environ['TORCHELASTIC_RESTART_COUNT']} {round_}\\n")
while True:
    told = folder / f"do-{node}"
    if told.exists():
        what = told.read_text()
        told.unlink(missing_ok=True)
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "unsaved":
            leave_alone()
        sys.exit(int(what))
    if (folder / "finish").exists():
        time.sleep(float(os.environ.get("LATER", 0)))
        sys.exit(0)
    if (folder / f"asked-{round_}").exists():
        sys.exit(75)
    time.sleep(0.05)
"""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


class Nodes:
    """A job whose nodes are agents of this machine, named by letters; the first one hosts the store."""

    def __init__(self, folder: Path, nodes: str, *options: str, join: int = 20, last_call: int | None = 1) -> None:
        self.folder = folder
        self.port = free_port()
        self.options = (
            f"--nnodes={nodes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint=localhost:{self.port}",
            f"--rdzv-conf=join_timeout={join},keep_alive_interval=1,keep_alive_max_attempt=3"
            + (f",last_call_timeout={last_call}" if last_call else ""),
            *options,
        )
        self.program: tuple[str, ...] = (str(folder / "worker.py"), str(folder))
        (folder / "worker.py").write_text(WORKER)
        self.agents: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str, **env: str) -> None:
        """Start agents; a name that ran before is a replacement."""
        for name in names:
            with open(self.folder / f"err-{name}", "ab") as err, open(self.folder / f"out-{name}", "ab") as out:
                self.agents[name] = subprocess.Popen(
                    # Each on an address of its own, for there is nothing else that tells them apart.
                    [
                        *(sys.executable, "-m", "pipeline.agent", *self.options),
                        *(f"--local-addr=127.0.0.{ord(name[0]) - ord('a') + 1}", *self.program),
                    ],
                    cwd=ROOT,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "NODE": name, **env},
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )

    def begin(self, *names: str, **env: str) -> None:
        """Start agents, of which the first one hosts the store, and wait until each runs a worker."""
        self.start(names[0], **env)
        self.wait(lambda: listens(self.port))
        self.start(*names[1:], **env)
        self.wait_started(len(names))

    def started(self) -> list[list[str]]:
        """Node, rank, world size, number of the restart and round of each worker that has started."""
        path = self.folder / "started"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def wait_started(self, count: int, seconds: float = 25) -> list[list[str]]:
        """Wait until so many workers have started in all."""
        self.wait(lambda: len(self.started()) >= count, seconds)
        return self.started()

    def wait(self, happened: Callable[[], bool], seconds: float = 25) -> None:
        """Wait for something."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, (self.started(), self.err())
            time.sleep(0.05)

    def tell(self, name: str, what: object) -> None:
        """Make one of a node's workers end so."""
        path = self.folder / f"do-{name}"
        path.with_suffix(".new").write_text(str(what))
        path.with_suffix(".new").rename(path)

    def finish(self) -> None:
        """Make all workers end with 0."""
        (self.folder / "finish").touch()

    def send(self, name: str, number: int = signal.SIGTERM) -> None:
        """Send a signal to an agent."""
        self.agents[name].send_signal(number)

    def statuses(self, *names: str, seconds: float = 25) -> list[int]:
        """The exit statuses of agents, which end within so many seconds."""
        try:
            return [self.agents[name].wait(seconds) for name in names]
        except subprocess.TimeoutExpired:
            raise AssertionError((self.started(), self.err())) from None

    def err(self) -> str:
        """What the agents and their workers have written to stderr."""
        return "".join(f"[{path.name}]\n{path.read_text()}" for path in sorted(self.folder.glob("err-*")))

    def said(self, name: str) -> str:
        """What an agent and its workers have written to stderr."""
        return (self.folder / f"err-{name}").read_text()

    def end(self) -> None:
        """Kill what is left."""
        for agent in self.agents.values():
            if agent.poll() is None:
                agent.kill()
                agent.wait()
