"""One value for each sample of a dataset, such as its length, its class or a weight: by name, from a file or a list."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Subset

from pipeline.data.number_file import is_file, read_numbers
from pipeline.data.parts import everything_in, within
from pipeline.errors import UserError, did_you_mean

_ORDERED = (list, tuple, np.ndarray, torch.Tensor)


class _Missing(Exception):
    """A dataset that has no values of that name."""


def values_of(dataset: Any, source: str | Sequence[float], key: str) -> npt.NDArray[Any]:
    """Return one value for each sample of a dataset.

    Args:
        dataset: Of the samples; parts of a dataset, and several as one, are looked through.
        source: The name of an attribute or method of the dataset, the path or URL of a `.npy` file, or the values.
        key: The configuration's for it, for messages.

    Returns:
        (samples,) Numbers or texts.

    Raises:
        UserError: There are none, or not one for each sample.
        OSError: A file is not there, or its storage does not answer.
    """
    size, name = len(dataset), f"{key}={source!r}" if isinstance(source, str) else key
    try:
        if not isinstance(source, str):
            found = _array(source)
        else:
            found = read_numbers(source, key) if is_file(source) else _column(dataset, source)
    except _Missing as error:
        lacking, said = error.args
        names = _names(lacking, len(lacking))
        raise UserError(
            f"{name}: {type(lacking).__name__} has no attribute or method {source!r} with a value for each sample"
            f"{said}{did_you_mean(str(source), names)}. Give the dataset one, name one of "
            f"{', '.join(names) or 'its own (it has none)'}, or a .npy file"
        ) from None
    except ValueError as error:  # rows of different lengths
        raise UserError(f"{name}: no array of one value for each sample can be made of it: {error}") from error
    if found.ndim != 1 or len(found) != size or found.dtype.kind not in "biufUSO":
        held = f"{found.dtype} {found.shape}"
        raise UserError(f"{name} gives {held}, and must give one number or text for each of the {size} samples")
    return found


def numbers_of(dataset: Any, source: str | Sequence[float], key: str) -> npt.NDArray[np.float64]:
    """Return one number >= 0 for each sample of a dataset; arguments and exceptions are those of `values_of`."""
    found, name = values_of(dataset, source, key), f"{key}={source!r}" if isinstance(source, str) else key
    if found.dtype.kind not in "biuf":
        raise UserError(f"{name} gives {found.dtype}, and must give numbers")
    numbers = found.astype(np.float64)
    wrong = {"are NaN": np.isnan(numbers), "are infinite": np.isinf(numbers), "are negative": numbers < 0}
    problems = [
        f"{name}: {count} of {len(numbers)} {what}, and must be finite and >= 0; the first is that of sample "
        f"{int(np.flatnonzero(which)[0])}"
        for what, which in wrong.items()
        if (count := int(which.sum()))
    ]
    if problems:
        raise UserError(*problems)
    return numbers


def class_names(dataset: Any) -> list[str]:
    """Return the names of the classes that a dataset lists as `classes`; empty where it does not."""
    for each in everything_in(dataset):
        found = getattr(each, "classes", None)
        if isinstance(found, (list, tuple)):
            return list(map(str, found))
        if len(within(each)) > 1:  # each may number its classes otherwise
            break
    return []


def _column(dataset: Any, name: str) -> npt.NDArray[Any]:
    own, said = getattr(dataset, name, None), ""
    if own is not None:
        return _array(own() if callable(own) else own)
    parts = within(dataset)
    if not parts and hasattr(type(dataset), name):  # a property that says why it has none
        try:
            getattr(dataset, name)
        except AttributeError as error:
            said = f" ({error})"
    if not parts:
        raise _Missing(dataset, said)
    if isinstance(dataset, Subset):
        return _column(parts[0], name)[np.asarray(dataset.indices, np.int64)]
    return np.concatenate([_column(each, name) for each in parts])


def _array(values: Any) -> npt.NDArray[Any]:
    if isinstance(values, torch.Tensor):
        return values.detach().cpu().numpy()
    return np.asarray(values)


def _names(dataset: Any, size: int) -> list[str]:
    """Return the attributes of a dataset that have a value for each sample."""
    return sorted(
        name
        for name, value in getattr(dataset, "__dict__", {}).items()
        if isinstance(value, _ORDERED) and not name.startswith("_") and np.shape(value)[:1] == (size,)
    )[:8]
