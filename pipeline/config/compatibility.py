"""What a resumed run must have in common with its checkpoint, and what may change in between.

A new world size, batch size or version is logged. Another dataset or seed makes the run another experiment, so it stops
the start unless the user says that it is intended.
"""

import logging
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.data.datamodule import DataModule
from pipeline.errors import UserError
from pipeline.run.storage_errors import raise_for_user
from pipeline.training.state.run_state import RunState

log = logging.getLogger(__name__)

STOPS_RESUME = {
    "train_data": "another training set: the current epoch would continue in an order that is not its own",
    "val_data": "another validation set: its metrics cannot be compared with the earlier ones",
    "train_order": "other weights, lengths or classes, or another use of them: the current epoch would continue in an "
    "order that is not its own",
    "seed": "another seed_everything: new random numbers where the saved ones do not apply, as at another world size",
    "data_seed": "another data.seed: the current epoch would continue in another order",
}
"""The mismatches that stop a resume, each with its consequence; the names are what --allow_mismatch takes."""

_CHANGES_ORDER = ("train_data", "train_order", "data_seed")
"""With these, the samples that are left of the current epoch are not known any more."""

_NUMERICS = {
    "precision": "32-true",
    "gradient_clip_val": "none",
    "gradient_clip_algorithm": "norm",
    "deterministic": "false",
    "benchmark": "false",
}
"""Arguments of the trainer that change what a step computes, and that no checkpoint brings back; what None means."""

_PACKAGES = ("torch", "lightning", "numpy", "torchx-lightning-pipeline")


@dataclass(frozen=True)
class Mismatch:
    """One fact that has changed since the checkpoint was saved."""

    name: str
    saved: Any
    now: Any

    @property
    def stops_resume(self) -> bool:
        """Whether the user must allow it."""
        return self.name in STOPS_RESUME

    def __str__(self) -> str:
        return f"{self.name} {_short(self.saved)} -> {_short(self.now)}"


def facts(world_size: int, seed: Any, accumulate: int, data: Any, trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what later starts are compared with, as numbers and strings.

    Args:
        world_size: Processes that train.
        seed: The resolved `seed_everything`.
        accumulate: Batches per optimizer step.
        data: The data module. Of one that is not ours nothing is known.
        trainer: The trainer's resolved arguments.

    Raises:
        UserError: The data do not fit that world size, or cannot be read.
        StorageAway: The storage of the data does not answer.
    """
    known: dict[str, Any] = {"world_size": world_size, "seed": seed, "accumulate_grad_batches": accumulate}
    if isinstance(data, DataModule):
        try:
            known["batch_size"] = data.planned(0, 0, 0, world_size, accumulate).batch_size
            known["global_batch_size"] = known["batch_size"] * world_size * accumulate
            known["data_seed"] = data.seed
            known |= {f"{split}_data": value for split, value in data.fingerprints().items()}
            if (order := data.train_order) is not None:
                settings = [f"{name}={value}" for name, value in order.facts.items() if name not in ("kind", "values")]
                known["train_order"] = " ".join([order.kind, *settings, order.facts["values"]])
        except OSError as error:
            advice = (
                "Name files that are there; what must be downloaded first belongs into the dataset's prepare_data()"
            )
            raise_for_user(error, "the training or validation data cannot be read", advice)
    given = {name: trainer[name] for name in _NUMERICS}
    known |= {name: none if given[name] is None else str(given[name]).lower() for name, none in _NUMERICS.items()}
    known["packages"] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            known["packages"][name] = version(name)
        except PackageNotFoundError:  # run from a source tree that is not installed
            continue
    return known


def find_mismatches(saved: dict[str, Any], now: dict[str, Any]) -> list[Mismatch]:
    """Return what differs, in the order of the facts; packages one by one."""
    old, new = _flat(saved), _flat(now)
    # Checkpoints of earlier versions do not tell all of them.
    untold = {name for name in _NUMERICS if name not in old}
    names = [name for name in {**old, **new} if name not in untold]
    return [Mismatch(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def parse_allowed(names: str | None) -> set[str]:
    """Return the names in --allow_mismatch, which commas separate.

    Raises:
        UserError: One stops no resume.
    """
    given = {name.strip() for name in (names or "").split(",") if name.strip()}
    unknown = sorted(given - set(STOPS_RESUME))
    if unknown:
        raise UserError(
            f"allow_mismatch={names!r}: {', '.join(unknown)} does not stop a resume; must be one or more of "
            f"{', '.join(STOPS_RESUME)}, separated by commas"
        )
    return given


def require_allowed(found: Iterable[Mismatch], allowed: set[str]) -> None:
    """Refuse to resume with a mismatch that stops it and was not allowed.

    Raises:
        UserError: With all of them.
    """
    problems = [
        f"{mismatch.name} is {_short(mismatch.now)}, the checkpoint's {_short(mismatch.saved)}: "
        f"{STOPS_RESUME[mismatch.name]}. Give what the run was trained with; if the change is intended, "
        f"--allow_mismatch={mismatch.name}; or start a new run with another --run_dir"
        for mismatch in found
        if mismatch.stops_resume and mismatch.name not in allowed
    ]
    if problems:
        raise UserError(*problems)


def check_resume(state: RunState | None, now: dict[str, Any], allow_mismatch: str | None) -> bool:
    """Compare this start with the checkpoint that training is about to resume from, and log what differs.

    Args:
        state: Of the checkpoint; None: there is none, or another program wrote it.
        now: The facts of this start.
        allow_mismatch: The names that the user gave.

    Returns:
        Whether the checkpoint's epoch must restart from its beginning, since its order has changed.

    Raises:
        UserError: A mismatch stops the resume.
    """
    if state is None:
        return False
    found = find_mismatches(state.facts, now)
    require_allowed(found, parse_allowed(allow_mismatch))
    if found:
        log.info("mismatches with the resumed checkpoint: %s", "; ".join(map(str, found)))
    return order_changed(found)


def order_changed(found: Iterable[Mismatch]) -> bool:
    """Return whether the samples that are left of the checkpoint's epoch are not known any more."""
    return any(mismatch.name in _CHANGES_ORDER for mismatch in found)


def _flat(known: dict[str, Any]) -> dict[str, Any]:
    packages = known.get("packages") or {}
    return {**{name: value for name, value in known.items() if name != "packages"}, **packages}


def _short(value: Any) -> str:
    """Return a value as a person tells it from another: digests by their first digits."""
    text = "none" if value is None else str(value)
    kind, found, digest = text.partition("sha256:")
    return f"{kind}{found}{digest[:12]}"
