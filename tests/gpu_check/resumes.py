"""A training that is preempted or killed, and resumed: its end equals that of one that was not, bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from pipeline.__main__ import main as app
from pipeline.checkpoint.commit import newest
from pipeline.checkpoint.load import load
from pipeline.commands.drill.compare import compare_exactly
from pipeline.errors import DONE, PREEMPTED
from pipeline.process.host_memory import HostMemory
from pipeline.process.preemption import Preemption
from pipeline.run.run_dir import RunDir
from tests.benchmarks.processes import ForkFailed, forked
from tests.gpu_check.check import CheckFailed, Figures, NotMeasured, Setting, check
from tests.gpu_check.transformer import SMALL, Shape
from tests.support.models import die

STEPS, EVERY, BATCHES, BATCH = 12, 4, 8, 4
STOPPED, KILLED = 5, 10
"""SIGTERM comes in the first epoch, and saves there; kill -9 in the second one, two steps after a save."""
KEPT_STEPS, KEPT_PAUSE = 100, 0.25
"""Steps, and the seconds that each takes until a state is kept."""
PARTS = ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "epoch", "loops", "pipeline")
MEDIUM = Shape(layers=4, width=256, heads=4, length=256, vocabulary=4096)


class Killed(pl.Callback):
    """Kills this process by SIGKILL, once, after a step.

    Args:
        at: The step.
        once: A file that says that it has been done.
    """

    def __init__(self, at: int, once: str) -> None:
        self.at, self.once = at, Path(once)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.at and not self.once.exists():
            self.once.touch()
            die(trainer)  # once the save that is under way is committed: it is known then from where it resumes


class KilledOnceKept(pl.Callback):
    """Takes its time, and kills this process by SIGKILL, once, after a step with a state in memory before it.

    Args:
        once: A file that says that it has been done.
    """

    def __init__(self, once: str) -> None:
        self.once = Path(once)

    def on_train_batch_end(self, *_: Any) -> None:
        if not self.once.exists():
            time.sleep(KEPT_PAUSE)
            memory = HostMemory.of_environment()
            if memory is not None and memory.states():
                self.once.touch()
                os.kill(os.getpid(), signal.SIGKILL)


def status_of(arguments: Sequence[str]) -> int:
    """Run `python -m pipeline` in this process."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    try:
        with Preemption() as preemption:
            return app(arguments, preemption)
    except SystemExit as ended:
        return int(ended.code or 0)


@dataclass(frozen=True)
class Case:
    """A training under deterministic kernels.

    Args:
        setting: Where.
        name: Of its folders.
        more: Arguments.
    """

    setting: Setting
    name: str
    more: tuple[str, ...] = ()

    def folder(self, run: str) -> Path:
        return self.setting.folder / self.name / run

    def fit(self, run: str, *more: str) -> int:
        """Train in a process of its own, to its end.

        Returns:
            Its status, that of a signal negative.
        """
        self.folder(run).mkdir(parents=True, exist_ok=True)
        try:
            return int(forked(status_of, self.arguments(run, *more), log=self.log(run), limit=150))
        except ForkFailed as error:
            if error.statuses == [-signal.SIGKILL] and self.folder("once").exists():
                return -signal.SIGKILL
            raise

    def arguments(self, run: str, *more: str) -> tuple[str, ...]:
        """Return those of the training."""
        shape = SMALL if self.setting.card is None else MEDIUM
        return (
            *("fit", "--model=tests.gpu_check.transformer.LitTransformer", *shape.flags("--model")),
            *("--model.dropout=0.1", "--data=pipeline.data.DataModule", f"--data.batch_size={BATCH}"),
            *("--data.train=tests.gpu_check.transformer.Tokens", f"--data.train.count={BATCHES * BATCH}"),
            *(f"--data.train.length={shape.length}", f"--data.train.vocabulary={shape.vocabulary}"),
            *(f"--trainer.accelerator={self.setting.accelerator}", "--trainer.deterministic=true"),
            *(f"--trainer.max_steps={STEPS}", f"--checkpoints.every_n_steps={EVERY}"),
            *("--trainer.enable_model_summary=false", f"--run_dir={self.folder(run)}", *self.more, *more),
        )

    def under_agent(self, run: str, *more: str) -> int:
        """Train in a process that an agent starts, and starts again once, to its end; return the agent's status."""
        agent = (sys.executable, "-m", "pipeline.agent", "--nproc_per_node=1", "--max_restarts=1", "-m", "pipeline")
        environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        with self.log(run).open("wb") as log:
            command = [*agent, *self.arguments(run, *more)]
            return subprocess.run(command, check=False, env=environment, stdout=log, stderr=log, timeout=150).returncode

    def log(self, run: str) -> Path:
        return self.setting.folder / f"{self.name}-{run}.txt"

    def finish(self, run: str, *more: str) -> None:
        """Train to the last step.

        Raises:
            CheckFailed: It did not end with 0.
        """
        status = self.fit(run, *more)
        if status != DONE:
            raise CheckFailed(f"the {run} run ended with status {status}: {self.log(run).read_text()[-1000:]}")

    def straight(self) -> None:
        """Train undisturbed, if that has not been done."""
        if not self.folder("straight").exists():
            self.finish("straight")

    def disturbed(self, callback: str, at: str, status: int, step: int) -> Figures:
        """Train with a callback that ends it, once; resume it, and compare its end with the straight one's.

        Args:
            callback: Class path.
            at: When, as it takes that.
            status: With which the process has to end.
            step: The step that has to be the newest committed one then.

        Raises:
            CheckFailed: Something of that does not hold.
        """
        self.straight()
        for left in (self.folder("disturbed"), self.folder("once")):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        asks = (f"--trainer.callbacks={callback}", f"--trainer.callbacks.at={at}")
        once = f"--trainer.callbacks.once={self.folder('once')}"
        ended, record = self.fit("disturbed", *asks, once), newest(RunDir(str(self.folder("disturbed"))))
        found = None if record is None else record.step
        if (ended, found) != (status, step):
            raise CheckFailed(f"ended with status {ended} at step {found}, not with {status} at {step}")
        self.finish("disturbed", *asks, once)
        return {"steps": STEPS, "resumed from step": step, **self.same_end("straight", "disturbed")}

    def same_end(self, left: str, right: str) -> Figures:
        """Compare the last checkpoints of two runs.

        Raises:
            CheckFailed: They are not equal bit for bit.
        """
        ends = [self._end(run) for run in (left, right)]
        compared = [compare_exactly(part, *(end.get(part) for end in ends)) for part in PARTS]
        if different := [f"{each.name}: {each.found}" for each in compared if not each.holds]:
            raise CheckFailed("; ".join(different))
        return {"end": "equal bit for bit"}

    def _end(self, run: str) -> dict[str, Any]:
        where = RunDir(str(self.folder(run)))
        record = newest(where)
        if record is None or record.ended is None:
            raise CheckFailed(f"the {run} run has not committed its end")
        return load(where, record)

    def preempted(self) -> Figures:
        return self.disturbed("tests.support.killable.Asks", f"step {STOPPED}", PREEMPTED, STOPPED)

    def killed(self) -> Figures:
        return self.disturbed("tests.gpu_check.resumes.Killed", str(KILLED), -signal.SIGKILL, KILLED - KILLED % EVERY)


@check("sigterm")
def sigterm(setting: Setting) -> Figures:
    """SIGTERM under deterministic kernels, resumed: the end is equal bit for bit."""
    return Case(setting, "float32").preempted()


@check("kill")
def kill(setting: Setting) -> Figures:
    """kill -9 under deterministic kernels, resumed: the end is equal bit for bit."""
    return Case(setting, "float32").killed()


@check("bf16")
def bf16(setting: Setting) -> Figures:
    """The same kill -9 in bf16-mixed."""
    return Case(setting, "bf16", ("--trainer.precision=bf16-mixed",)).killed()


@check("compile")
def compiled(setting: Setting) -> Figures:
    """The same kill -9 of a model that torch.compile has compiled."""
    # Inductor takes half a minute of a CPU, and a C++ compiler.
    backend = "aot_eager" if setting.card is None else "inductor"
    if setting.card is not None and shutil.which(os.environ.get("CC", "gcc")) is None:
        raise NotMeasured("there is no C compiler, which Triton needs (gcc, or another one that CC names)")
    return {"backend": backend, **Case(setting, "compile", (f"--model.backend={backend}",)).killed()}


@check("memory_recovery")
def memory_recovery(setting: Setting) -> Figures:
    """kill -9 once a state is in the node's memory, resumed from that: the end is equal bit for bit."""
    case = Case(setting, "memory", (f"--trainer.max_steps={KEPT_STEPS}", "--checkpoints.every_n_steps=1000"))
    once = f"--trainer.callbacks.once={case.folder('once')}"
    killed = ("--trainer.callbacks=tests.gpu_check.resumes.KilledOnceKept", once)
    for run, more in {"straight": (), "disturbed": killed}.items():
        status = case.under_agent(run, *more)
        if status != DONE:
            raise CheckFailed(f"the {run} run ended with status {status}: {case.log(run).read_text()[-1000:]}")
    attempts = RunDir(str(case.folder("disturbed")))
    second = attempts.read_json(RunDir.attempt(2)) or {}
    if second.get("resumed_from") != "memory":
        raise CheckFailed(f"the second attempt resumed from {second.get('resumed_from')}, not from memory")
    return {"steps": KEPT_STEPS, "resumed from step": second["first_step"], **case.same_end("straight", "disturbed")}
