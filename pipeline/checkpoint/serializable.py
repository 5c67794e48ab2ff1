"""Make sure that what is saved will load again without executing pickled code."""

import dataclasses
import datetime
import decimal
import enum
import io
import re
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError

_MAPPINGS = (dict, OrderedDict)
_SAFE: frozenset[type] = frozenset({torch.Tensor, str, bytes, bool, int, float, complex, type(None)})
_INSTEAD: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (np.ndarray, "torch.from_numpy() or .tolist() of it"),
    ((datetime.date, datetime.time), ".isoformat() of it"),
    (datetime.timedelta, ".total_seconds() of it"),
    (enum.Enum, ".value of it"),
    ((PurePath, uuid.UUID, decimal.Decimal), "str() of it"),
    ((set, frozenset), "a sorted list of it"),
)


def plain(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the same content, with numpy's numbers (of a learning rate schedule, say) as Python's.

    Raises:
        UserError: Something in it would not load again with `torch.load(..., weights_only=True)`; all of it by name.
    """
    found: dict[tuple[str, type], list[str]] = {}
    for path, kind in _refused(checkpoint, ""):
        found.setdefault((re.sub(r"\[\d+\]", "[]", path), kind), []).append(path)
    problems = [
        f"{paths[0]}{f' (and {len(paths) - 1} more like it)' * (len(paths) > 1)} is a {kind.__module__}."
        f"{kind.__qualname__}, which no checkpoint can hold: it would not load again without executing pickled code. "
        f"{_advice(paths[0], kind)}"
        for (_, kind), paths in found.items()
    ]
    if problems:
        raise UserError(*problems)
    made: dict[str, Any] = _plain(checkpoint)
    return made


def _advice(path: str, kind: type) -> str:
    """Return what to keep instead of something."""
    instead = next(
        (how for known, how in _INSTEAD if issubclass(kind, known)),
        "numbers, strings, tensors, or lists and dictionaries of them",
    )
    if dataclasses.is_dataclass(kind):
        instead = "dataclasses.asdict() of it"
    part, _, rest = path.partition(".")
    name = rest.partition(".")[0].partition("[")[0]
    if part == "hyper_parameters":
        return f"Give the model {instead}, or leave it out by self.save_hyperparameters(ignore=[{name!r}])"
    return f"Return {instead} from {f'state_dict of {name}' if part == 'callbacks' else 'on_save_checkpoint'}"


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in _MAPPINGS:
        made = type(value)()
        for key, each in value.items():
            made[key if type(key) in _SAFE else _plain(key)] = each if type(each) in _SAFE else _plain(each)
        if attributes := getattr(value, "__dict__", None):  # such as the `_metadata` of a state_dict
            vars(made).update(_plain(attributes))
        return made
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value


def _refused(value: Any, path: str) -> Iterator[tuple[str, type]]:
    """Yield what is of a type that does not load again, and where."""
    if type(value) in _MAPPINGS:
        for key, each in value.items():
            # Asked here, for most are: a call for each number of a long state is what a save would stop for.
            if type(key) not in _SAFE:
                yield from _refused(key, f"the key {key!r} of {path or 'the checkpoint'}")
            if type(each) not in _SAFE:
                yield from _refused(each, f"{path}.{key}" if path else str(key))
        if attributes := getattr(value, "__dict__", None):
            yield from _refused(attributes, path)
    elif type(value) in (list, tuple):
        for index, each in enumerate(value):
            if type(each) not in _SAFE:
                yield from _refused(each, f"{path}[{index}]")
    if type(value) in _SAFE or (isinstance(value, np.generic) and isinstance(value.item(), tuple(_SAFE))):
        return
    if type(value) in (*_MAPPINGS, list, tuple) or isinstance(value, torch.nn.Parameter):
        return
    if not _loads(value):
        yield path, type(value)


def _loads(value: Any) -> bool:
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception:  # noqa: BLE001 - pickle may raise anything; whatever it is, it does not load
        return False
    return True
