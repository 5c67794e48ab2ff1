"""What models and callbacks save by hooks of their own, kept over others that are called a second time.

A counter that `on_save_checkpoint` saves and `on_load_checkpoint` loads, or the extra state of a module, is in no
state_dict that could be compared.
"""

import pickle
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn


class HookState:
    """What the hooks would save now.

    Args:
        trainer: Whose model and callbacks are asked.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self._saved = [(*each, _pickled(each[1])) for each in _savers(trainer)]

    def put_back(self) -> tuple[list[str], list[str]]:
        """Load what would be saved otherwise by now; return what is put back, and what cannot be, in words."""
        found: tuple[list[str], list[str]] = [], []
        for name, save, load, before in self._saved:
            if before is not None and _pickled(save) != before:
                with suppress(Exception):  # it may want a whole checkpoint
                    load(pickle.loads(before))  # noqa: S301 - it is this process that has pickled it
                found[_pickled(save) != before].append(f"what {name} saves")
        return found


def _savers(trainer: pl.Trainer) -> Iterator[tuple[str, Callable[[], Any], Callable[[Any], object]]]:
    """Yield what saves and what loads a state, and its name."""
    model = trainer.lightning_module
    for name, part in model.named_modules():
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            yield name or type(part).__name__, part.get_extra_state, part.set_extra_state
    if _has_both(model):
        yield type(model).__name__, partial(_written, model.on_save_checkpoint), model.on_load_checkpoint
    for each in trainer.callbacks:  # type: ignore[attr-defined]
        if _has_both(each):
            save = partial(_written, partial(each.on_save_checkpoint, trainer, model))
            yield type(each).__name__, save, partial(each.on_load_checkpoint, trainer, model)


def _has_both(owner: Any) -> bool:
    return all(is_overridden(hook, owner) for hook in ("on_save_checkpoint", "on_load_checkpoint"))


def _written(save: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    checkpoint: dict[str, Any] = {}
    save(checkpoint)
    return checkpoint


def _pickled(save: Callable[[], Any]) -> bytes | None:
    """Return what is saved; None where a hook wants more of a checkpoint than its own, or cannot be pickled."""
    with suppress(Exception):
        return pickle.dumps(save())
    return None
