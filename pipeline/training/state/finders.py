"""Lightning's finders of a learning rate and of a batch size, which search where a run begins, and never on a resume.

A search trains for a while and then restores what it has saved before, which would undo the resume. What they have
found is an attribute of the model or the data, which no state_dict holds.
"""

import logging
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.utilities.parsing import lightning_getattr, lightning_hasattr, lightning_setattr

from pipeline.training import compat

log = logging.getLogger(__name__)

_FINDERS = (LearningRateFinder, BatchSizeFinder)


def found(trainer: pl.Trainer) -> dict[str, Any]:
    """Return what the finders have found, by the name of the attribute that holds it."""
    return {name: lightning_getattr(trainer.lightning_module, name) for name in _attributes(trainer)}


def put_back(trainer: pl.Trainer, values: dict[str, Any]) -> None:
    """Put back what was found when the run began, where a finder is asked for now as well."""
    for name in _attributes(trainer):
        if name in values:
            lightning_setattr(trainer.lightning_module, name, values[name])


def suspend(trainer: pl.Trainer, values: dict[str, Any]) -> None:
    """Let no finder search until training continues where it stopped."""
    for each in _finders(trainer):
        setattr(each, _search(each), lambda *_: None)
        name = compat.found_attribute(each, trainer.lightning_module)
        kept = f"{name}={values[name]} as it found it" if name in values else "with what the checkpoint holds"
        log.info("%s does not search again: training resumes, %s", type(each).__name__, kept)


def allow(trainer: pl.Trainer) -> None:
    """Let finders search again: some do so at the start of later epochs."""
    for each in _finders(trainer):
        vars(each).pop(_search(each), None)


def _search(finder: Any) -> str:
    """Return the name of the method that searches."""
    return "lr_find" if isinstance(finder, LearningRateFinder) else "scale_batch_size"


def _attributes(trainer: pl.Trainer) -> list[str]:
    """Return the attributes that the finders set, as far as the model or the data have them."""
    names = [compat.found_attribute(each, trainer.lightning_module) for each in _finders(trainer)]
    return [name for name in names if name is not None and lightning_hasattr(trainer.lightning_module, name)]


def _finders(trainer: pl.Trainer) -> list[Any]:
    return [each for each in trainer.callbacks if isinstance(each, _FINDERS)]  # type: ignore[attr-defined]
