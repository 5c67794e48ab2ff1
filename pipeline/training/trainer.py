"""Lightning's Trainer as this project runs it."""

import itertools
import logging
import sys
from typing import TYPE_CHECKING

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from pipeline.run.storage import open_filesystem
from pipeline.training import compat

if TYPE_CHECKING:
    from pipeline.training.inspection.data_facts import DataFacts
    from pipeline.training.inspection.set_facts import DataQuestion
    from pipeline.training.inspection.step_measurement import StepFacts

log = logging.getLogger(__name__)


class Trainer(pl.Trainer):
    """Lightning's, which remembers who asked it to stop, and has subcommands that only look at a model and data.

    Attributes:
        stopped_by: Name of the class that has set `should_stop`: a callback's, a model's; None where nobody has.
    """

    stopped_by: str | None = None

    @property
    def should_stop(self) -> bool:
        """Whether training was asked to stop as soon as its least epochs and steps are done."""
        return self.stopped_by is not None

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        if not value:
            self.stopped_by = None
        elif self.stopped_by is None:
            # Whoever asks does so by an assignment, which tells nothing but from where it came.
            caller = sys._getframe(1).f_locals.get("self")
            self.stopped_by = "" if caller is None else type(caller).__name__

    def summary(self, model: pl.LightningModule, datamodule: pl.LightningDataModule | None = None) -> "StepFacts":
        """Show the layers of a model, and what one training step takes: operations and memory.

        Args:
            model: It is trained for two steps: give it one that nobody needs any more.
            datamodule: Brings the training batches; None: the model does.
        """
        from pipeline.training.inspection.step_measurement import measure_step  # noqa: PLC0415 - a fit needs none of it

        return measure_step(self, model, datamodule)

    def data(self, source: pl.LightningModule | pl.LightningDataModule, asked: "DataQuestion") -> "DataFacts":
        """Show what the data consist of: samples, classes, ranges, the order of an epoch.

        Args:
            source: Brings the loaders.
            asked: What is asked of each set.
        """
        from pipeline.training.inspection.data_facts import look_at_data  # noqa: PLC0415 - a fit needs none of it

        source.trainer = self
        return look_at_data(source, asked)


def adapt(trainer: pl.Trainer, timeout: float | None = None) -> None:
    """Replace what Lightning 2.6.6 does otherwise than this project promises.

    Args:
        trainer: Not running yet.
        timeout: Seconds that a rank waits for the others in one collective operation, unless a strategy that the user
            configured says otherwise; None: torch's default of half an hour.
    """
    compat.reduce_counts_exactly(trainer)
    compat.ignore_signals(trainer)
    if timeout is not None:
        compat.set_collective_timeout(trainer, timeout)
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger) and trainer.is_global_zero:
            _keep_table(logger)


def _keep_table(logger: CSVLogger) -> None:
    """Move the table aside that a logger with a fixed version would delete: the metrics of the attempt before."""
    fs, folder = open_filesystem(logger.log_dir, f"trainer.logger.save_dir={logger.save_dir!r}")
    name = ExperimentWriter.NAME_METRICS_FILE
    if not fs.isfile(f"{folder}/{name}"):
        return
    stem, _, suffix = name.rpartition(".")
    number = next(number for number in itertools.count(1) if not fs.exists(f"{folder}/{stem}.{number}.{suffix}"))
    fs.mv(f"{folder}/{name}", f"{folder}/{stem}.{number}.{suffix}")
    log.info("%s/%s of the attempt before is kept as %s.%d.%s", logger.log_dir, name, stem, number, suffix)
