"""How long until training runs: a cold start, and the start after a crash."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.subject import OURS, Bar, Contenders, Context, Reading, subject
from tests.support.commands import ROOT
from tests.support.sigterm_trials import Job, job

SCRIPT = "bare Lightning script"
COLD = "cold start"
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
        assert time.monotonic() - began < 60, training.said
        time.sleep(0.01)
    return time.monotonic() - began


def crash(folder: Path) -> dict[str, Reading]:
    """Seconds to the first step of 2 nodes, and from kill -9 of a rank to the next step."""
    began = time.monotonic()
    with job(folder, "--checkpoints.every_n_steps=10", "--trainer.max_epochs=2000", join=60) as training:
        cold = next_step(training, 0, began)
        training.until_step(30)
        began = time.monotonic()
        os.kill(training.rank(1), signal.SIGKILL)
        while training.alive(0):  # its steps until it notices are old ones
            time.sleep(0.005)
        return {COLD: {"wall": cold}, "kill -9": {"wall": next_step(training, len(training.steps(0)), began)}}


@subject("recovery", unit="s", reference=COLD, bars=(Bar("kill -9", "wall", 1 / 0.35),), rounds=(1, 1, 5))
def recovery(context: Context) -> Contenders:
    """From kill -9 of one of 2 ranks to the next step, beside a cold start to the first one."""
    found: dict[str, Reading] = {}

    def take(name: str) -> Reading:
        if name not in found:
            folder = context.folder / uuid.uuid4().hex[:8]
            folder.mkdir()
            found.update(crash(folder))
        return found.pop(name)

    return {COLD: lambda: take(COLD), "kill -9": lambda: take("kill -9")}
