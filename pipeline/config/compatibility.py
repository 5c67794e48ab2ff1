"""What a resumed run should have in common with what it goes on from, and what may change in between.

Another world, batch or version is named in the log. Another dataset or another seed makes another experiment out of the
run, so it stops the start unless the user says that it is meant.
"""

import logging
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.data.datamodule import DataModule
from pipeline.errors import UserError
from pipeline.training.run_state import RunState

log = logging.getLogger(__name__)

DANGEROUS = {
    "train_data": "another training set: the epoch that it stands in would go on in an order that is not its own",
    "val_data": "another validation set: its metrics cannot be compared with those before",
    "seed": "another seed_everything: new random numbers where the saved ones do not count, as in another world",
    "data_seed": "another data.seed: the epoch that it stands in would go on in another order",
}
"""The differences that stop a resume, each with what it does; the names are what --allow_mismatch takes."""

_ORDER = ("train_data", "data_seed")
"""With these, what is left of the open epoch cannot be told any more."""

_PACKAGES = ("torch", "lightning", "numpy", "torchx-lightning-pipeline")


@dataclass(frozen=True)
class Difference:
    """One fact that is another one than when the checkpoint was saved."""

    name: str
    saved: Any
    now: Any

    @property
    def dangerous(self) -> bool:
        """Whether it stops a resume."""
        return self.name in DANGEROUS

    def __str__(self) -> str:
        return f"{self.name} {_short(self.saved)} -> {_short(self.now)}"


def facts(world_size: int, seed: Any, accumulate: int, data: Any) -> dict[str, Any]:
    """What a later start is compared with, as numbers and strings.

    Args:
        world_size: Processes that train.
        seed: The resolved `seed_everything`.
        accumulate: Batches per optimizer step.
        data: What is trained on. Of foreign data nothing is known.

    Raises:
        UserError: The data do not go with that world.
    """
    known: dict[str, Any] = {"world_size": world_size, "seed": seed, "accumulate_grad_batches": accumulate}
    if isinstance(data, DataModule):
        known["batch_size"] = data.planned(0, 0, 0, world_size, accumulate).batch_size
        known["global_batch_size"] = known["batch_size"] * world_size * accumulate
        known["data_seed"] = data.seed
        known |= {f"{split}_data": value for split, value in data.fingerprints().items()}
    known["packages"] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            known["packages"][name] = version(name)
        except PackageNotFoundError:  # run from a source tree that is not installed
            continue
    return known


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[Difference]:
    """What differs, in the order of the facts; packages one by one."""
    left, right = _flat(saved), _flat(now)
    return [
        Difference(name, left.get(name), right.get(name))
        for name in dict.fromkeys((*left, *right))
        if left.get(name) != right.get(name)
    ]


def accepted(names: str | None) -> set[str]:
    """The names in --allow_mismatch, separated by commas.

    Raises:
        UserError: One is none that can be accepted.
    """
    given = {name.strip() for name in (names or "").split(",") if name.strip()}
    unknown = sorted(given - set(DANGEROUS))
    if unknown:
        raise UserError(
            f"allow_mismatch={names!r}: {', '.join(unknown)} is nothing that stops a resume; allowed are "
            f"{', '.join(DANGEROUS)}, separated by commas"
        )
    return given


def refuse(found: Iterable[Difference], accept: set[str]) -> None:
    """Stop where a dangerous difference was not accepted.

    Raises:
        UserError: With all of them.
    """
    problems = [
        f"{difference.name} is {_short(difference.now)}, the checkpoint's {_short(difference.saved)}: "
        f"{DANGEROUS[difference.name]}. Give what the run was trained with; if the change is meant, "
        f"--allow_mismatch={difference.name}; or start a new run with another --run_dir"
        for difference in found
        if difference.dangerous and difference.name not in accept
    ]
    if problems:
        raise UserError(*problems)


def compare(state: RunState | None, now: dict[str, Any], accept: str | None) -> bool:
    """Compare with the checkpoint that training is about to resume from, and log what differs.

    Args:
        state: Of the checkpoint; None: there is none, or another program wrote it.
        now: The facts of this start.
        accept: What --allow_mismatch names.

    Returns:
        Whether the epoch that it stands in starts over.

    Raises:
        UserError: A dangerous difference is not accepted.
    """
    if state is None:
        return False
    found = differences(state.facts, now)
    refuse(found, accepted(accept))
    if found:
        log.info("mismatch with the checkpoint: %s", "; ".join(map(str, found)))
    return another_order(found)


def another_order(found: Iterable[Difference]) -> bool:
    """Whether the epoch that the checkpoint stands in has to begin anew."""
    return any(difference.name in _ORDER for difference in found)


def _flat(known: dict[str, Any]) -> dict[str, Any]:
    packages = known.get("packages") or {}
    return {**{name: value for name, value in known.items() if name != "packages"}, **packages}


def _short(value: Any) -> str:
    """A value as a person tells it from another: digests by their first digits."""
    text = "none" if value is None else str(value)
    kind, found, digest = text.partition("sha256:")
    return f"{kind}{found}{digest[:12]}"
