"""A small run with a log of its steps, as a drill trains it."""

from collections.abc import Callable
from pathlib import Path

from pipeline.commands.drill.compare import TrainedRun
from pipeline.commands.drill.step_log import StepLog
from pipeline.run.run_dir import RunDir
from tests.support.commands import Ended

TINY = (
    *(
        "fit",
        "--model=tests.support.models.Regression",
        "--data=pipeline.data.DataModule",
        "--data.train=tests.support.models.Rows",
    ),
    *("--data.val=tests.support.models.Rows", "--data.batch_size=16", "--trainer.enable_model_summary=false"),
    *("--trainer.max_epochs=2", "--trainer.callbacks+=pipeline.commands.drill.step_log.StepLogger"),
)


def trained_run(app: Callable[..., Ended], folder: Path) -> TrainedRun:
    """A run of 14 steps, whose log is where the environment says."""
    log = StepLog(folder / "log", 1)
    assert app(*TINY, "--run_dir", folder / "run").status == 0
    log.read()
    return TrainedRun(RunDir(str(folder / "run")), log)
