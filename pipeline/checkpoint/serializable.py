"""Make sure that what is saved will load again without executing pickled code."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from pipeline.errors import UserError

_SAFE = (torch.Tensor, str, bytes, bool, int, float, complex, type(None))


def plain(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the same content, with numpy's numbers (of a learning rate schedule, say) as Python's.

    Raises:
        UserError: Something in it would not load again with `torch.load(..., weights_only=True)`; all of it by name.
    """
    problems = [
        f"{path} is a {kind.__module__}.{kind.__qualname__}, which no checkpoint can hold: it would not load again "
        "without executing pickled code. Give it as numbers, strings, tensors, or lists and dictionaries of them"
        for path, kind in _refused(checkpoint, "")
    ]
    if problems:
        raise UserError(*problems)
    made: dict[str, Any] = _plain(checkpoint)
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {_plain(key): _plain(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value


def _refused(value: Any, path: str) -> Iterator[tuple[str, type]]:
    """Yield what is of a type that does not load again, and where."""
    if type(value) is dict:
        for key, each in value.items():
            yield from _refused(key, f"the key {key!r} of {path or 'the checkpoint'}")
            yield from _refused(each, f"{path}.{key}" if path else str(key))
    elif type(value) in (list, tuple):
        for index, each in enumerate(value):
            yield from _refused(each, f"{path}[{index}]")
    if type(value) in _SAFE or (isinstance(value, np.generic) and isinstance(value.item(), _SAFE)):
        return
    if type(value) in (dict, list, tuple) or isinstance(value, torch.nn.Parameter):
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
