"""The settings with which optimizers and learning rate schedules are built, and what of them a resume takes.

Their states hold settings too, and win: a learning rate or a schedule's length that is asked for now would have no
effect. What was built when the run began is kept beside them, so that what has changed since can be told from what a
schedule has done in the meantime.
"""

import logging
from copy import deepcopy
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from pipeline.errors import UserError

log = logging.getLogger(__name__)


class OptimizerSettings:
    """What is built in this start, compared with what the run that is resumed was built with.

    Args:
        trainer: Its optimizers are built, and their states not loaded yet.
        override: Whether what is asked for now wins.
    """

    def __init__(self, trainer: pl.Trainer, override: bool = False) -> None:
        self.override = override
        self.now = _built(trainer)
        self._trainer = trainer
        self._saved: dict[str, Any] | None = None

    @property
    def kept(self) -> dict[str, Any]:
        """What the run trains with from here on, for its next checkpoints."""
        return self.now if self._saved is None or self.override else self._saved

    def compare(self, saved: dict[str, Any], found: bool) -> None:
        """Name what differs, and refuse what no state can be loaded into.

        Args:
            saved: What the run was built with; empty where an earlier version did not say.
            found: Whether a finder has found the learning rate, which then is another one than at the run's start.

        Raises:
            UserError: There are other optimizers or schedules than in the checkpoint.
        """
        if not saved:
            return
        self._saved = saved
        for kind, what in (("optimizers", "optimizer"), ("schedulers", "learning rate schedule")):
            before, now = [each["class"] for each in saved[kind]], [each["class"] for each in self.now[kind]]
            if before != now:
                raise UserError(
                    f"configure_optimizers returns another {what} ({' and '.join(now) or 'none'}) than the checkpoint "
                    f"holds the state of ({' and '.join(before) or 'none'}): give what the run was trained with. "
                    "To train on from its weights alone, start another run: --weights <this run> --run_dir <a new one>"
                )
        ignored = ("lr", "initial_lr") if found else ()
        changes = [each for each in _changes(saved, self.now) if each[0].rpartition(".")[2] not in ignored]
        if changes and self.override:
            log.info("override_optimizer: %s", "; ".join(f"{name} {old} -> {new}" for name, old, new in changes))
        elif changes:
            log.warning(
                "the checkpoint's settings win: %s. --override_optimizer true takes what is asked for",
                "; ".join(f"{name}={old}, not {new}" for name, old, new in changes),
            )

    def apply(self) -> None:
        """Put what is asked for now into the states that were loaded, if it is to win."""
        if self._saved is None or not self.override:
            return
        optimizers = zip(self._trainer.optimizers, self._saved["optimizers"], self.now["optimizers"], strict=False)
        for optimizer, before, now in optimizers:
            for group, old, new in zip(optimizer.param_groups, before["groups"], now["groups"], strict=False):
                _override_group(group, old, new)
        schedulers = [config.scheduler for config in self._trainer.lr_scheduler_configs]
        for scheduler, old, new in zip(schedulers, self._saved["schedulers"], self.now["schedulers"], strict=False):
            _override_schedule(scheduler, old["state"], new["state"])


def _built(trainer: pl.Trainer) -> dict[str, Any]:
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    return {
        "optimizers": [
            {"class": type(each).__name__, "groups": [_plain(group) for group in each.param_groups]}
            for each in trainer.optimizers
        ],
        "schedulers": [{"class": type(each).__name__, "state": _plain(each.state_dict())} for each in schedulers],
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a person would give, as numbers, texts and lists of them."""
    return {
        name: _value(value)
        for name, value in values.items()
        if name != "params" and isinstance(value, (bool, int, float, str, list, tuple, dict, Tensor))
    }


def _value(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 else value.tolist()
    if isinstance(value, dict):
        return {str(name): _value(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_value(each) for each in value]
    return value if isinstance(value, (bool, int, float, str)) else None


def _changes(saved: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return each setting that differs: its name, the value in the checkpoint, and the one that is asked for."""
    found = []
    for old, new in zip(saved["optimizers"], now["optimizers"], strict=True):
        several = len(new["groups"]) > 1
        for number, (before, after) in enumerate(zip(old["groups"], new["groups"], strict=False)):
            name = f"{new['class']}[{number}]" if several else new["class"]
            found += [(f"{name}.{key}", before.get(key), after[key]) for key in after if before.get(key) != after[key]]
    for old, new in zip(saved["schedulers"], now["schedulers"], strict=True):
        before, after = old["state"], new["state"]
        # Where a schedule begins follows from the optimizer.
        keys = [key for key in after if before.get(key) != after[key] and key not in ("base_lrs", "_last_lr")]
        found += [(f"{new['class']}.{key}", before.get(key), after[key]) for key in keys]
    return found


def _override_group(group: dict[str, Any], old: dict[str, Any], new: dict[str, Any]) -> None:
    """Set what has changed. A schedule has scaled the learning rate in the meantime, and continues from there."""
    first = "initial_lr" if "initial_lr" in new else "lr"
    before, after = old.get(first), new[first]
    if before != after:
        group["lr"] = group["lr"] * (after / before) if before else after
    for name, value in new.items():
        if name != "lr" and old.get(name) != value and name in group:
            group[name] = tuple(value) if isinstance(group[name], tuple) else value


def _override_schedule(scheduler: Any, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Set what has changed of a schedule, but for how far it has come, and of those that it is made of."""
    for name, value in new.items():
        if name == "_schedulers":
            for each, before, after in zip(scheduler._schedulers, old.get(name, []), value, strict=False):
                _override_schedule(each, before, after)
        elif old.get(name) != value:
            setattr(scheduler, name, deepcopy(value))
