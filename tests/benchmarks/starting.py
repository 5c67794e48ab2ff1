"""How long until training runs: a cold start, and the start after a crash."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from pipeline.agent.standby import is_standby
from tests.benchmarks.subject import OURS, Bar, Contenders, Context, Reading, subject
from tests.support.commands import ROOT
from tests.support.sigterm_trials import Job, job

SCRIPT = "bare Lightning script"
COLD, COLD_CRASH, START, CRASH = "cold start", "kill -9, no standby", "start", "kill -9"
LIGHTNING = """
import sys
import lightning.pytorch as pl
from torch.utils.data import DataLoader, TensorDataset
from tests.benchmarks.workloads import FirstStep, images
trainer = pl.Trainer(max_steps=2, accelerator="cpu", default_root_dir=sys.argv[2])
trainer.fit(FirstStep(sys.argv[1]), DataLoader(TensorDataset(*images(256)), 64, shuffle=True))
"""


def first_step(folder: Path, command: Callable[[Path], tuple[str, ...]]) -> Reading:
    """Seconds of a fresh process to the end of its first step."""
    notes = folder / f"{uuid.uuid4().hex[:8]}.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.time()
    ended = subprocess.run(
        (sys.executable, *command(notes)), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if not notes.exists():
        raise RuntimeError(ended.stdout + ended.stderr)
    noted = json.loads(notes.read_text())
    return {"wall": noted["wall"] - began, "cpu": noted["cpu"]}


@subject(
    "first_step",
    unit="s",
    reference=SCRIPT,
    bars=(Bar(OURS, "wall", 1 / 1.15), Bar(OURS, "cpu", 1 / 1.15)),
    rounds=(1, 2, 7),
)
def cold_start(context: Context) -> Contenders:
    """From the start of a fresh process to the end of its first step."""
    rows = ("--data.train=tests.benchmarks.workloads.Rows", "--data.train.count=256", "--data.batch_size=64")
    fit = ("-m", "pipeline", "fit", "--data=pipeline.data.DataModule", *rows, "--trainer.accelerator=cpu")

    def ours(notes: Path) -> tuple[str, ...]:
        model = ("--model=tests.benchmarks.workloads.FirstStep", f"--model.notes={notes}")
        return (*fit, *model, "--trainer.max_steps=2", f"--run_dir={notes.with_suffix('.run')}")

    def script(notes: Path) -> tuple[str, ...]:
        return "-c", LIGHTNING, str(notes), str(context.folder)

    return {
        OURS: lambda: first_step(context.folder, ours),
        SCRIPT: lambda: first_step(context.folder, script),
    }


def next_step(training: Job, known: int, began: float) -> float:
    """Seconds until a rank notes a step more."""
    while len(training.steps(0)) <= known:
        assert time.monotonic() - began < 120, training.said
        time.sleep(0.005)
    return time.monotonic() - began


def children(training: Job, standbys: bool) -> list[int]:
    """The standbys of all nodes, or their workers."""
    lists = (Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split() for agent in training.agents)
    known = is_standby if standbys else _is_worker
    return [int(pid) for pids in lists for pid in pids if known(int(pid))]


def _is_worker(pid: int) -> bool:
    """Whether a child of an agent is neither its standby nor what a test forks cold starts from."""
    return b"\0pipeline\0fit\0" in Path(f"/proc/{pid}/cmdline").read_bytes()


def cpu_of(pids: list[int]) -> float:
    """Seconds of CPU time that processes have used so far."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def memory_of(pids: list[int], name: str) -> float:
    """MB of processes: `Pss`, which counts a part of what they share, or `Private_Dirty`."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def crash(folder: Path, standby: str, nodes: int, processes: int) -> tuple[Reading, Reading]:
    """What the start of a job takes to its first step, and kill -9 of a rank to the next step.

    Its CPU time is that of agents, standbys and new workers.
    """
    os.environ["PET_STANDBY"] = standby
    folder.mkdir()
    arguments, began = ("--checkpoints.every_n_steps=10", "--trainer.max_epochs=100000"), time.monotonic()
    with job(folder, *arguments, join=60, nnodes=str(nodes), processes=processes) as training:
        start = {"wall": next_step(training, 0, began)}
        own = [agent.pid for agent in training.agents] + children(training, standbys=True)
        workers = children(training, standbys=False)
        start["cpu"] = cpu_of(own + workers)
        training.until_step(30)
        start["MB of all ranks and standbys"] = memory_of(workers + children(training, standbys=True), "Pss")
        again = {"MB private to a standby": memory_of(children(training, standbys=True), "Private_Dirty") / nodes}
        before, began = cpu_of(own), time.monotonic()
        os.kill(workers[-1], signal.SIGKILL)
        while Path(f"/proc/{workers[0]}/exe").exists():  # its steps until it notices are old ones
            assert time.monotonic() - began < 120, training.said
            time.sleep(0.005)
        again["wall"] = next_step(training, len(training.steps(0)), began)
        again["cpu"] = cpu_of(own + children(training, standbys=False)) - before
    return start, again


def crashes(folder: Path, nodes: int, processes: int) -> Contenders:
    """A start and the one after a crash, which one job gives, with a standby and without."""
    found: dict[str, Reading] = {}

    def take(name: str) -> Reading:
        if name not in found:
            standby = str(name in (START, CRASH)).lower()
            both = crash(folder / uuid.uuid4().hex[:8], standby, nodes, processes)
            found.update(zip((START, CRASH) if standby == "true" else (COLD, COLD_CRASH), both, strict=True))
        return found.pop(name)

    return {name: functools.partial(take, name) for name in (COLD, COLD_CRASH, START, CRASH)}


RECOVERED = (
    Bar(CRASH, "wall", 1 / 0.35),
    Bar(CRASH, "cpu", 1 / 0.35),
    Bar(CRASH, "MB private to a standby", limit=150),
)


@subject("recovery", unit="s", reference=COLD, bars=RECOVERED, rounds=(1, 1, 5))
def recovery(context: Context) -> Contenders:
    """From kill -9 of one of 2 ranks, each on a node of its own, to the next step, beside a cold start."""
    return crashes(context.folder, nodes=2, processes=1)


@subject("recovery_node", unit="s", reference=COLD, bars=RECOVERED, rounds=(1, 0, 5))
def recovery_of_a_node(context: Context) -> Contenders:
    """From kill -9 of one of the 2 ranks of a node to the next step, beside a cold start."""
    return crashes(context.folder, nodes=1, processes=2)
