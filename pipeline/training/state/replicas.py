"""What of a checkpoint each replica of DDP has itself, told from what only one rank knows."""

from collections.abc import Callable, Iterator
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

Path = tuple[str | int, ...]
_PLACE = "pipeline: of the replica"


def replicated(checkpoint: dict[str, Any], model: torch.nn.Module) -> dict[Path, Tensor]:
    """Return the tensors that DDP keeps equal on all ranks, by where they are: trained parameters, optimizer states.

    Buffers are not among them: rank 0's count, and the other ranks get them before each forward.

    Args:
        checkpoint: As this rank's trainer holds it, not copied.
        model: That is trained.
    """
    trained = {_identity(each) for each in model.parameters() if each.requires_grad}
    return {
        path: value
        for path, value in _tensors(checkpoint, ())
        if _identity(value) in trained or (path[0] == "optimizer_states" and value.dim() > 0)
    }


def signature(replica: dict[Path, Tensor]) -> int:
    """Return a number that differs where replicas hold other tensors, or the same ones elsewhere."""
    return crc32(repr([(path, value.dtype, value.shape) for path, value in replica.items()]).encode())


def without(checkpoint: dict[str, Any], replica: dict[Path, Tensor]) -> dict[str, Any]:
    """Return a checkpoint with places in the place of these tensors."""
    made: dict[str, Any] = _replace(checkpoint, (), lambda path, value: (_PLACE, *path) if path in replica else value)
    return made


def filled(checkpoint: Any, replica: dict[Path, Tensor]) -> Any:
    """Return a checkpoint with these tensors in their places.

    Raises:
        KeyError: One of them is missing.
    """
    if isinstance(checkpoint, dict):
        return {key: filled(value, replica) for key, value in checkpoint.items()}
    if isinstance(checkpoint, tuple) and checkpoint[:1] == (_PLACE,):
        return replica[checkpoint[1:]]
    if isinstance(checkpoint, (list, tuple)):
        return type(checkpoint)(filled(value, replica) for value in checkpoint)
    return checkpoint


def size(checkpoint: dict[str, Any]) -> int:
    """Return the bytes of a checkpoint's tensors, each storage once."""
    storages = (value.untyped_storage() for _, value in _tensors(checkpoint, ()))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.device


def _tensors(value: Any, path: Path) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _tensors(each, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, each in enumerate(value):
            yield from _tensors(each, (*path, index))


def _replace(value: Any, path: Path, replace: Callable[[Path, Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return replace(path, value)
    if isinstance(value, dict):
        return {key: _replace(each, (*path, key), replace) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_replace(each, (*path, index), replace) for index, each in enumerate(value))
    return value
