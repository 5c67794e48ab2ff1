"""SIGTERM to one rank, to one node's agent or to all of them, at a random moment of a training over two nodes.

python -m tests.support.sigterm_trials 20    carries out so many of each kind, and says how many held
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.agent import pdeathsig
from pipeline.agent.standby import is_standby
from pipeline.checkpoint.commit import committed
from pipeline.run.run_dir import RunDir
from tests.support.agent_harness import free_port
from tests.support.commands import ROOT
from tests.support.forkserver import SERVER
from tests.support.processes import blocks_or_catches

KINDS = ("rank", "agent", "all")
NODES = 2


class Job:
    """A training over two nodes, both on this machine.

    Args:
        folder: Where its run, its notes and what it says are.
        arguments: Of the app, besides.
        nnodes: As torchrun takes it.
        join: Seconds that a node waits for the others.
        restarts: How often the agents may restart the ranks.
        processes: Of each node.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        nnodes: str = str(NODES),
        join: int = 5,
        restarts: int = 2,
        processes: int = 1,
    ) -> None:
        self.folder = folder
        self.run = folder / "run"
        self.port = free_port()
        self._agent = (
            *(sys.executable, "-m", "pipeline.agent", "--nnodes", nnodes, f"--nproc-per-node={processes}"),
            *("--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{self.port}", f"--rdzv-id={folder.name}"),
            f"--rdzv-conf=join_timeout={join},last_call_timeout=1,keep_alive_interval=1",
            *("--shutdown-timeout=20", f"--max-restarts={restarts}", "-m", "pipeline", "fit"),
            *(
                "--model=tests.support.killable.Noting",
                "--data=pipeline.data.DataModule",
                "--data.train=tests.support.models.Indexed",
            ),
            *(
                "--data.val=tests.support.models.Indexed",
                "--data.batch_size=4",
                "--trainer.enable_model_summary=false",
            ),
            *("--trainer.max_epochs=200", "--trainer.limit_val_batches=3", "--checkpoints.every_n_epochs=5"),
            *(f"--model.notes={folder / 'notes'}", f"--run_dir={self.run}", *arguments),
        )
        self._known: dict[int, int] = {}
        self.agents = [self.start(node) for node in range(int(nnodes.rpartition(":")[2]))]

    def start(self, node: int) -> subprocess.Popen[bytes]:
        """Start the agent of one node, which dies with this process however that ends."""
        with self.log(node).open("ab") as log:
            return subprocess.Popen(
                [*pdeathsig.tied(), *self._agent[:3], f"--local-addr=127.0.0.{node + 1}", *self._agent[3:]],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self, node: int) -> Path:
        return self.folder / f"node-{node}.txt"

    @property
    def said(self) -> str:
        return "\n".join(self.log(node).read_text() for node in range(len(self.agents)))

    def rank(self, node: int) -> int:
        """The process of a node's one worker."""
        agent = self.agents[node].pid
        children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
        workers = [each for each in children if SERVER not in Path(f"/proc/{each}/cmdline").read_text()]
        return next(int(each) for each in workers if not is_standby(int(each)))

    def hears(self, node: int) -> bool:
        """Whether a node's worker has been started, and SIGTERM reaches it: a fork ignores it at first."""
        try:
            return blocks_or_catches(self.rank(node), signal.SIGTERM)
        except (StopIteration, OSError):
            return False

    def alive(self, node: int) -> bool:
        """Whether a node's worker is the one that it was when this was asked first."""
        known = self._known.setdefault(node, self.rank(node))
        return Path(f"/proc/{known}/exe").exists()

    def until(self, word: str, seconds: float = 60) -> None:
        began = time.monotonic()
        while word not in self.said:
            assert time.monotonic() - began < seconds, self.said
            time.sleep(0.02)

    def until_step(self, step: int, seconds: float = 60) -> None:
        """Wait until rank 0 has done so many steps."""
        began = time.monotonic()
        while self.steps(0)[-1:] < [step]:
            assert time.monotonic() - began < seconds, self.said
            time.sleep(0.02)

    def steps(self, rank: int) -> list[int]:
        """The steps that a rank has noted, in their order."""
        notes = Path(f"{self.folder / 'notes'}-{rank}.jsonl")
        lines = notes.read_text().splitlines() if notes.exists() else []
        return [json.loads(line)["step"] for line in lines if line.endswith("}")]

    def last_step(self) -> int:
        """The last step that both ranks have noted; they do so right after it."""
        last = {(self.steps(rank) or [0])[-1] for rank in range(NODES)}
        assert len(last) == 1, last
        return last.pop()


@contextmanager
def job(folder: Path, *arguments: str, **named: Any) -> Iterator[Job]:
    """A job that leaves nothing running."""
    started = Job(folder, *arguments, **named)
    try:
        yield started
    finally:
        for agent in started.agents:
            if agent.poll() is None:
                os.kill(agent.pid, signal.SIGKILL)
                agent.wait(10)


def trial(kind: str, folder: Path, seed: int) -> float:
    """One signal, at a moment that the seed says; what it must come to is asserted.

    Returns:
        Seconds from the signal to the end of all agents.
    """
    chance = random.Random(seed)
    with job(folder) as training:
        training.until("started on")
        time.sleep(chance.uniform(0, 4))
        node = chance.randrange(NODES)
        targets = {
            "rank": [training.rank(node)],
            "agent": [training.agents[node].pid],
            "all": [agent.pid for agent in training.agents],
        }[kind]
        began = time.monotonic()
        for target in targets:
            os.kill(target, signal.SIGTERM)
        statuses = [agent.wait(60) for agent in training.agents]
        took = time.monotonic() - began
        assert statuses == [75] * NODES, (statuses, training.said)
        assert "Traceback" not in training.said, training.said
        last = training.last_step()
        durable = next((each.step for each in committed(RunDir(str(training.run)))), 0)
        assert durable == last, f"step {last} was done and step {durable} is durable:\n{training.said}"
    return took


def main(number: int) -> int:
    """So many trials of each kind; 1 if one of them failed."""
    failed = 0
    for kind in KINDS:
        took = []
        for seed in range(number):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    took.append(trial(kind, Path(folder), seed))
                except (AssertionError, subprocess.TimeoutExpired) as error:
                    print(f"{kind} {seed}: {error}")
        failed += number - len(took)
        print(f"SIGTERM to {kind}: {len(took)} of {number} durable, {max(took, default=0):.1f} s at most", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
