"""What a user may wish for an epoch of training, in the place of each sample once: weights, lengths, classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pipeline.data.orders import BalancedOrder, LengthOrder, Order, WeightedOrder
from pipeline.data.sample_values import class_names, numbers_of, values_of
from pipeline.errors import UserError

_TOLD = 5


@dataclass(frozen=True)
class Wish:
    """At most one of `weights`, `group_by_length` and `balance`; none is each sample once, in any order.

    Attributes:
        weights: Of the samples: an attribute or method of the dataset, a `.npy` file, or one number for each.
        samples_per_epoch: How many samples are drawn by their weights; None: as many as there are.
        group_by_length: Where the lengths of the samples are: an attribute or method of the dataset, or a `.npy` file;
            True stands for `lengths`.
        balance: Whether smaller classes are repeated (`oversample`) or larger ones left out (`undersample`) in part.
        targets: Where the classes of the samples are, as above; None stands for `targets`.
        group: Samples of an optimizer step, the same at any world size; None: it depends on that.
    """

    weights: str | Sequence[float] | None = None
    samples_per_epoch: int | None = None
    group_by_length: str | bool = False
    balance: Literal["oversample", "undersample"] | None = None
    targets: str | None = None
    group: int | None = None

    def problems(self) -> list[str]:
        """Return what is wrong with it, whatever the dataset is."""
        asked = {
            "weights": self.weights is not None,
            "group_by_length": self.group_by_length is not False,
            "balance": self.balance is not None,
        }
        names = [f"data.{name}" for name, is_asked in asked.items() if is_asked]
        found = []
        if len(names) > 1:
            found.append(f"{' and '.join(names)} each say what an epoch visits: choose one of them")
        if self.samples_per_epoch is not None and self.samples_per_epoch < 1:
            found.append(f"data.samples_per_epoch={self.samples_per_epoch} must be >= 1")
        if self.samples_per_epoch is not None and not asked["weights"]:
            found.append(
                f"data.samples_per_epoch={self.samples_per_epoch} says how many samples data.weights draws, and there "
                "are no weights: name them, or limit epochs by trainer.limit_train_batches"
            )
        if self.targets is not None and not asked["balance"]:
            found.append(
                f"data.targets={self.targets!r} names the classes for data.balance, which is not asked for: add "
                "data.balance=oversample or undersample"
            )
        if asked["group_by_length"] and self.group is None:
            found.append(
                "data.group_by_length groups the samples of an optimizer step, which must be the same at any number of "
                "processes: give data.global_batch_size (batch_size x processes x accumulate_grad_batches) in the "
                "place of data.batch_size"
            )
        return found

    def order(self, dataset: Any) -> Order | None:
        """Return the order that it is for a dataset; None: the plain one.

        Raises:
            UserError: The dataset does not have what it needs.
            OSError: A file is not there, or its storage does not answer.
        """
        if self.weights is not None:
            return self._weighted(dataset, self.weights)
        if self.group_by_length is not False:
            source = "lengths" if self.group_by_length is True else self.group_by_length
            assert self.group is not None
            return LengthOrder(numbers_of(dataset, source, "data.group_by_length"), self.group)
        return None if self.balance is None else self._balanced(dataset, self.balance)

    def _weighted(self, dataset: Any, source: str | Sequence[float]) -> Order:
        weights = numbers_of(dataset, source, "data.weights")
        if not weights.any():
            raise UserError(f"data.weights: all {len(weights)} are 0, so that no sample can be drawn")
        return WeightedOrder(weights, self.samples_per_epoch or len(weights))

    def _balanced(self, dataset: Any, how: str) -> Order:
        key = "data.targets"
        targets = values_of(dataset, self.targets or "targets", key)
        if targets.dtype.kind == "f" and not np.isfinite(targets).all():
            at = int(np.flatnonzero(~np.isfinite(targets))[0])
            raise UserError(f"{key}: sample {at} has {targets[at]}, which is no class")
        try:
            classes, numbers = np.unique(targets, return_inverse=True)
        except TypeError as error:
            raise UserError(f"{key}: classes must be all numbers or all texts ({error})") from error
        names = class_names(dataset)
        if missing := _without_samples(names, classes):
            shown = ", ".join(missing[:_TOLD]) + (", ..." if len(missing) > _TOLD else "")
            raise UserError(
                f"data.balance={how}: of the {len(names)} classes that the dataset lists, {len(missing)} have no "
                f"sample ({shown}), so that no balance is possible: leave them out of its `classes`, or add samples"
            )
        if len(classes) < 2:
            raise UserError(f"data.balance={how}: {key} has one class only ({classes[0]!s}), and nothing to balance")
        return BalancedOrder(numbers.astype(np.int32), how)


def _without_samples(names: list[str], classes: Any) -> list[str]:
    """Return the classes that no sample is of, as far as they are told by their place or by name."""
    present: set[Any] = set(classes.tolist())
    if classes.dtype.kind in "biu":
        return [f"{at} {name!r}" for at, name in enumerate(names) if at not in present]
    return [repr(name) for name in names if name not in present] if present <= set(names) else []


def cached(wish: Wish) -> Callable[[Any], Order | None]:
    """Return what gives a wish's order for a dataset, and keeps it: its numbers are read and sorted once."""
    kept: list[tuple[Any, Order | None]] = []

    def order(dataset: Any) -> Order | None:
        if not kept or kept[0][0] is not dataset:
            kept[:] = [(dataset, wish.order(dataset))]
        return kept[0][1]

    return order
