"""Who has asked a trainer to stop, which no state_dict holds: kept over a resume while it would be asked again."""

import logging
from typing import Any

import lightning.pytorch as pl

from pipeline.training.save_policy import Boundary
from pipeline.training.state.run_end import is_still_asked, limit_reached, stop_request
from pipeline.training.trainer import Trainer

log = logging.getLogger(__name__)


def requested(trainer: pl.Trainer, asked: dict[str, Any]) -> dict[str, Any] | None:
    """Return who has asked training to stop, and by what configuration; None where nobody has."""
    if not trainer.should_stop:
        return None
    return stop_request(trainer.stopped_by or "" if isinstance(trainer, Trainer) else "", asked)


def ended(trainer: pl.Trainer, asked: dict[str, Any], at: Boundary) -> dict[str, Any] | None:
    """Return what ends training at a boundary; None where it does not end, or where only its loader knows."""
    if at.kind != "end":
        return None
    if (stop := requested(trainer, asked)) is not None:
        return stop
    loop = trainer.fit_loop
    for name, done, limit in (("max_steps", at.step, loop.max_steps), ("max_epochs", at.epoch, loop.max_epochs)):
        if limit is not None and limit != -1 and done >= limit:
            return limit_reached(name, limit)
    return None


def restore(trainer: pl.Trainer, stop: dict[str, Any] | None, asked: dict[str, Any]) -> None:
    """Ask for the stop again that waits until `min_epochs` and `min_steps` are done, if it still would be asked for."""
    if stop is None:
        return
    if not is_still_asked(stop, asked):
        by = stop["by"] or "a callback"
        log.info("training continues though %s had ended it: what it is configured with has changed", by)
        return
    trainer.should_stop = True
    if isinstance(trainer, Trainer):
        trainer.stopped_by = stop["by"]
