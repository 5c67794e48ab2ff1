"""What all formats have in common: batches that are fetched whole, transforms with seeds, and names to choose from."""

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from pipeline.data.sample_seeding import seeded
from pipeline.data.whole_batch import rows
from pipeline.errors import UserError, did_you_mean, install_command

Rows = npt.NDArray[np.int64]
"""(n,) int64: the samples that a batch asks for, each within the dataset."""


class Batched(Dataset[Any]):
    """A map-style dataset whose batches are fetched whole: several samples cost little more than one.

    `targets` and `lengths` are there where the format has them: sequences of whole numbers, one for each sample, by
    which an order is balanced or grouped.

    Args:
        transform: Called with each sample; what it draws from torch's, numpy's and Python's global generators depends
            on (seed, epoch, index) alone.
        as_tuple: Whether samples and batches of several fields are tuples instead of mappings.
    """

    deterministic = True

    def __init__(self, transform: Callable[[Any], Any] | None = None, as_tuple: bool = False) -> None:
        self.transform = transform
        self.as_tuple = as_tuple

    def __len__(self) -> int:
        raise NotImplementedError

    def fetch(self, indices: Rows) -> Any:
        """Return a whole batch: a tuple or mapping of tensors and lists with one row for each index."""
        raise NotImplementedError

    def prepare_data(self) -> None:
        """Have what is needed on this node, once; each process opens it from there."""
        len(self)

    def __getitem__(self, index: int) -> Any:
        return rows(self.__getitems__([index]))[0]

    def __getitems__(self, indices: Sequence[int], seeds: npt.NDArray[np.uint64] | None = None) -> Any:
        """A whole batch, or a list of samples where they are transformed.

        Raises:
            IndexError: A sample is not in the dataset.
        """
        wanted, size = np.asarray(indices, np.int64), len(self)
        wanted = np.where(wanted < 0, wanted + size, wanted)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= size):
            raise IndexError(f"{type(self).__name__} has {size} samples, and was asked for {list(indices)}")
        fetched = self.fetch(wanted)
        if self.as_tuple and isinstance(fetched, Mapping):
            fetched = tuple(fetched.values())
        if self.transform is None:
            return fetched
        samples = rows(fetched)
        if seeds is None:
            return [self.transformed(sample) for sample in samples]
        found = []
        for sample, seed in zip(samples, seeds.tolist(), strict=True):
            with seeded(seed):
                found.append(self.transformed(sample))
        return found

    def transformed(self, sample: Any) -> Any:
        """Return a sample as the transform makes it."""
        assert self.transform is not None
        return self.transform(sample)


def load_library(module: str, extra: str, needed_by: str) -> Any:
    """Return an optional library's module.

    Raises:
        UserError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise UserError(
            f"{needed_by} needs {name}, which cannot be imported ({error}): install it where this runs, on every node, "
            f"{install_command(extra)}"
        ) from error


def choose(asked: Sequence[str] | None, there: Iterable[str], what: str, kind: str = "column") -> list[str]:
    """Return the names that were asked for, or all that there are.

    Args:
        asked: None for all.
        there: The names that exist.
        what: What has them, for the message.
        kind: What they are.

    Raises:
        UserError: Some do not exist.
    """
    known = list(there)
    if asked is None:
        return known
    shown = ", ".join(known[:40]) or "none"
    problems = [
        f"{what} has no {kind} {name!r} (it has {shown}){did_you_mean(name, known)}"
        for name in dict.fromkeys(asked)
        if name not in known
    ]
    if not asked:
        problems.append(f"{what}: at least one {kind} must be named (it has {shown})")
    if problems:
        raise UserError(*problems)
    return list(dict.fromkeys(asked))


def stacked(values: list[Any]) -> Any:
    """Return numbers, and tensors of one shape, as one tensor, as torch's collate function would; all else as it is."""
    kinds = {type(each) for each in values}
    if len(kinds) == 1 and kinds <= {int, float, bool}:
        return torch.tensor(values, dtype=torch.float32 if kinds == {float} else None)
    alike = {(each.shape, each.dtype) if isinstance(each, torch.Tensor) else None for each in values}
    return torch.stack(values) if len(alike) == 1 and None not in alike else values


def as_classes(values: Any, what: str) -> list[int]:
    """Return targets as whole numbers.

    Raises:
        UserError: They are something else.
    """
    found = values.numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if found.ndim != 1 or found.dtype.kind not in "biu":
        raise UserError(
            f"{what} must be one whole number for each sample, to be used as `targets`; it is {found.dtype}"
        )
    return [int(each) for each in found.tolist()]
