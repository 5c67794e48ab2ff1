"""Lightning's Trainer as this project runs it."""

import logging
from datetime import timedelta

import lightning.pytorch as pl
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.model_summary import ModelSummary

from pipeline.errors import UserError
from pipeline.training import epoch_loop as loops

log = logging.getLogger(__name__)


class Trainer(pl.Trainer):
    """Lightning's, and the subcommand that only looks at the model."""

    def summary(self, model: pl.LightningModule, max_depth: int = -1) -> None:
        """Print the layers of a model with their parameters and, given its example_input_array, their sizes.

        Args:
            model: The model.
            max_depth: Levels of nested layers to show; -1 shows all.
        """
        if max_depth < -1:
            raise UserError(f"max_depth={max_depth}: allowed are -1 (all layers), 0 and more levels")
        if model.example_input_array is None:
            log.info("no sizes: %s sets no example_input_array", type(model).__name__)
        print(ModelSummary(model, max_depth=max_depth))  # noqa: T201 - it is what was asked for


def adapt(trainer: pl.Trainer, patience: float | None = None) -> None:
    """Mend what Lightning 2.6.6 does otherwise than this project promises.

    Args:
        trainer: Not running yet.
        patience: Seconds that a rank waits for the others in one collective operation, unless a strategy that the user
            configured says otherwise; None: torch's default of half an hour.
    """
    loops.exact_reduce(trainer)
    # Lightning's own handler of SIGTERM talks to the other ranks from inside the signal and hangs when they have been
    # signalled too; `pipeline.process.preemption` listens instead.
    trainer._signal_connector.register_signal_handlers = _leave_signals_alone  # type: ignore[method-assign]
    strategy = trainer.strategy
    if patience is not None and isinstance(strategy, DDPStrategy) and strategy._timeout == default_pg_timeout:
        strategy._timeout = timedelta(seconds=patience)


def _leave_signals_alone() -> None:
    """They are listened to already."""
