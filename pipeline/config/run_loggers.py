"""Which loggers a start of a run has: its own, or those that the user configured, which continue where they were."""

from collections.abc import Callable
from typing import Any

from pipeline.config import saved_config
from pipeline.config.parser import CommandLine
from pipeline.config.resume_point import ResumePoint
from pipeline.process.topology import Topology
from pipeline.run import lineage
from pipeline.run.run_dir import RECEIPT, RunDir
from pipeline.training.logs import tensorboard, trackers
from pipeline.training.logs.evaluated import log_evaluation


def prepare(command: CommandLine, run: RunDir | None, point: ResumePoint, topology: Topology) -> Callable[[], Any]:
    """Have configured loggers continue where earlier attempts were; return what makes the logger where there are none.

    Args:
        command: Whose trainer is not built yet.
        run: The run directory; None for a dry run.
        point: Where training resumes.
        topology: Where the launcher put this process.
    """
    if run is None or command.subcommand != "fit":
        return lambda: False
    command.resolved()  # the ids are the run's, and no other run that is started from its fit.yaml may have them
    loggers = command.asked.trainer.get("logger")
    if trackers.configured(loggers):
        trackers.set_ids(loggers, topology.agree("loggers", lambda: trackers.chosen_ids(run, loggers)))
    return tensorboard.of_fit(run, topology, point.step or 0)


def note(command: CommandLine, run: RunDir | None, topology: Topology) -> None:
    """Note in the run which runs of MLflow and Weights & Biases its loggers log to."""
    if run is not None and topology.rank == 0:
        loggers: list[Any] = command.trainer.loggers
        trackers.note_ids(run, command.asked.trainer.get("logger"), loggers)


def log_test(run: RunDir, metrics: dict[str, float | None], step: int | None) -> None:
    """Log the metrics of a test wherever the run logs, and record it in TorchX's tracker.

    Args:
        run: That was evaluated.
        metrics: By name; None for a number that is not finite.
        step: Of the checkpoint; None where it is not the run's own: its metrics are on none of its curves.
    """
    lineage.of_result("test", run, {**metrics, "step": step}, RECEIPT)
    if step is not None:
        log_evaluation(run, metrics, step)
        saved = saved_config.load(run, "fit") or {"trainer": {}}
        trackers.log_to_trackers(run, saved["trainer"].get("logger"), metrics, step)
