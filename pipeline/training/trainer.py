"""Lightning's Trainer as this project runs it."""

import itertools
import logging
import sys

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.model_summary import ModelSummary

from pipeline.errors import UserError
from pipeline.run.storage import open_filesystem
from pipeline.training import compat

log = logging.getLogger(__name__)


class Trainer(pl.Trainer):
    """Lightning's, which remembers who asked it to stop, and the subcommand that only looks at the model.

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

    def summary(self, model: pl.LightningModule, max_depth: int = -1) -> None:
        """Print the layers of a model with their parameters and, given its example_input_array, their sizes.

        Args:
            model: The model.
            max_depth: Levels of nested layers to show; -1 shows all.
        """
        if max_depth < -1:
            raise UserError(f"max_depth={max_depth} must be >= -1; -1 shows all layers")
        if model.example_input_array is None:
            log.info("no sizes: %s sets no example_input_array", type(model).__name__)
        print(ModelSummary(model, max_depth=max_depth))  # noqa: T201 - it is what was asked for


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
